"""One kernel's process as the forkserver knows it, and the record from which a new forkserver takes it over."""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import shutil
import signal
import socket
import time
from typing import Any

from . import deaths
from .wire import Wire

RECORD = "kernel.json"
RECORD_VERSION = 1
CONNECTION_FILE = "connection.json"
OUTPUT_LOG = "output.log"
# A kernel's socket for notes; a name no longer than those of its channels.
NOTES = "n"
CHANNELS = 5
# Where a kernel asks its host.
CONTROL = "control"
# The last lines of a kernel's raw output say why it died; what a cell prints does not go there.
_LOG_TAIL = 50
_LOG_BYTES = 8192
# A kernel that does not tell whether it is busy is taken to be so while it uses more than this share of one CPU.
_BUSY_SHARE = 0.02
# What a record holds.
_KINDS: dict[str, Any] = {
    "pid": int,
    "start": int,
    "owner": str,
    "keep": (int, float),
    "facts": dict,
    "started": (int, float),
}
# A busy kernel without an owner is looked at again after so many seconds.
BUSY_CHECK = 60.0


class Kernel:
    """One kernel.

    ``owner`` is the token of who may use it on the host; ``holder`` is that owner's connection while there is one.
    ``keep`` says for how many seconds it lives on without; ``facts`` are the host's, and mean nothing here.
    """

    def __init__(self, name: str, directory: str, request: dict[str, Any]) -> None:
        self.name = name
        self.directory = directory
        self.owner: str = request["owner"]
        self.keep = seconds(request["keep"])
        self.facts: dict[str, Any] = dict(request.get("facts") or {})
        self.started = time.time()
        self.pid = 0
        self.pidfd: int | None = None
        self.code: int | None = None
        self.reason = ""
        # None when the kernel does not say.
        self.busy: bool | None = None
        self.holder: object = None
        self.unheld_since = time.monotonic()
        self.link: Wire | None = None
        self.oom_kills = deaths.oom_kills()
        self._looked: tuple[float, int] | None = None

    # The record

    def save(self) -> None:
        """Write what a new forkserver needs, in one step."""
        record = {
            "version": RECORD_VERSION,
            "pid": self.pid,
            "start": process_start(self.pid),
            "owner": self.owner,
            "keep": self.keep,
            "facts": self.facts,
            "started": self.started,
        }
        write_private(os.path.join(self.directory, RECORD), record)

    @classmethod
    def take_over(cls, name: str, directory: str) -> Kernel | None:
        """Return a kernel of an earlier forkserver, or None when it has ended; what it left is removed then."""
        record = read_record(os.path.join(directory, RECORD))
        if record is not None and process_start(record["pid"]) == record["start"]:
            kernel = cls(name, directory, record)
            kernel.pid, kernel.started = record["pid"], record["started"]
            with contextlib.suppress(OSError):
                # Not our child: its end is seen, its exit code is not.
                kernel.pidfd = os.pidfd_open(kernel.pid)
                return kernel
        shutil.rmtree(directory, ignore_errors=True)
        return None

    def connection(self) -> Any:
        """Return the connection file's content."""
        with open(os.path.join(self.directory, CONNECTION_FILE), encoding="utf-8") as file:
            return json.load(file)

    # Its state

    def describe(self) -> dict[str, Any]:
        return {
            "pid": self.pid,
            "code": self.code,
            "reason": self.reason,
            "busy": self.busy,
            "held": self.holder is not None,
            "facts": self.facts,
            "started": self.started,
        }

    def hear(self, link: Wire, data: bytes) -> None:
        """Take what the kernel says of itself: cells begin (B), or all have ended (I)."""
        if data:
            self.busy = data.endswith(b"B")
        else:
            link.close()

    def channel(self, number: int) -> str:
        """Return the path of one of its sockets; the numbers are those of the connection file."""
        return os.path.join(self.directory, "c-%d" % number)

    def is_bound(self) -> bool:
        """Tell whether all of its sockets are there."""
        return all(os.path.exists(self.channel(number + 1)) for number in range(CHANNELS))

    def log_tail(self) -> list[str]:
        try:
            with open(os.path.join(self.directory, OUTPUT_LOG), "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_BYTES))
                return file.read().decode(errors="replace").splitlines()[-_LOG_TAIL:]
        except OSError:
            return []

    def note(self, text: str) -> None:
        """Show a line on the stderr of the cell that runs, or of the next; a program that is not ours shows none."""
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto(text.encode(), os.path.join(self.directory, NOTES))

    def exited(self, code: int) -> None:
        """Take its end down, with the reason as far as it can be found."""
        self.code = code
        self.reason = deaths.explain(self.pid, code, self.oom_kills)
        if self.link is not None:
            self.link.close()
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None

    def release(self, client: object) -> None:
        """Begin to count the time without an owner when this client held it."""
        if self.holder is client:
            self.holder = None
            self.unheld_since = time.monotonic()
            self._looked = None

    def expires(self) -> float | None:
        """Return when, in monotonic seconds, it will have been without an owner for too long; None for never."""
        if self.holder is not None:
            return None
        return max(self.unheld_since + self.keep, (self._looked[0] + BUSY_CHECK) if self._looked else 0.0)

    def is_busy(self) -> bool:
        """Tell whether it works; called at :meth:`expires`, and then every minute."""
        if self.code is not None:
            return False
        if self.busy is not None:
            self._looked = (time.monotonic(), 0)
            return self.busy
        now, used = time.monotonic(), cpu_ticks(self.pid)
        before, self._looked = self._looked, (now, used)
        if before is None:
            return True
        share = (used - before[1]) / os.sysconf("SC_CLK_TCK") / max(now - before[0], 1.0)
        return share > _BUSY_SHARE

    def signal(self, signum: int) -> None:
        """Signal its process group."""
        if self.code is None:
            try:
                os.killpg(self.pid, signum)
            except ProcessLookupError:
                # The child calls setsid first thing; until it has, there is no group of its own.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signum)

    def end(self) -> None:
        """Kill every process of its session, and wait for its own."""
        end_session(self.pid)
        if self.code is None:
            if self.pidfd is not None:
                select.select([self.pidfd], [], [], 5.0)
                self.exited(-int(signal.SIGKILL))
            else:
                # A child that has not come to its setsid yet is of no session of its own.
                with contextlib.suppress(OSError):
                    os.kill(self.pid, signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    self.exited(os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]))

    def ended_by_itself(self) -> bool:
        """Reap it when it has ended; tells whether it has just done so."""
        if self.code is not None:
            return False
        if self.pidfd is not None:
            if not select.select([self.pidfd], [], [], 0)[0]:
                return False
            self.exited(-int(signal.SIGKILL))
            self.reason = self.reason or "how is not known: the forkserver had been started anew meanwhile"
            return True
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self.exited(os.waitstatus_to_exitcode(status))
        return bool(pid)


