"""SFTP version 3 (draft-ietf-secsh-filexfer-02) and OpenSSH's extensions as bytes; no I/O.

sshfs speaks no other version.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

VERSION = 3
# A request may write 256 KiB; the rest is for its handle and offset, or for two paths.
MAX_DATA = 256 * 1024
MAX_PACKET = MAX_DATA + 16 * 1024
# sshfs takes no reply above 128 KiB but the data that it asked for itself.
MAX_NAMES = 64 * 1024


# Plain numbers, here and below: `enum` would cost a tenth of the start.
class Kind:
    """What a packet is."""

    INIT = 1
    VERSION = 2
    OPEN = 3
    CLOSE = 4
    READ = 5
    WRITE = 6
    LSTAT = 7
    FSTAT = 8
    SETSTAT = 9
    FSETSTAT = 10
    OPENDIR = 11
    READDIR = 12
    REMOVE = 13
    MKDIR = 14
    RMDIR = 15
    REALPATH = 16
    STAT = 17
    RENAME = 18
    READLINK = 19
    SYMLINK = 20
    STATUS = 101
    HANDLE = 102
    DATA = 103
    NAME = 104
    ATTRS = 105
    EXTENDED = 200
    EXTENDED_REPLY = 201


class Status:
    """How a request ended; those above 8 are of later versions, and sshfs makes EIO of them."""

    OK = 0
    EOF = 1
    NO_SUCH_FILE = 2
    PERMISSION_DENIED = 3
    FAILURE = 4
    BAD_MESSAGE = 5
    OP_UNSUPPORTED = 8
    NO_MEDIA = 13
    NO_SPACE = 14


class Wish:
    """What OPEN asks for."""

    READ = 0x01
    WRITE = 0x02
    APPEND = 0x04
    CREAT = 0x08
    TRUNC = 0x10
    EXCL = 0x20
    ALL = 0x3F


POSIX_RENAME = b"posix-rename@openssh.com"
HARDLINK = b"hardlink@openssh.com"
FSYNC = b"fsync@openssh.com"
STATVFS = b"statvfs@openssh.com"
FSTATVFS = b"fstatvfs@openssh.com"
LSETSTAT = b"lsetstat@openssh.com"
# What INIT is answered with: each extension and its version.
_OFFERED = (
    (POSIX_RENAME, b"1"),
    (STATVFS, b"2"),
    (FSTATVFS, b"2"),
    (HARDLINK, b"1"),
    (FSYNC, b"1"),
    (LSETSTAT, b"1"),
)

_SIZE = 0x01
_OWNER = 0x02
_PERMISSIONS = 0x04
_TIMES = 0x08
_EXTENDED = 0x80000000
_KNOWN = _SIZE | _OWNER | _PERMISSIONS | _TIMES | _EXTENDED

_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")
_HEADER = struct.Struct(">BI")
_FRAME = struct.Struct(">IBI")
_STATVFS = struct.Struct(">11Q")
_ATTRIBUTES = struct.Struct(">IQIIIII")
_NO_ATTRIBUTES = _U32.pack(0)
_U32_MAX = 0xFFFFFFFF


class Malformed(Exception):
    """Bytes that are no packet of this protocol; after them nothing can be trusted to be one."""


class Wanted:
    """Attributes as a request names them; None where it does not."""

    __slots__ = ("mode", "owner", "size", "times")

    def __init__(self) -> None:
        self.size: int | None = None
        # User and group.
        self.owner: tuple[int, int] | None = None
        self.mode: int | None = None
        # Access and modification, in seconds.
        self.times: tuple[int, int] | None = None


class Reader:
    """The fields of a packet, one after the other.

    :raises Malformed: from each method, when the packet ends before the field does.
    """

    __slots__ = ("_at", "_data")

    def __init__(self, data: memoryview, at: int) -> None:
        self._data = data
        self._at = at

    def _fixed(self, form: struct.Struct) -> int:
        at = self._at
        self._at = at + form.size
        try:
            return int(form.unpack_from(self._data, at)[0])
        except struct.error:
            raise Malformed("a number is cut off") from None

    def number(self) -> int:
        return self._fixed(_U32)

    def long(self) -> int:
        return self._fixed(_U64)

    def data(self) -> memoryview:
        """Return a string in place; it is gone with the packet's buffer."""
        length = self.number()
        start = self._at
        self._at = end = start + length
        if end > len(self._data):
            raise Malformed("a string is cut off")
        return self._data[start:end]

    def string(self) -> bytes:
        return bytes(self.data())

    def attributes(self) -> Wanted:
        flags = self.number()
        if flags & ~_KNOWN:
            raise Malformed(f"attributes of unknown kinds, {flags:#x}")
        wanted = Wanted()
        if flags & _SIZE:
            wanted.size = self.long()
        if flags & _OWNER:
            wanted.owner = self.number(), self.number()
        if flags & _PERMISSIONS:
            wanted.mode = self.number()
        if flags & _TIMES:
            wanted.times = self.number(), self.number()
        if flags & _EXTENDED:
            for _ in range(self.number()):
                self.data()
                self.data()
        return wanted

    def end(self) -> None:
        """Check that nothing is left."""
        if self._at != len(self._data):
            raise Malformed("a packet is longer than its fields")


