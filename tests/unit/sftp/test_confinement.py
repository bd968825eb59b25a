"""Nothing outside of the directory is read or changed, whatever a guest asks for and whatever lies in the directory."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .peer import (
    F_APPEND,
    F_CREAT,
    F_EXCL,
    F_READ,
    F_TRUNC,
    F_WRITE,
    GID,
    NO_SUCH_FILE,
    OP_UNSUPPORTED,
    PERMISSION_DENIED,
    UID,
    Peer,
    Refused,
    served,
    wanted,
)
from .surroundings import SECRET, SECRET_NAME, everything

Operation = Callable[[Peer, bytes], object]
OPERATIONS: dict[str, Operation] = {
    "open-read": lambda peer, path: peer.open(path, F_READ),
    "open-write": lambda peer, path: peer.open(path, F_WRITE),
    "open-both": lambda peer, path: peer.open(path, F_READ | F_WRITE),
    "append": lambda peer, path: peer.open(path, F_WRITE | F_APPEND),
    "create": lambda peer, path: peer.open(path, F_WRITE | F_CREAT),
    "create-new": lambda peer, path: peer.open(path, F_WRITE | F_CREAT | F_EXCL),
    "truncate": lambda peer, path: peer.open(path, F_WRITE | F_CREAT | F_TRUNC),
    "lstat": lambda peer, path: peer.lstat(path),
    "stat": lambda peer, path: peer.stat(path),
    "set-size": lambda peer, path: peer.setstat(path, wanted(size=0)),
    "set-mode": lambda peer, path: peer.setstat(path, wanted(mode=0o777)),
    "set-times": lambda peer, path: peer.setstat(path, wanted(times=(1, 2))),
    "set-owner": lambda peer, path: peer.setstat(path, wanted(owner=(UID, GID))),
    "lsetstat": lambda peer, path: peer.lsetstat(path, wanted(times=(1, 2))),
    "opendir": lambda peer, path: peer.opendir(path),
    "remove": lambda peer, path: peer.remove(path),
    "mkdir": lambda peer, path: peer.mkdir(path),
    "rmdir": lambda peer, path: peer.rmdir(path),
    "rename-from": lambda peer, path: peer.rename(path, b"stolen"),
    "rename-to": lambda peer, path: peer.rename(b"file", path),
    "replace-from": lambda peer, path: peer.replace(path, b"stolen"),
    "replace-to": lambda peer, path: peer.replace(b"file", path),
    "link-from": lambda peer, path: peer.link(path, b"stolen"),
    "link-to": lambda peer, path: peer.link(b"file", path),
    "symlink": lambda peer, path: peer.symlink(b"file", path),
    "readlink": lambda peer, path: peer.readlink(path),
    "statvfs": lambda peer, path: peer.statvfs(path),
}
each_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)

LEAD_OUT = [
    b"../outside/secret",
    b"/../outside/secret",
    b"/../../../../../../../../../../etc/passwd",
    b"a/../../outside/secret",
    b"a/b/../../../outside/empty",
    b"..",
    b"a/..",
    b"to-a/b/c/secret",
    b"to-a/secret",
    b"/to-root/secret",
    b"to-root/empty",
    b"to-root/new",
    b"to-root/.",
    b"to-root/a/../secret",
    b"a/to-b/secret",
    b"a/to-b/c/new",
    b"a/b/to-c/secret",
    b"to-link/secret",
    b"to-file/x",
    b"a\0/../../outside/secret",
    b"to-root/secret\0",
]


def refusal(operation: Operation, peer: Peer, path: bytes) -> Refused:
    with pytest.raises(Refused) as caught:
        operation(peer, path)
    return caught.value


@each_operation
def test_no_path_leads_out(operation: Operation, outside: Path, shared: Path, peer: Peer) -> None:
    before = everything(shared)
    for path in LEAD_OUT:
        if path == b"to-root/.":
            # The same as without the dot; see the test of links at the end.
            continue
        refusal(operation, peer, path)
    assert everything(shared) == before
    assert SECRET not in peer.received
    assert SECRET_NAME not in peer.received


@each_operation
def test_a_path_of_the_host_is_one_below_the_directory(operation: Operation, outside: Path, peer: Peer) -> None:
    assert refusal(operation, peer, os.fsencode(outside / "secret")).code == NO_SUCH_FILE


# What is done to a link that is a path's last component, when it is not refused: the link itself is meant.
ON_THE_LINK = {
    *("lstat", "stat", "set-times", "set-owner", "lsetstat", "remove", "rename-from", "replace-from", "replace-to"),
    *("link-from", "readlink", "statvfs"),
}


@pytest.mark.parametrize("path", [b"to-file", b"to-root", b"to-nothing", b"to-link", b"to-root/.", b"a/b/to-c/"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_link_at_the_end_is_not_followed(name: str, path: bytes, outside: Path, shared: Path, peer: Peer) -> None:
    if name in ON_THE_LINK:
        OPERATIONS[name](peer, path)
    else:
        refusal(OPERATIONS[name], peer, path)
    assert SECRET not in peer.received
    assert SECRET_NAME not in peer.received
    assert not (shared / "stolen").exists() or (shared / "stolen").is_symlink()


def test_a_links_own_attributes_are_shown_and_changed(outside: Path, shared: Path, peer: Peer) -> None:
    for found in (peer.lstat(b"to-file"), peer.stat(b"to-file"), peer.listed()[b"to-file"]):
        assert stat.S_ISLNK(found.mode)
        assert found.size == len("../outside/secret")
    peer.setstat(b"to-file", wanted(times=(111, 222)))
    assert (shared / "to-file").lstat().st_mtime == 222
    assert peer.readlink(b"to-file") == b"../outside/secret"


@pytest.mark.skipif(sys.platform == "darwin", reason="a link of macOS has a mode of its own")
def test_a_links_mode_is_not_changed(outside: Path, peer: Peer) -> None:
    assert refusal(OPERATIONS["set-mode"], peer, b"to-file").code == OP_UNSUPPORTED


def test_a_guest_may_make_any_link_and_gets_nowhere_by_it(outside: Path, shared: Path, peer: Peer) -> None:
    for number, target in enumerate((b"../outside", os.fsencode(outside), b"/", b"..", b"\xff\xfe", b"x" * 1000)):
        path = b"made-%d" % number
        peer.symlink(target, path)
        assert peer.readlink(path) == target
        assert os.readlink(os.fsencode(shared / path.decode())) == target
        refusal(OPERATIONS["lstat"], peer, path + b"/secret")
        refusal(OPERATIONS["opendir"], peer, path)
    assert SECRET_NAME not in peer.received


def test_real_paths_are_text_and_end_at_the_root(outside: Path, peer: Peer) -> None:
    for path, absolute in (
        (b".", b"/"),
        (b"", b"/"),
        (b"../../..", b"/"),
        (b"/a/./b//c/", b"/a/b/c"),
        (b"a/../../outside/secret", b"/outside/secret"),
        (b"to-root/..", b"/"),
    ):
        assert peer.realpath(path) == absolute


def test_the_roots_parent_is_not_shown(shared: Path, peer: Peer) -> None:
    shared.parent.chmod(0o710)
    listed = peer.listed()
    assert listed[b".."] == listed[b"."]
    # To list it is to read it, which its own time of access may tell.
    assert listed[b".."]._replace(atime=0) == peer.lstat(b"/")._replace(atime=0)


@each_operation
def test_a_component_becomes_a_link_while_handles_are_open(
    operation: Operation, outside: Path, shared: Path, peer: Peer
) -> None:
    (shared / "a" / "secret").write_bytes(b"inside")
    file, directory = peer.open(b"a/secret", F_READ | F_WRITE), peer.opendir(b"a")
    (shared / "a").rename(shared / "aside")
    (shared / "a").symlink_to(outside / "a")
    refusal(operation, peer, b"a/secret")
    refusal(operation, peer, b"a/b/c/secret")
    # The handles are still those of what was opened.
    assert peer.read(file) == b"inside"
    peer.write(file, b"IN")
    peer.fsetstat(file, wanted(size=4, mode=0o600, times=(1, 2)))
    peer.fsetstat(directory, wanted(times=(3, 4)))
    assert set(peer.readdir(directory)) == {b".", b"..", b"b", b"secret", b"to-b"}
    assert (shared / "aside" / "secret").read_bytes() == b"INsi"
    assert SECRET not in peer.received


def test_the_directory_is_deleted_and_another_takes_its_name(outside: Path, shared: Path, peer: Peer) -> None:
    file = peer.open(b"file")
    shutil.rmtree(shared)
    shared.symlink_to(outside)
    assert peer.read(file) == b"inside"
    for path in (b"secret", b"a/secret", b"file"):
        assert refusal(OPERATIONS["open-read"], peer, path).code == NO_SUCH_FILE
    for name in ("create", "mkdir", "symlink"):
        assert refusal(OPERATIONS[name], peer, b"new").code == NO_SUCH_FILE
    assert peer.listed().keys() <= {b".", b".."}
    assert SECRET_NAME not in peer.received


OPENED = ("open-read", "open-write", "open-both", "append", "create", "truncate", "set-size", "opendir", "readlink")


@pytest.mark.parametrize("name", OPENED)
def test_what_is_no_file_is_shown_but_not_opened(
    name: str, shared: Path, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(shared / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        # The whole path would be too long for a socket.
        monkeypatch.chdir(shared)
        listener.bind("socket")
        assert stat.S_ISFIFO(peer.lstat(b"fifo").mode)
        assert stat.S_ISSOCK(peer.listed()[b"socket"].mode)
        refusal(OPERATIONS[name], peer, b"fifo")
        refusal(OPERATIONS[name], peer, b"socket")
    peer.rename(b"fifo", b"other")
    peer.remove(b"other")


@pytest.mark.parametrize("name", OPENED)
def test_devices_are_shown_but_not_opened(name: str) -> None:
    with served("/dev") as peer:
        assert stat.S_ISCHR(peer.lstat(b"null").mode)
        refused = refusal(OPERATIONS[name], peer, b"null")
        assert name in ("opendir", "readlink") or refused.code == PERMISSION_DENIED


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has no /proc")
def test_the_links_of_proc_lead_nowhere() -> None:
    with served("/proc/self") as peer:
        for path in (b"root/etc/passwd", b"cwd/x", b"root", b"exe", b"fd/0", b"fd/2"):
            refusal(OPERATIONS["open-read"], peer, path)
            refusal(OPERATIONS["opendir"], peer, path)


@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o6711, 0o7777])
def test_a_guest_sets_no_set_user_id_bit(mode: int, shared: Path, peer: Peer) -> None:
    peer.close(peer.open(b"created", F_WRITE | F_CREAT, mode))
    peer.put(b"changed", b"#!/bin/sh\n")
    peer.setstat(b"changed", wanted(mode=mode))
    handle = peer.open(b"changed")
    peer.fsetstat(handle, wanted(mode=mode))
    peer.mkdir(b"directory", mode)
    peer.setstat(b"directory", wanted(mode=mode))
    for name in ("created", "changed", "directory"):
        found = (shared / name).stat().st_mode
        assert found & 0o777 == mode & 0o777
        assert not found & (stat.S_ISUID | stat.S_ISGID)


def test_a_directory_keeps_the_group_bit_that_the_host_gave_it(shared: Path, peer: Peer) -> None:
    (shared / "team").mkdir()
    (shared / "team").chmod(0o2755)
    peer.setstat(b"team", wanted(mode=0o2775))
    assert stat.S_IMODE((shared / "team").stat().st_mode) == 0o2775
    peer.setstat(b"team", wanted(mode=0o1777))
    assert stat.S_IMODE((shared / "team").stat().st_mode) == 0o1777
