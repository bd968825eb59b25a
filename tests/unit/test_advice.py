"""Advice to a cell that uses, on a directory of the host, what is known to fare badly there; and IPython's history."""

from __future__ import annotations

import os
import pwd
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell

from lima_kernels.guest.forkserver import advice
from tests.client import Notebook
from tests.fake_guest import FakeGuest
from tests.properties_table import COMMITTED, read

from .conftest import Machine
from .test_kernel import started

HOME = pwd.getpwuid(os.getuid()).pw_dir
# As the guest's table of mounts has them: the file system, and the source.
NINEP, VIRTIOFS = ("9p", "lima-9cb9d60fa6bf4c06"), ("virtiofs", "mount0")
ADDED, REVERSE_SSHFS = ("fuse.sshfs", "lima-kernels-b626c8a0744ac08d:/"), ("fuse.sshfs", ":/home/me/note\\040books")
OWN, MEMORY = ("ext4", "/dev/vdb"), ("tmpfs", "tmpfs")
# What advice depends on.
LOCKS, VENV = "A lock that is taken in the guest holds on the host", "`python -m venv`, and `pip install` into it"


def table(file: Path, **mounts: tuple[str, tuple[str, str]]) -> str:
    """Write a table of mounts: a disk of one's own, /proc, and others; return its path."""
    lines = ["22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw", "23 22 0:21 / /proc rw - proc proc rw"]
    for number, (point, (kind, source)) in enumerate(mounts.values()):
        escaped = point.replace("\\", "\\134").replace(" ", "\\040")
        lines.append(f"{30 + number} 22 0:{44 + number} / {escaped} rw,relatime shared:2 master:3 - {kind} {source} rw")
    file.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogateescape")
    return str(file)


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of the host's, as far as the table of mounts tells; in it lie others."""
    place = tmp_path / "note books"
    place.mkdir()
    lines = table(
        tmp_path / "mountinfo",
        shown=(str(place), NINEP),
        own=(f"{place}/own", OWN),
        added=(f"{place}/added", ADDED),
        hidden=(f"{place}/twice", ADDED),
        hiding=(f"{place}/twice", MEMORY),
        sshfs=(f"{place}/sshfs", REVERSE_SSHFS),
        virtiofs=(f"{place}/virtiofs", VIRTIOFS),
    )
    monkeypatch.setattr(advice, "MOUNTS", lines)
    monkeypatch.setattr(advice, "_said", set())
    return place


@pytest.mark.parametrize(
    ("path", "kind", "by"),
    [
        ("{}", "9p", "9p"),
        ("{}/deep/er", "9p", "9p"),
        ("{}/own/file", "ext4", ""),
        ("{}/added", "fuse.sshfs", "added"),
        ("{}/addedtoo", "9p", "9p"),
        ("{}/twice/x", "tmpfs", ""),
        ("{}/sshfs/x", "fuse.sshfs", "reverse-sshfs"),
        ("{}/virtiofs/x", "virtiofs", "virtiofs"),
        ("{}s", "ext4", ""),
        ("/proc/self", "proc", ""),
        ("/", "ext4", ""),
    ],
)
def test_the_mount_of_a_path_is_the_nearest_above_it(mounts: Path, path: str, kind: str, by: str) -> None:
    found = advice.mount_of(path.format(mounts))
    assert (found.kind, found.shows_host_by) == (kind, by)


def test_names_that_are_not_utf_8_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point = os.fsdecode(b"/data/\xe9 back\\slash")
    monkeypatch.setattr(advice, "MOUNTS", table(tmp_path / "mountinfo", shown=(point, VIRTIOFS)))
    assert advice.mount_of(f"{point}/file") == (point, *VIRTIOFS)


@pytest.mark.skipif(sys.platform != "linux", reason="it is for guests")
def test_this_machines_own_table_is_read() -> None:
    assert advice.mount_of("/proc/self/status")[:2] == ("/proc", "proc")
    assert advice.mount_of(HOME).shows_host_by == ""


@pytest.mark.parametrize(("name", "said_of"), [(LOCKS, advice.LOCKS_END_HERE), (VENV, advice.NO_VENV)])
def test_advice_is_given_where_the_table_says_that_it_breaks(name: str, said_of: frozenset[str]) -> None:
    (row,) = (rows[name] for rows in read(COMMITTED).values() if name in rows)
    assert {mount for mount, holds in row.items() if not holds} == said_of


def attended(notebook: Notebook, machine: Machine, mount: tuple[str, str] = NINEP) -> Path:
    """Make the kernel believe that its directory is on a mount."""
    place = machine.notebooks
    mountinfo = table(machine.root / "mountinfo", shown=(str(place), mount))
    notebook.run(f"import sqlite3, sys; sys.modules['lima_kernels_forkserver.advice'].MOUNTS = {mountinfo!r}")
    return place


def test_sqlite_on_a_mount_gets_one_line(machine: Machine, guest: FakeGuest, spec: str) -> None:
    with started(machine) as notebook:
        place = attended(notebook, machine)
        use = "with sqlite3.connect({}) as c: print(c.execute('SELECT 6 * 7').fetchone()[0])"
        for elsewhere in ("':memory:'", f"{str(machine.root / 'own.db')!r}", "'file:x?mode=memory', uri=True"):
            assert notebook.outputs(use.format(elsewhere)) == {"stdout": "42\n"}
        said = notebook.outputs(use.format("'data.db'"))
        line = (
            f"[lima-kernels] SQLite at {place}/data.db: the directory is the host's, and a lock that is taken here "
            "does not hold there. Let no program of the host use the file meanwhile, or keep it on the VM's own disk, "
            f"such as in {HOME}.\n"
        )
        assert said == {"stdout": "42\n", "stderr": line}
        for again in ("'data.db'", "'other.db'", "database='file:data.db?mode=ro', uri=True"):
            assert notebook.outputs(use.format(again)) == {"stdout": "42\n"}


