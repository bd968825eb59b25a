"""An SFTP client of the tests' own: it can say whatever a hostile guest can, and shares no code with the server."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

# Seconds, against hanging only.
LIMIT = 30.0
INIT, OPEN, CLOSE, READ, WRITE, LSTAT, FSTAT, SETSTAT, FSETSTAT, OPENDIR, READDIR = 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12
REMOVE, MKDIR, RMDIR, REALPATH, STAT, RENAME, READLINK, SYMLINK, EXTENDED = 13, 14, 15, 16, 17, 18, 19, 20, 200
VERSION, STATUS, HANDLE, DATA, NAME, ATTRS, EXTENDED_REPLY = 2, 101, 102, 103, 104, 105, 201
OK, EOF, NO_SUCH_FILE, PERMISSION_DENIED, FAILURE, BAD_MESSAGE, OP_UNSUPPORTED = 0, 1, 2, 3, 4, 5, 8
# Of later versions of the protocol: sshfs makes EIO of them.
NO_MEDIA, NO_SPACE = 13, 14
F_READ, F_WRITE, F_APPEND, F_CREAT, F_TRUNC, F_EXCL = 1, 2, 4, 8, 16, 32
UID, GID = 4321, 8765
MIB = 1024 * 1024


def u32(value: int) -> bytes:
    return struct.pack(">I", value)


def u64(value: int) -> bytes:
    return struct.pack(">Q", value)


def string(value: bytes) -> bytes:
    return u32(len(value)) + value


def packet(kind: int, number: int, body: bytes = b"") -> bytes:
    return struct.pack(">IBI", len(body) + 5, kind, number) + body


def wanted(
    *,
    size: int | None = None,
    owner: tuple[int, int] | None = None,
    mode: int | None = None,
    times: tuple[int, int] | None = None,
) -> bytes:
    flags, body = 0, b""
    if size is not None:
        flags, body = flags | 1, body + u64(size)
    if owner is not None:
        flags, body = flags | 2, body + struct.pack(">II", *owner)
    if mode is not None:
        flags, body = flags | 4, body + u32(mode)
    if times is not None:
        flags, body = flags | 8, body + struct.pack(">II", *times)
    return u32(flags) + body


class Refused(Exception):
    """The server answered with a status that is not OK."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message


class Attributes(NamedTuple):
    size: int
    uid: int
    gid: int
    mode: int
    atime: int
    mtime: int


def read_attributes(body: bytes, at: int = 0) -> tuple[Attributes, int]:
    flags, *numbers = struct.unpack_from(">IQIIIII", body, at)
    assert flags == 0x0F
    return Attributes(*numbers), at + 32


def read_string(body: bytes, at: int = 0) -> tuple[bytes, int]:
    (length,) = struct.unpack_from(">I", body, at)
    end = at + 4 + length
    assert end <= len(body)
    return body[at + 4 : end], end


