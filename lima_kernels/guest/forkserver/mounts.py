"""Directories of the host that were added to the running guest: an sshfs for each, and who uses it.

sshfs runs by itself and goes on when the forkserver is started anew. Whenever it wants an SFTP server it runs
:mod:`join`, which hands us its socket; the host is told, and carries it.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .clients import Client, Refused
from .kernels import write_private
from .mount import RECORD_VERSION, Mount, State
from .streams import Stream, Streams

# Who uses a mount that somebody wants to have, kernel or no kernel.
KEPT = ""
# Seconds that a mount stays without a user: a kernel that is restarted is another kernel.
LINGER = 5.0
_LOG_BYTES = 2048
# After the point comes a file that names the first directory on the way that was made for the mount. That and the
# record are on the disk before the directory is, so also a guest that loses its power leaves none behind.
_MOUNT = r"""
point=$1 made=$2 record=$3
shift 3
# A mount whose server is gone answers to nothing but this.
if LC_ALL=C timeout 10 stat -- "$point" 2>&1 | grep -q 'endpoint is not connected'; then
  fusermount3 -u -z "$point" || sudo -n umount -l -- "$point"
fi
directory=$point first=
while [ ! -e "$directory" ]; do first=$directory; directory=$(dirname -- "$directory"); done
[ -d "$directory" ] || { echo "$directory is not a directory in the guest"; exit 1; }
[ -z "$first" ] || { printf %s "$first" >"$made"; sync "$made" "$record" || sync; }
[ -d "$point" ] || mkdir -p -- "$point" 2>/dev/null || sudo -n mkdir -p -- "$point" || exit 1
[ -w "$point" ] || sudo -n chown "$(id -u):$(id -g)" -- "$point" || exit 1
exec sshfs "$@"
"""
_UNMOUNT = r"""
fusermount3 -u "$1" || fusermount3 -u -z "$1"
directory=$1 first=$(cat "$2" 2>/dev/null)
while [ -n "$first" ] && sudo -n rmdir -- "$directory" && [ "$directory" != "$first" ]; do
  directory=$(dirname -- "$directory")
done
rm -f "$2"
"""


def _is_served(source: str) -> bool:
    """Tell whether the sshfs of a mount lives; a look at the mount itself could have to wait for the host."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError), open("/proc/%s/cmdline" % entry, "rb") as file:
                words = file.read().split(b"\0")
                if os.fsencode(source) in words and any(os.path.basename(word) == b"sshfs" for word in words[:2]):
                    return True
    return False


