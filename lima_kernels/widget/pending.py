"""What was told and nobody has taken yet: of each thing the newest only, so that who is slow costs no memory."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping
from typing import Any

Message = Mapping[str, Any]

# Lines of a log, and answers, that wait for whoever is slow.
LOG_LINES = 200
ANSWERS = 64
# What tells how all VMs are, and so makes older news of them void.
_VOID_BY_SNAPSHOT = ("snapshot", "vm", "job")


def _key(message: Message) -> tuple[str, Hashable]:
    """Return what a message tells of; the later message of the same is the one that counts."""
    kind = message["type"]
    if kind in ("vm", "gone"):
        return "vm", message["vm"]["name"] if kind == "vm" else message["name"]
    if kind == "job":
        return "job", message["job"]["id"]
    if kind == "usage":
        return "usage", message["usage"]["name"]
    if kind == "log":
        return "log", message["name"]
    if kind in ("snapshot", "lost"):
        return kind, ""
    return "answer", message["ref"]


class Pending:
    """Messages on their way from one thread to another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._messages: dict[tuple[str, Hashable], Message] = {}

    def add(self, message: Message) -> bool:
        """Keep a message; tells whether it is the first, and somebody has to be told that there is one."""
        with self._lock:
            was_empty = not self._messages
            key = _key(message)
            if key[0] == "snapshot":
                self._messages = {
                    other: kept for other, kept in self._messages.items() if other[0] not in _VOID_BY_SNAPSHOT
                }
            before = self._messages.pop(key, None)
            if key[0] == "log" and before is not None:
                message = {**message, "lines": [*before["lines"], *message["lines"]][-LOG_LINES:]}
            self._messages[key] = message
            if key[0] == "answer":
                answers = [other for other in self._messages if other[0] == "answer"]
                for other in answers[:-ANSWERS]:
                    del self._messages[other]
            return was_empty

    def take(self) -> list[Message]:
        """Return what there is, in the order in which it was told."""
        with self._lock:
            taken, self._messages = list(self._messages.values()), {}
            return taken