@pytest.mark.parametrize(
    "database", ["'file:data.db?mode=rwc', uri=True", "database=b'data.db'", "__import__('pathlib').Path('../nb/x')"]
)
def test_a_database_has_many_names(machine: Machine, guest: FakeGuest, spec: str, database: str) -> None:
    with started(machine) as notebook:
        attended(notebook, machine)
        assert "does not hold there" in notebook.outputs(f"sqlite3.connect({database}).close()").get("stderr", "")


def test_advice_costs_nobody_a_database(machine: Machine, guest: FakeGuest, spec: str) -> None:
    with started(machine) as notebook:
        attended(notebook, machine)
        notebook.run("sys.modules['lima_kernels_forkserver.advice'].MOUNTS = '/does/not/exist'")
        assert notebook.outputs("sqlite3.connect('data.db').close()") == {}
        caught = "try: sqlite3.connect({})\nexcept Exception as error: print(repr(error))"
        assert "argument" in notebook.run(caught.format(""))
        assert "OperationalError" in notebook.run(caught.format("'/does/not/exist/data.db'"))
        assert "TypeError" in notebook.run(caught.format("3.5"))
        assert (
            notebook.run("print(sqlite3.connect is sqlite3.dbapi2.connect, sqlite3.connect.__name__)") == "True connect"
        )


MAKE = "print('made')  # "


@pytest.mark.parametrize(
    "command",
    [
        "!python -m venv .venv && .venv/bin/pip install /srv/wheels",
        "!{sys.executable} -m  venv --clear 'env one'",
        "!uv venv",
        "!uv venv --python 3.12 '{place}/env'; ls /",
        "!virtualenv --quiet ./x/../env",
    ],
)
def test_a_virtual_environment_gets_one_line_where_it_does_not_run(
    machine: Machine, guest: FakeGuest, spec: str, command: str
) -> None:
    with started(machine) as notebook:
        place = attended(notebook, machine, REVERSE_SSHFS)
        line = (
            f"[lima-kernels] A virtual environment in {place}: the directory is the host's, and a link to the VM's "
            f"Python cannot be read there, so it will not run. Make it on the VM's own disk, such as in {HOME}.\n"
        )
        for elsewhere in ("/var/tmp/venv", "~/venv", "--prompt x ~/venv", "--copies here"):
            assert notebook.outputs(f"{MAKE}python -m venv {elsewhere}") == {"stdout": "made\n"}
        command = command.replace("{place}", str(place))
        assert notebook.outputs(MAKE + command) == {"stdout": "made\n", "stderr": line}
        assert notebook.outputs(MAKE + command) == {"stdout": "made\n"}


@pytest.mark.parametrize("mount", [NINEP, ADDED, OWN])
def test_a_virtual_environment_gets_none_where_it_runs(
    machine: Machine, guest: FakeGuest, spec: str, mount: tuple[str, str]
) -> None:
    with started(machine) as notebook:
        attended(notebook, machine, mount)
        assert notebook.outputs(MAKE + "python -m venv .venv") == {"stdout": "made\n"}


def test_what_was_opened_is_not_kept_alive(mounts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (sqlite3, sqlite3.dbapi2):
        monkeypatch.setattr(module, "connect", sqlite3.connect)
    advice.attend(InteractiveShell())

    class Name:
        def __fspath__(self) -> str:
            return str(mounts / "data.db")

        def __del__(self) -> None:
            gone.append(True)

    gone: list[bool] = []
    sqlite3.connect(Name()).close()
    assert gone == [True]


HISTORY = """
import sys
sys.path.insert(0, sys.argv[2])
from IPython.core.application import BaseIPythonApplication
from IPython.core.history import HistoryManager
from lima_kernels.guest.forkserver import advice
advice.MOUNTS = sys.argv[1]
advice.home = lambda: sys.argv[3]
app = BaseIPythonApplication(name="ipython-kernel")
advice.keep_history_here(app)
app.initialize([])
print(app.config.HistoryManager.get("hist_file", "as ever"))
"""


@pytest.fixture
def profile(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Path:
    """IPython's directory of a user who has it on a mount."""
    directory = machine.notebooks / "ipython"
    monkeypatch.setenv("IPYTHONDIR", str(directory))
    return directory


def history_file(machine: Machine, mount: Path) -> str:
    mountinfo = table(machine.root / "mountinfo", shown=(str(mount), ADDED))
    argv = [sys.executable, "-c", HISTORY, mountinfo, str(Path(__file__).parents[2]), str(machine.guest_home)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def test_the_history_of_a_profile_on_a_mount_is_on_the_guests_disk(machine: Machine, profile: Path) -> None:
    file = Path(history_file(machine, machine.notebooks))
    assert file == machine.guest_home / ".ipython" / "profile_default" / "history.sqlite"
    assert file.parent.is_dir()


def test_the_history_of_a_profile_elsewhere_is_left_where_it_is(machine: Machine, profile: Path) -> None:
    assert history_file(machine, machine.root / "other") == "as ever"


def test_the_history_is_where_the_users_own_configuration_says(machine: Machine, profile: Path) -> None:
    (profile / "profile_default").mkdir(parents=True)
    (profile / "profile_default" / "ipython_config.py").write_text("c.HistoryManager.hist_file = ':memory:'\n")
    assert history_file(machine, machine.notebooks) == ":memory:"