_Field = Callable[[Reader], object]
# The fields of each request after its number.
_FIELDS: dict[int | bytes, tuple[_Field, ...]] = {
    Kind.OPEN: (Reader.string, Reader.number, Reader.attributes),
    Kind.CLOSE: (Reader.string,),
    Kind.READ: (Reader.string, Reader.long, Reader.number),
    Kind.WRITE: (Reader.string, Reader.long, Reader.data),
    Kind.LSTAT: (Reader.string,),
    Kind.FSTAT: (Reader.string,),
    Kind.SETSTAT: (Reader.string, Reader.attributes),
    Kind.FSETSTAT: (Reader.string, Reader.attributes),
    Kind.OPENDIR: (Reader.string,),
    Kind.READDIR: (Reader.string,),
    Kind.REMOVE: (Reader.string,),
    Kind.MKDIR: (Reader.string, Reader.attributes),
    Kind.RMDIR: (Reader.string,),
    Kind.REALPATH: (Reader.string,),
    Kind.STAT: (Reader.string,),
    Kind.RENAME: (Reader.string, Reader.string),
    Kind.READLINK: (Reader.string,),
    Kind.SYMLINK: (Reader.string, Reader.string),
    POSIX_RENAME: (Reader.string, Reader.string),
    HARDLINK: (Reader.string, Reader.string),
    FSYNC: (Reader.string,),
    STATVFS: (Reader.string,),
    FSTATVFS: (Reader.string,),
    LSETSTAT: (Reader.string, Reader.attributes),
}


class Unknown(Exception):
    """A request of a kind that this server does not know; its number can be answered."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _head(packet: memoryview) -> tuple[int, int]:
    try:
        kind, number = _HEADER.unpack_from(packet)
    except struct.error:
        raise Malformed("a packet is too short for a number") from None
    return kind, number


def read_init(packet: memoryview) -> None:
    """Read the client's first packet.

    :raises Malformed: when it is another one, or of an older version of the protocol.
    """
    kind, version = _head(packet)
    if kind != Kind.INIT:
        raise Malformed("the first packet is no INIT")
    if version < VERSION:
        raise Malformed(f"the client speaks version {version} only")


def read_request(packet: memoryview) -> tuple[int, int | bytes, list[object]]:
    """Return a request's number, its kind (an extension's name) and its fields.

    :raises Unknown: when no such request is known.
    :raises Malformed: when its fields are not what its kind has.
    """
    kind: int | bytes
    kind, number = _head(packet)
    reader = Reader(packet, _HEADER.size)
    if kind == Kind.EXTENDED:
        kind = reader.string()
    fields = _FIELDS.get(kind)
    if fields is None:
        raise Unknown(number)
    values = [field(reader) for field in fields]
    reader.end()
    return number, kind, values


def string(value: bytes) -> bytes:
    return _U32.pack(len(value)) + value


def head(kind: int, number: int, length: int) -> bytes:
    """Return what comes before a reply's body of so many bytes; one of the functions below makes the body."""
    return _FRAME.pack(_HEADER.size + length, kind, number)


def version() -> bytes:
    """Return the whole answer to INIT."""
    body = b"".join(string(name) + string(data) for name, data in _OFFERED)
    return head(Kind.VERSION, VERSION, len(body)) + body


def status(code: int, message: str) -> bytes:
    return _U32.pack(code) + string(message.encode(errors="replace")) + string(b"")


def attributes(size: int, owner: tuple[int, int], mode: int, times: tuple[int, int]) -> bytes:
    """Return a file's attributes; times outside of the protocol's years are the nearest ones in it."""
    accessed, modified = times
    return _ATTRIBUTES.pack(
        _SIZE | _OWNER | _PERMISSIONS | _TIMES,
        size,
        *owner,
        mode,
        min(max(accessed, 0), _U32_MAX),
        min(max(modified, 0), _U32_MAX),
    )


def name(value: bytes, attributes: bytes = _NO_ATTRIBUTES) -> bytes:
    """Return one entry of :func:`names`."""
    # The second one is for people, a line of `ls -l`: sshfs throws it away.
    return string(value) * 2 + attributes


def names(entries: list[bytes]) -> bytes:
    return _U32.pack(len(entries)) + b"".join(entries)


class Data:
    """Room for the data of one reply, used again for the next: new room for each would cost more than the reading."""

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(_U32.size + MAX_DATA))

    def room(self, length: int) -> memoryview:
        """Return where data belongs: so many bytes, or as many as one reply holds."""
        return self._buffer[_U32.size :][:length]

    def filled(self, length: int) -> memoryview:
        """Return the body of a reply with the first so many bytes of the room; it is good until the next."""
        _U32.pack_into(self._buffer, 0, length)
        return self._buffer[: _U32.size + length]


def statvfs(numbers: tuple[int, ...]) -> bytes:
    """Return a file system's numbers in the order of ``struct statvfs``, from block size to the longest name."""
    return _STATVFS.pack(*numbers)


def length_at(buffer: bytearray, at: int) -> int:
    """Return the length of the packet that begins here.

    :raises Malformed: when no packet is so long or so short.
    """
    length = int(_U32.unpack_from(buffer, at)[0])
    if not 0 < length <= MAX_PACKET:
        raise Malformed(f"a packet of {length} bytes")
    return length
