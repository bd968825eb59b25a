"""Locked environments on a real VM: locked, made, drifted, mended, and shared with the kernels beside them."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from jupyter_client import KernelManager

from tests.client import Notebook

from .conftest import INSTANCE, Figures, Start, guest_shell
from .test_other_kernels import called, command

pytestmark = pytest.mark.timeout(900)
ENVIRONMENT = """\
name: paper
python:
  - tabulate==0.9.0
"""
DRIFTED = 4


@pytest.fixture(scope="module")
def project(vm: str, directories: Path, start_command: None) -> Path:
    directory = directories / "paper"
    directory.mkdir()
    (directory / "lima-env.yaml").write_text(ENVIRONMENT)
    return directory


@pytest.fixture(scope="module")
def start_command(vm: str, notebooks: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(notebooks)
    command("start", INSTANCE)
    yield
    os.chdir(before)


@pytest.fixture(scope="module")
def locked(project: Path, figures: Figures) -> Path:
    """The environment file, locked and made in the run's VM, with a kernel spec."""
    file = project / "lima-env.yaml"
    with figures.timed("env lock"):
        command("env", "lock", str(file), "--instance", INSTANCE)
    with figures.timed("env sync, new"):
        assert "is now" in command("env", "sync", str(file), "--instance", INSTANCE)
    command("install", "--name", "paper", "--environment", str(file), "--instance", INSTANCE, "--user")
    return file


@pytest.fixture
def paper(locked: Path, project: Path) -> Iterator[Notebook]:
    manager = KernelManager(kernel_name="paper")
    manager.start_kernel(cwd=str(project))
    notebook = Notebook(manager)
    yield notebook
    notebook.client.stop_channels()
    manager.shutdown_kernel(now=True)


def restarted(notebook: Notebook) -> Notebook:
    notebook.manager.restart_kernel(now=True)
    notebook.client.wait_for_ready(timeout=120)
    return notebook


def test_the_lock_says_all_and_the_same_again(locked: Path) -> None:
    lock = locked.with_suffix(".lock")
    before = lock.read_text()
    found = tomllib.loads(before)
    (platform,) = found["platforms"].values()
    assert platform["kernel"] == guest_shell("uname -r")
    assert platform["apt"]["python3"] == guest_shell("dpkg-query -W -f '${Version}' python3")
    assert len(platform["image_sha256"]) == 64
    packages = {package["name"]: package for package in found["pylock"]["packages"]}
    assert packages["tabulate"]["version"] == "0.9.0"
    assert all("sha256" in wheel["hashes"] for package in packages.values() for wheel in package["wheels"])
    command("env", "lock", str(locked), "--instance", INSTANCE)
    assert lock.read_text() == before


def test_its_kernel_has_its_packages_and_no_others(paper: Notebook, start: Start) -> None:
    code = "import sys, tabulate; print(sys.prefix, tabulate.__version__)"
    prefix, version = paper.run(code).split()
    assert prefix.startswith("/opt/lima-kernels/environments/paper/builds/")
    assert version == "0.9.0"
    # The other kernels of the same VM go on as before.
    plain = start()
    assert plain.run("import sys; print(sys.prefix)") == "/opt/lima-kernels/venv"
    assert plain.run("import importlib.util; print(importlib.util.find_spec('tabulate'))") == "None"
    # And it is a kernel like any other.
    assert paper.interrupted()["ename"] == "KeyboardInterrupt"
    paper.manager.restart_kernel()
    paper.client.wait_for_ready(timeout=120)
    assert paper.run("print(6 * 7)") == "42"


def test_nothing_is_done_twice(locked: Path, figures: Figures) -> None:
    with figures.timed("env sync, nothing to do"):
        assert "is already" in command("env", "sync", str(locked), "--instance", INSTANCE)
    assert "is what" in command("env", "diff", str(locked), "--instance", INSTANCE)


