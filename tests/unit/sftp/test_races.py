"""Names that change between a look and a use, by another program of the host or another guest."""

from __future__ import annotations

import errno
import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lima_kernels.sftp import tree

from .peer import (
    EOF,
    F_CREAT,
    F_READ,
    F_TRUNC,
    F_WRITE,
    NO_MEDIA,
    NO_SUCH_FILE,
    OP_UNSUPPORTED,
    PERMISSION_DENIED,
    Peer,
    Refused,
    wanted,
)


@contextmanager
def swapping(directory: Path) -> Iterator[None]:
    """What is called ``one`` and what is called ``two`` change their names all the time while the block runs."""
    one, two, aside = (directory / name for name in ("one", "two", "aside"))
    is_over = threading.Event()

    def swap() -> None:
        while not is_over.is_set():
            one.rename(aside)
            two.rename(one)
            one.rename(two)
            aside.rename(one)

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        yield
    finally:
        is_over.set()
        swapper.join()


def use_one(peer: Peer, path: bytes) -> tuple[set[bytes], set[int]]:
    """Do much with a path, and return what was read of it and how it was refused."""
    calls: list[Callable[[], object]] = [
        lambda: peer.setstat(path, wanted(mode=0o666, times=(5, 6))),
        lambda: peer.setstat(path, wanted(size=6)),
        lambda: peer.close(peer.open(path, F_WRITE | F_CREAT)),
        lambda: peer.write(peer.open(path, F_READ | F_WRITE), b"in", 0),
    ]
    read, codes = set(), set()
    for number in range(3000):
        try:
            if number % 2:
                read.add(peer.get(path))
            else:
                calls[number // 2 % len(calls)]()
        except Refused as refused:
            codes.add(refused.code)
    return read, codes


def test_a_component_is_swapped_for_a_link_all_the_time(outside: Path, shared: Path, peer: Peer) -> None:
    (shared / "one").mkdir()
    (shared / "one" / "secret").write_bytes(b"inside")
    (shared / "two").symlink_to("../outside")
    with swapping(shared):
        read, codes = use_one(peer, b"one/secret")
    assert read <= {b"inside"}
    assert codes <= {NO_SUCH_FILE}


def test_a_file_is_swapped_for_a_link_all_the_time(outside: Path, shared: Path, peer: Peer) -> None:
    (shared / "one").write_bytes(b"inside")
    (shared / "two").symlink_to("../outside/secret")
    with swapping(shared):
        read, codes = use_one(peer, b"one")
    # What it makes itself when it finds no name is empty.
    assert read <= {b"inside", b"", b"in", b"in\0\0\0\0", b"\0" * 6}
    assert codes <= {EOF, NO_SUCH_FILE, OP_UNSUPPORTED}


def test_a_file_is_swapped_for_a_fifo_all_the_time(shared: Path, peer: Peer) -> None:
    (shared / "one").write_bytes(b"inside")
    os.mkfifo(shared / "two")
    with swapping(shared):
        read, codes = use_one(peer, b"one")
    assert read <= {b"inside", b"", b"in", b"in\0\0\0\0", b"\0" * 6}
    # ENXIO is what a FIFO without a reader is opened with.
    assert codes <= {EOF, NO_SUCH_FILE, PERMISSION_DENIED, NO_MEDIA}


class _Swapping(tree._Place):
    """A place where another program acts just after it was looked at."""

    __slots__ = ("_act",)

    def __init__(self, directory: Path, act: Callable[[], object]) -> None:
        super().__init__(os.open(directory, os.O_RDONLY), b"file", True)
        self._act = act

    def status(self) -> os.stat_result:
        found = super().status()
        self._act()
        return found


FLAGS = [os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_CREAT, os.O_WRONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND]


@pytest.mark.parametrize("flags", FLAGS)
def test_a_file_becomes_a_link_after_it_was_looked_at(flags: int, outside: Path, shared: Path) -> None:
    def act() -> None:
        (shared / "file").unlink()
        (shared / "file").symlink_to("../outside/secret")

    with _Swapping(shared, act) as place, pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        tree._open_regular(place, flags, 0o644)


@pytest.mark.parametrize("flags", FLAGS)
def test_a_file_becomes_a_fifo_after_it_was_looked_at(flags: int, shared: Path) -> None:
    (shared / "file").touch()

    def act() -> None:
        (shared / "file").unlink()
        os.mkfifo(shared / "file")

    before = len(os.listdir("/dev/fd"))
    with (
        _Swapping(shared, act) as place,
        pytest.raises(OSError, match=f"{os.strerror(errno.ENXIO)}|{os.strerror(errno.EACCES)}"),
    ):
        tree._open_regular(place, flags, 0o644)
    assert len(os.listdir("/dev/fd")) == before


@pytest.mark.parametrize("flags", FLAGS)
def test_a_file_becomes_a_directory_after_it_was_looked_at(flags: int, shared: Path) -> None:
    (shared / "file").touch()

    def act() -> None:
        (shared / "file").unlink()
        (shared / "file").mkdir()

    with _Swapping(shared, act) as place, pytest.raises(OSError, match=os.strerror(errno.EISDIR)):
        tree._open_regular(place, flags, 0o644)


def test_who_waits_at_a_fifo_of_the_host_hears_of_no_guest(shared: Path, peer: Peer) -> None:
    os.mkfifo(shared / "fifo")
    fifo = os.open(shared / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        poll = select.poll()
        poll.register(fifo)
        before = poll.poll(0)
        for flags in (F_WRITE, F_READ | F_WRITE, F_WRITE | F_CREAT | F_TRUNC):
            with pytest.raises(Refused):
                peer.open(b"fifo", flags)
        # A writer that comes and goes is the end of the data to a reader.
        assert poll.poll(0) == before
    finally:
        os.close(fifo)
