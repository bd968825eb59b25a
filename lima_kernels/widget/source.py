"""Where a panel's news come from, and what it says to it: the messages of ``lima_kernels.watch.cards``, and some more.

A panel is told ``{"type": "lost", "message", "hint", "final"}`` when nothing more comes until there is a snapshot
again, or for ever. It asks by ``{"type": "act", "ref", "vm", "verb", "arguments", "yes"}``; the answer is
``{"type": "acted", "ref", "job"}``, or ``{"type": "refused", "ref", "message", "hint", "context"}`` where nothing comes
of it. ``{"type": "cancel", "job"}`` ends a job.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..magics.backend import LimaError
from .pending import Message

Tell = Callable[[Message], None]


class Link(Protocol):
    """A watch that goes on until it is closed; nothing of it blocks."""

    def say(self, message: Message) -> None:
        """Say something: act, cancel, visible, follow."""

    def close(self) -> None:
        """Watch no longer; may be called twice."""


class Source(Protocol):
    """Where news of VMs come from."""

    @property
    def default(self) -> str:
        """The VM that is meant when none is named."""

    @property
    def own(self) -> str:
        """The VM that this process lives in; empty on a host."""

    def open(self, name: str, tell: Tell) -> Link:
        """Begin to watch a VM, or all of them when the name is empty; the first message is a snapshot.

        :param tell: is called in any thread, and does not block.
        :raises LimaError: when that cannot be.
        """


def lost(error: LimaError, *, is_final: bool) -> Message:
    """Return what is told when nothing more comes."""
    return {"type": "lost", "message": error.message, "hint": error.hint, "final": is_final}


def refused(ref: str, error: LimaError) -> Message:
    """Return the answer to what nothing comes of."""
    return {
        "type": "refused",
        "ref": ref,
        "message": error.message,
        "hint": error.hint,
        "context": list(error.context),
    }
