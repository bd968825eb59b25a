"""The guest's part in its own sleep: directories of the host are let go before, and taken up again after.

A VM whose memory is to be saved may have none of them mounted. Whoever asked for it may die in between: what is not
taken up again in time is taken up by us; the guest's own clock for that stands still while it sleeps.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from .away import FILE, SIGNAL, directory_of, is_below
from .clients import Client, Refused
from .kernels import NOTES, Kernel, session_members, write_private
from .settings import boot_id

# Seconds awake after which what was let go is taken up again.
PATIENCE = 60.0
RECORD = "sleep.json"

# $1: how often it is tried while somebody leaves, ten times a second; then the directories, the innermost first.
_LEAVE = r"""
tries=$1 busy=; shift
for point; do
  while mountpoint -q -- "$point" && ! umount -- "$point" 2>/dev/null; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || { busy=1; break; }
    sleep 0.1
  done
done
[ -z "$busy" ] || exit 3
! mountpoint -q /mnt/lima-cidata || umount /mnt/lima-cidata || true
sync
echo 3 >/proc/sys/vm/drop_caches
"""
# Its input is Lima's name of this start and the time in seconds since the epoch, a line each that may be empty; it ends
# when they do not come. Its arguments are the directories.
_RETURN = r"""
read -r iid && read -r now || exit 0
failed=
[ -z "$now" ] || date -s "@$now" >/dev/null
if [ -n "$iid" ]; then for file in ssh-ready boot-done; do echo "$iid" >"/run/lima-$file"; done; fi
# Another who needs it may mount it in the same moment.
for point; do mount -- "$point" || mountpoint -q -- "$point" || failed=1; done
# Nobody waits for that.
cdrom=/dev/disk/by-label/cidata
if [ -e "$cdrom" ]; then
  {
    mountpoint -q /mnt/lima-cidata ||
      mount -t iso9660 -o ro,mode=0700,dmode=0700,overriderockperm,exec,uid=0 "$cdrom" /mnt/lima-cidata
  } &
fi
[ -z "$failed" ] || exit 3
"""
# Everything that processes hold, as root sees it; no look at what is held itself.
_HELD = r"""
cd /proc && find [0-9]*/cwd [0-9]*/root [0-9]*/exe [0-9]*/fd [0-9]*/map_files -maxdepth 1 -type l -printf '%p\t%l\0' \
  2>/dev/null || true