def write_private(path: str, value: object) -> None:
    """Write JSON in one step, for our eyes only."""
    incoming = path + ".new"
    with open(os.open(incoming, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump(value, file)
    os.replace(incoming, path)


def read_record(path: str) -> dict[str, Any] | None:
    """Return a kernel's record; None when it is missing, damaged or of another version."""
    try:
        with open(path, encoding="utf-8") as file:
            record: dict[str, Any] = json.load(file)
        known = record["version"] == RECORD_VERSION and record["pid"] > 1 and math.isfinite(record["keep"])
        return record if known and all(isinstance(record[name], kind) for name, kind in _KINDS.items()) else None
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return None


def seconds(value: Any) -> float:
    """Return a time that can be reckoned with.

    :raises ValueError: when it is none.
    """
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("%s is no number of seconds" % value)
    return number


def _stat(pid: int) -> list[str]:
    with open("/proc/%d/stat" % pid, encoding="ascii", errors="replace") as file:
        # The second field is the program's name in parentheses, which may hold anything.
        return file.read().rpartition(")")[2].split()


def process_start(pid: int) -> int | None:
    """Return when a process began, in clock ticks since boot (proc(5), field 22); with its id it names it."""
    try:
        fields = _stat(pid)
        return None if fields[0] == "Z" else int(fields[19])
    except (OSError, IndexError, ValueError):
        return None


def session_members(leader: int) -> list[int]:
    members = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if os.getsid(int(entry)) == leader:
                    members.append(int(entry))
    return members


def cpu_ticks(leader: int) -> int:
    """Return the CPU time that a session's processes have used, in clock ticks."""
    used = 0
    for pid in session_members(leader):
        with contextlib.suppress(OSError, IndexError, ValueError):
            used += sum(int(field) for field in _stat(pid)[11:13])
    return used


def end_session(leader: int) -> None:
    """Kill every process of a session: the kernel's own group, and the groups of what it started."""
    for pid in session_members(leader):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
