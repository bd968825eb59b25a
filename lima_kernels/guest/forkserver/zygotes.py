"""The zygotes of a forkserver: one for each Python in which kernels were started lately (:mod:`zygote`)."""

from __future__ import annotations

import contextlib
import enum
import json
import os
import selectors
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from . import environments
from .child import Start
from .zygote import CONTROL, FORK

_PROGRAM = os.path.dirname(os.path.abspath(__file__))
# prctl(2).
_PR_SET_CHILD_SUBREAPER = 36
_ANSWER = 8192
_LOG_BYTES = 8192
_LOG_TAIL = 50


class State(enum.Enum):
    """What a zygote does."""

    IMPORTING = "importing"
    WAITING = "waiting"
    FORKING = "forking"
    ENDING = "ending"


# For how many seconds it may do so.
LIMITS = {State.IMPORTING: 120.0, State.WAITING: 600.0, State.FORKING: 30.0, State.ENDING: 5.0}


class CannotFork(Exception):
    """A zygote cannot be had; its text says why, and ``log`` has what it said last."""

    def __init__(self, text: str, log: list[str]) -> None:
        super().__init__(text)
        self.log = log


class Order(NamedTuple):
    """A kernel that is to be forked.

    :param born: called with its process id, or with :class:`CannotFork`.
    """

    start: Start
    born: Callable[[int | CannotFork], None]

    def close(self) -> None:
        """Close our copies of what the kernel has."""
        os.close(self.start.ready)
        self.start.link.close()


class Zygote:
    """One of them, which may not be ready yet.

    :raises OSError: when its Python cannot be run.
    """

    def __init__(self, python: str, fingerprint: str, selector: selectors.BaseSelector) -> None:
        self._fingerprint = fingerprint
        self.state = State.IMPORTING
        self._python = python
        self._selector = selector
        self._since = time.monotonic()
        self._orders: deque[Order] = deque()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._said = os.memfd_create("said")
        try:
            self.pid = self._run(theirs.fileno())
        except Exception:
            os.close(self._said)
            self._control.close()
            raise
        finally:
            theirs.close()
        self._control.setblocking(False)
        selector.register(self._control, selectors.EVENT_READ, lambda _: self._hear())

    def _run(self, control: int) -> int:
        return os.posix_spawn(
            self._python,
            (self._python, _PROGRAM, "zygote"),
            os.environ,
            file_actions=(
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
                (os.POSIX_SPAWN_DUP2, 0, 1),
                (os.POSIX_SPAWN_DUP2, self._said, 2),
                (os.POSIX_SPAWN_DUP2, control, CONTROL),
            ),
            setsid=True,
            setsigdef=(signal.SIGPIPE,),
        )

    def _become(self, state: State) -> None:
        self.state = state
        self._since = time.monotonic()

    def is_good(self, fingerprint: str) -> bool:
        """Tell whether it can fork, from what is installed; while it works for somebody it is not asked about that."""
        if self.state is State.WAITING:
            return fingerprint == self._fingerprint
        return self.state is not State.ENDING

    def take(self, order: Order) -> None:
        """Fork a kernel when it is its turn."""
        self._orders.append(order)
        self._next()

    def drop(self, kernel: str) -> None:
        """Fork a kernel no more, if that has not begun."""
        begun = 1 if self.state is State.FORKING else 0
        for order in list(self._orders)[begun:]:
            if order.start.directory == kernel:
                self._orders.remove(order)
                order.close()

    def _next(self) -> None:
        if self.state is not State.WAITING or not self._orders:
            return
        start = self._orders[0].start
        said = json.dumps({"request": start.request, "directory": start.directory}).encode()
        try:
            with open(os.memfd_create("order"), "wb", buffering=0) as file:
                file.write(said)
                socket.send_fds(self._control, [FORK], [file.fileno(), start.ready, start.link.fileno()])
            self._become(State.FORKING)
        except OSError:
            # It has ended, of which we are about to be told; or we have no descriptors left, and it ends now.
            self._hang_up()

    def _hear(self) -> None:
        try:
            said = json.loads(self._control.recv(_ANSWER))
            if said.get("failure"):
                # It ends by itself.
                self._hang_up()
                self._fail(str(said["failure"]))
                return
            has_forked = self.state is State.FORKING
            self._become(State.WAITING)
            if has_forked:
                self._answer(said["pid"] if "pid" in said else self._error(str(said["error"])))
            self._next()
        except BlockingIOError:
            return
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            self._hang_up()

    def _answer(self, answer: int | CannotFork) -> None:
        order = self._orders.popleft()
        order.close()
        order.born(answer)

    def _error(self, text: str) -> CannotFork:
        return CannotFork(text, self._log())

    def _fail(self, text: str) -> None:
        """Tell all who wait."""
        while self._orders:
            self._answer(self._error(text))

    def _hang_up(self) -> None:
        if self.state is not State.ENDING:
            self._become(State.ENDING)
            self._selector.unregister(self._control)
            self._control.close()

    def ended(self, status: int) -> None:
        """Take its end down, which nobody asked for."""
        self._hang_up()
        code = os.waitstatus_to_exitcode(status)
        how = "was killed by signal %d" % -code if code < 0 else "ended with exit code %d" % code
        last = "".join(": " + line for line in self._log()[-1:])
        self._fail("the process of %s that forks kernels %s%s" % (self._python, how, last))
        os.close(self._said)

    def kill(self) -> None:
        """End it; whoever waits for it hears what it did not come to."""
        what = "import ipykernel" if self.state is State.IMPORTING else "fork a kernel"
        text = "%s did not %s within %.0f s" % (self._python, what, time.monotonic() - self._since)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._hang_up()
        self._fail(text)
        os.close(self._said)

    def deadline(self) -> float:
        """Return when it has done the same for too long, in monotonic seconds."""
        return self._since + LIMITS[self.state]

    def _log(self) -> list[str]:
        size = os.fstat(self._said).st_size
        text = os.pread(self._said, _LOG_BYTES, max(0, size - _LOG_BYTES)).decode(errors="replace")
        return text.splitlines()[-_LOG_TAIL:]

    def abandon(self) -> None:
        """Close our copies of what belongs to the parent, in a forked child."""
        self._control.close()
        os.close(self._said)
        for order in self._orders:
            order.close()


