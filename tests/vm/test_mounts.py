"""What holds on which mount: measured, and compared with what is committed and stands in the README."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lima_kernels import added_mounts, paths
from lima_kernels.lima.limactl import Limactl
from tests.client import CellError, Notebook
from tests.properties_table import COMMITTED, MEASURED, column, read, write

from . import properties
from .conftest import Figures, Start, guest_shell, run

pytestmark = pytest.mark.timeout(900)
PROGRAM = "/var/tmp/properties.py"
OF_INOTIFY = [name for _, name, _ in properties.PROPERTIES if name.startswith("inotify")]
# The columns of the table: what the run's own VM has, and what a VM of their own has to be booted for.
NINEP, ADDED = "9p", "added"
SSHFS = "reverse-sshfs"
ADVICE = "a lock that is taken here does not hold there"


def in_guest(instance: str, *argv: str) -> list[str]:
    return ["limactl", "--tty=false", "shell", "--workdir=/", instance, *argv]


def push(instance: str) -> None:
    program = Path(properties.__file__).read_bytes()
    subprocess.run(in_guest(instance, "sh", "-c", f"cat > {PROGRAM}"), input=program, check=True, timeout=60)


def measured(instance: str, directory: str, host: properties.Host | None, *options: str) -> dict[str, Any]:
    """Run the program in a directory of the guest and be its host; where it is alone it needs none."""
    argv = in_guest(instance, paths.GUEST_PYTHON, PROGRAM, directory, *options)
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in process.stdout:
            message = json.loads(line)
            if "results" in message:
                found: dict[str, Any] = message["results"]
                return found
            assert host is not None
            process.stdin.write(json.dumps(host.answer(message)) + "\n")
            process.stdin.flush()
    raise AssertionError("the program ended without a result")


def on_mount(instance: str, directory: Path, *names: str) -> dict[str, Any]:
    """Find out what holds on a mount: all of it, or some properties."""
    trial = directory / "trial"
    trial.mkdir()
    try:
        return measured(instance, str(trial), properties.Host(str(trial)), *names)
    finally:
        shutil.rmtree(trial)


def until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, what


def keep(mount: str, found: dict[str, bool]) -> None:
    """Leave what was found in build/, in the form in which it is committed."""
    table = read(MEASURED)
    for group, name, _ in properties.PROPERTIES:
        row = table.setdefault(group, {}).setdefault(name, {})
        if name in found:
            row[mount] = found[name]
    write(MEASURED, table)


@pytest.fixture(scope="module")
def places(directories: Path, notebooks: Path) -> dict[str, Path]:
    """A directory on each kind of mount that the run's own VM has."""
    added = directories / "added ü"
    added.mkdir()
    return {NINEP: notebooks, ADDED: added}


