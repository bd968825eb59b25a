"""Golden VMs, and an environment that is handed to somebody else: from the lock to the same digest there."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from lima_kernels.lima.limactl import Limactl

from .conftest import Figures, run
from .test_other_kernels import command

# It boots six VMs, and builds an image.
pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]
ENVIRONMENT = """\
name: golden
apt: [tree]
python: [tabulate==0.9.0, pandas]
"""
VM = "lima-kernels-golden"


@pytest.fixture(scope="module")
def project(directories: Path) -> Iterator[Path]:
    directory = directories / "golden"
    directory.mkdir()
    (directory / "lima-env.yaml").write_text(ENVIRONMENT)
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [
        nbformat.v4.new_code_cell("import subprocess\nprint(subprocess.run('tree --version', shell=True))")
    ]
    nbformat.write(notebook, directory / "result.ipynb")
    before = Path.cwd()
    os.chdir(directory)
    try:
        command("env", "lock")
        yield directory
    finally:
        os.chdir(before)
        without_vms()


def without_vms() -> None:
    for instance in run(Limactl().list()):
        run(Limactl().delete(instance.name))


def seconds(*commands: tuple[str, ...]) -> float:
    began = time.monotonic()
    for arguments in commands:
        command(*arguments)
    return round(time.monotonic() - began, 1)


def environment_digest(directory: Path) -> str:
    command("run", "--locked", str(directory / "result.ipynb"))
    metadata = nbformat.read(directory / "result.ipynb", as_version=4).metadata
    digest: str = metadata["lima_kernels"]["environment"]
    return digest


def test_a_copy_of_the_golden_vm_is_the_same_environment_sooner(project: Path, figures: Figures) -> None:
    command("install", "--name", "golden", "--environment", "lima-env.yaml", "--user")
    command("delete", VM, "--force")
    provisioned = seconds(("start", VM), ("env", "sync"))
    digest = environment_digest(project)
    command("delete", VM, "--force")
    first = seconds(("env", "sync"))
    assert environment_digest(project) == digest
    command("delete", VM, "--force")
    copied = seconds(("env", "sync"))
    assert environment_digest(project) == digest
    figures.seconds["environment: provisioned from its base"] = provisioned
    figures.seconds["environment: golden VM made, and a copy"] = first
    figures.seconds["environment: a copy of the golden VM"] = copied
    assert copied < provisioned / 2


def test_it_is_handed_to_somebody_else(
    project: Path, directories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figures: Figures
) -> None:
    command("env", "sync")
    digest = environment_digest(project)
    command("stop", VM)
    with figures.timed("env image"):
        command("env", "image")
    with figures.timed("env export"):
        command("env", "export", "lima-env.yaml", "--output", str(directories / "golden.tar"))
    # Somebody else: nothing of ours is there but the archive.
    other = directories / "other"
    for name in ("lima", "data", "run"):
        (other / name).mkdir(parents=True)
    monkeypatch.setenv("LIMA_HOME", str(other / "lima"))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(other / "data"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(other / "run"))
    theirs = directories / "theirs"
    with figures.timed("env import"):
        command("env", "import", str(directories / "golden.tar"), "--directory", str(theirs))
    shutil.copy(project / "result.ipynb", theirs)
    monkeypatch.chdir(theirs)
    try:
        with figures.timed("imported: to the first notebook's end"):
            assert environment_digest(theirs) == digest
    finally:
        without_vms()
