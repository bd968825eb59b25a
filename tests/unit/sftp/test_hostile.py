"""What a guest may send to do harm, and how the process begins and ends: an answer or one line, never a traceback."""

from __future__ import annotations

import errno
import os
import random
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from .peer import (
    ATTRS,
    BAD_MESSAGE,
    CLOSE,
    DATA,
    EXTENDED,
    F_CREAT,
    F_READ,
    F_WRITE,
    FAILURE,
    FSETSTAT,
    FSTAT,
    HANDLE,
    INIT,
    LSTAT,
    MIB,
    MKDIR,
    NAME,
    OP_UNSUPPORTED,
    OPEN,
    OPENDIR,
    READ,
    READDIR,
    READLINK,
    REALPATH,
    REMOVE,
    RENAME,
    RMDIR,
    SETSTAT,
    STAT,
    STATUS,
    SYMLINK,
    WRITE,
    Peer,
    Refused,
    one_line,
    packet,
    served,
    spoken_to,
    string,
    u32,
    u64,
    wanted,
)

HANDLES = 1024
FIRST = packet(INIT, 3)
TOO_LONG = 2**32 - 1
LONGEST = 256 * 1024 + 16 * 1024


NUMBER = "a number is cut off"
STRING = "a string is cut off"
SHORT = "a packet is too short for a number"
NO_INIT = "the first packet is no INIT"
MALFORMED = {
    "length-0": (FIRST + u32(0), "a packet of 0 bytes"),
    "length-too-long": (FIRST + u32(TOO_LONG), f"a packet of {TOO_LONG} bytes"),
    "length-just-too-long": (FIRST + u32(LONGEST + 1), f"a packet of {LONGEST + 1} bytes"),
    "longest": (u32(LONGEST) + bytes(LONGEST), NO_INIT),
    "something-else": (b"SSH-2.0-something", f"a packet of {0x5353482D} bytes"),
    "no-number": (FIRST + u32(1) + bytes([LSTAT]), SHORT),
    "half-a-number": (FIRST + u32(3) + bytes([LSTAT, 0, 0]), SHORT),
    "no-init": (packet(LSTAT, 1, string(b"/")), NO_INIT),
    "old-version": (packet(INIT, 2), "the client speaks version 2 only"),
    "short-init": (u32(1) + bytes([INIT]), SHORT),
    "no-path": (FIRST + packet(LSTAT, 1), NUMBER),
    "half-a-length": (FIRST + packet(LSTAT, 1, b"\0\0"), NUMBER),
    "path-cut-off": (FIRST + packet(LSTAT, 1, u32(10) + b"short"), STRING),
    "path-length-huge": (FIRST + packet(LSTAT, 1, u32(TOO_LONG) + b"x"), STRING),
    "more-than-fields": (FIRST + packet(LSTAT, 1, string(b"/") + b"x"), "a packet is longer than its fields"),
    "open-without-flags": (FIRST + packet(OPEN, 1, string(b"/x")), NUMBER),
    "open-without-attributes": (FIRST + packet(OPEN, 1, string(b"/x") + u32(1)), NUMBER),
    "unknown-attributes": (FIRST + packet(SETSTAT, 1, string(b"/") + u32(16)), "attributes of unknown kinds, 0x10"),
    "attributes-cut-off": (FIRST + packet(SETSTAT, 1, string(b"/") + u32(0x0F) + u64(1) + u32(1)), NUMBER),
    "extended-attributes": (FIRST + packet(MKDIR, 1, string(b"/x") + u32(1 << 31) + u32(TOO_LONG)), NUMBER),
    "read-without-length": (FIRST + packet(READ, 1, string(b"x" * 8) + u64(0)), NUMBER),
    "write-cut-off": (FIRST + packet(WRITE, 1, string(b"x" * 8) + u64(0) + u32(100) + b"x"), STRING),
    "rename-with-one-name": (FIRST + packet(RENAME, 1, string(b"a")), NUMBER),
    "extension-without-name": (FIRST + packet(EXTENDED, 1), NUMBER),
    "extension-without-fields": (FIRST + packet(EXTENDED, 1, string(b"statvfs@openssh.com")), NUMBER),
    "ends-within-a-length": (FIRST + b"\0\0", "the stream ended within a packet"),
    "ends-within-a-packet": (FIRST + packet(LSTAT, 1, string(b"/"))[:-1], "the stream ended within a packet"),
}


