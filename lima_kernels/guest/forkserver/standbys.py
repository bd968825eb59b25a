"""The standbys of a forkserver: as many as the host wants, of the Python in which a kernel was started last."""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator

from . import environments, memory
from .child import Start
from .standby import UNSUITED
from .wire import Wire
from .zygote import BEGIN
from .zygotes import CannotFork, Order

# Seconds. The cells of a kernel that has just started come first.
PAUSE = 1.0
# There is none where less than this share of the guest's memory could be had.
_SPARE = 0.2


class Standby:
    """One of them.

    ``pid`` is 0 until it is born; ``ready`` and ``link`` are our ends, which are the kernel's once it is taken;
    ``on_prepared`` is called when it can become one.

    :param fingerprint: of what its environment had installed.
    """

    def __init__(self, selector: selectors.BaseSelector, directory: str, python: str, fingerprint: str) -> None:
        self.directory = directory
        self.python = python
        self.fingerprint = fingerprint
        self.pid = 0
        self.ready, self.their_ready = os.pipe()
        ours, self.their_link = socket.socketpair()
        self.link = Wire(selector, ours, self._hear)
        self.is_prepared = False
        self.on_prepared: Callable[[], None] = lambda: None

    def _hear(self, link: Wire, said: bytes) -> None:
        if said:
            self.is_prepared = True
            self.on_prepared()
        else:
            link.close()

    def abandon(self) -> None:
        """Close our copies of our ends, in a forked child."""
        if self.ready >= 0:
            os.close(self.ready)
        self.link.abandon()

    def close(self) -> None:
        """Close our ends; it ends then, if it still waits."""
        if self.ready >= 0:
            os.close(self.ready)
            self.ready = -1
        self.link.close()


class Standbys:
    """Every standby, and the order to make more.

    :param directory: has a directory for each kernel.
    :param fork: forks for an environment, or for our own Python where that is empty.
    """

    def __init__(self, directory: str, selector: selectors.BaseSelector, fork: Callable[[Order, str], None]) -> None:
        self._directory = directory
        self._selector = selector
        self._fork = fork
        self._wanted = 0
        self._python, self._venv = sys.executable, ""
        self._waiting: list[Standby] = []
        # Those that have not been reaped: whoever waits, or was given up.
        self._processes: dict[int, Standby] = {}
        # Pythons whose kernels read a configuration, as far as is known; until we are started anew.
        self._unsuited: set[str] = set()
        self._due: float | None = None

    def want(self, number: int) -> None:
        """Have so many of them from now on, at once."""
        self._wanted = number
        for standby in self._waiting[number:]:
            self.give_up(standby)
        self._due = time.monotonic()

    def renew(self, python: str, venv: str) -> None:
        """Have them of the Python in which a kernel has just started."""
        self._python, self._venv = python, venv
        self._due = time.monotonic() + PAUSE

    def take(self, python: str, venv: str) -> Standby | None:
        """Return one that can become a kernel of a Python, or will, if there is one; its end is for others to see."""
        for standby in self._waiting:
            if standby.pid and standby.python == python and standby.fingerprint == _fingerprint(venv):
                self._waiting.remove(standby)
                del self._processes[standby.pid]
                return standby
        return None

    def give_up(self, standby: Standby) -> None:
        """End one, whatever it is doing; what it left is removed."""
        if standby in self._waiting:
            self._waiting.remove(standby)
        standby.close()
        if standby.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(standby.pid, signal.SIGKILL)
        shutil.rmtree(standby.directory, ignore_errors=True)

    def deadlines(self) -> Iterator[float]:
        """Yield when there is something to do, in monotonic seconds."""
        if self._due is not None:
            yield self._due

    def look(self) -> None:
        """Make those that are missing; a child leaves by :class:`Spawned`."""
        if self._due is None or time.monotonic() < self._due:
            return
        self._due = None
        for standby in [standby for standby in self._waiting if standby.python != self._python]:
            self.give_up(standby)
        # Without room on the disk, or an environment that was removed, there is none until a kernel starts again.
        with contextlib.suppress(OSError):
            while len(self._waiting) < self._wanted and self._python not in self._unsuited and _has_spare_memory():
                self._make()

    def _make(self) -> None:
        fingerprint = _fingerprint(self._venv)
        directory = os.path.join(self._directory, secrets.token_hex(8))
        os.mkdir(directory, 0o700)
        standby = Standby(self._selector, directory, self._python, fingerprint)
        self._waiting.append(standby)
        start = Start({}, directory, None, standby.python, standby.their_ready, standby.their_link)
        order = Order(start, lambda answer: self._born(standby, answer))
        try:
            self._fork(order, self._venv)
        except OSError:
            order.close()
            self.give_up(standby)
            raise

    def _born(self, standby: Standby, answer: int | CannotFork) -> None:
        if isinstance(answer, CannotFork) or standby not in self._waiting:
            # A child of a zygote sees that its link is closed, and ends.
            self.give_up(standby)
            return
        standby.pid = answer
        self._processes[answer] = standby
        if self._venv:
            standby.link.send(BEGIN)

    def pids(self) -> Iterator[int]:
        """Yield the processes whose end we wait for."""
        yield from self._processes

    def reap(self) -> None:
        """Take notice of those that have ended."""
        for pid, standby in list(self._processes.items()):
            with contextlib.suppress(ChildProcessError):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if not ended:
                    continue
                if os.waitstatus_to_exitcode(status) == UNSUITED:
                    self._unsuited.add(standby.python)
            del self._processes[pid]
            standby.pid = 0
            if standby in self._waiting:
                self.give_up(standby)

    def abandon(self) -> None:
        """Close our copies of what belongs to the parent, in a forked child."""
        for standby in self._waiting:
            standby.abandon()


def _has_spare_memory() -> bool:
    use = memory.usage()
    return use["total"] - use["used"] >= _SPARE * use["total"]


def _fingerprint(venv: str) -> str:
    return environments.fingerprint(venv) if venv else ""
