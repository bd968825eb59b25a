"""How the process begins and how it ends."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from .peer import (
    INIT,
    MIB,
    READ,
    Peer,
    Refused,
    command,
    one_line,
    packet,
    served,
    spoken_to,
    string,
    u32,
    u64,
)


def test_a_peer_that_goes_before_its_replies_come(shared: Path) -> None:
    (shared / "file").write_bytes(b"x" * MIB)
    with spoken_to(shared) as peer:
        peer.agree()
        handle = peer.open(b"file")
        peer.socket.sendall(packet(READ, 1, string(handle) + u64(0) + u32(256 * 1024)) * 20)
        peer.stream.close()
        peer.socket.close()
        assert peer.ended() == (0, "")


def test_a_peer_that_never_says_anything(shared: Path) -> None:
    with spoken_to(shared) as peer:
        assert peer.end() == (0, "")


def test_a_later_version_is_answered_with_ours(shared: Path) -> None:
    with spoken_to(shared) as peer:
        peer.socket.sendall(packet(INIT, 6, string(b"some@extension") + string(b"data")))
        assert peer.reply()[:2] == (2, 3)
        assert peer.end() == (0, "")


def test_directories_that_cannot_be_served(shared: Path) -> None:
    (shared / "file").touch()
    closed = shared / "closed"
    closed.mkdir()
    for mode, directory in ((0o755, shared / "missing"), (0o755, shared / "file"), (0o300, closed), (0o600, closed)):
        closed.chmod(mode)
        with spoken_to(directory) as peer:
            errors = one_line(peer.ended())
        assert errors.startswith(f"The directory {directory} cannot be served: ")
    closed.chmod(0o755)


def test_a_name_with_control_characters_stays_one_line(shared: Path) -> None:
    with spoken_to(f"{shared}/a\n\x1b[31mb") as peer:
        assert "a??[31mb" in one_line(peer.ended())


USAGE = "Usage: python -m lima_kernels.sftp DIRECTORY [--read-only] --uid N --gid N\n"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["{}"],
        ["{}", "--uid", "1"],
        ["{}", "--uid", "1", "--gid"],
        ["{}", "--uid", "one", "--gid", "1"],
        ["{}", "--uid", "-1", "--gid", "1"],
        ["{}", "--uid", "4294967296", "--gid", "1"],
        ["{}", "{}", "--uid", "1", "--gid", "1"],
        ["{}", "--uid", "1", "--gid", "1", "--readonly"],
        ["--uid", "1", "--gid", "1"],
    ],
    ids=" ".join,
)
def test_a_command_line_that_says_something_else(words: list[str], shared: Path) -> None:
    line = [*command("x")[:3], *(word.format(shared) for word in words)]
    done = subprocess.run(line, input=b"", capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr.decode()) == (1, b"", USAGE)


def test_a_relative_directory_and_one_by_a_link(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shared / "file").touch()
    (shared.parent / "link").symlink_to(shared)
    monkeypatch.chdir(shared.parent)
    for directory in ("shared", "./link"):
        with served(directory) as peer:
            assert peer.listed().keys() == {b".", b"..", b"file"}


def test_its_directory_is_deleted(shared: Path, peer: Peer) -> None:
    shutil.rmtree(shared)
    for call in (lambda: peer.lstat(b"x"), lambda: peer.put(b"x", b""), lambda: peer.mkdir(b"x")):
        with pytest.raises(Refused):
            call()
    assert peer.realpath(b".") == b"/"