class Peer:
    """A client of one server process, past INIT when :meth:`agree` was called."""

    def __init__(self, process: subprocess.Popen[bytes], end: socket.socket) -> None:
        self.process = process
        self.socket = end
        self.received = b""
        self._number = 0
        self.stream = end.makefile("rb")

    def agree(self) -> bytes:
        """Say INIT, and return what the server offers."""
        self.socket.sendall(packet(INIT, 3))
        kind, number, body = self.reply()
        assert (kind, number) == (VERSION, 3)
        return body

    def _exactly(self, length: int) -> bytes:
        data = self.stream.read(length)
        if len(data) < length:
            raise EOFError
        return data

    def reply(self) -> tuple[int, int, bytes]:
        """Return the next reply's kind, number and body."""
        (length,) = struct.unpack(">I", self._exactly(4))
        # What sshfs takes at most when it has not asked for data; OpenSSH's client takes 256 KiB.
        data = self._exactly(length)
        assert data[0] == DATA or length <= 128 * 1024
        self.received += data[:65536]
        (number,) = struct.unpack_from(">I", data, 1)
        return data[0], number, data[5:]

    def ask(self, kind: int, body: bytes) -> tuple[int, bytes]:
        """Return a reply's kind and body.

        :raises Refused: when it is a status that is not OK.
        """
        self._number += 1
        self.socket.sendall(packet(kind, self._number, body))
        answer, number, body = self.reply()
        assert number == self._number
        if answer == STATUS:
            (code,) = struct.unpack_from(">I", body)
            message, at = read_string(body, 4)
            _language, at = read_string(body, at)
            assert at == len(body)
            if code != OK:
                raise Refused(code, message.decode())
        return answer, body

    def _done(self, kind: int, body: bytes) -> None:
        assert self.ask(kind, body)[0] == STATUS

    def _handle(self, kind: int, body: bytes) -> bytes:
        answer, body = self.ask(kind, body)
        assert answer == HANDLE
        handle, at = read_string(body)
        assert at == len(body)
        return handle

    def _attributes(self, kind: int, body: bytes) -> Attributes:
        answer, body = self.ask(kind, body)
        assert answer == ATTRS
        attributes, at = read_attributes(body)
        assert at == len(body)
        return attributes

    def open(self, path: bytes, flags: int = F_READ, mode: int = 0o644) -> bytes:
        return self._handle(OPEN, string(path) + u32(flags) + wanted(mode=mode))

    def close(self, handle: bytes) -> None:
        self._done(CLOSE, string(handle))

    def read(self, handle: bytes, offset: int = 0, length: int = 65536) -> bytes:
        answer, body = self.ask(READ, string(handle) + u64(offset) + u32(length))
        assert answer == DATA
        data, at = read_string(body)
        assert at == len(body)
        return data

    def write(self, handle: bytes, data: bytes, offset: int = 0) -> None:
        self._done(WRITE, string(handle) + u64(offset) + string(data))

    def lstat(self, path: bytes) -> Attributes:
        return self._attributes(LSTAT, string(path))

    def stat(self, path: bytes) -> Attributes:
        return self._attributes(STAT, string(path))

    def fstat(self, handle: bytes) -> Attributes:
        return self._attributes(FSTAT, string(handle))

    def setstat(self, path: bytes, attributes: bytes) -> None:
        self._done(SETSTAT, string(path) + attributes)

    def fsetstat(self, handle: bytes, attributes: bytes) -> None:
        self._done(FSETSTAT, string(handle) + attributes)

    def opendir(self, path: bytes) -> bytes:
        return self._handle(OPENDIR, string(path))

    def readdir(self, handle: bytes) -> dict[bytes, Attributes]:
        """Return one batch; empty at the end."""
        try:
            answer, body = self.ask(READDIR, string(handle))
        except Refused as refused:
            if refused.code != EOF:
                raise
            return {}
        assert answer == NAME
        (count,) = struct.unpack_from(">I", body)
        at, found = 4, {}
        for _ in range(count):
            name, at = read_string(body, at)
            _long, at = read_string(body, at)
            found[name], at = read_attributes(body, at)
        assert at == len(body)
        assert count == len(found) > 0
        return found

    def listed(self, path: bytes = b"/") -> dict[bytes, Attributes]:
        handle = self.opendir(path)
        found: dict[bytes, Attributes] = {}
        while batch := self.readdir(handle):
            found |= batch
        self.close(handle)
        return found

    def remove(self, path: bytes) -> None:
        self._done(REMOVE, string(path))

    def mkdir(self, path: bytes, mode: int = 0o755) -> None:
        self._done(MKDIR, string(path) + wanted(mode=mode))

    def rmdir(self, path: bytes) -> None:
        self._done(RMDIR, string(path))

    def rename(self, old: bytes, new: bytes) -> None:
        self._done(RENAME, string(old) + string(new))

    def readlink(self, path: bytes) -> bytes:
        return self._one_name(READLINK, path)

    def realpath(self, path: bytes) -> bytes:
        return self._one_name(REALPATH, path)

    def _one_name(self, kind: int, path: bytes) -> bytes:
        answer, body = self.ask(kind, string(path))
        assert (answer, body[:4]) == (NAME, u32(1))
        return read_string(body, 4)[0]

    def symlink(self, target: bytes, path: bytes) -> None:
        self._done(SYMLINK, string(target) + string(path))

    def extended(self, name: str, body: bytes) -> tuple[int, bytes]:
        return self.ask(EXTENDED, string(name.encode()) + body)

    def replace(self, old: bytes, new: bytes) -> None:
        self.extended("posix-rename@openssh.com", string(old) + string(new))

    def link(self, old: bytes, new: bytes) -> None:
        self.extended("hardlink@openssh.com", string(old) + string(new))

    def lsetstat(self, path: bytes, attributes: bytes) -> None:
        self.extended("lsetstat@openssh.com", string(path) + attributes)

    def fsync(self, handle: bytes) -> None:
        self.extended("fsync@openssh.com", string(handle))

    def statvfs(self, path: bytes) -> tuple[int, ...]:
        answer, body = self.extended("statvfs@openssh.com", string(path))
        assert answer == EXTENDED_REPLY
        return struct.unpack(">11Q", body)

    def fstatvfs(self, handle: bytes) -> tuple[int, ...]:
        answer, body = self.extended("fstatvfs@openssh.com", string(handle))
        assert answer == EXTENDED_REPLY
        return struct.unpack(">11Q", body)

    def put(self, path: bytes, data: bytes) -> None:
        handle = self.open(path, F_WRITE | F_CREAT | F_TRUNC)
        self.write(handle, data)
        self.close(handle)

    def get(self, path: bytes) -> bytes:
        handle = self.open(path)
        try:
            return self.read(handle)
        finally:
            self.close(handle)

    def end(self) -> tuple[int, str]:
        """End the stream, and return the server's exit code and what it said on stderr."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)
        return self.ended()

    def ended(self) -> tuple[int, str]:
        """Wait for the server's own end; what it still sends is left unread."""
        assert self.process.stderr is not None
        _, errors = self.process.communicate(timeout=LIMIT)
        return self.process.returncode, errors.decode()


