"""Directories that are added to a running VM: who serves them, who uses them, and what survives whom.

sshfs is a fake that mounts nothing; what it reads comes through the forkserver, the SSH connection and the SFTP server.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import sys
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from lima_kernels import added_mounts, paths
from lima_kernels.cli.main import main
from lima_kernels.errors import LimaKernelsError
from lima_kernels.guest.kernels import KEPT, MountRequest
from lima_kernels.instances import Wish
from lima_kernels.vm import VM, Guest
from tests.child import CONSTANTS, ROOT, child
from tests.fake_guest import FakeGuest
from tests.own_directories import mount_servers

from .conftest import Machine
from .test_kernel import lives, started, until

NAME = "lima-kernels"
SERVER = (sys.executable, str(ROOT / "tests" / "mount_server.py"))


class Added:
    """A guest that has sshfs, and a directory that its VM does not show."""

    def __init__(self, machine: Machine, guest: FakeGuest) -> None:
        self.machine = machine
        self.guest = guest
        self.directory = machine.root / "data"
        self.directory.mkdir()
        (self.directory / "file").write_text("content")
        self.place = machine.guest_home / "fake-sshfs"

    def read(self, name: str = "file", directory: Path | None = None) -> str:
        """Read a file as the guest's sshfs does."""
        path = self.place / urllib.parse.quote(str(directory or self.directory), safe="")[-20:]
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(30)
            sock.connect(str(path))
            sock.sendall(f"/{name}".encode())
            return sock.recv(65536).decode()

    def servers(self) -> list[psutil.Process]:
        return mount_servers(self.machine.lima_home)

    def is_mounted(self) -> bool:
        return any(lives(int(file.read_text())) for file in self.place.glob("*.pid"))

    def sshfs(self) -> int:
        """Return the process id of the one sshfs."""
        (file,) = self.place.glob("*.pid")
        return int(file.read_text())

    def options(self) -> str:
        return (self.place / "options").read_text()

    def fail(self) -> None:
        """Let sshfs fail as where there is no FUSE."""
        self.place.mkdir(exist_ok=True)
        (self.place / "fail").touch()

    def without_sshfs(self) -> None:
        """Take sshfs from the guest, where this machine itself has one, too."""
        few = self.machine.root / "few"
        few.mkdir()
        for file in Path("/usr/bin").iterdir():
            if file.name != "sshfs":
                (few / file.name).symlink_to(file)
        self.guest.path = str(few)

    def forkserver(self) -> psutil.Process:
        """Return the guest's forkserver."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                if "--socket" in words and str(self.machine.guest_home) in " ".join(words) and process.ppid() == 1:
                    return process
        raise AssertionError("there is no forkserver")

    def kill_forkserver(self) -> None:
        """Kill the guest's forkserver; who misses it starts it again."""
        process = self.forkserver()
        process.kill()
        process.wait(10)

    def records(self) -> list[Path]:
        return sorted(paths.mounts_directory(NAME).glob("*.json"))


@pytest.fixture
def added(machine: Machine, guest: FakeGuest, spec: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Added]:
    for name in ("sshfs", "fusermount3"):
        target = machine.root / "guest-bin" / name
        shutil.copy(ROOT / "tests" / "fake_sshfs.py", target)
        target.chmod(0o755)
    # Where this machine has no FUSE, its kernel is said to learn it.
    (machine.root / "guest-bin" / "sudo").write_text('#!/bin/sh\n[ "$2" = modprobe ]\n')
    monkeypatch.setenv("LK_TEST_PATHS", json.dumps({name: getattr(paths, name) for name in CONSTANTS}))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(added_mounts, "SERVER", SERVER)
    made = Added(machine, guest)
    yield made
    for process in made.servers():
        process.kill()
        process.wait(10)


@pytest.fixture(autouse=True)
def _running(added: Added) -> Iterator[None]:
    """A kernel whose directory the VM has shown since it booted."""
    with started(added.machine):
        yield


def nothing_left(added: Added) -> Callable[[], bool]:
    return lambda: not added.is_mounted() and not added.servers() and not added.records()


def test_a_kernel_outside_the_mounts_has_its_directory_until_it_ends(added: Added) -> None:
    with started(added.machine, cwd=added.directory) as other:
        assert other.run("import os; print(os.getcwd())") == str(added.directory)
        assert added.read() == "content"
        assert len(added.records()) == 1
        assert len(added.machine.calls("start")) == 1
    until(nothing_left(added))


