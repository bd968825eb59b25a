"""Kernels that the guest itself has, on a real VM: another language, and another Python environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from jupyter_client import KernelManager

from tests.client import CellError, Notebook

from .conftest import INSTANCE, guest_shell

pytestmark = pytest.mark.timeout(900)
# By uv, for pip takes minutes in an emulated guest.
INSTALL = """
set -e
cd
export UV_SYSTEM_CERTS=1
install="/opt/lima-kernels/bin/uv pip install --quiet --python"
$install /opt/lima-kernels/venv bash_kernel
/opt/lima-kernels/venv/bin/python -m bash_kernel.install --sys-prefix
/opt/lima-kernels/bin/uv venv --quiet --python /usr/bin/python3 other
$install other ipykernel
other/bin/python -m ipykernel install --user --name other --display-name "Another Python"
"""


def called(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lima_kernels", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def command(*arguments: str) -> str:
    done = called(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def _kernels(vm: str, notebooks: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(notebooks)
    command("start", INSTANCE)
    guest_shell(INSTALL, timeout=600)
    yield
    os.chdir(before)


def started(spec: str, cwd: Path) -> Notebook:
    manager = KernelManager(kernel_name=spec)
    manager.start_kernel(cwd=str(cwd))
    return Notebook(manager)


def ended(notebook: Notebook) -> None:
    notebook.client.stop_channels()
    notebook.manager.shutdown_kernel(now=True)


def test_installing_lists_what_the_guest_has() -> None:
    listed = command("install", "--list-kernels", "--instance", INSTANCE)
    assert "bash" in listed
    assert "Another Python" in listed
    assert "python3" in listed


def test_bash_of_the_guest(notebooks: Path) -> None:
    command("install", "--kernel", "bash", "--instance", INSTANCE, "--user")
    kernel = Path(os.environ["JUPYTER_DATA_DIR"]) / "kernels" / "lima-bash" / "kernel.json"
    assert json.loads(kernel.read_text())["language"] == "bash"
    notebook = started("lima-bash", notebooks)
    try:
        assert notebook.run("echo $BASH_VERSION && pwd").splitlines()[1] == str(notebooks)
        notebook.run("VALUE=kept")
        notebook.begin("sleep 100", announce="echo begins")
        notebook.manager.interrupt_kernel()
        notebook.reply()
        assert notebook.run("echo $VALUE") == "kept"
        notebook.manager.restart_kernel()
        notebook.client.wait_for_ready(timeout=120)
        assert notebook.run("echo [$VALUE]") == "[]"
    finally:
        ended(notebook)


def test_another_python_environment_of_the_guest(notebooks: Path) -> None:
    command("install", "--kernel", "other", "--instance", INSTANCE, "--user")
    notebook = started("lima-other", notebooks)
    try:
        assert notebook.run("import sys; print(sys.prefix)").endswith("/other")
        assert notebook.interrupted()["ename"] == "KeyboardInterrupt"
        with pytest.raises(CellError, match="ModuleNotFoundError"):
            notebook.run("import pandas")
    finally:
        ended(notebook)


def test_a_kernel_that_the_guest_does_not_have_is_said(notebooks: Path) -> None:
    arguments = [sys.executable, "-m", "lima_kernels", "install", "--kernel", "bahs", "--instance", INSTANCE]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, cwd=notebooks, check=False)
    assert done.returncode == 1
    assert "bash" in done.stderr.splitlines()[-1]
