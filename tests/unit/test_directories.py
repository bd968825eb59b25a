"""A look at a host directory, which must answer in time whatever the directory does."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import psutil
import pytest

from lima_kernels.environment import directories
from lima_kernels.environment.directories import fault


@pytest.mark.parametrize("writable", [True, False])
def test_a_directory_of_ones_own_has_no_fault(tmp_path: Path, writable: bool) -> None:
    assert fault(tmp_path, writable=writable) == ""


@pytest.mark.parametrize("name", ["a b", "-e", "$HOME", "a'b\"c", "*", "日本", "a;b", "!"])
def test_odd_names_are_names(tmp_path: Path, name: str) -> None:
    assert fault(tmp_path / name, writable=False) == "it does not exist"
    (tmp_path / name).mkdir()
    assert fault(tmp_path / name, writable=True) == ""


def test_a_link_to_a_directory_is_one(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert fault(tmp_path / "link", writable=True) == ""
    (tmp_path / "real").rmdir()
    assert fault(tmp_path / "link", writable=True) == "it does not exist"


def test_a_link_to_itself_is_told_in_the_systems_words(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert fault(tmp_path / "loop", writable=False) == "Too many levels of symbolic links"


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert fault(tmp_path / "file", writable=False) == "it is not a directory"
    assert fault(tmp_path / "file" / "below", writable=False) == "it does not exist"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")
def test_what_one_may_not_do(tmp_path: Path) -> None:
    directory = tmp_path / "closed"
    (directory / "below").mkdir(parents=True)
    found = {}
    for mode in (0o000, 0o100, 0o400, 0o500, 0o700):
        directory.chmod(mode)
        found[mode] = (
            fault(directory, writable=False),
            fault(directory, writable=True),
            fault(directory / "below", writable=False),
        )
    unreadable, below = "you may not read it", "you may not read it"
    assert found == {
        0o000: (unreadable, unreadable, below),
        0o100: (unreadable, unreadable, ""),
        0o400: (unreadable, unreadable, below),
        0o500: ("", "you may not write to it, and it is to be writable", ""),
        0o700: ("", "", ""),
    }


@pytest.fixture
def dead_drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Whoever looks at a directory waits, and heeds no signal but the last: as far as one can do that without root."""
    shell = tmp_path / "shell"
    shell.write_text("#!/bin/sh\ntrap '' TERM INT HUP\nwhile :; do sleep 60; done\n")
    shell.chmod(0o755)
    monkeypatch.setattr(directories, "SHELL", str(shell))
    monkeypatch.setattr(directories, "LIMIT", 0.3)
    return shell


def test_a_directory_that_does_not_answer_has_a_fault_of_its_own(dead_drive: Path, tmp_path: Path) -> None:
    assert fault(tmp_path, writable=False) == "it did not answer within 0 s (is it on a network drive that is gone?)"
    # What was left behind is not waited for, but taken in when it ends.
    for thread in threading.enumerate():
        if thread.daemon and thread.name.startswith("Thread"):
            thread.join(10)
    assert [child for child in psutil.Process().children() if str(dead_drive) in child.cmdline()] == []


def test_a_look_that_cannot_be_ended_holds_up_nobodys_end(dead_drive: Path, tmp_path: Path) -> None:
    # As if the kernel let it not go: nothing kills it.
    program = f"""
        import subprocess
        from pathlib import Path
        from lima_kernels.environment import directories

        directories.SHELL, directories.LIMIT = {str(dead_drive)!r}, 0.3
        subprocess.Popen.kill = lambda process: print(process.pid, flush=True)
        print(directories.fault(Path("/tmp"), writable=False))
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    pid, line = done.stdout.splitlines()
    left = psutil.Process(int(pid))
    assert str(dead_drive) in left.cmdline()
    for process in (*left.children(), left):
        process.kill()
    assert line.startswith("it did not answer within")
    assert done.stderr == ""


def test_a_shell_that_was_ended_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shell = tmp_path / "shell"
    shell.write_text("#!/bin/sh\nkill -9 $$\n")
    shell.chmod(0o755)
    monkeypatch.setattr(directories, "SHELL", str(shell))
    assert fault(tmp_path, writable=False) == "it could not be looked at"
