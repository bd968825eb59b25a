"""`run` and `verify` as they are typed: several notebooks, parameters, reports, and what a lock holds them to."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import msgspec
import nbformat
import psutil
import pytest
from nbformat import NotebookNode

from lima_kernels import places, session
from lima_kernels.cli.main import main
from lima_kernels.environment import lock as locks
from lima_kernels.environment import spec as environments
from lima_kernels.environment.lock import Lock
from lima_kernels.kernelspec import make_request, write
from lima_kernels.places import Place
from lima_kernels.reproduce.state import GuestState
from lima_kernels.reproduce.syncing import Ready
from tests.child import child
from tests.fake_guest import FakeGuest

from .conftest import Machine
from .locks import lock, state

EXAMPLES = Path(__file__).parents[2] / "notebooks"
Capture = pytest.CaptureFixture[str]


def notebook(machine: Machine, name: str, *cells: str, tagged: bool = False) -> Path:
    """Write a notebook of code cells; the first one declares parameters when that is asked for."""
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    if tagged:
        made.cells[0].metadata["tags"] = ["parameters"]
    path = machine.notebooks / name
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(made, path)
    return path


def read(path: Path) -> NotebookNode:
    made = nbformat.read(path, as_version=4)
    nbformat.validate(made)
    return made


def printed(path: Path) -> list[str]:
    return ["".join(output.get("text", "") for output in cell.get("outputs", ())) for cell in read(path).cells]


# Without a lock


def test_parameters_reach_the_notebook(machine: Machine, guest: FakeGuest, spec: str, capsys: Capture) -> None:
    path = notebook(machine, "one.ipynb", "n = 1\nname = 'x'", "print(n * 2, name)", tagged=True)
    assert main(["run", str(path), "-p", "n", "21", "-r", "name", "1.10", "-p", "nme", "3"]) == 0
    assert printed(path) == ["", "", "42 1.10\n"]
    assert "declares no parameter 'nme'. Did you mean 'name'?" in capsys.readouterr().err


def test_several_notebooks_run_at_once(machine: Machine, guest: FakeGuest, spec: str) -> None:
    # Each waits for the other's file: one after the other they would never end.
    met = "import pathlib, time\npathlib.Path('{0}').touch()\nwhile not pathlib.Path('{1}').exists(): time.sleep(0.05)"
    one = notebook(machine, "one.ipynb", met.format("a", "b"), "print('one')")
    two = notebook(machine, "two.ipynb", met.format("b", "a"), "print('two')")
    assert main(["run", "--parallel", "2", "--timeout", "60", str(one), str(two)]) == 0
    assert (printed(one)[1], printed(two)[1]) == ("one\n", "two\n")


def test_one_that_fails_does_not_end_the_others(machine: Machine, guest: FakeGuest, spec: str, capsys: Capture) -> None:
    paths = [
        notebook(machine, "fails.ipynb", "1 / 0", "print('after')"),
        notebook(machine, "dies.ipynb", "import os\nos._exit(3)"),
        notebook(machine, "works.ipynb", "print('works')"),
    ]
    report = machine.root / "reports" / "junit.xml"
    command = ["run", "--output", str(machine.root / "out"), "--junit", str(report), *map(str, paths)]
    assert main(command) == 1
    shown = capsys.readouterr()
    assert "ZeroDivisionError" in shown.err
    assert f"{paths[1]}: The kernel died while the notebook was executed." in shown.err
    assert shown.err.endswith("1 of 3 notebooks could not be executed.\n")
    assert f"Wrote {machine.root / 'out' / 'works.ipynb'}" in shown.out
    assert printed(machine.root / "out" / "works.ipynb") == ["works\n"]
    suites = {suite.attrib["name"]: suite for suite in ET.parse(report).getroot()}
    counts = {
        Path(name).stem: [suite.attrib[what] for what in ("tests", "failures", "errors", "skipped")]
        for name, suite in suites.items()
    }
    assert counts == {
        "fails": ["2", "1", "0", "1"],
        "dies": ["2", "0", "1", "1"],
        "works": ["1", "0", "0", "0"],
    }
    failure = suites[str(paths[0])].find("testcase/failure")
    assert failure is not None
    assert failure.attrib["message"] == "ZeroDivisionError: division by zero"


def test_what_a_guest_prints_steers_no_terminal_and_breaks_no_report(
    machine: Machine, guest: FakeGuest, spec: str, capsys: Capture
) -> None:
    path = notebook(
        machine, "evil.ipynb", "print('a\\x1b]0;owned\\x07\\x00')\nraise ValueError('\\x1b[2J]]>&\\x00\\ud800')"
    )
    report = machine.root / "junit.xml"
    assert main(["run", str(path), "--junit", str(report), "--output", str(machine.root / "out.ipynb")]) == 3
    assert not set(capsys.readouterr().err) & {"\x1b", "\x07", "\x00"}
    assert "]]>&" in "".join(ET.parse(report).getroot().itertext())


def test_a_kernel_that_dies_behind_its_last_cell(
    machine: Machine, guest: FakeGuest, spec: str, capsys: Capture
) -> None:
    # It is asked once more for its language, and dies of that.
    asked = "get_ipython().kernel.shell_handlers['kernel_info_request'] = lambda *_: os._exit(3)"
    path = notebook(machine, "one.ipynb", f"import os\n{asked}\nprint('done')")
    assert main(["run", str(path)]) == 1
    assert capsys.readouterr().err.endswith("lima-kernels: The kernel died while the notebook was executed.\n")
    assert printed(path) == ["done\n"]


def test_results_as_pages(machine: Machine, guest: FakeGuest, spec: str) -> None:
    path = notebook(machine, "one.ipynb", "print(6 * 7)", "1 / 0")
    assert main(["run", str(path), "--html", str(machine.root / "pages")]) == 3
    page = (machine.root / "pages" / "one.html").read_text()
    assert "42" in page
    assert "ZeroDivisionError" in page


def test_results_of_an_earlier_run_do_not_stay(machine: Machine, guest: FakeGuest, spec: str) -> None:
    path = notebook(machine, "one.ipynb", "1 / 0", "print('after')")
    assert main(["run", str(path), "--allow-errors"]) == 0
    made = read(path)
    made.metadata["lima_kernels"] = {"version": 1}
    nbformat.write(made, path)
    assert main(["run", str(path)]) == 3
    after = read(path)
    assert (after.cells[1].outputs, after.cells[1].execution_count) == ([], None)
    assert "lima_kernels" not in after.metadata


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["-p", "api_key", "hunter2"], "The parameter 'api_key' has the name of a secret"),
        (["-p", "1x", "2"], "'1x' cannot be a parameter's name."),
        (["--environment", "x.yaml"], "--environment says which lock is meant, and goes with --locked."),
        (["--junit", "/proc/x.xml"], "The result /proc/x.xml cannot be written there."),
        (["--html", "/proc"], "The result /proc/one.html cannot be written there."),
        (["--output", "/proc/x/y.ipynb"], "The result /proc/x/y.ipynb cannot be written there."),
        (["--kernel", "lema"], "There is no kernel spec 'lema'. Did you mean 'lima'?"),
        (["--locked"], "There is no lima-env.yaml in"),
        (["--locked", "--environment", "none.yaml"], "none.yaml cannot be read"),
    ],
)
def test_what_is_refused_before_a_vm_boots(
    machine: Machine, spec: str, capsys: Capture, options: list[str], line: str
) -> None:
    path = notebook(machine, "one.ipynb", "1")
    before = path.read_bytes()
    assert main(["run", str(path), *options]) == 1
    shown = capsys.readouterr().err
    assert line in shown
    assert "hunter2" not in shown
    assert shown.count("\n") == 1
    assert path.read_bytes() == before
    assert machine.calls("start") == []


def test_results_that_would_be_one_file(machine: Machine, spec: str, capsys: Capture) -> None:
    one, other = notebook(machine, "a/one.ipynb", "1"), notebook(machine, "b/one.ipynb", "2")
    for options in (
        [str(one), str(one)],
        [str(one), str(other), "--html", "x"],
        [str(one), str(other), "--output", "x"],
    ):
        assert main(["run", *options]) == 1
        assert "would be one file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [["--timeout", "0"], ["--timeout", "nan"], ["--timeout", "x"], ["--parallel", "0"], ["-p", "n"]]
)
def test_what_is_no_number(capsys: Capture, options: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run", "x.ipynb", *options])
    assert caught.value.code == 2


def _run_until_interrupted(_machine: Machine, *paths: str) -> None:
    print("begins", flush=True)
    print(main(["run", "--parallel", "2", *paths]), flush=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_giving_up_leaves_no_kernel_and_keeps_what_there_is(
    machine: Machine, guest: FakeGuest, spec: str, number: signal.Signals
) -> None:
    cells = ("print('done')", "import pathlib, time\npathlib.Path(f'{0}').touch()\ntime.sleep(600)")
    paths = [
        notebook(machine, f"{name}.ipynb", cells[0], cells[1].replace("{0}", f"{name}.begun"))
        for name in ("one", "two")
    ]
    with child(_run_until_interrupted, machine, *map(str, paths)) as run:
        assert run.line() == "begins"
        _wait_for(lambda: all(path.with_suffix(".begun").exists() for path in paths))
        os.kill(run.pid, number)
        assert run.finish().splitlines()[-1] == "130"
    assert [printed(path)[0] for path in paths] == ["done\n", "done\n"]
    _wait_for(lambda: not _kernels(machine))


def _kernels(machine: Machine) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(machine.notebooks) and process.pid != os.getpid():
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def _wait_for(is_so: Callable[[], bool], limit: float = 60) -> None:
    end = time.monotonic() + limit
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


# With a lock


class Locked:
    """An environment with its lock beside the notebooks, and a guest that is what the test says."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "lima-env.yaml"
        self.file.write_text("cpus: 2\n")
        # The fake host's image is none of which a lock could know the digest.
        self.lock: Lock = lock(inputs=locks.inputs_digest(environments.load(self.file)), image_sha256="")
        locks.write(directory / "lima-env.lock", self.lock)
        self.states: list[GuestState] = [state(self.lock)]
        self.looks: list[str] = []

    async def inspect(self, place: Place) -> GuestState:
        self.looks.append(place.instance)
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    def becomes(self, *states: dict[str, Any]) -> None:
        """Say what the guest is at each look from now on; the last holds for all further ones."""
        self.states = [state(self.lock, **changed) for changed in states]