class Zygotes:
    """Every zygote, by its Python; none of them is ever waited for."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self._zygotes: dict[str, Zygote] = {}

    def fork(self, order: Order, venv: str) -> None:
        """Fork a kernel by the zygote of its Python, which is started where there is none.

        :raises OSError: when that cannot be.
        """
        python = order.start.python
        fingerprint = environments.fingerprint(venv)
        zygote = self._zygotes.get(python)
        if zygote is not None and not zygote.is_good(fingerprint):
            self._end(python)
            zygote = None
        if zygote is None:
            _take_orphans_in()
            zygote = self._zygotes[python] = Zygote(python, fingerprint, self._selector)
        zygote.take(order)

    def drop(self, directory: str) -> None:
        """Fork the kernel of a directory no more, if that has not begun."""
        for zygote in self._zygotes.values():
            zygote.drop(directory)

    @property
    def are_forking(self) -> bool:
        """Tell whether there may be a kernel of which we do not know yet."""
        return any(zygote.state is State.FORKING for zygote in self._zygotes.values())

    def pids(self) -> Iterator[int]:
        for zygote in self._zygotes.values():
            yield zygote.pid

    def _end(self, python: str) -> None:
        # Reaped with the orphans: it might take its time, on a mount whose host is away.
        self._zygotes.pop(python).kill()

    def deadlines(self) -> Iterator[float]:
        """Yield when one of them has to be looked at, in monotonic seconds."""
        for zygote in self._zygotes.values():
            yield zygote.deadline()

    def look(self) -> None:
        """End those that nobody used for long, and those that are stuck."""
        now = time.monotonic()
        for python, zygote in list(self._zygotes.items()):
            if now >= zygote.deadline():
                self._end(python)

    def reap(self) -> None:
        """Take notice of those that have ended."""
        for python, zygote in list(self._zygotes.items()):
            pid, status = os.waitpid(zygote.pid, os.WNOHANG)
            if pid:
                del self._zygotes[python]
                zygote.ended(status)

    def abandon(self) -> None:
        """Close our copies of what belongs to the parent, in a forked child."""
        for zygote in self._zygotes.values():
            zygote.abandon()


def _take_orphans_in() -> None:
    """Be the parent of those whose own parent below us has ended; may be called twice.

    :raises OSError: when the system does not do that.
    """
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(_PR_SET_CHILD_SUBREAPER, *map(ctypes.c_ulong, (1, 0, 0, 0))):
        code = ctypes.get_errno()
        raise OSError(code, "orphans cannot be taken in: " + os.strerror(code))


def reap_orphans(known: set[int]) -> None:
    """Reap children that nobody here waits for.

    :param known: those that somebody does wait for; one of them that has ended is to be reaped by whom it is known to,
        and what ended after it is found then.
    """
    with contextlib.suppress(ChildProcessError):
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if ended.si_pid in known:
                return
            os.waitpid(ended.si_pid, 0)


def is_child(pid: Any) -> bool:
    """Tell whether a process is our child, be it one that has ended."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except (OSError, TypeError, ValueError, OverflowError):
        return False
    return True