def lima_kernels(*arguments: str) -> None:
    argv = [sys.executable, "-m", "lima_kernels", *arguments]
    subprocess.run(argv, check=True, timeout=600, stdin=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def shown(vm: str, places: dict[str, Path]) -> Iterator[str]:
    """The run's VM with a directory on each mount."""
    lima_kernels("start", vm, "--directory", str(places[NINEP]))
    lima_kernels("mount", "add", "--instance", vm, str(places[ADDED]))
    yield vm
    lima_kernels("mount", "remove", "--instance", vm, str(places[ADDED]))
    until(lambda: not added_mounts.is_served(vm), "what serves directories does not end when there is none left")


@pytest.fixture(params=[NINEP, ADDED])
def mount(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture
def notebook(start: Start, places: dict[str, Path], mount: str) -> Notebook:
    """A kernel that works on each kind of mount."""
    return start(cwd=places[mount])


@pytest.fixture(scope="module")
def results(shown: str, places: dict[str, Path], figures: Figures) -> dict[str, dict[str, Any]]:
    """What was found on the guest's own disk and on each mount, at the same time."""
    push(shown)
    own = subprocess.check_output(in_guest(shown, "mktemp", "--directory", "-p", "/var/tmp"), text=True, timeout=60)
    with figures.timed("what holds on which mount"), ThreadPoolExecutor() as pool:
        waits = {kind: pool.submit(on_mount, shown, place) for kind, place in places.items()}
        alone = measured(shown, own.strip(), None, "--alone")
        found = {kind: wait.result() for kind, wait in waits.items()}
    for kind, result in found.items():
        keep(kind, result["holds"])
    figures.seconds |= {
        f"{kind}: the host's change is seen after at most": max(result["seen after"].values())
        for kind, result in found.items()
    }
    return {**found, "own": alone}


def check(mount: str, found: dict[str, Any]) -> None:
    assert found["holds"] == column(read(COMMITTED), mount), found["why not"]


def test_on_the_guests_own_disk_all_of_it_holds(results: dict[str, dict[str, Any]]) -> None:
    own = results["own"]
    assert [name for name, holds in own["holds"].items() if not holds] == [], own["why not"]


def test_what_holds_on_a_mount_is_what_is_committed(results: dict[str, dict[str, Any]], mount: str) -> None:
    check(mount, results[mount])


@contextmanager
def another_vm(start: Start, directories: Path, place: Path, environment: str) -> Iterator[str]:
    """A second VM, of another environment, that shows a directory from its boot on."""
    file = directories / "another.yaml"
    file.write_text(environment)
    try:
        notebook = start(cwd=place, environment=str(file), instance="lk-second")
        push("lk-second")
        assert notebook.run("print('up')") == "up"
        yield "lk-second"
    finally:
        run(Limactl().delete("lk-second"))


@pytest.mark.long
def test_what_holds_on_reverse_sshfs(start: Start, directories: Path, notebooks: Path) -> None:
    with another_vm(start, directories, notebooks, "mountType: reverse-sshfs\n") as instance:
        found = on_mount(instance, notebooks)
    keep(SSHFS, found["holds"])
    check(SSHFS, found)


@pytest.mark.long
@pytest.mark.parametrize("mount_type", [NINEP, SSHFS])
def test_which_events_limas_mount_inotify_brings(
    start: Start, directories: Path, notebooks: Path, mount_type: str
) -> None:
    environment = f"mountType: {mount_type}\nmountInotify: true\n"
    with another_vm(start, directories, notebooks, environment) as instance:
        found = on_mount(instance, notebooks, *OF_INOTIFY)
    keep(f"{mount_type}, mountInotify", found["holds"])
    check(f"{mount_type}, mountInotify", found)


def test_sqlite_on_a_mount_gets_one_line(notebook: Notebook) -> None:
    use = "import sqlite3; sqlite3.connect({!r}).close()"
    assert notebook.outputs(use.format("/var/tmp/own.db")) == {}
    assert ADVICE in notebook.outputs(use.format("data.db"))["stderr"]
    assert notebook.outputs(use.format("data.db")) == {}


def test_the_history_is_on_the_guests_disk_though_the_profile_is_not(
    start: Start, places: dict[str, Path], mount: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(places[mount] / "ipython"))
    kernel = start(cwd=places[mount], environment_variables=["IPYTHONDIR"])
    where = "print(get_ipython().ipython_dir, get_ipython().history_manager.hist_file, sep='\\n')"
    profile, history = kernel.run(where).splitlines()
    assert profile == str(places[mount] / "ipython")
    assert kernel.run(f"!findmnt --noheadings --output FSTYPE --target {history}") == "ext4"


# Set, so that it is known which of them are in one second.
SECOND = 1_700_000_000


def edit(module: Path, text: str, seconds: float) -> None:
    """Save a module as an editor does, at a time of its own."""
    incoming = module.with_suffix(".new")
    incoming.write_text(text)
    os.utime(incoming, (SECOND, SECOND + seconds))
    os.replace(incoming, module)


def test_autoreload_has_the_new_code_after_an_edit_on_the_host(
    notebook: Notebook, places: dict[str, Path], mount: str, figures: Figures
) -> None:
    module = places[mount] / "edited.py"
    edit(module, "value = 1\n", 0.2)
    # Where the host's new files are seen a moment later, Python may have listed the directory in the same second.
    notebook.run("import importlib, os, time\nwhile 'edited.py' not in os.listdir(): time.sleep(0.05)")
    notebook.run("importlib.invalidate_caches()")
    assert notebook.run("%load_ext autoreload\n%autoreload 2\nimport edited; print(edited.value)") == "1"
    # IPython keeps a module's text when the next cell begins, to find out what an edit changes.
    notebook.run("pass")

    edit(module, "value = 22\n", 1.2)
    with figures.timed(f"{mount}: %autoreload has an edit on the host after"):
        until(lambda: notebook.run("print(edited.value)") == "22", "the new code never came")

    # A second edit in the same second is seen where times have parts of one.
    edit(module, "value = 333\n", 1.7)
    has_parts = column(read(COMMITTED), mount)["Times of change have parts of a second"]
    notebook.run("while os.stat(edited.__file__).st_size != 12: time.sleep(0.05)")
    assert notebook.run("print(edited.value)") == ("333" if has_parts else "22")
    edit(module, "value = 4444\n", 2.5)
    until(lambda: notebook.run("print(edited.value)") == "4444", "the new code never came")


def test_a_directory_that_is_deleted_on_the_host_costs_no_kernel(
    start: Start, places: dict[str, Path], mount: str
) -> None:
    place = places[mount] / "deleted" if mount == NINEP else places[mount].with_name("deleted")
    place.mkdir()
    (place / "file").write_text("old")
    notebook = start(cwd=place)
    assert notebook.run("import os; x = 'kept'; held = open('file'); print(open('file').read())") == "old"
    shutil.rmtree(place)
    for cell in ("open('new', 'w').write('text')", f"open({str(place / 'new')!r}, 'w').write('text')"):
        with pytest.raises(CellError, match="FileNotFoundError"):
            notebook.run(cell)
    assert notebook.run("print(x, held.read())") == "kept old"

    place.mkdir()
    (place / "file").write_text("new")
    if mount == NINEP:
        until(lambda: notebook.run("print(os.path.exists('file'))") == "True", "it is not seen again")
        assert notebook.run("print(open('file').read())") == "new"
    else:
        # What is served is the directory that was added, and not whatever has its name later.
        with pytest.raises(CellError, match="FileNotFoundError"):
            notebook.run("open('file')")
        notebook.manager.shutdown_kernel()
        until(lambda: str(place) not in guest_shell("findmnt --list --output TARGET"), "it stays mounted")
        assert start(cwd=place).run("print(open('file').read())") == "new"
