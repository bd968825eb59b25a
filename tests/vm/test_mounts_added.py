"""Directories that are added to a VM while it runs, on a real one: sshfs in the guest, our SFTP server on the host."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lima_kernels import added_mounts, paths
from tests.client import CellError, Notebook
from tests.own_directories import mount_servers

from .conftest import INSTANCE, Figures, Start, guest_shell, until
from .test_survival import FORKSERVER

pytestmark = pytest.mark.timeout(600)
# Writes numbered lines, and cuts every SSH connection to the guest meanwhile.
WRITER = """
import subprocess, time
with open("log", "w") as log:
    for number in range(300):
        log.write(f"{number}\\n")
        log.flush()
        time.sleep(0.01)
        if number in (50, 150, 250):
            subprocess.run(["sudo", "pkill", "-f", "^sshd: .*@notty"])
"""


@pytest.fixture
def elsewhere(directories: Path) -> Iterator[Path]:
    """A directory that the VM does not show, of a name that is hard on shells, fstab and sshfs."""
    directory = directories / "else, where é"
    directory.mkdir()
    (directory / "file").write_text("from the host")
    yield directory
    until(lambda: mounted() == [], "the directory is still mounted", seconds=60)
    missing = "No such file or directory"
    until(lambda: missing in guest_shell(f"ls -d '{directory}' 2>&1 || true"), "its directory stays", seconds=60)
    # The process that serves it hears of that a moment later.
    until(lambda: not list(paths.mounts_directory(INSTANCE).glob("*.json")), "its record stays", seconds=60)
    until(lambda: not added_mounts.is_served(INSTANCE), "the process that serves it still lives", seconds=60)
    shutil.rmtree(directory)


def mounted() -> list[str]:
    """Return the mounts of ours as the guest's own table has them."""
    return guest_shell("grep -o 'lima-kernels-[0-9a-f]*:/' /proc/self/mountinfo || true").split()


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "lima_kernels", "mount", *map(str, arguments), "--instance", INSTANCE]
    return subprocess.run(argv, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL, check=False)


def test_a_kernel_gets_its_directory_from_a_vm_that_runs(elsewhere: Path, start: Start, figures: Figures) -> None:
    first = start()
    booted = guest_shell("cat /proc/sys/kernel/random/boot_id")
    with figures.timed("a kernel whose directory is added to the VM"):
        notebook = start(cwd=elsewhere)
    with figures.timed("another one in the same directory"):
        start(cwd=elsewhere)
    assert notebook.run("import os; print(os.getcwd(), open('file').read())") == f"{elsewhere} from the host"
    notebook.run("open('made', 'w').write('from the guest'); os.chmod('made', 0o640)")
    made = elsewhere / "made"
    assert made.read_text() == "from the guest"
    assert (made.stat().st_uid, made.stat().st_mode & 0o777) == (os.getuid(), 0o640)
    # Docker's and sudo's user see it too.
    assert notebook.run("import subprocess; print(subprocess.getoutput('sudo cat file'))") == "from the host"
    assert first.run("print('still here')") == "still here"
    assert guest_shell("cat /proc/sys/kernel/random/boot_id") == booted


def test_nothing_but_the_directory_can_be_reached(elsewhere: Path, start: Start) -> None:
    secret = elsewhere.parent / "secret"
    secret.write_text("a secret")
    (elsewhere / "up").symlink_to("../secret")
    (elsewhere / "absolute").symlink_to(secret)
    (elsewhere / "passwd").symlink_to("/etc/passwd")
    start()
    notebook = start(cwd=elsewhere)
    for name in ("up", "absolute", "../secret", str(secret)):
        with pytest.raises(CellError, match="FileNotFoundError"):
            notebook.run(f"open({name!r})")
    # What a link names is the guest's.
    assert ".guest" in notebook.run("print(open('passwd').read())")
    notebook.run(f"import os; os.symlink({str(secret)!r}, 'mine'); os.symlink('/etc', 'etc')")
    with pytest.raises(CellError, match="Error"):
        notebook.run("open('mine', 'w')")
    assert secret.read_text() == "a secret"
    with pytest.raises(CellError, match="Error"):
        notebook.run("os.link('../secret', 'hard')")
    assert not (elsewhere / "hard").exists()


def test_a_process_that_works_there_does_not_notice_a_cut_connection(elsewhere: Path, start: Start) -> None:
    start()
    start(cwd=elsewhere).run(WRITER)
    assert (elsewhere / "log").read_text().split() == [str(number) for number in range(300)]


def test_what_serves_it_may_be_killed(elsewhere: Path, start: Start) -> None:
    start()
    notebook = start(cwd=elsewhere)
    for process in mount_servers(paths.lima_home()):
        process.kill()
    until(lambda: readable(notebook), "the directory does not come back")


def readable(notebook: Notebook) -> bool:
    try:
        return notebook.run("print(open('file').read())") == "from the host"
    except CellError:
        return False


def test_the_forkserver_may_be_killed(elsewhere: Path, start: Start) -> None:
    start()
    notebook = start(cwd=elsewhere)
    guest_shell(f"kill -KILL $({FORKSERVER})")
    notebook.wait_until_subscribed()
    until(lambda: readable(notebook), "the directory does not come back")


def test_a_mount_without_its_sshfs_is_cleaned_up(elsewhere: Path, start: Start) -> None:
    start()
    notebook = start(cwd=elsewhere)
    guest_shell("pkill -KILL --exact sshfs")
    until(lambda: mounted() == [], "the mount is still there")
    with pytest.raises(CellError, match="Error"):
        notebook.run("print(open('file').read())")
    assert readable(start(cwd=elsewhere))


def test_the_command_line(elsewhere: Path, start: Start) -> None:
    start()
    done = command("add", elsewhere, "--read-only")
    assert done.returncode == 0, done.stderr
    assert guest_shell(f"cat '{elsewhere}/file'; touch '{elsewhere}/new' 2>&1 || true").endswith(
        "Read-only file system"
    )
    listed = json.loads(command("list", "--json").stdout)
    assert {entry["directory"]: entry["writable"] for entry in listed}[str(elsewhere)] is False
    # The host is seen at once, or after the second for which what was seen holds.
    (elsewhere / "file").write_text("changed on the host")
    until(lambda: guest_shell(f"cat '{elsewhere}/file'") == "changed on the host", "the guest does not see it")
    assert command("remove", elsewhere).returncode == 0
    assert mounted() == []


def test_a_vm_that_stops_leaves_nothing_served(elsewhere: Path, start: Start) -> None:
    start()
    assert command("add", elsewhere).returncode == 0
    argv = [sys.executable, "-m", "lima_kernels", "stop", "--force", INSTANCE]
    subprocess.run(argv, stdin=subprocess.DEVNULL, timeout=300, check=True)
    until(lambda: not added_mounts.is_served(INSTANCE), "the process that serves it still lives")
    assert not list(paths.mounts_directory(INSTANCE).glob("*.json"))
    start()