def test_what_a_cell_installs_is_noticed_and_mended(locked: Path, paper: Notebook, figures: Figures) -> None:
    paper.run("%pip install --quiet --disable-pip-version-check tabulate==0.8.10")
    differs = called("env", "diff", str(locked), "--instance", INSTANCE)
    assert differs.returncode == DRIFTED
    assert "tabulate" in differs.stdout
    assert "0.8.10" in differs.stdout
    outputs = restarted(paper).outputs("import tabulate; print(tabulate.__version__)")
    assert outputs["stdout"].strip() == "0.8.10"
    assert "no longer what its lock says" in outputs["stderr"]
    # Said once, not with every cell.
    assert "stderr" not in paper.outputs("print(1)")
    # It can be what is wanted from now on, until the lock of before is there again.
    lock = locked.with_suffix(".lock")
    before = lock.read_text()
    command("env", "lock", str(locked), "--instance", INSTANCE, "--from-guest")
    taken = {package["name"]: package["version"] for package in tomllib.loads(lock.read_text())["pylock"]["packages"]}
    assert taken["tabulate"] == "0.8.10"
    # Its files are whatever pip took; those that the lock names come with a sync.
    assert "other files" in called("env", "diff", str(locked), "--instance", INSTANCE).stdout
    command("env", "sync", str(locked), "--instance", INSTANCE)
    assert "is what" in command("env", "diff", str(locked), "--instance", INSTANCE)
    lock.write_text(before)
    with figures.timed("env sync, after a drift"):
        command("env", "sync", str(locked), "--instance", INSTANCE)
    # A kernel that runs is left what it had; the next one has what is locked.
    assert paper.run("import importlib; print(importlib.reload(tabulate).__version__)") == "0.8.10"
    assert restarted(paper).outputs("import tabulate; print(tabulate.__version__)") == {"stdout": "0.9.0\n"}


def test_a_notebook_is_run_and_proven(locked: Path, project: Path, figures: Figures) -> None:
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [
        nbformat.v4.new_code_cell("number = 1", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("import tabulate\nprint(tabulate.__version__, number)"),
    ]
    path = project / "result.ipynb"
    nbformat.write(notebook, path)
    with figures.timed("run --locked"):
        command("run", "--locked", str(path), "-p", "number", "7")
    done = nbformat.read(path, as_version=4)
    assert "0.9.0 7" in json.dumps(done.cells)
    told = json.dumps(done.metadata["lima_kernels"])
    assert str(project) not in told
    assert "command" not in told
    assert command("verify", str(path))
    # Another VM's packages, or another lock, are another environment.
    guest_shell("/opt/lima-kernels/environments/paper/current/bin/python -m pip uninstall --quiet --yes tabulate")
    refused = called("run", "--locked", str(path))
    assert refused.returncode == DRIFTED
    assert "tabulate" in refused.stdout + refused.stderr
    assert called("verify", str(path)).returncode == DRIFTED


def test_a_wrong_hash_installs_nothing(locked: Path, project: Path) -> None:
    lock = locked.with_suffix(".lock")
    before = lock.read_text()
    command("env", "sync", str(locked), "--instance", INSTANCE)
    edited = before.replace('version = "0.9.0"', 'version = "0.8.10"')
    assert edited != before
    lock.write_text(edited)
    refused = called("env", "sync", str(locked), "--instance", INSTANCE)
    assert refused.returncode == 1
    assert str(lock) in refused.stderr
    lock.write_text(before)
    assert "is already" in command("env", "sync", str(locked), "--instance", INSTANCE)


def test_requirements_that_do_not_go_together_are_explained(project: Path) -> None:
    file = project / "other" / "lima-env.yaml"
    file.parent.mkdir()
    file.write_text("name: torn\npython: ['pandas==2.0.0', 'numpy==1.20']\n")
    failed = called("env", "lock", str(file), "--instance", INSTANCE)
    assert failed.returncode == 1
    assert "do not go together" in failed.stderr
    assert "pandas==2.0.0 depends on numpy" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not file.with_suffix(".lock").exists()