@pytest.mark.parametrize(("data", "reason"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_packets_end_it_with_one_line(data: bytes, reason: str, shared: Path) -> None:
    with spoken_to(shared) as peer:
        peer.socket.sendall(data)
        line = f"The SFTP client of {shared} does not speak the protocol: {reason}.\n"
        assert peer.end() == (1, line)
    assert list(shared.iterdir()) == []


@pytest.mark.parametrize("kind", [0, 1, 2, 21, 99, *range(101, 106), 199, 201, 255])
def test_requests_of_unknown_kinds_are_answered(kind: int, peer: Peer) -> None:
    peer.socket.sendall(packet(kind, 77, os.urandom(50)))
    answer, number, body = peer.reply()
    assert (answer, number, body[:4]) == (STATUS, 77, u32(OP_UNSUPPORTED))
    assert peer.lstat(b"/")


@pytest.mark.parametrize("number", [2**63 - 1, 2**63, 2**64 - 1])
def test_numbers_that_no_file_has_room_for(number: int, peer: Peer) -> None:
    handle = peer.open(b"file", F_READ | F_WRITE | F_CREAT)
    for call in (
        lambda: peer.read(handle, number),
        lambda: peer.write(handle, b"x", number),
        lambda: peer.fsetstat(handle, wanted(size=number)),
        lambda: peer.setstat(b"file", wanted(size=number)),
    ):
        with pytest.raises(Refused):
            call()
    assert peer.fstat(handle).size == 0


def test_a_zero_byte_in_a_name(shared: Path, peer: Peer) -> None:
    for call in (
        lambda: peer.put(b"a\0b", b""),
        lambda: peer.symlink(b"a\0b", b"link"),
        lambda: peer.rename(b"a", b"\0"),
        lambda: peer.mkdir(b"\0/x"),
    ):
        with pytest.raises(Refused) as caught:
            call()
        assert caught.value.code == BAD_MESSAGE
    assert list(shared.iterdir()) == []


class Chaos:
    """Requests that are well formed and mean anything, of names that exist, names that do not, and handles."""

    NAMES = (
        b"a",
        b"b",
        b"b",
        b"a/a",
        b"a/b",
        b"link",
        b"link/a",
        b"..",
        b"/",
        b"",
        b"a\0",
        b"\xff",
        b"n" * 300,
        b"fifo",
    )
    NUMBERS = (0, 1, 2, 100, 0o777, 0o4777, 65536, 2**20, 2**31, 2**32 - 1)
    OFFSETS = (0, 0, 1, 1000, 2**31, 2**40, 2**63 - 1, 2**63, 2**64 - 1)
    FLAGS = (F_READ, F_READ | F_WRITE, F_READ | F_WRITE | F_CREAT, *range(64))
    EXTENSIONS = (b"posix-rename", b"hardlink", b"fsync", b"statvfs", b"fstatvfs", b"lsetstat", b"other")

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        # How many handles the server has given.
        self.handles = 0
        one_name = dict.fromkeys((LSTAT, STAT, OPENDIR, REMOVE, RMDIR, REALPATH, READLINK), self._name)
        one_handle = dict.fromkeys((CLOSE, FSTAT, READDIR), self._handle)
        self._bodies: dict[int, Callable[[], bytes]] = {
            OPEN: lambda: self._name_or_file() + u32(self._random.choice(self.FLAGS)) + self._attributes(),
            **one_name,
            **one_handle,
            SETSTAT: lambda: self._name() + self._attributes(),
            MKDIR: lambda: self._name() + self._attributes(),
            FSETSTAT: lambda: self._handle() + self._attributes(),
            RENAME: lambda: self._name() + self._name(),
            SYMLINK: lambda: self._name() + self._name(),
            READ: lambda: self._handle() + self._offset() + u32(self._number()),
            WRITE: lambda: self._handle() + self._offset() + string(self._bytes()),
            EXTENDED: self._extension,
            0: self._bytes,
            INIT: self._bytes,
            255: self._bytes,
        }
        self._kinds = tuple(self._bodies)

    def _name(self) -> bytes:
        return string(self._random.choice(self.NAMES))

    def _name_or_file(self) -> bytes:
        return self._random.choice((self._name(), string(b"kept")))

    def _handle(self) -> bytes:
        return string(u64(max(0, self.handles - self._random.randrange(-1, 10))))

    def _number(self) -> int:
        return self._random.choice(self.NUMBERS)

    def _offset(self) -> bytes:
        return u64(self._random.choice(self.OFFSETS))

    def _bytes(self) -> bytes:
        return self._random.randbytes(self._random.randrange(100))

    def _attributes(self) -> bytes:
        return wanted(
            size=self._random.choice((None, 0, 1000, 2**31)),
            owner=self._random.choice((None, None, (self._number(), self._number()))),
            mode=self._random.choice((None, 0o777, self._number())),
            times=self._random.choice((None, (self._number(), self._number()))),
        )

    def _extension(self) -> bytes:
        name = self._random.choice(self.EXTENSIONS)
        fields = {
            b"posix-rename": self._name() + self._name(),
            b"hardlink": self._name() + self._name(),
            b"lsetstat": self._name() + self._attributes(),
            b"statvfs": self._name(),
        }.get(name, self._handle())
        return string(name + b"@openssh.com") + fields

    def request(self, number: int) -> bytes:
        kind = self._random.choice(self._kinds)
        return packet(kind, number, self._bodies[kind]())

    def noise(self) -> bytes:
        body = self._random.randbytes(self._random.randrange(1, 200))
        return u32(len(body)) + bytes([self._random.choice(self._kinds)]) + body[1:]


@pytest.fixture
def trap(shared: Path) -> Iterator[Path]:
    (shared / "link").symlink_to("..")
    os.mkfifo(shared / "fifo")
    (shared / "a").mkdir()
    (shared / "b").write_bytes(b"b")
    (shared / "kept").write_bytes(b"kept" * 1000)
    beside = shared.parent / "a"
    beside.write_bytes(b"beside")
    before = beside.stat()
    yield shared
    assert {path.name for path in shared.parent.iterdir()} == {"shared", "a"}
    assert beside.stat() == before


@pytest.mark.parametrize("seed", range(4))
def test_thousands_of_requests_without_sense_are_all_answered(seed: int, trap: Path) -> None:
    chaos = Chaos(seed)
    answers = set()
    with served(trap) as peer:
        for number in range(2500):
            # Either may lose its permissions to such a request, and the file its content.
            trap.chmod(0o700)
            (trap / "kept").chmod(0o600)
            os.truncate(trap / "kept", 4000)
            peer.socket.sendall(chaos.request(number))
            kind, replied, _body = peer.reply()
            assert replied == number
            answers.add(kind)
            chaos.handles += kind == HANDLE
    # Not only refusals: files were opened, read, listed and looked at.
    assert answers >= {STATUS, HANDLE, DATA, NAME, ATTRS}


def test_noise_is_answered_or_ends_it_with_one_line(trap: Path) -> None:
    chaos = Chaos(5)
    ends = 0
    for _ in range(40):
        with spoken_to(trap) as peer:
            peer.agree()
            peer.socket.sendall(chaos.noise())
            code, errors = peer.end()
            assert (code, errors) == (0, "") or one_line((code, errors))
            ends += code
    assert 0 < ends < 40


def test_no_more_than_so_many_handles(shared: Path) -> None:
    (shared / "file").touch()
    # It needs more descriptors than systems give at first, and takes them.
    with served(shared, prefix=("sh", "-c", 'ulimit -S -n 100 && exec "$@"', "sh")) as peer:
        handles = [peer.opendir(b"/") for _ in range(HANDLES - 1)] + [peer.open(b"file")]
        for call in (
            lambda: peer.open(b"file"),
            lambda: peer.open(b"new", F_WRITE | F_CREAT),
            lambda: peer.opendir(b"/"),
        ):
            with pytest.raises(Refused) as caught:
                call()
            assert caught.value.code == FAILURE
            assert "open" in caught.value.message
        assert not (shared / "new").exists()
        assert b"file" in peer.readdir(handles[0])
        for handle in handles:
            peer.close(handle)
        peer.open(b"file")


def test_without_descriptors_requests_fail_and_nothing_else(shared: Path) -> None:
    (shared / "file").write_bytes(b"content")
    with served(shared, prefix=("sh", "-c", 'ulimit -n 40 && exec "$@"', "sh")) as peer:
        handles: list[bytes] = []

        def open_all() -> None:
            while True:
                handles.append(peer.opendir(b"/"))

        with pytest.raises(Refused, match=os.strerror(errno.EMFILE)):
            open_all()
        for handle in handles:
            assert b"file" in peer.readdir(handle)
            peer.close(handle)
        assert peer.get(b"file") == b"content"


def test_replies_that_nobody_reads_cost_no_memory(shared: Path, peer: Peer) -> None:
    (shared / "file").write_bytes(b"x" * MIB)
    handle = peer.open(b"file")
    peer.read(handle, 0, 256 * 1024)
    count = 2000
    # Half a gigabyte is asked for with 60 KB of requests.
    requests = packet(READ, 1, string(handle) + u64(0) + u32(256 * 1024)) * count
    sender = threading.Thread(target=peer.socket.sendall, args=(requests,))
    before = psutil.Process(peer.process.pid).memory_info().rss
    sender.start()
    for _ in range(count):
        assert peer.reply()[0] == DATA
        peer.received = b""
    assert psutil.Process(peer.process.pid).memory_info().rss - before < 8 * MIB
    sender.join()


def test_packets_in_pieces(shared: Path, peer: Peer) -> None:
    for byte in packet(MKDIR, 9, string(b"directory") + wanted(mode=0o700)):
        peer.socket.sendall(bytes([byte]))
    assert peer.reply()[:2] == (STATUS, 9)
    assert (shared / "directory").is_dir()
    handle = peer.open(b"file", F_READ | F_WRITE | F_CREAT)
    # Longer and longer ones, so that they lie everywhere in the server's buffer.
    writes = [(os.urandom(size), size * 1000) for size in range(1, 260_000, 9973)]
    for data, offset in writes:
        peer.socket.sendall(struct.pack(">IBI", 5 + 12 + 8 + 4 + len(data), WRITE, 1) + string(handle) + u64(offset))
        peer.socket.sendall(string(data))
    assert {peer.reply()[2][:4] for _ in writes} == {u32(0)}
    for data, offset in writes:
        assert peer.read(handle, offset, len(data)) == data