class Mounts:
    """Every mount of this forkserver.

    :param directory: has a record for each, and the socket that :mod:`join` knows.
    :param tell: sends an event to every client.
    """

    def __init__(
        self,
        directory: str,
        selector: selectors.BaseSelector,
        streams: Streams,
        tell: Callable[[dict[str, Any]], None],
    ) -> None:
        self._directory = directory
        self._streams = streams
        self._tell = tell
        self._mounts: dict[str, Mount] = {}
        os.makedirs(directory, exist_ok=True)
        self._door = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._door.setblocking(False)
        self._door_path = os.path.join(directory, "join")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._door_path)
        self._door.bind(self._door_path)
        selector.register(self._door, selectors.EVENT_READ, self._join)
        self._take_over()

    def _file(self, name: str, suffix: str) -> str:
        return os.path.join(self._directory, name + suffix)

    def _take_over(self) -> None:
        """Know the mounts that an earlier forkserver left; one whose sshfs has ended is cleaned up."""
        for entry in os.listdir(self._directory):
            name, suffix = os.path.splitext(entry)
            if suffix == ".json":
                try:
                    with open(self._file(name, suffix), encoding="utf-8") as file:
                        record = json.load(file)
                    mount = Mount(name, record)
                    known = record["version"] == RECORD_VERSION
                except (OSError, ValueError, LookupError, TypeError, RecursionError):
                    known = False
                if not known:
                    os.unlink(self._file(name, suffix))
                    continue
                self._mounts[name] = mount
                if _is_served(mount.source):
                    mount.state = State.MOUNTED
                else:
                    # As after a boot: whoever used it is gone with it, or is told, and asks for it anew.
                    mount.users.clear()
                    self._end(mount)

    def is_mounted(self, path: str) -> bool:
        """Tell whether a path lies on one of these mounts, without looking at it."""
        return any(mount.covers(os.path.normpath(path)) for mount in self._mounts.values())

    # Operations

    def mount(self, client: Client, request: dict[str, Any]) -> dict[str, Any] | None:
        """Mount, or have one more user; the client is answered when it is mounted."""
        name, user = request["mount"], str(request["user"])
        if not name.isalnum():
            raise Refused("a mount's name must be alphanumeric")
        mount = self._mounts.get(name)
        if mount is None:
            if not request["options"]:
                raise Refused("it is not mounted any more")
            mount = Mount(name, {**request, "users": [user]})
            self._start(mount)
            self._mounts[name] = mount
        elif (mount.point, mount.read_only) != (request["point"], bool(request["read_only"])):
            raise Refused("it is mounted already, %s" % ("read-only" if mount.read_only else "writable"))
        mount.users.add(user)
        mount.unused_since = None
        if user != KEPT:
            mount.announced[user] = client
        if mount.state is State.MOUNTED:
            self._save(mount)
            return {"ok": {}}
        mount.waiting.append((client, request["id"]))
        return None

    def unmount(self, client: Client, request: dict[str, Any]) -> dict[str, Any] | None:
        """Have one user less, or none any more; the client is answered with who is left, when all is done."""
        mount = self._find(request)
        mount.users.discard(str(request["user"]))
        if mount.users:
            self._save(mount)
            return {"ok": {"users": sorted(mount.users)}}
        if mount.state is State.STARTING and mount.process is not None:
            # It may wait for a host that does not serve it.
            mount.process.kill()
        elif mount.state is State.MOUNTED:
            self._end(mount)
        mount.leaving.append((client, request["id"]))
        return None

    def describe(self, _client: Client, _request: dict[str, Any]) -> dict[str, Any]:
        """Describe every mount."""
        return {"ok": {name: mount.describe() for name, mount in self._mounts.items()}}

    def claim(self, _client: Client, request: dict[str, Any]) -> dict[str, Any]:
        """Let a process of the host serve a mount; the client is told whether sshfs waits for that just now."""
        mount = self._find(request)
        if mount.owner != request["owner"]:
            # What an earlier one served, it alone could go on with.
            self._streams.close(mount.owner)
            mount.owner = request["owner"]
        return {"ok": {"joining": mount.joined is not None}}

    def stream(self, request: dict[str, Any]) -> Stream:
        """Return the stream to a mount's sshfs: one that is known, or a new one where sshfs waits for it."""
        mount = self._find(request)
        if request["owner"] != mount.owner:
            raise Refused("the mount is served by another process")
        stream = self._streams.find(request["token"], mount.owner)
        if stream is None:
            if mount.joined is None or not request.get("new"):
                raise Refused("there is no such stream")
            joined, mount.joined = mount.joined, None
            stream = self._streams.open(request["token"], joined, mount.owner)
            stream.on_hang_up = lambda: self._hung_up(mount)
        return stream

    def _find(self, request: dict[str, Any]) -> Mount:
        mount = self._mounts.get(request["mount"])
        if mount is None:
            raise Refused("there is no mount %s in the guest" % request["mount"])
        return mount

    # Users

    def know(self, kernels: Iterable[str]) -> None:
        """Forget users that are no kernels (any more), as after a forkserver's end."""
        known = {KEPT, *kernels}
        for mount in self._mounts.values():
            for user in mount.users - known:
                mount.users.discard(user)
                self._used_less(mount)

    def removed(self, kernel: str) -> None:
        """Take notice that a kernel is no more."""
        for mount in self._mounts.values():
            if kernel in mount.users:
                mount.users.discard(kernel)
                mount.announced.pop(kernel, None)
                self._used_less(mount)

    def forget(self, client: Client, kernels: Iterable[str]) -> None:
        """Take notice that a client is gone: what it announced and did not make will not come."""
        known = set(kernels)
        for mount in self._mounts.values():
            mount.waiting = [(waiting, number) for waiting, number in mount.waiting if waiting is not client]
            mount.leaving = [(leaving, number) for leaving, number in mount.leaving if leaving is not client]
            for user in [user for user, speaker in mount.announced.items() if speaker is client]:
                del mount.announced[user]
                if user not in known:
                    mount.users.discard(user)
                    self._used_less(mount)

    def _used_less(self, mount: Mount) -> None:
        if not mount.users:
            mount.unused_since = time.monotonic()
        if mount.state is State.MOUNTED:
            self._save(mount)

    def deadlines(self) -> Iterator[float]:
        """Yield when a mount has been without a user for long enough, in monotonic seconds."""
        for mount in self._mounts.values():
            if mount.state is State.MOUNTED and mount.unused_since is not None:
                yield mount.unused_since + LINGER

    def look(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        for mount in list(self._mounts.values()):
            due = mount.state is State.MOUNTED and mount.unused_since is not None
            if due and not mount.users and now >= (mount.unused_since or 0.0) + LINGER:
                self._end(mount)

    # sshfs

    def _start(self, mount: Mount) -> None:
        mount.state = State.STARTING
        join = os.path.join(os.path.dirname(__file__), "join.py")
        words = [sys.executable, "-I", "-S", join, self._door_path, mount.name]
        if any(character in word for word in words for character in " ,\\"):
            raise Refused("sshfs cannot be told of a path such as in %s" % words)
        options = ["ssh_command=%s" % " ".join(words), "reconnect", *mount.options]
        if mount.read_only:
            options.append("ro")
        self._save(mount)
        argv = [mount.source, mount.point, *("-o" + option for option in options)]
        try:
            self._run(mount, _MOUNT, self._file(mount.name, ".json"), *argv)
        except OSError:
            self._forget(mount)
            raise

    def _end(self, mount: Mount) -> None:
        try:
            self._run(mount, _UNMOUNT)
        except OSError:
            # No process can be had just now.
            mount.state = State.MOUNTED
            mount.unused_since = time.monotonic()
        else:
            mount.state = State.ENDING
            mount.unused_since = None

    def _run(self, mount: Mount, script: str, *arguments: str) -> None:
        argv = ["sh", "-c", script, "sh", mount.point, self._file(mount.name, ".made"), *arguments]
        try:
            log = os.open(self._file(mount.name, ".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        except OSError:
            # A full disk is no reason to have no mount, nor to keep one.
            log = os.open(os.devnull, os.O_WRONLY)
        with open(log, "wb") as output:
            mount.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/", start_new_session=True
            )

    def pids(self) -> Iterator[int]:
        """Yield the processes whose end is waited for."""
        for mount in self._mounts.values():
            if mount.process is not None:
                yield mount.process.pid

    def reap(self) -> None:
        """Take notice of programs that have ended: sshfs has gone to the background, or failed, or was unmounted."""
        for mount in list(self._mounts.values()):
            if mount.process is not None and (code := mount.process.poll()) is not None:
                mount.process = None
                if mount.state is State.ENDING:
                    self._gone(mount)
                elif code == 0:
                    self._mounted(mount)
                else:
                    error = {"error": "sshfs ended with exit code %d" % code, "log": self._log(mount)}
                    waiting, mount.waiting = mount.waiting, []
                    mount.users.clear()
                    self._end(mount)
                    _answer(waiting, error)

    def _mounted(self, mount: Mount) -> None:
        mount.state = State.MOUNTED
        waiting, mount.waiting = mount.waiting, []
        _answer(waiting, {"ok": {}})
        self._used_less(mount)

    def _gone(self, mount: Mount) -> None:
        self._streams.close(mount.owner)
        if mount.joined is not None:
            mount.joined.close()
            mount.joined = None
        leaving, mount.leaving = mount.leaving, []
        _answer(leaving, {"ok": {"users": sorted(mount.users)}})
        if mount.users:
            # Wanted again meanwhile.
            self._start(mount)
            return
        del self._mounts[mount.name]
        self._forget(mount)
        self._tell({"event": "unmounted", "mount": mount.name})

    def _hung_up(self, mount: Mount) -> None:
        """sshfs closed its end: it has ended, or will ask for another."""
        if mount.state is State.MOUNTED and not _is_served(mount.source):
            mount.users.clear()
            self._end(mount)

    def _save(self, mount: Mount) -> None:
        # Without its record it is unknown to the next forkserver, and works all the same.
        with contextlib.suppress(OSError):
            write_private(self._file(mount.name, ".json"), mount.record())

    def _forget(self, mount: Mount) -> None:
        for suffix in (".json", ".log"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._file(mount.name, suffix))

    def _log(self, mount: Mount) -> list[str]:
        with contextlib.suppress(OSError), open(self._file(mount.name, ".log"), "rb") as file:
            return file.read(_LOG_BYTES).decode(errors="replace").splitlines()
        return []

    def _join(self, _mask: int) -> None:
        with contextlib.suppress(OSError):
            data, fds, _, _ = socket.recv_fds(self._door, 256, 1)
            for fd in fds:
                sock = socket.socket(fileno=fd)
                mount = self._mounts.get(data.decode(errors="replace"))
                if mount is None:
                    sock.close()
                    continue
                if mount.joined is not None:
                    mount.joined.close()
                mount.joined = sock
                self._tell({"event": "join", "mount": mount.name})

    def abandon(self) -> None:
        """Close our copies of the sockets, in a forked child."""
        self._door.close()
        for mount in self._mounts.values():
            if mount.joined is not None:
                mount.joined.close()


def _answer(clients: list[tuple[Client, object]], answer: dict[str, Any]) -> None:
    for client, number in clients:
        client.send({"id": number, **answer})