def test_a_restart_keeps_the_directory(added: Added) -> None:
    with started(added.machine, cwd=added.directory) as other:
        before = added.sshfs()
        other.manager.restart_kernel(now=True)
        other.client.wait_for_ready(timeout=60)
        assert added.sshfs() == before
        assert added.read() == "content"


def test_two_kernels_share_a_directory_and_the_last_one_ends_it(added: Added) -> None:
    with started(added.machine, cwd=added.directory) as one:
        below = added.directory / "below"
        below.mkdir()
        with started(added.machine, cwd=added.directory):
            one.manager.shutdown_kernel(now=True)
            assert added.read() == "content"
            assert added.is_mounted()
    until(nothing_left(added))


def test_a_lost_connection_is_not_noticed_by_who_reads(added: Added) -> None:
    with started(added.machine, cwd=added.directory):
        for content in ("one", "two", "three"):
            (added.directory / "file").write_text(content)
            added.guest.drop_connections()
            assert added.read() == content


def test_a_killed_server_is_started_again(added: Added) -> None:
    with started(added.machine, cwd=added.directory):
        assert added.read() == "content"
        for process in added.servers():
            process.kill()
            process.wait(10)
        until(lambda: added.read() == "content")


def test_a_killed_forkserver_costs_no_more_than_what_was_under_way(added: Added) -> None:
    with started(added.machine, cwd=added.directory):
        assert added.read() == "content"
        added.kill_forkserver()
        until(lambda: added.is_mounted() and added.read() == "content")


def test_an_sshfs_that_was_killed_leaves_nothing(added: Added) -> None:
    assert main(["mount", "add", str(added.directory)]) == 0
    psutil.Process(added.sshfs()).kill()
    until(nothing_left(added))


def test_what_ended_with_the_guest_is_not_mounted_again(added: Added) -> None:
    assert main(["mount", "add", str(added.directory)]) == 0
    for process in added.servers():
        process.kill()
        process.wait(10)
    # Both at once, as in a guest that loses its power.
    added.forkserver().suspend()
    psutil.Process(added.sshfs()).kill()
    added.kill_forkserver()
    # The next forkserver finds the record of a mount that is kept, and no sshfs.
    with started(added.machine):
        until(lambda: not list(added.machine.guest_home.glob(".lima-kernels/*/m/*.json")))
        assert not added.is_mounted()


def test_a_kernel_outlives_its_server_with_its_directory(added: Added) -> None:
    with child(hold_kernel, added.machine, str(added.directory)) as server:
        assert server.line() == "ready"
        server.kill()
        assert added.read() == "content"
        assert added.is_mounted()


def hold_kernel(machine: Machine, directory: str) -> None:
    added_mounts.SERVER = SERVER
    with started(machine, cwd=Path(directory)):
        print("ready", flush=True)
        sys.stdin.readline()


def test_a_vm_of_others_shows_what_it_does_not(added: Added) -> None:
    # The same guest under another name, made by nobody of ours.
    theirs = added.machine.lima_home / "theirs"
    theirs.mkdir()
    mine = yaml.safe_load((added.machine.lima_home / NAME / "lima.yaml").read_text())
    (theirs / "lima.yaml").write_text(yaml.safe_dump({**mine, "mounts": [], "provision": []}))
    before = (theirs / "lima.yaml").read_text()
    with started(added.machine, cwd=added.directory, instance="theirs", attach=True) as other:
        assert other.run("print(open('file').read())") == "content"
        assert added.read() == "content"
    assert (theirs / "lima.yaml").read_text() == before