"""
# Tenths of a second.
_TRIES = 50
_LOOK_TIMEOUT = 20.0


class State(enum.Enum):
    """Where the guest is on its way to sleep and back."""

    AWAKE = "awake"
    LEAVING = "leaving"
    AWAY = "away"
    RETURNING = "returning"


class Sleep:
    """Lets go of the host's directories, and takes them up again.

    :param root: where a record survives us.
    :param on_return: called when all is as it was.
    """

    def __init__(self, root: str, kernels: Mapping[str, Kernel], on_return: Callable[[], None]) -> None:
        self._on_return = on_return
        self._file = os.path.join(root, RECORD)
        self._kernels = kernels
        self._state = State.AWAKE
        self._points: list[str] = []
        self._deadline = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        # What is begun before we sleep, for it takes longer than what it then does: it waits for what it is to do.
        self._returner: subprocess.Popen[bytes] | None = None
        self._asked: tuple[Client, object] | None = None
        # Who wanted us to leave, while it is there; and who wants us back while something is under way.
        self._leaver: Client | None = None
        self._next: tuple[Client, dict[str, Any]] | None = None
        # What is answered once all is as it was.
        self._held: list[dict[str, Any]] | None = None
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            self._take_over()

    @property
    def is_awake(self) -> bool:
        """Whether directories of the host are where they belong."""
        return self._state is State.AWAKE

    def _take_over(self) -> None:
        """Know what an earlier forkserver let go of in this boot."""
        with open(self._file, encoding="utf-8") as file:
            record = json.load(file)
        if record["boot"] == boot_id():
            self._points = [str(point) for point in record["points"]]
            self._is_away()

    # Operations

    def leave(self, client: Client, request: dict[str, Any]) -> dict[str, Any] | None:
        """Unmount directories; the client is told who works, or what is held, if that is in the way."""
        if self._state is not State.AWAKE:
            raise Refused("it is about to sleep already")
        busy = [name for name, kernel in self._kernels.items() if kernel.code is None and kernel.busy]
        if busy and not request["force"]:
            return {"ok": {"is_away": False, "busy": busy}}
        self._points = _innermost_first(request["mounts"])
        with contextlib.suppress(OSError):
            write_private(self._file, {"boot": boot_id(), "points": self._points})
        self._send_away()
        self._asked = (client, request["id"])
        self._leaver = client
        try:
            self._leave()
        except OSError:
            self._awake()
            raise
        return None

    def come_back(self, client: Client, request: dict[str, Any]) -> dict[str, Any] | None:
        """Mount them again, and tell the guest the time and the name that Lima gave its new start."""
        if self._process is not None:
            self._next = (client, request)
            return None
        self._points = self._points or _innermost_first(request["mounts"])
        self._asked = (client, request["id"])
        self._return(str(request["iid"]), "%.3f" % float(request["now"]))
        return None

    # What is under way

    def _leave(self) -> None:
        self._process = _as_root(_LEAVE, str(_TRIES), *self._points)
        self._state = State.LEAVING
        with contextlib.suppress(OSError):
            self._returner = _as_root(_RETURN, *reversed(self._points), stdin=subprocess.PIPE)

    def _return(self, iid: str, now: str) -> None:
        returner, self._returner = self._returner, None
        if returner is None or returner.poll() is not None or self._state is not State.AWAY:
            if returner is not None:
                returner.communicate()
            missing = [point for point in reversed(self._points) if not os.path.ismount(point)]
            returner = _as_root(_RETURN, *missing, stdin=subprocess.PIPE)
        self._process = returner
        self._state = State.RETURNING
        assert returner.stdin is not None
        with contextlib.suppress(BrokenPipeError), returner.stdin as pipe:
            pipe.write(f"{iid}\n{now}\n".encode())

    def _is_away(self) -> None:
        self._state = State.AWAY
        self._deadline = time.monotonic() + PATIENCE

    def _awake(self) -> None:
        self._state = State.AWAKE
        self._leaver = None
        self._call_back()
        self._on_return()
        self._points = []
        with contextlib.suppress(OSError):
            os.unlink(self._file)

    def pids(self) -> Iterator[int]:
        """Yield the processes whose end is waited for."""
        for process in (self._process, self._returner):
            if process is not None:
                yield process.pid

    def abandon(self) -> None:
        """Let go, in a child, of what is the parent's."""
        if self._returner is not None and self._returner.stdin is not None:
            self._returner.stdin.close()

    def deadlines(self) -> Iterator[float]:
        """Yield when nobody comes any more, in monotonic seconds."""
        if self._state is State.AWAY:
            yield self._deadline

    def look(self) -> None:
        """Do what is due."""
        if self._state is State.AWAY and time.monotonic() >= self._deadline:
            self._deadline = time.monotonic() + PATIENCE
            with contextlib.suppress(OSError):
                self._return("", "")

    def reap(self) -> None:
        """Take notice of a program that has ended."""
        if self._process is None or (code := self._process.poll()) is None:
            return
        self._process = None
        if self._state is State.LEAVING and not code:
            self._is_away()
            self._answer({"ok": {"is_away": True}})
            if self._leaver is None:
                self._return("", "")
        elif self._state is State.LEAVING:
            self._held = list(self._holders())
            self._return("", "")
        else:
            self._awake()
            held, self._held = self._held, None
            if held is not None:
                self._answer({"ok": {"is_away": False, "held": held}})
            elif code:
                self._answer({"error": "a directory of the host could not be mounted again"})
            else:
                self._answer({"ok": {}})
            if self._next is not None:
                (client, request), self._next = self._next, None
                self.come_back(client, request)

    def _answer(self, answer: dict[str, Any]) -> None:
        asked, self._asked = self._asked, None
        if asked is not None:
            asked[0].send({"id": asked[1], **answer})

    def forget(self, client: Client) -> None:
        """Take notice that a client is gone."""
        if self._asked is not None and self._asked[0] is client:
            self._asked = None
        if self._next is not None and self._next[0] is client:
            self._next = None
        if self._leaver is client:
            # It was killed, or cut off, before we slept: it cannot want that any more.
            self._leaver = None
            if self._state is State.AWAY:
                with contextlib.suppress(OSError):
                    self._return("", "")

    # Kernels, and other processes

    def _send_away(self) -> None:
        """Let kernels leave the directories."""
        for kernel in self._told():
            if is_below(directory_of(kernel.pid), self._points):
                with contextlib.suppress(OSError):
                    with open(_order(kernel), "w", encoding="utf-8", errors="surrogateescape") as out:
                        out.write("\0".join(self._points))
                    os.kill(kernel.pid, SIGNAL)

    def _call_back(self) -> None:
        """Let those that left come back."""
        for kernel in self._told():
            with contextlib.suppress(OSError):
                os.unlink(_order(kernel))
                os.kill(kernel.pid, SIGNAL)

    def _told(self) -> Iterator[Kernel]:
        """Yield the kernels that can be told: a program that is no kernel of ours would be ended by the signal."""
        for kernel in self._kernels.values():
            if kernel.code is None and os.path.exists(os.path.join(kernel.directory, NOTES)):
                yield kernel

    def _holders(self) -> Iterator[dict[str, Any]]:
        """Yield what processes hold of the directories."""
        argv = ["sudo", "-n", "sh", "-c", _HELD]
        try:
            found = subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=_LOOK_TIMEOUT, check=True
            ).stdout
        except (OSError, subprocess.SubprocessError):
            return
        seen = set()
        for entry in found.decode(errors="surrogateescape").split("\0"):
            source, _, target = entry.partition("\t")
            pid = source.partition("/")[0]
            if pid.isdigit() and (pid, target) not in seen and is_below(target, self._points):
                seen.add((pid, target))
                names = {"program": _program(int(pid)), "kernel": self._kernel_of(int(pid))}
                yield {"pid": int(pid), "path": target, **names}

    def _kernel_of(self, pid: int) -> str:
        for name, kernel in self._kernels.items():
            if kernel.pid == pid or pid in session_members(kernel.pid):
                return name
        return ""


def _as_root(script: str, *arguments: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    argv = ["sudo", "-n", "sh", "-c", script, "sh", *arguments]
    return subprocess.Popen(argv, stdin=stdin, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")


def _order(kernel: Kernel) -> str:
    return os.path.join(kernel.directory, FILE)


def _innermost_first(points: Iterable[object]) -> list[str]:
    return sorted(map(str, points), key=len, reverse=True)


def _program(pid: int) -> str:
    try:
        with open("/proc/%d/comm" % pid, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
