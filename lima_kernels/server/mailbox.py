"""What one client has not been sent yet: filled in the I/O thread, emptied in the server's loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Hashable, Sequence
from contextlib import suppress

from ..watch.cards import CardChanged, CardGone, JobChanged, LogGrown, Message, Snapshot, UsageTaken

# Lines of a log that wait for a client; of more than that it is sent the last.
LOG_LINES = 1000


class Mailbox:
    """Keeps of each VM, job and log only what is newest, so that a slow client costs no more than a quick one.

    To be made in the loop that takes from it; :meth:`put` may be called in any thread, and never blocks.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._waiting: dict[Hashable, Message] = {}
        self._arrived = asyncio.Event()
        self._is_closed = False

    def put(self, message: Message) -> None:
        """Keep a message until it is taken, unless a newer one makes it old."""
        with self._lock:
            if self._is_closed:
                return
            self._keep(message)
        # A loop that has ended takes nothing more.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._arrived.set)

    def _keep(self, message: Message) -> None:
        if isinstance(message, Snapshot):
            logs = {key: waits for key, waits in self._waiting.items() if isinstance(waits, LogGrown)}
            self._waiting = {"snapshot": message, **logs}
            return
        key = _key(message)
        # What is told of a thing again has its place at the end, as it came.
        older = self._waiting.pop(key, None)
        if isinstance(message, LogGrown) and isinstance(older, LogGrown):
            message = LogGrown(message.name, [*older.lines, *message.lines][-LOG_LINES:])
        self._waiting[key] = message

    async def take(self) -> Sequence[Message]:
        """Wait for messages and return all that there are, in their order; none when the mailbox is closed."""
        while not self._is_closed:
            await self._arrived.wait()
            with self._lock:
                self._arrived.clear()
                taken, self._waiting = list(self._waiting.values()), {}
            if taken:
                return taken
        return ()

    def close(self) -> None:
        """Take nothing more, and end the wait for it; to be called in the loop."""
        with self._lock:
            self._is_closed = True
            self._waiting = {}
        self._arrived.set()


def _key(message: Message) -> Hashable:
    match message:
        case CardChanged():
            return "vm", message.vm.name
        case CardGone():
            return "vm", message.name
        case UsageTaken():
            return "usage", message.usage.name
        case JobChanged():
            return "job", message.job.id
        case LogGrown():
            return "log", message.name
    return type(message).__name__