def test_the_command_line_adds_lists_and_removes(
    added: Added, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    assert main(["mount", "add", str(added.directory), "--read-only"]) == 0
    assert capsys.readouterr().out == f"The VM lima-kernels shows {added.directory}, read-only, until it stops.\n"
    assert added.read() == "content"
    assert "-oro" in added.options()
    assert main(["mount", "list", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [(mount["directory"], mount["kind"], mount["writable"], mount["added"]) for mount in shown] == [
        (str(added.machine.notebooks), "9p", True, False),
        (str(added.directory), "sshfs", False, True),
    ]
    assert main(["mount", "list"]) == 0
    table = capsys.readouterr().out
    assert str(added.directory) in table
    assert "kept" in table
    assert main(["mount", "remove", str(added.directory)]) == 0
    assert capsys.readouterr().out == f"The VM lima-kernels shows {added.directory} no longer.\n"
    until(nothing_left(added))


def test_what_is_kept_outlives_its_kernels_and_what_kernels_use_is_not_removed(
    added: Added, capsys: pytest.CaptureFixture[str]
) -> None:
    with started(added.machine, cwd=added.directory):
        assert main(["mount", "add", str(added.directory)]) == 0
        capsys.readouterr()
        assert main(["mount", "remove", str(added.directory)]) == 0
        assert "for as long as its kernels need it" in capsys.readouterr().out
        assert added.read() == "content"
        assert main(["mount", "add", str(added.directory)]) == 0
    assert added.read() == "content"
    assert main(["mount", "remove", str(added.directory)]) == 0
    until(nothing_left(added))


def test_a_directory_whose_last_user_leaves_while_it_is_added_is_served(
    added: Added, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the mount's end makes the server forget is not what was asked for after that."""
    have_mounted = added_mounts._have_mounted
    other = added.machine.root / "other"
    other.mkdir()

    async def others_leave_meanwhile(vm: VM, guest: Guest, wish: Wish, wanted: MountRequest, user: str) -> None:
        assert not await guest.forkserver.unmount(added_mounts.name_of(added.directory), KEPT)
        monkeypatch.setattr(added_mounts, "_have_mounted", have_mounted)
        # The server is told of one thing after the other.
        await added_mounts.add(vm, guest, wish, other)
        await have_mounted(vm, guest, wish, wanted, user)

    assert main(["mount", "add", str(added.directory)]) == 0
    monkeypatch.setattr(added_mounts, "_have_mounted", others_leave_meanwhile)
    assert main(["mount", "add", str(added.directory)]) == 0
    assert added.read() == "content"
    assert main(["mount", "remove", str(other)]) == 0
    assert main(["mount", "remove", str(added.directory)]) == 0
    until(nothing_left(added))


def test_what_a_killed_process_began_to_add_is_forgotten(added: Added) -> None:
    assert main(["mount", "add", str(added.directory)]) == 0
    (record,) = added.records()
    with child(begin_to_add, added.machine, str(added.machine.home)) as adder:
        assert adder.line() == "begun"
        added_mounts.forget(NAME, added_mounts.name_of(added.machine.home))
        assert len(added.records()) == 2
        adder.kill()
    until(lambda: added.records() == [record])
    assert not list(record.parent.glob(f".{added_mounts.name_of(added.machine.home)}*"))


def begin_to_add(_machine: Machine, directory: str) -> None:
    with added_mounts._adding(NAME, added_mounts.name_of(Path(directory))):
        added_mounts._serve(NAME, Path(directory), read_only=False)
        print("begun", flush=True)
        sys.stdin.readline()


@pytest.mark.parametrize(
    ("break_it", "line"),
    [
        (lambda added: added.without_sshfs(), "it has no sshfs"),
        (lambda added: added.fail(), "fuse: device not found"),
        (lambda added: shutil.rmtree(added.directory), "it does not exist"),
    ],
    ids=["no sshfs", "no fuse", "no directory"],
)
def test_a_directory_that_cannot_be_added_is_one_line_and_leaves_nothing(
    added: Added, break_it: Callable[[Added], object], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    break_it(added)
    assert main(["mount", "add", str(added.directory)]) == 1
    assert line in capsys.readouterr().err
    with pytest.raises(LimaKernelsError), started(added.machine, cwd=added.directory):
        pass
    until(nothing_left(added))


def test_what_the_vm_shows_already_is_not_added(added: Added, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mount", "add", str(added.machine.notebooks)]) == 1
    assert f"shows {added.machine.notebooks} already" in capsys.readouterr().err


def test_what_was_never_added_cannot_be_removed(added: Added, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mount", "remove", str(added.directory)]) == 1
    assert "was not added to the VM" in capsys.readouterr().err


def test_a_guest_gets_no_directory_that_it_was_not_given(added: Added) -> None:
    """Whatever a guest asks for, only this host's own records say what is served."""
    with started(added.machine, cwd=added.directory):
        stranger = added_mounts.name_of(added.machine.home)
        record = added.records()[0]
        forged = record.with_name(f"{stranger}.json")
        # A record of another name than its directory's is none.
        forged.write_bytes(record.read_bytes())
        assert stranger not in added_mounts.served(NAME)
        forged.unlink()
