"""What holds in a directory: a program for a guest's Python, with the host's hands behind its stdin and stdout.

It prints a JSON line for each thing that it wants done on the host and reads a line with what came of it; the last line
is the result. Alone (``--alone``) it is its own host: on any plain disk everything holds then.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import json
import mmap
import os
import select
import shutil
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

# Seconds: what is seen later is called not seen.
PATIENCE = 8.0
# Seconds: an event that is not there by then does not come.
EVENT_PATIENCE = 2.0
# How often two readers take turns: more often than attributes that are thought fresh can run out.
TURNS = 20


class Property(NamedTuple):
    group: str
    name: str
    test: Callable[[Here], bool]


PROPERTIES: list[Property] = []


def holds(group: str, name: str) -> Callable[[Callable[[Here], bool]], Callable[[Here], bool]]:
    """Enter a property; its name is the sentence that a reader sees."""

    def enter(test: Callable[[Here], bool]) -> Callable[[Here], bool]:
        PROPERTIES.append(Property(group, name, test))
        return test

    return enter


class Host:
    """What the host does in the directory; names are relative to it."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            path = os.path.join(self._directory, request["name"])
            return {"value": getattr(self, "do_" + request["do"])(path, **request["with"])}
        except OSError as error:
            return {"errno": error.errno}

    def do_stat(self, path: str) -> dict[str, int]:
        found = os.lstat(path)
        return {name: getattr(found, "st_" + name) for name in ("mode", "uid", "size", "mtime_ns", "nlink", "blocks")}

    def do_uid(self, path: str) -> int:
        return os.getuid()

    def do_free(self, path: str) -> int:
        return shutil.disk_usage(path).free

    def do_read(self, path: str) -> str:
        with open(path, encoding="utf-8") as file:
            return file.read()

    def do_write(self, path: str, text: str) -> None:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)

    def do_overwrite(self, path: str, text: str) -> None:
        with open(path, "r+", encoding="utf-8") as file:
            file.write(text)

    def do_append(self, path: str, text: str) -> None:
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)

    def do_replace(self, path: str, text: str) -> None:
        self.do_write(path + ".new", text)
        os.replace(path + ".new", path)

    def do_unlink(self, path: str) -> None:
        os.unlink(path)

    def do_chmod(self, path: str, mode: int) -> None:
        os.chmod(path, mode)

    def do_utime(self, path: str, ns: int) -> None:
        os.utime(path, ns=(ns, ns))

    def do_list(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def do_readlink(self, path: str) -> str:
        return os.readlink(path)

    def do_run(self, path: str) -> str:
        return subprocess.run([path], capture_output=True, text=True, check=False).stdout

    def do_is_locked(self, path: str, kind: str) -> bool:
        # In a process of its own: no process is in its own way with a POSIX lock.
        program = f"import fcntl, sys; fcntl.{kind}(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        argv = [sys.executable, "-c", program, path]
        return subprocess.run(argv, capture_output=True, check=False).returncode != 0


class Here:
    """A new directory for one property, as it sees it."""

    def __init__(self, root: str, name: str, ask: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self._name = name
        self._ask = ask
        self.directory = os.path.join(root, name)
        # How long the host's doing took to be seen here, at most.
        self.waited = 0.0
        os.mkdir(self.directory)

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def write(self, name: str, text: str = "text\n") -> str:
        with open(self.path(name), "w", encoding="utf-8") as file:
            file.write(text)
        return self.path(name)

    def read(self, name: str) -> str:
        with open(self.path(name), encoding="utf-8") as file:
            return file.read()

    def host(self, verb: str, name: str = "", **details: Any) -> Any:
        """Let the host do something, and return what comes of it."""
        answer = self._ask({"do": verb, "name": os.path.join(self._name, name), "with": details})
        if "errno" in answer:
            raise OSError(answer["errno"], "on the host: " + os.strerror(answer["errno"]), name)
        return answer["value"]

    def sees(self, condition: Callable[[], bool]) -> bool:
        """Wait until something of the host's is seen."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() > began + PATIENCE:
                return False
            time.sleep(0.02)
        self.waited = max(self.waited, time.monotonic() - began)
        return True


def together(*works: Callable[[], object]) -> bool:
    """Do everything in a process of its own, at the same time; false when one fails."""
    pids = []
    for work in works:
        pid = os.fork()
        if not pid:
            code = 1
            try:
                signal.alarm(60)
                work()
                code = 0
            except BaseException as error:
                print(repr(error), file=sys.stderr)
            finally:
                os._exit(code)
        pids.append(pid)
    return [os.waitpid(pid, 0)[1] for pid in pids] == [0] * len(pids)


def ran(*argv: str, **settings: Any) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, **settings)
    if done.returncode:
        raise OSError(0, f"{argv[0]}: exit code {done.returncode}: {done.stderr[-300:]}")
    return done.stdout


# Owner and mode


@holds("Owner and mode", "A file made in the guest belongs to the host's user")
def _(here: Here) -> bool:
    here.write("made")
    return here.host("stat", "made")["uid"] == here.host("uid")


@holds("Owner and mode", "A file made on the host belongs to the guest's user")
def _(here: Here) -> bool:
    here.host("write", "made", text="text\n")
    return here.sees(lambda: os.path.exists(here.path("made"))) and os.stat(here.path("made")).st_uid == os.getuid()


@holds("Owner and mode", "`chmod` is seen on the other side, each way")
def _(here: Here) -> bool:
    os.chmod(here.write("file"), 0o600)
    if here.host("stat", "file")["mode"] & 0o777 != 0o600 or os.stat(here.path("file")).st_mode & 0o777 != 0o600:
        return False
    here.host("chmod", "file", mode=0o640)
    return here.sees(lambda: os.stat(here.path("file")).st_mode & 0o777 == 0o640)


@holds("Owner and mode", "A file of mode 444 cannot be written")
def _(here: Here) -> bool:
    os.chmod(here.write("file"), 0o444)
    try:
        open(here.path("file"), "a").close()
    except PermissionError:
        return here.host("stat", "file")["mode"] & 0o777 == 0o444
    return False


@holds("Owner and mode", "A script made executable in the guest runs on both sides")
def _(here: Here) -> bool:
    os.chmod(here.write("script", "#!/bin/sh\necho ran\n"), 0o755)
    return ran(here.path("script")) == here.host("run", "script") == "ran\n"


@holds("Owner and mode", "`chown` to oneself is taken, as `tar` and `rsync` do it")
def _(here: Here) -> bool:
    os.chown(here.write("file"), os.getuid(), os.getgid())
    return os.stat(here.path("file")).st_gid == os.getgid()


@holds("Owner and mode", "Extended attributes (`user.*`)")
def _(here: Here) -> bool:
    os.setxattr(here.write("file"), "user.lima", b"value")
    return os.getxattr(here.path("file"), "user.lima") == b"value"


# Names and links


@holds("Names and links", "Symbolic links: relative, absolute, dangling")
def _(here: Here) -> bool:
    here.write("file")
    links = {"relative": "file", "absolute": here.path("file"), "dangling": "no/where"}
    for name, target in links.items():
        os.symlink(target, here.path(name))
    same = all(here.host("readlink", name) == os.readlink(here.path(name)) == links[name] for name in links)
    dangles = os.path.lexists(here.path("dangling")) and not os.path.exists(here.path("dangling"))
    return same and dangles and here.read("relative") == here.read("absolute") == "text\n"


@holds("Names and links", "Hard links can be made")
def _(here: Here) -> bool:
    os.link(here.write("one"), here.path("two"))
    with open(here.path("two"), "a") as file:
        file.write("more\n")
    return here.host("stat", "one")["nlink"] == 2 and here.sees(lambda: here.read("one") == "text\nmore\n")


@holds("Names and links", "Hard links are known to be one file (inode, link count)")
def _(here: Here) -> bool:
    os.link(here.write("one"), here.path("two"))
    one, two = os.stat(here.path("one")), os.stat(here.path("two"))
    return os.path.samestat(one, two) and two.st_nlink == 2


@holds("Names and links", "Unicode names as they are: composed and decomposed forms, letter case")
def _(here: Here) -> bool:
    names = sorted(["\u00e9", "e\u0301", "\u65e5\u672c \U0001f40d", "Case", "case"])
    for name in names:
        here.write(name)
    return sorted(os.listdir(here.directory)) == here.host("list") == names


@holds("Names and links", "Names that are not UTF-8")
def _(here: Here) -> bool:
    name = os.fsdecode(b"latin-\xe9")
    here.write(name)
    return here.read(name) == "text\n" and os.listdir(here.directory) == here.host("list") == [name]


@holds("Names and links", "Names of 255 bytes, and paths of 3,000")
def _(here: Here) -> bool:
    name = "n" * 255
    below = os.path.join(*[name] * 11, name)
    os.makedirs(os.path.dirname(here.path(below)))
    here.write(below)
    return here.read(below) == here.host("read", below) == "text\n"


# Files


@holds("Files", "A file that is replaced by a rename is never read half")
def _(here: Here) -> bool:
    here.write("file", "0" * 1000)

    def replace() -> None:
        try:
            for number in range(60):
                os.replace(here.write("new", str(number % 10) * 1000), here.path("file"))
        finally:
            here.write("done")

    def read() -> None:
        while not os.path.exists(here.path("done")):
            try:
                text = here.read("file")
            except FileNotFoundError:
                # Seen on sshfs, seldom: it takes two steps where the old file is open.
                continue
            if len(text) != 1000 or len(set(text)) != 1:
                raise ValueError(text)

    with open(here.path("file")):
        return together(replace, read)


@holds("Files", "An open file, and a directory with files, can be renamed")
def _(here: Here) -> bool:
    os.makedirs(here.path("one/deep"))
    with open(here.path("one/deep/file"), "w") as file:
        file.write("first ")
        file.flush()
        os.rename(here.path("one/deep/file"), here.path("one/file"))
        os.rename(here.path("one"), here.path("two"))
        file.write("second")
    return here.read("two/file") == here.host("read", "two/file") == "first second"


@holds("Files", "An open file that is deleted can still be read and written")
def _(here: Here) -> bool:
    with open(here.write("file"), "r+") as file:
        os.unlink(here.path("file"))
        gone = not os.path.exists(here.path("file"))
        file.seek(0, os.SEEK_END)
        file.write("more")
        file.seek(0)
        return gone and file.read() == "text\nmore"


@holds("Files", "A directory can be removed while a file deleted from it is open")
def _(here: Here) -> bool:
    os.mkdir(here.path("inner"))
    with open(here.write("inner/file")):
        os.unlink(here.path("inner/file"))
        os.rmdir(here.path("inner"))
        return here.host("list") == []


@holds("Files", "`O_EXCL`: of several processes one makes the file")
def _(here: Here) -> bool:
    def take() -> None:
        for number in range(20):
            try:
                fd = os.open(here.path(str(number)), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            except FileExistsError:
                continue
            os.close(fd)
            os.close(os.open(here.path(f"{number} by {os.getpid()}"), os.O_WRONLY | os.O_CREAT))

    return together(take, take, take) and len(os.listdir(here.directory)) == 40


@holds("Files", "`O_APPEND`: two processes lose none of each other's lines")
def _(here: Here) -> bool:
    def append() -> None:
        fd = os.open(here.path("log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for number in range(50):
            os.write(fd, b"%d-%03d\n" % (os.getpid(), number))
        os.close(fd)

    return together(append, append) and len(set(here.read("log").split())) == 100


@holds("Files", "An append after the host's append goes behind it")
def _(here: Here) -> bool:
    with open(here.write("log", "guest\n"), "a") as file:
        here.host("append", "log", text="host\n")
        file.write("guest again\n")
    return here.host("read", "log") == "guest\nhost\nguest again\n"


@holds("Files", "`truncate` cuts and lengthens, also what is open")
def _(here: Here) -> bool:
    with open(here.write("file"), "r+") as file:
        os.truncate(here.path("file"), 2)
        cut = file.read()
        os.ftruncate(file.fileno(), 4)
    return cut == "te" and here.read("file") == here.host("read", "file") == "te\0\0"


@holds("Files", "Sparse files beyond 4 GiB take no space on the host")
def _(here: Here) -> bool:
    with open(here.path("file"), "wb") as file:
        file.seek(5 << 30)
        file.write(b"end")
    with open(here.path("file"), "rb") as file:
        file.seek(5 << 30)
        found = here.host("stat", "file")
        return file.read() == b"end" and found["size"] == (5 << 30) + 3 and found["blocks"] * 512 < 1 << 20


@holds("Files", "`fsync` of a file, and of a directory")
def _(here: Here) -> bool:
    for path in (here.write("file"), here.directory):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    return True


@holds("Files", "What is written is on the host before the file is closed")
def _(here: Here) -> bool:
    with open(here.path("file"), "w") as file:
        file.write("written")
        file.flush()
        return here.sees(lambda: here.host("read", "file") == "written")


@holds("Files", "Times of change can be set, to the second")
def _(here: Here) -> bool:
    os.utime(here.write("file"), (1_000_000_000, 1_000_000_001))
    seen, there = os.stat(here.path("file")), here.host("stat", "file")
    return seen.st_mtime_ns == there["mtime_ns"] == 1_000_000_001 * 10**9 and seen.st_atime == 1_000_000_000


@holds("Files", "Times of change have parts of a second")
def _(here: Here) -> bool:
    here.host("write", "file", text="text\n")
    here.host("utime", "file", ns=1_000_000_001_123_456_789)
    return here.sees(lambda: os.path.exists(here.path("file"))) and (
        os.stat(here.path("file")).st_mtime_ns == 1_000_000_001_123_456_789
    )


@holds("Files", "The free space that is shown is the host's")
def _(here: Here) -> bool:
    return abs(here.host("free") - shutil.disk_usage(here.directory).free) < 1 << 30


# Locks, memory, sockets


def _excludes(here: Here, lock: Callable[[Any, int], None]) -> bool:
    """Tell whether a lock keeps another process of this machine out, and lets it in afterwards."""
    path = here.write("lock")
    free_r, free_w = os.pipe()

    def try_it() -> None:
        with open(path, "r+") as mine:
            try:
                lock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.write(free_w, b"1")
                lock(mine, fcntl.LOCK_EX)
                return
        raise ValueError("it was not locked")

    with open(path, "r+") as held:
        lock(held, fcntl.LOCK_EX)
        pid = os.fork()
        if not pid:
            # A fork shares what is open, and `flock` belongs to that.
            os.close(held.fileno())
            os._exit(0 if together(try_it) else 1)
        locked = bool(select.select([free_r], [], [], 10)[0])
    return os.waitpid(pid, 0)[1] == 0 and locked


@holds("Locks, memory, sockets", "`flock` between processes of the guest")
def _(here: Here) -> bool:
    return _excludes(here, fcntl.flock)


@holds("Locks, memory, sockets", "POSIX locks (`fcntl`) between processes of the guest")
def _(here: Here) -> bool:
    return _excludes(here, fcntl.lockf)


@holds("Locks, memory, sockets", "A lock that is taken in the guest holds on the host")
def _(here: Here) -> bool:
    with open(here.write("file"), "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        flock = here.host("is_locked", "file", kind="flock")
        fcntl.flock(file, fcntl.LOCK_UN)
        fcntl.lockf(file, fcntl.LOCK_EX)
        return flock and here.host("is_locked", "file", kind="lockf")


@holds("Locks, memory, sockets", "Memory maps: private, and read-only")
def _(here: Here) -> bool:
    with open(here.write("file", "text" * 5000), "rb") as file:
        private = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
        private[:4] = b"mine"
        shown = mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
        return private[:8] == b"minetext" and shown[19996:] == shown[:4] == b"text"


@holds("Locks, memory, sockets", "Shared memory maps: written by one process of the guest, seen by another")
def _(here: Here) -> bool:
    path = here.write("file", "-" * 8192)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mine:

        def change() -> None:
            with open(path, "r+b") as again, mmap.mmap(again.fileno(), 0) as theirs:
                theirs[5000:5004] = b"seen"

        return together(change) and mine[5000:5004] == b"seen"


@holds("Locks, memory, sockets", "A shared memory map that is flushed is on the host")
def _(here: Here) -> bool:
    with open(here.write("file", "-" * 8192), "r+b") as file, mmap.mmap(file.fileno(), 0) as mine:
        mine[5000:5004] = b"seen"
        mine.flush()
        return here.host("read", "file")[5000:5004] == "seen"


@holds("Locks, memory, sockets", "Unix sockets")
def _(here: Here) -> bool:
    # By a short path: a socket's own may have no more than 107 bytes.
    os.chdir(here.directory)
    try:
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
            listener.bind("s")
            listener.listen()
            client.connect("s")
            with listener.accept()[0] as accepted:
                client.sendall(b"hello")
                return accepted.recv(5) == b"hello"
    finally:
        os.chdir("/")


@holds("Locks, memory, sockets", "FIFOs (named pipes)")
def _(here: Here) -> bool:
    os.mkfifo(here.path("fifo"))
    fd = os.open(here.path("fifo"), os.O_RDWR)
    try:
        return together(lambda: here.write("fifo", "through")) and os.read(fd, 7) == b"through"
    finally:
        os.close(fd)


# What the host changes

EDITS = "What the host changes"


@holds(EDITS, "New and deleted files are seen")
def _(here: Here) -> bool:
    here.write("old")
    before = os.listdir(here.directory) == ["old"] and not os.path.exists(here.path("new"))
    here.host("write", "new", text="text\n")
    here.host("unlink", "old")
    return before and here.sees(
        lambda: os.path.exists(here.path("new")) and not os.path.exists(here.path("old")) and _listed(here) == ["new"]
    )


def _listed(here: Here) -> list[str]:
    return sorted(os.listdir(here.directory))


@holds(EDITS, "New content is seen when the file is opened again: longer, shorter, or of the same size")
def _(here: Here) -> bool:
    here.write("file", "first")
    for text in ("a longer one", "short", "SHORT"):
        here.read("file")
        here.host("write", "file", text=text)
        if not here.sees(lambda text=text: here.read("file") == text):
            return False
    return True


@holds(EDITS, "A file that is replaced by a rename, as editors save, is seen when it is opened again")
def _(here: Here) -> bool:
    here.write("file", "first")
    here.read("file")
    here.host("replace", "file", text="other")
    return here.sees(lambda: here.read("file") == "other")


@holds(EDITS, "Who has a file open that is replaced goes on with the old one")
def _(here: Here) -> bool:
    with open(here.write("file", "first"), "rb") as held:
        here.host("replace", "file", text="other")
        if not here.sees(lambda: here.read("file") == "other"):
            return False
        # In turns with who reads the new one: where both share their pages in memory, the holder gets them as long as
        # the attributes are thought fresh, and its own again when they have been asked for. One read could meet either.
        return all(here.read("file") == "other" and os.pread(held.fileno(), 5, 0) == b"first" for _ in range(TURNS))


@holds(EDITS, "New content is seen by who has the file open (`tail -f`)")
def _(here: Here) -> bool:
    here.write("log", "first\n")
    with open(here.path("log")) as file:
        before = file.read()
        here.host("append", "log", text="second\n")
        return before == "first\n" and here.sees(lambda: file.read() == "second\n")


@holds(EDITS, "New content is seen by who has the file in memory (`mmap`)")
def _(here: Here) -> bool:
    with (
        open(here.write("file", "-" * 100), "rb") as file,
        mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ) as shown,
    ):
        before = shown[:4]
        here.host("overwrite", "file", text="seen")
        return before == b"----" and here.sees(lambda: shown[:4] == b"seen")


class _Watch:
    """inotify(7) of one directory."""

    _EVENT = struct.Struct("iIII")
    # What is modified, closed after writing, moved, made and deleted; and touched, for that is what Lima's agent does.
    _MASK = 0x2 | 0x4 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200

    def __init__(self, directory: str) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self.fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if libc.inotify_add_watch(self.fd, os.fsencode(directory), self._MASK) < 0:
            raise OSError(ctypes.get_errno(), "inotify_add_watch")

    def names(self, wanted: set[str]) -> bool:
        """Tell whether each of the names comes in an event."""
        seen: set[str] = set()
        limit = time.monotonic() + EVENT_PATIENCE
        while not wanted <= seen:
            if not select.select([self.fd], [], [], max(0.0, limit - time.monotonic()))[0]:
                return False
            data = os.read(self.fd, 1 << 16)
            while data:
                length = self._EVENT.unpack_from(data)[3]
                name, data = data[self._EVENT.size :][:length], data[self._EVENT.size + length :]
                seen.add(os.fsdecode(name.rstrip(b"\0")))
        return True


@holds(EDITS, "inotify tells of what the guest itself changes")
def _(here: Here) -> bool:
    here.write("old")
    watch = _Watch(here.directory)

    def change() -> None:
        here.write("new")
        os.rename(here.path("old"), here.path("moved"))

    return together(change) and watch.names({"new", "moved"})


@holds(EDITS, "inotify tells of an edit on the host")
def _(here: Here) -> bool:
    here.write("old")
    watch = _Watch(here.directory)
    here.host("write", "old", text="edited")
    return watch.names({"old"})


@holds(EDITS, "inotify tells of new and deleted files on the host")
def _(here: Here) -> bool:
    here.write("old")
    watch = _Watch(here.directory)
    here.host("write", "new", text="new")
    here.host("unlink", "old")
    return watch.names({"new", "old"})


# Programs


def _shares_database(here: Here, journal: str) -> bool:
    """Tell whether two processes of the guest can write to one SQLite database."""
    path = here.path("data.sqlite")
    rows = 8

    def insert() -> None:
        with sqlite3.connect(path, timeout=50) as database:
            for number in range(rows):
                database.execute("INSERT INTO numbers VALUES (?)", (number,))
                database.commit()

    # In processes of their own all of it: a connection must not be carried through a fork.
    def make() -> None:
        database = sqlite3.connect(path)
        got = database.execute("PRAGMA journal_mode = " + journal).fetchone()[0]
        database.execute("CREATE TABLE numbers (number INTEGER)")
        database.commit()
        database.close()
        if got != journal:
            raise ValueError(got)

    def check() -> None:
        database = sqlite3.connect(path)
        found = database.execute("SELECT count(*) FROM numbers").fetchone()[0]
        whole = database.execute("PRAGMA integrity_check").fetchone()[0]
        if (found, whole) != (2 * rows, "ok"):
            raise ValueError(found, whole)

    return together(make) and together(insert, insert) and together(check)


@holds("Programs", "SQLite with a rollback journal, two processes of the guest")
def _(here: Here) -> bool:
    return _shares_database(here, "delete")


@holds("Programs", "SQLite with a write-ahead log (WAL), two processes of the guest")
def _(here: Here) -> bool:
    return _shares_database(here, "wal")


@holds("Programs", "`python -m venv`, and `pip install` into it")
def _(here: Here) -> bool:
    ran(sys.executable, "-m", "venv", "--without-pip", here.path("venv"))
    wheel = here.path("greeting-1-py3-none-any.whl")
    files = {
        "greeting.py": "def main():\n    print('hello')\n",
        "greeting-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: greeting\nVersion: 1\n",
        "greeting-1.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: us\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "greeting-1.dist-info/entry_points.txt": "[console_scripts]\ngreet = greeting:main\n",
        "greeting-1.dist-info/RECORD": "",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    python = here.path("venv/bin/python")
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "--no-cache-dir")
    ran(*pip, "install", "--quiet", "--no-index", wheel)
    return ran(here.path("venv/bin/greet")) == "hello\n"


@holds("Programs", "`git init`, `add`, `commit`, and a clean `status`")
def _(here: Here) -> bool:
    here.write("file")
    os.symlink("file", here.path("link"))
    who = ("-c", "user.name=me", "-c", "user.email=me@localhost", "-c", "init.defaultBranch=main")
    git = ("git", *who, "-C", here.directory)
    ran(*git, "init", "--quiet")
    ran(*git, "add", "--all")
    ran(*git, "commit", "--quiet", "--message", "first")
    return ran(*git, "status", "--porcelain") == "" and ran(*git, "ls-files") == "file\nlink\n"


def _ask(request: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps(request), flush=True)
    answer: dict[str, Any] = json.loads(sys.stdin.readline())
    return answer


def measure(root: str, ask: Callable[[dict[str, Any]], dict[str, Any]], wanted: list[str]) -> dict[str, Any]:
    """Try some properties, or all; tells which hold, why others do not, and how late the host was seen, in seconds."""
    results: dict[str, Any] = {"holds": {}, "why not": {}, "seen after": {}, "took": {}}
    for number, (_, name, test) in enumerate(PROPERTIES):
        if wanted and name not in wanted:
            continue
        here = Here(root, str(number), ask)
        began = time.monotonic()
        try:
            found = test(here)
        except Exception as error:
            results["why not"][name] = repr(error)
            found = False
        results["holds"][name] = found
        results["took"][name] = round(time.monotonic() - began, 2)
        if here.waited:
            results["seen after"][name] = round(here.waited, 2)
    return results


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("directory")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    os.umask(0o022)
    ask = Host(options.directory).answer if options.alone else _ask
    print(json.dumps({"results": measure(options.directory, ask, options.names)}))


if __name__ == "__main__":
    main()