def one_line(ended: tuple[int, str]) -> str:
    """Return what a server said that ended with exit code 1, as it must: one line and no traceback."""
    code, errors = ended
    assert code == 1
    assert errors.count("\n") == 1
    assert "Traceback" not in errors
    return errors


def command(directory: Path | str, *options: str) -> list[str]:
    return [sys.executable, "-m", "lima_kernels.sftp", str(directory), "--uid", str(UID), "--gid", str(GID), *options]


@contextmanager
def spoken_to(directory: Path | str, *options: str, prefix: Sequence[str] = (), umask: int = -1) -> Iterator[Peer]:
    """A server of a directory that nothing was said to yet.

    :param prefix: words before the command, of a program that runs it.
    """
    ours, theirs = socket.socketpair()
    ours.settimeout(LIMIT)
    with ours, theirs:
        process = subprocess.Popen(
            [*prefix, *command(directory, *options)],
            stdin=theirs,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            umask=umask,
        )
        theirs.close()
        peer = Peer(process, ours)
        try:
            yield peer
        finally:
            with contextlib.closing(peer.stream):
                process.kill()
                process.communicate()


@contextmanager
def served(directory: Path | str, *options: str, prefix: Sequence[str] = (), umask: int = -1) -> Iterator[Peer]:
    """A server of a directory that has agreed on the protocol; it must end well."""
    with spoken_to(directory, *options, prefix=prefix, umask=umask) as peer:
        peer.agree()
        yield peer
        assert peer.end() == (0, "")