@pytest.fixture
def locked(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Locked:
    # Only a real guest can be looked into, or be made equal to a lock: tests/vm does that.
    made = Locked(machine.notebooks)

    async def ready(*_arguments: Any, **_more: Any) -> Ready:
        return Ready("")

    monkeypatch.setattr(places, "inspect", made.inspect)
    monkeypatch.setattr(session, "ready", ready)
    return made


def test_a_locked_run_says_what_it_was_run_in(
    machine: Machine, guest: FakeGuest, locked: Locked, capsys: Capture
) -> None:
    path = notebook(machine, "deeper/one.ipynb", "n = 1", "print(n)", tagged=True)
    assert main(["run", "--locked", str(path), "-p", "n", "7"]) == 0
    assert printed(path)[2] == "7\n"
    kept = read(path).metadata["lima_kernels"]
    assert (kept["environment"], kept["lock"]) == (state(locked.lock).digest, locked.lock.digest)
    assert (kept["outcome"], kept["parameters"], kept["packages"]["numpy"]) == ("passed", {"n": 7}, "2.1.0")
    assert str(machine.root) not in json.dumps(kept)
    # Before and after.
    assert len(locked.looks) == 2
    assert main(["verify", str(path)]) == 0
    assert "in the environment that the VM" in capsys.readouterr().out


def test_an_environment_needs_no_kernel_spec_and_takes_the_one_it_has(
    machine: Machine, guest: FakeGuest, spec: str, locked: Locked, capsys: Capture
) -> None:
    path = notebook(machine, "one.ipynb", "print(1)")
    assert main(["run", "--locked", str(path)]) == 0
    write(make_request("mine", "Mine", environment=locked.file, instance="mine", attach=False), user=True, prefix=None)
    assert main(["run", "--locked", str(path)]) == 0
    assert main(["run", "--locked", "--kernel", "mine", str(path)]) == 0
    assert locked.looks[2:] == ["mine"] * 4
    capsys.readouterr()
    assert main(["run", "--locked", "--kernel", spec, str(path)]) == 1
    assert capsys.readouterr().err.startswith("lima-kernels: The kernel spec 'lima' is not one of the environment ")


def test_drift_is_shown_and_nothing_runs(machine: Machine, locked: Locked, capsys: Capture) -> None:
    paths = [notebook(machine, name, "print(1)") for name in ("one.ipynb", "two.ipynb")]
    before = [path.read_bytes() for path in paths]
    locked.becomes({"kernel": "6.2"})
    assert main(["run", "--locked", *map(str, paths)]) == 4
    shown = capsys.readouterr().err
    assert "6.1.0-28-amd64" in shown
    assert "6.2" in shown
    assert shown.endswith(f"Make it so: lima-kernels env sync {locked.file}\n")
    assert len(locked.looks) == 1
    assert [path.read_bytes() for path in paths] == before
    assert machine.calls("start") == []


def test_an_environment_that_changes_under_a_run_proves_nothing(
    machine: Machine, guest: FakeGuest, locked: Locked, capsys: Capture
) -> None:
    path = notebook(machine, "one.ipynb", "print(1)")
    locked.becomes({}, {"packages": {}})
    assert main(["run", "--locked", str(path)]) == 4
    assert "the environment was changed while the notebook ran." in capsys.readouterr().err
    assert printed(path) == ["1\n"]
    assert read(path).metadata["lima_kernels"]["outcome"] == "changed"
    locked.becomes({})
    assert main(["verify", str(path)]) == 4
    assert "was changed while the notebook ran." in capsys.readouterr().err


def test_a_failed_run_says_so(machine: Machine, guest: FakeGuest, locked: Locked) -> None:
    path = notebook(machine, "one.ipynb", "1 / 0")
    assert main(["run", "--locked", str(path)]) == 3
    assert read(path).metadata["lima_kernels"]["outcome"] == "failed"


def test_an_environment_file_that_was_changed_is_no_longer_locked(
    machine: Machine, locked: Locked, capsys: Capture
) -> None:
    path = notebook(machine, "one.ipynb", "print(1)")
    locked.file.write_text("cpus: 2\npython: [pandas]\n")
    assert main(["run", "--locked", str(path)]) == 1
    assert capsys.readouterr().err == (
        f"lima-kernels: The environment file {locked.file} was changed since it was locked. "
        f"Lock it again: lima-kernels env lock {locked.file}\n"
    )
    assert locked.looks == []


def test_without_a_lock_nothing_is_locked(machine: Machine, locked: Locked, capsys: Capture) -> None:
    path = notebook(machine, "one.ipynb", "print(1)")
    locked.file.with_suffix(".lock").unlink()
    assert main(["run", "--locked", str(path)]) == 1
    assert "has no lock. Make it: lima-kernels env lock" in capsys.readouterr().err


def test_another_environment_than_the_recorded_one(
    machine: Machine, guest: FakeGuest, locked: Locked, capsys: Capture
) -> None:
    path = notebook(machine, "one.ipynb", "print(1)")
    assert main(["run", "--locked", str(path)]) == 0
    capsys.readouterr()
    locked.becomes({"python": "3.11.3"})
    assert main(["verify", str(path)]) == 4
    shown = capsys.readouterr().err
    assert "recorded" in shown
    assert "3.11.3" in shown
    assert shown.splitlines()[-1].startswith(f"{path} was run in another environment than the VM ")


def test_code_that_was_edited_since_is_not_what_ran(
    machine: Machine, guest: FakeGuest, locked: Locked, capsys: Capture
) -> None:
    path = notebook(machine, "one.ipynb", "print(1)")
    assert main(["run", "--locked", str(path)]) == 0
    made = read(path)
    made.cells[0].source = "print(2)"
    nbformat.write(made, path)
    assert main(["verify", str(path)]) == 4
    assert f"The code of {path} was changed after it was run." in capsys.readouterr().err


def test_what_says_nothing_cannot_be_verified(machine: Machine, locked: Locked, capsys: Capture) -> None:
    path = notebook(machine, "one.ipynb", "print(1)")
    assert main(["verify", str(path)]) == 1
    assert "does not say what it was run in." in capsys.readouterr().err
    assert locked.looks == []


def test_a_lock_of_several_notebooks_is_checked_once(machine: Machine, guest: FakeGuest, locked: Locked) -> None:
    paths = [notebook(machine, name, "print(1)") for name in ("one.ipynb", "two.ipynb")]
    assert main(["run", "--locked", "--parallel", "2", *map(str, paths)]) == 0
    assert len(locked.looks) == 3
    digests = {read(path).metadata["lima_kernels"]["environment"] for path in paths}
    assert digests == {state(locked.lock).digest}
    assert msgspec.structs.replace(state(locked.lock), built={}).digest in digests


def test_the_example(machine: Machine, guest: FakeGuest, locked: Locked) -> None:
    assert environments.load(EXAMPLES / "lima-env.yaml").requirements == ("numpy",)
    path = machine.notebooks / "04-reproducible.ipynb"
    shutil.copy(EXAMPLES / path.name, path)
    written = []
    for _ in range(2):
        assert main(["run", "--locked", str(path), "-p", "points", "1000"]) == 0
        assert read(path).metadata["lima_kernels"]["parameters"] == {"points": 1000}
        written.append(printed(path)[-1])
    assert written[0] == written[1]
    assert written[0].startswith("pi is about 3.")
