"""Listings: of many entries, of strange names, of directories that change meanwhile."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from .peer import Peer, Refused


def test_ten_thousand_names_with_their_attributes(shared: Path, peer: Peer) -> None:
    names = {b"file-%05d" % number for number in range(10_000)}
    for name in names:
        (shared / name.decode()).touch()
    handle = peer.opendir(b"/")
    found = {}
    batches = 0
    while batch := peer.readdir(handle):
        assert not found.keys() & batch.keys()
        found |= batch
        batches += 1
    assert found.keys() == names | {b".", b".."}
    assert {stat.S_ISREG(found[name].mode) for name in names} == {True}
    assert found[b"file-00042"] == peer.lstat(b"file-00042")
    # A round trip each: as few as sshfs takes.
    assert batches < 20
    assert peer.readdir(handle) == {}


def test_names_of_255_bytes_and_no_more(shared: Path, peer: Peer) -> None:
    for number in range(500):
        (shared / f"{number:03}{'n' * 252}").touch()
    longest = "\N{SNOWMAN}" * 85
    peer.put(longest.encode(), b"cold")
    found = peer.listed()
    assert len(found) == 503
    assert {len(name) for name in found} == {1, 2, 255}
    assert peer.get(longest.encode()) == b"cold"
    for call in (lambda: peer.lstat(b"n" * 256), lambda: peer.put(b"n" * 256, b""), lambda: peer.mkdir(b"n" * 5000)):
        with pytest.raises(Refused):
            call()


@pytest.mark.skipif(sys.platform == "darwin", reason="names of macOS are UTF-8")
def test_names_are_bytes(shared: Path, peer: Peer) -> None:
    names = {b"caf\xe9", b"\xff\xfe\xfd", b"\x80", b"new\nline", b"\x1b[31m", b" ", b"-rf", b"..."}
    for name in names:
        peer.put(name, name)
    assert {os.fsencode(name) for name in os.listdir(shared)} == names
    assert peer.listed().keys() == names | {b".", b".."}
    for name in names:
        assert peer.get(b"/" + name) == name
        peer.replace(name, name + b"\xe9")
        peer.remove(name + b"\xe9")


def test_slashes_and_dots_in_paths(shared: Path, peer: Peer) -> None:
    peer.mkdir(b"/one")
    peer.mkdir(b"one//two/")
    peer.put(b"./one/./two//file", b"x")
    assert peer.get(b"//one/two/file") == b"x"
    # By name: a listing is a read, so the directory's own access time may be another one in the next.
    assert peer.listed(b"").keys() == peer.listed(b".").keys() == peer.listed(b"/").keys() == {b".", b"..", b"one"}
    assert peer.listed(b"one/two/").keys() == {b".", b"..", b"file"}


def test_a_deep_path(shared: Path, peer: Peer) -> None:
    path = b"/".join([b"d" * 60] * 50)
    (shared / path.decode()).mkdir(parents=True)
    peer.put(path + b"/file", b"deep")
    assert peer.get(path + b"/file") == b"deep"
    with pytest.raises(Refused):
        peer.lstat(b"/".join([b"d" * 60] * 100))
    with pytest.raises(Refused):
        peer.realpath(b"x" * 100_000)


def test_a_directory_that_changes_while_it_is_listed(shared: Path, peer: Peer) -> None:
    for number in range(3000):
        (shared / f"file-{number:04}").touch()
    handle = peer.opendir(b"/")
    first = peer.readdir(handle)
    gone = {os.fsencode(path.name) for path in shared.iterdir()} - first.keys()
    assert gone
    for name in gone:
        peer.remove(name)
    while batch := peer.readdir(handle):
        first |= batch
    assert first.keys() >= {b".", b".."}
    assert peer.listed().keys() & gone == set()


def test_a_directory_that_is_deleted_while_it_is_open(shared: Path, peer: Peer) -> None:
    peer.mkdir(b"directory")
    handle = peer.opendir(b"directory")
    peer.rmdir(b"directory")
    assert peer.readdir(handle).keys() <= {b".", b".."}
    peer.close(handle)
