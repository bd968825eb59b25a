"""What a start is doing, for whoever watches: phases, not percentages."""

from __future__ import annotations

import contextlib
import enum
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple

from . import records
from .errors import HostError


class Phase(enum.Enum):
    """The phases of a kernel's start, in their order; the value is what a person reads."""

    CHECK = "looking for the VM"
    STOPPING = "waiting for the VM to stop"
    CREATE = "creating the VM"
    BOOT = "booting the VM"
    WAKE = "waking the VM"
    HIBERNATE = "saving the VM's memory"
    CONNECT = "waiting for SSH"
    SESSION = "waiting for the guest's user session"
    MOUNT = "waiting for the notebook's directory"
    PROVISION = "waiting for Python in the guest"
    SCRIPTS = "waiting for the environment's provision scripts"
    FORKSERVER = "starting the guest's forkserver"
    ENVIRONMENT = "making the environment"
    KERNEL = "starting the kernel"
    FORWARD = "forwarding the channels"
    READY = "ready"


class Shared(records.Record, frozen=True, kw_only=True):
    """The phase that another process is in; ``phase`` is the name of a Phase, maybe of one that we do not know.

    ``began`` is when all of it began, in seconds since the epoch; ``expected`` is how many seconds it took before.
    """

    VERSION: ClassVar[int] = 1
    version: int = VERSION
    pid: int
    phase: str
    began: float | None = None
    expected: float | None = None


class Holder(NamedTuple):
    """A process that is at work on an instance, and what it does there; None when it does not say so."""

    pid: int
    phase: Phase | None
    began: float | None = None
    expected: float | None = None


def holder(file: Path) -> Holder | None:
    """Return who shares its phases in a file, or None when nobody has said anything."""
    found = records.read(file, Shared)
    if found is None:
        return None
    return Holder(found.pid, Phase.__members__.get(found.phase), found.began, found.expected)


class Step(NamedTuple):
    """One phase that has begun.

    :param elapsed: seconds since the start began.
    :param expected: seconds that such a start took before; None when there was none.
    """

    instance: str
    phase: Phase
    elapsed: float
    detail: str = ""
    expected: float | None = None

    @property
    def text(self) -> str:
        """What a person reads: the phase, and how long all of them took before."""
        detail = f" ({self.detail})" if self.detail else ""
        expected = f", {self.expected:.0f} s the last times" if self.expected else ""
        return f"{self.instance}: {self.phase.value}{detail}{expected}"


Listener = Callable[[Step], None]


class Progress:
    """Tells a listener of each phase as it begins, and remembers the present one for messages."""

    def __init__(self, instance: str, listener: Listener) -> None:
        self.instance = instance
        self.phase = Phase.CHECK
        # Seconds that such a start took before, where that is known.
        self.expected: float | None = None
        self._listener = listener
        # Whether the VM has to be made or booted.
        self.is_cold = False
        # Seconds since the epoch.
        self.began = time.time()
        self._began = time.monotonic()
        self._file: Path | None = None

    def restart(self) -> None:
        """Begin to count elapsed time anew."""
        self.phase = Phase.CHECK
        self.began = time.time()
        self._began = time.monotonic()
        self.expected = None
        self.is_cold = False

    @property
    def elapsed(self) -> float:
        """Seconds since the start began."""
        return time.monotonic() - self._began

    def enter(self, phase: Phase, detail: str = "") -> None:
        """Say that a phase begins."""
        self.phase = phase
        self.is_cold = self.is_cold or phase in (Phase.CREATE, Phase.BOOT)
        self._share()
        self._listener(Step(self.instance, phase, self.elapsed, detail, self.expected))

    @contextlib.contextmanager
    def shared(self, file: Path) -> Iterator[None]:
        """Write the present phase and all that begin in the block to a file, for other processes that wait for us."""
        self._file = file
        self._share()
        try:
            yield
        finally:
            self._file = None
            records.remove(file)

    def _share(self) -> None:
        # What others would like to know is no reason to fail.
        with contextlib.suppress(HostError):
            if self._file is not None:
                shared = Shared(pid=os.getpid(), phase=self.phase.name, began=self.began, expected=self.expected)
                records.write(self._file, shared)
