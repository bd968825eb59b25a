"""Files as a guest uses them: contents, attributes, owners, names."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from pathlib import Path

import pytest

from lima_kernels.sftp.tree import Owners

from .peer import (
    DATA,
    EOF,
    F_APPEND,
    F_CREAT,
    F_EXCL,
    F_READ,
    F_TRUNC,
    F_WRITE,
    FAILURE,
    FSETSTAT,
    GID,
    INIT,
    NO_SPACE,
    NO_SUCH_FILE,
    OP_UNSUPPORTED,
    OPEN,
    PERMISSION_DENIED,
    READ,
    SETSTAT,
    UID,
    Peer,
    Refused,
    command,
    packet,
    served,
    string,
    u32,
    u64,
    wanted,
)

KIB = 1024


def code_of(refused: pytest.ExceptionInfo[Refused]) -> int:
    return refused.value.code


def test_what_is_written_is_read(shared: Path, peer: Peer) -> None:
    peer.put(b"/file", b"some text")
    assert (shared / "file").read_bytes() == b"some text"
    assert peer.get(b"file") == b"some text"


def test_reads_from_anywhere_up_to_the_end(shared: Path, peer: Peer) -> None:
    content = os.urandom(300 * KIB)
    (shared / "file").write_bytes(content)
    handle = peer.open(b"file")
    assert peer.read(handle, 0, 256 * KIB) == content[: 256 * KIB]
    assert peer.read(handle, 256 * KIB, 256 * KIB) == content[256 * KIB :]
    assert peer.read(handle, 17, 5) == content[17:22]
    assert peer.read(handle, 0, 0) == b""
    # Longer than a reply may be: less is given.
    assert peer.read(handle, 0, 2**32 - 1) == content[: 256 * KIB]
    for offset in (len(content), 2**40):
        with pytest.raises(Refused) as caught:
            peer.read(handle, offset, 100)
        assert code_of(caught) == EOF
    peer.close(handle)
    with pytest.raises(Refused):
        peer.read(handle)


def test_writes_anywhere(shared: Path, peer: Peer) -> None:
    content = os.urandom(256 * KIB)
    handle = peer.open(b"file", F_READ | F_WRITE | F_CREAT)
    peer.write(handle, content, 10)
    peer.write(handle, b"abc", 4)
    peer.fsync(handle)
    assert peer.read(handle, 0, 12) == b"\0\0\0\0abc\0\0\0" + content[:2]
    assert (shared / "file").read_bytes()[10:] == content


def test_many_requests_at_once_are_answered_in_order(shared: Path, peer: Peer) -> None:
    (shared / "file").write_bytes(bytes(range(250)))
    handle = peer.open(b"file")
    for offset in range(250):
        body = string(handle) + u64(offset) + u32(1)
        peer.socket.sendall(u32(len(body) + 5) + bytes([READ]) + u32(1000 + offset) + body)
    for offset in range(250):
        assert peer.reply() == (DATA, 1000 + offset, string(bytes([offset])))


def test_appending_goes_to_the_end_whatever_the_offset(shared: Path, peer: Peer) -> None:
    (shared / "log").write_bytes(b"first,")
    one, two = (peer.open(b"log", F_WRITE | F_APPEND) for _ in range(2))
    peer.write(one, b"second,", 0)
    peer.write(two, b"third,", 6)
    peer.write(one, b"fourth", 0)
    assert (shared / "log").read_bytes() == b"first,second,third,fourth"


def test_the_flags_of_open(shared: Path, peer: Peer) -> None:
    with pytest.raises(Refused) as caught:
        peer.open(b"file", F_READ | F_WRITE)
    assert code_of(caught) == NO_SUCH_FILE
    peer.put(b"file", b"content")
    peer.close(peer.open(b"file", F_WRITE | F_CREAT))
    assert peer.get(b"file") == b"content"
    with pytest.raises(Refused) as caught:
        peer.open(b"file", F_WRITE | F_CREAT | F_EXCL | F_TRUNC)
    assert code_of(caught) == FAILURE
    assert caught.value.message == os.strerror(errno.EEXIST)
    assert peer.get(b"file") == b"content"
    reading, writing = peer.open(b"file", F_READ), peer.open(b"file", F_WRITE)
    with pytest.raises(Refused):
        peer.write(reading, b"x")
    with pytest.raises(Refused):
        peer.read(writing)
    peer.close(peer.open(b"file", F_WRITE | F_TRUNC))
    assert peer.lstat(b"file").size == 0
    # flock(1) opens its files so.
    reading = peer.open(b"lock", F_READ | F_CREAT | F_TRUNC)
    assert (shared / "lock").exists()
    for flags in (0, F_TRUNC, F_APPEND, 64 | F_READ):
        with pytest.raises(Refused):
            peer.open(b"file", flags)
    with pytest.raises(Refused):
        peer.write(reading, b"x")
    with pytest.raises(Refused):
        peer.open(b"/")


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o777, 0o400])
def test_a_new_file_has_the_mode_that_the_guests_umask_left(mode: int, shared: Path) -> None:
    with served(shared, umask=0o077) as peer:
        handle = peer.open(b"file", F_WRITE | F_CREAT, stat.S_IFREG | mode)
        peer.write(handle, b"x")
        peer.mkdir(b"directory", stat.S_IFDIR | mode)
        assert stat.S_IMODE((shared / "file").stat().st_mode) == mode
        assert stat.S_IMODE((shared / "directory").stat().st_mode) == mode
        assert stat.S_IMODE(peer.lstat(b"file").mode) == mode


def test_who_names_no_mode_gets_one_that_others_cannot_write(shared: Path, peer: Peer) -> None:
    peer.ask(OPEN, string(b"file") + u32(F_WRITE | F_CREAT) + u32(0))
    assert stat.S_IMODE((shared / "file").stat().st_mode) == 0o644


def test_opening_leaves_the_mode_alone(shared: Path, peer: Peer) -> None:
    (shared / "file").touch(0o640)
    peer.open(b"file", F_WRITE | F_CREAT, 0o777)
    assert stat.S_IMODE((shared / "file").stat().st_mode) == 0o640


def test_attributes(shared: Path, peer: Peer) -> None:
    (shared / "file").write_bytes(b"12345")
    (shared / "file").chmod(0o640)
    os.utime(shared / "file", (1_000_000_000.7, 1_100_000_000.7))
    found = peer.lstat(b"file")
    assert found == (5, UID, GID, stat.S_IFREG | 0o640, 1_000_000_000, 1_100_000_000)
    handle = peer.open(b"file")
    assert peer.stat(b"./file") == peer.fstat(handle) == peer.listed()[b"file"] == found
    os.utime(shared / "file", (-5, 2**33))
    assert peer.lstat(b"file")[4:] == (0, 2**32 - 1)
    assert stat.S_ISDIR(peer.lstat(b"/").mode)


@pytest.mark.parametrize("kind", [SETSTAT, FSETSTAT])
def test_attributes_are_changed(kind: int, shared: Path, peer: Peer) -> None:
    (shared / "file").write_bytes(b"1234567890")
    whose = string(b"file" if kind == SETSTAT else peer.open(b"file", F_READ | F_WRITE))
    peer.ask(kind, whose + wanted(size=4, mode=stat.S_IFREG | 0o604, times=(10, 20)))
    assert (shared / "file").read_bytes() == b"1234"
    found = (shared / "file").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_mtime_ns) == (0o604, 20_000_000_000)
    peer.ask(kind, whose + wanted(size=8, mode=0, times=(2**32 - 1, 2**32 - 1)))
    # Nobody may open it now: changing its mode needs no more than to own it.
    peer.ask(kind, whose + wanted(mode=0o644))
    assert (shared / "file").read_bytes() == b"1234\0\0\0\0"
    assert (shared / "file").stat().st_mtime == 2**32 - 1


def test_attributes_of_directories_are_changed_and_size_is_none_of_them(shared: Path, peer: Peer) -> None:
    peer.mkdir(b"directory")
    for path in (b"directory", b"/"):
        peer.setstat(path, wanted(mode=0o700, times=(1, 2)))
        assert stat.S_IMODE(peer.lstat(path).mode) == 0o700
        assert peer.lstat(path).mtime == 2
        with pytest.raises(Refused):
            peer.setstat(path, wanted(size=0))


def test_files_of_ours_are_the_guests_own_and_roots_are_roots() -> None:
    owners = Owners(UID, GID)

    def shown(uid: int, gid: int) -> tuple[int, int]:
        return owners.shown(os.stat_result((0o100644, 1, 1, 1, uid, gid, 0, 0, 0, 0)))

    others = max(os.geteuid(), os.getegid(), *os.getgroups()) + 1
    assert shown(os.geteuid(), os.getegid()) == (UID, GID)
    assert {shown(0, group)[1] for group in os.getgroups()} <= {GID}
    assert shown(0, 0) == (0, 0)
    assert shown(others, others) == (65534, 65534)
    with served("/usr") as peer:
        assert peer.lstat(b"bin")[1:3] == (0, 0)


@pytest.mark.parametrize("owner", [(UID, GID), (2**32 - 1, GID), (UID, 2**32 - 1), (2**32 - 1, 2**32 - 1)])
def test_an_owner_that_is_one_already_is_no_change(owner: tuple[int, int], shared: Path, peer: Peer) -> None:
    peer.put(b"file", b"")
    before = (shared / "file").stat()
    peer.setstat(b"file", wanted(owner=owner))
    peer.fsetstat(peer.open(b"file"), wanted(owner=owner))
    assert (shared / "file").stat() == before


@pytest.mark.parametrize("owner", [(0, 0), (UID, 0), (0, GID), (UID + 1, GID), (65534, 65534)])
def test_files_are_given_to_nobody_else(owner: tuple[int, int], shared: Path, peer: Peer) -> None:
    peer.put(b"file", b"content")
    before = (shared / "file").stat()
    for change in (
        lambda: peer.setstat(b"file", wanted(size=1, owner=owner, mode=0o777, times=(1, 2))),
        lambda: peer.fsetstat(peer.open(b"file", F_WRITE), wanted(size=1, owner=owner, mode=0o777)),
    ):
        with pytest.raises(Refused) as caught:
            change()
        # EPERM in the guest, for which its `cp -p` goes on.
        assert code_of(caught) == FAILURE
    assert (shared / "file").stat() == before


def test_renaming_refuses_a_name_that_is_taken(shared: Path, peer: Peer) -> None:
    peer.put(b"one", b"1")
    peer.put(b"two", b"2")
    peer.symlink(b"nowhere", b"link")
    peer.mkdir(b"directory")
    for taken in (b"two", b"link", b"directory"):
        with pytest.raises(Refused) as caught:
            peer.rename(b"one", taken)
        assert code_of(caught) == FAILURE
    peer.rename(b"one", b"directory/three")
    peer.rename(b"directory", b"moved")
    assert {path.name for path in shared.rglob("*")} == {"moved", "three", "two", "link"}
    assert peer.get(b"moved/three") == b"1"


def test_replacing_takes_the_name(shared: Path, peer: Peer) -> None:
    peer.put(b"one", b"1")
    peer.put(b"two", b"2")
    before = peer.open(b"two")
    peer.replace(b"one", b"two")
    assert peer.get(b"two") == b"1"
    assert peer.read(before) == b"2"
    assert [path.name for path in shared.iterdir()] == ["two"]
    peer.mkdir(b"directory")
    peer.put(b"directory/file", b"")
    peer.mkdir(b"empty")
    for old, new in ((b"empty", b"directory"), (b"two", b"directory"), (b"directory", b"directory/x")):
        with pytest.raises(Refused):
            peer.replace(old, new)
    peer.replace(b"directory", b"empty")
    assert (shared / "empty" / "file").exists()


def test_links(shared: Path, peer: Peer) -> None:
    peer.put(b"file", b"content")
    peer.symlink(b"file", b"soft")
    peer.link(b"file", b"hard")
    peer.link(b"soft", b"softer")
    assert (shared / "hard").stat().st_ino == (shared / "file").stat().st_ino
    assert os.readlink(shared / "softer") == "file"
    for call in (lambda: peer.link(b"file", b"soft"), lambda: peer.symlink(b"x", b"file")):
        with pytest.raises(Refused) as caught:
            call()
        assert code_of(caught) == FAILURE
    peer.remove(b"file")
    assert peer.get(b"hard") == b"content"


def test_directories_are_made_and_removed_and_sshfs_learns_why_not(shared: Path, peer: Peer) -> None:
    peer.mkdir(b"directory")
    peer.put(b"directory/file", b"")
    # FAILURE is EEXIST of a mkdir and ENOTEMPTY of a rmdir, so nothing else may be called so.
    for call, code in (
        (lambda: peer.mkdir(b"directory"), FAILURE),
        (lambda: peer.rmdir(b"directory"), FAILURE),
        (lambda: peer.mkdir(b"missing/directory"), NO_SUCH_FILE),
        (lambda: peer.rmdir(b"missing"), NO_SUCH_FILE),
        (lambda: peer.rmdir(b"directory/file"), NO_SUCH_FILE),
    ):
        with pytest.raises(Refused) as caught:
            call()
        assert code_of(caught) == code
    with pytest.raises(Refused):
        peer.remove(b"directory")
    peer.remove(b"directory/file")
    peer.rmdir(b"directory")
    assert list(shared.iterdir()) == []


def test_what_the_host_does_not_allow_is_told(shared: Path, peer: Peer) -> None:
    for name in ("closed", "unlisted", "unsearched"):
        (shared / name).mkdir()
        (shared / name / "file").touch()
    (shared / "closed").chmod(0)
    (shared / "unlisted").chmod(0o311)
    (shared / "unsearched").chmod(0o644)
    try:
        for call in (
            lambda: peer.open(b"closed/file"),
            lambda: peer.mkdir(b"closed/new"),
            lambda: peer.opendir(b"closed"),
            lambda: peer.opendir(b"unlisted"),
            # It could be read; but without attributes it would seem to be empty.
            lambda: peer.opendir(b"unsearched"),
        ):
            with pytest.raises(Refused) as caught:
                call()
            assert code_of(caught) == PERMISSION_DENIED
            assert caught.value.message == os.strerror(errno.EACCES)
        peer.put(b"unlisted/file", b"x")
    finally:
        for directory in shared.iterdir():
            directory.chmod(0o755)


@pytest.mark.parametrize("path", [b"/", b"file", b"directory"])
def test_the_file_systems_numbers(path: bytes, shared: Path, peer: Peer) -> None:
    peer.mkdir(b"directory")
    peer.put(b"file", b"")
    here = os.statvfs(shared)
    handle = peer.opendir(path) if path != b"file" else peer.open(path)
    for found in (peer.statvfs(path), peer.fstatvfs(handle)):
        assert found[:3] == (here.f_bsize, here.f_frsize, here.f_blocks)
        assert found[8:] == (0, 0, here.f_namemax)
    with pytest.raises(Refused):
        peer.statvfs(b"missing")


def test_a_handle_of_a_directory_is_none_of_a_file(shared: Path, peer: Peer) -> None:
    directory, file = peer.opendir(b"/"), peer.open(b"file", F_READ | F_WRITE | F_CREAT)
    for call in (
        lambda: peer.read(directory),
        lambda: peer.write(directory, b"x"),
        lambda: peer.fsync(directory),
        lambda: peer.readdir(file),
        lambda: peer.close(b"none"),
        lambda: peer.fstat(b""),
    ):
        with pytest.raises(Refused):
            call()


def test_a_write_that_finds_no_room_loses_nothing_that_was_there(shared: Path) -> None:
    # 256 blocks of 512 bytes: what lies beyond fails as on a full disk.
    limited = ("sh", "-c", 'ulimit -f 256 && exec "$@"', "sh")
    content = os.urandom(100 * KIB)
    (shared / "file").write_bytes(content)
    with served(shared, prefix=limited) as peer:
        handle = peer.open(b"file", F_READ | F_WRITE)
        for call in (
            lambda: peer.write(handle, b"x" * 64 * KIB, 100 * KIB),
            lambda: peer.write(handle, b"x", 200 * KIB),
            lambda: peer.fsetstat(handle, wanted(size=200 * KIB)),
            lambda: peer.setstat(b"file", wanted(size=200 * KIB)),
        ):
            with pytest.raises(Refused) as caught:
                call()
            assert code_of(caught) == NO_SPACE
            assert caught.value.message == os.strerror(errno.EFBIG)
        assert peer.read(handle, 0, 100 * KIB) == content
        peer.write(handle, b"still", 0)
    assert (shared / "file").read_bytes()[: 100 * KIB] == b"still" + content[5:]


def test_it_serves_pipes_too(shared: Path) -> None:
    done = subprocess.run(command(shared), input=packet(INIT, 3), capture_output=True, timeout=30, check=True)
    assert done.stdout[4:9] == b"\x02\0\0\0\x03"
    assert done.stderr == b""


def test_an_extension_that_is_not_offered(shared: Path, peer: Peer) -> None:
    with pytest.raises(Refused) as caught:
        peer.extended("copy-data@openssh.com", b"")
    assert code_of(caught) == OP_UNSUPPORTED
