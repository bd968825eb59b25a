"""What a start is doing, for whoever watches: phases, not percentages."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from typing import NamedTuple


class Phase(enum.Enum):
    """The phases of a kernel's start, in their order; the value is what a person reads."""

    CHECK = "looking for the VM"
    CREATE = "creating the VM"
    BOOT = "booting the VM"
    CONNECT = "waiting for SSH"
    SESSION = "waiting for the guest's user session"
    MOUNT = "waiting for the notebook's directory"
    PROVISION = "waiting for Python in the guest"
    SCRIPTS = "waiting for the environment's provision scripts"
    FORKSERVER = "starting the guest's forkserver"
    KERNEL = "starting the kernel"
    FORWARD = "forwarding the channels"
    READY = "ready"


class Step(NamedTuple):
    """One phase that has begun; ``elapsed`` is in seconds since the start began."""

    instance: str
    phase: Phase
    elapsed: float
    detail: str = ""


Listener = Callable[[Step], None]


class Progress:
    """Tells a listener of each phase as it begins, and remembers the present one for messages."""

    def __init__(self, instance: str, listener: Listener) -> None:
        self.instance = instance
        self.phase = Phase.CHECK
        self._listener = listener
        self._began = time.monotonic()

    def restart(self) -> None:
        """Begin to count elapsed time anew."""
        self._began = time.monotonic()

    def enter(self, phase: Phase, detail: str = "") -> None:
        """Say that a phase begins."""
        self.phase = phase
        self._listener(Step(self.instance, phase, time.monotonic() - self._began, detail))
