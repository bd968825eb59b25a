"""Kernels that the guest itself has: their kernel specs on the host, and their lives."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from jupyter_client import KernelManager

from lima_kernels.cli.main import main
from lima_kernels.errors import LimaKernelsError, PhaseTimeout
from tests.client import CellError, Notebook
from tests.fake_guest import FakeGuest

from .conftest import Machine
from .test_cli_kernels import attached, client, orphan, ran, server
from .test_kernel import lives, until

IPYKERNEL = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
ECHO = """
import time
from ipykernel.kernelapp import IPKernelApp
from ipykernel.kernelbase import Kernel

class Echo(Kernel):
    implementation = language = banner = "echo"
    implementation_version = "1"
    language_info = {"name": "echo", "mimetype": "text/plain", "file_extension": ".txt"}

    async def do_execute(self, code, silent, store_history=True, user_expressions=None, allow_stdin=False, **_):
        try:
            if code == "sleep":
                time.sleep(50)
        except KeyboardInterrupt:
            code = "interrupted"
        self.send_response(self.iopub_socket, "stream", {"name": "stdout", "text": code})
        return {"status": "ok", "execution_count": self.execution_count, "payload": [], "user_expressions": {}}

IPKernelApp.launch_instance(kernel_class=Echo)
"""


@pytest.fixture(autouse=True)
def _ready(guest: FakeGuest, spec: str) -> None:
    """Every test here has a guest and the kernel spec."""


def guest_spec(machine: Machine, name: str, argv: list[str], **more: Any) -> Path:
    """Put a kernel spec into the guest."""
    directory = machine.guest_home / ".local" / "share" / "jupyter" / "kernels" / name
    directory.mkdir(parents=True)
    document = {"argv": argv, "display_name": name.title(), "language": "python", **more}
    (directory / "kernel.json").write_text(json.dumps(document))
    return directory


def echo_spec(machine: Machine) -> None:
    """A kernel of another kind: a shell script that becomes another program."""
    argv = ["/bin/sh", "{resource_dir}/run", "{connection_file}", "{unknown}"]
    directory = guest_spec(machine, "echo", argv, language="echo", interrupt_mode="message")
    (directory / "echo.py").write_text(ECHO)
    (directory / "run").write_text(f'exec {sys.executable} "$(dirname "$0")/echo.py" -f "$1"\n')


def host_spec(machine: Machine, name: str) -> dict[str, Any]:
    file = machine.root / "jupyter" / "kernels" / name / "kernel.json"
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def install(*arguments: str) -> None:
    assert main(["install", "--user", *arguments]) == 0


@contextmanager
def running(machine: Machine, name: str) -> Iterator[Notebook]:
    manager = KernelManager(kernel_name=name)
    manager.start_kernel(cwd=str(machine.notebooks))
    notebook = Notebook(manager)
    try:
        yield notebook
    finally:
        notebook.client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.fixture(autouse=True)
def _in_the_notebooks_directory(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(machine.notebooks)


# install


def test_install_writes_what_the_guest_says_of_its_kernel(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    echo_spec(machine)
    install("--kernel", "echo")
    captured = capsys.readouterr()
    assert captured.out.startswith("Installed the kernel 'Echo (Lima)' (lima-echo) in ")
    assert "lima-kernels: booting the VM" in captured.err
    assert host_spec(machine, "lima-echo") == {
        "argv": ["/bin/sh", "{resource_dir}/run", "{connection_file}", "{unknown}"],
        "display_name": "Echo (Lima)",
        "language": "echo",
        "interrupt_mode": "message",
        "metadata": {
            "kernel_provisioner": {
                "provisioner_name": "lima-provisioner",
                "config": {"instance": "lima-kernels", "standby_kernels": 0, "on_idle": "nothing", "kernel": "echo"},
            }
        },
    }
    assert len(machine.calls("start")) == 1


def test_names_of_ones_own(machine: Machine) -> None:
    guest_spec(machine, "other", IPYKERNEL)
    install("--kernel", "other", "--name", "mine", "--display-name", "My own")
    document = host_spec(machine, "mine")
    assert (document["display_name"], document["interrupt_mode"]) == ("My own", "signal")


def test_a_vm_that_runs_is_asked_as_it_is(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    guest_spec(machine, "other", IPYKERNEL)
    assert main(["start"]) == 0
    # Not shown by the VM; nobody needs it.
    monkeypatch.chdir(tmp_path)
    install("--kernel", "other")
    assert len(machine.calls("start")) == 1


def test_the_home_directory_is_not_shown_for_a_look(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(machine.home)
    install("--kernel", "python3")
    assert str(machine.home) not in (machine.lima_home / "lima-kernels" / "lima.yaml").read_text()


def test_a_directory_that_a_notebook_will_need_is_shown(machine: Machine) -> None:
    install("--kernel", "python3")
    with running(machine, "lima-python3") as notebook:
        assert notebook.run("import os; print(os.getcwd())") == str(machine.notebooks)
    assert len(machine.calls("start")) == 1


def test_kernels_of_one_vm_share_what_it_is(machine: Machine) -> None:
    file = machine.root / "env.yaml"
    file.write_text("cpus: 4\n")
    install("--name", "science", "--environment", str(file))
    spec_file = machine.root / "jupyter" / "kernels" / "science" / "kernel.json"
    document = json.loads(spec_file.read_text())
    document["metadata"]["kernel_provisioner"]["config"].update(boot_timeout=50, transport="tcp")
    spec_file.write_text(json.dumps(document))
    install("--kernel", "python3", "--instance", "lima-kernels-science")
    expected = {
        "instance": "lima-kernels-science",
        "environment": str(file),
        "boot_timeout": 50,
        "kernel": "python3",
    }
    assert host_spec(machine, "lima-python3")["metadata"]["kernel_provisioner"]["config"] == expected
    install("--kernel", "python3", "--name", "again", "--environment", str(file))
    assert host_spec(machine, "again")["metadata"]["kernel_provisioner"]["config"] == {
        "instance": "lima-kernels-science",
        "environment": str(file),
        "kernel": "python3",
    }
    assert machine.instances() == ["lima-kernels-science"]


def test_a_name_that_the_guest_does_not_have(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    guest_spec(machine, "other", IPYKERNEL)
    assert main(["install", "--user", "--kernel", "othr"]) == 1
    # The fake guest shares this Python, and the kernel specs in its environment.
    message = r"lima-kernels: The VM 'lima-kernels' has no kernel 'othr'\. It has: (lima, )?other, python3\."
    assert re.fullmatch(message, capsys.readouterr().err.splitlines()[-1])
    assert not (machine.root / "jupyter" / "kernels" / "lima-othr").exists()


def test_a_name_that_jupyter_does_not_take_is_refused_before_the_vm_is_started(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["install", "--user", "--kernel", "a b"]) == 1
    assert "'lima-a b' cannot be a kernel spec's name." in capsys.readouterr().err
    assert machine.instances() == []


def test_listing_installs_nothing(
    machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    echo_spec(machine)
    guest_spec(machine, "hostile", ["x"], display_name="[red]\x1b[2Jred", language="\x07c")
    before = sorted((machine.root / "jupyter" / "kernels").iterdir())
    assert main(["install", "--list-kernels"]) == 0
    out = capsys.readouterr().out
    rows = {
        row[0]: row[1:]
        for line in out.splitlines()
        if len(row := [cell.strip() for cell in line.split("│")][1:-1]) == 3
    }
    assert rows["echo"] == ["Echo", "echo"]
    assert rows["hostile"] == ["[red]red", "c"]
    assert "python3" in rows
    assert "\x1b" not in out
    assert out.endswith("To install one: lima-kernels install --kernel NAME --instance lima-kernels\n")
    assert sorted((machine.root / "jupyter" / "kernels").iterdir()) == before


def test_an_attached_vm_is_asked_too(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    directory = machine.lima_home / "mine"
    directory.mkdir()
    (directory / "lima.yaml").write_text("images: []\n")
    assert main(["install", "--list-kernels", "--attach", "mine"]) == 0
    assert capsys.readouterr().out.endswith("lima-kernels install --kernel NAME --attach mine\n")
    install("--kernel", "python3", "--attach", "mine")
    config = host_spec(machine, "lima-python3")["metadata"]["kernel_provisioner"]["config"]
    assert config == {"instance": "mine", "attach": True, "kernel": "python3"}
    assert (directory / "lima.yaml").read_text() == "images: []\n"


def test_kernel_and_list_kernels_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["install", "--kernel", "x", "--list-kernels"])
    assert caught.value.code == 2


# Their lives


def test_another_python_with_variables_of_its_spec(machine: Machine) -> None:
    guest_spec(machine, "other", IPYKERNEL, env={"OF_THE_SPEC": "yes, ${HOME}"})
    install("--kernel", "other")
    with running(machine, "lima-other") as notebook:
        assert notebook.run("import os; print(os.environ['OF_THE_SPEC'])") == f"yes, {machine.guest_home}"
        assert notebook.run("print(os.getcwd())") == str(machine.notebooks)
        assert notebook.interrupted()["ename"] == "KeyboardInterrupt"
        notebook.run("x = 1")
        pid = int(notebook.run("print(os.getpid())"))
        notebook.manager.restart_kernel()
        notebook.client.wait_for_ready(timeout=60)
        with pytest.raises(CellError, match="NameError"):
            notebook.run("x")
        assert not lives(pid)
        assert len(machine.calls("start")) == 1


def test_a_kernel_that_is_not_ipython(machine: Machine) -> None:
    echo_spec(machine)
    install("--kernel", "echo")
    with running(machine, "lima-echo") as notebook:
        assert notebook.run("hello") == "hello"
        notebook.begin("sleep", announce="")
        notebook.manager.interrupt_kernel()
        assert notebook.reply()["status"] == "ok"
        notebook.manager.restart_kernel()
        notebook.client.wait_for_ready(timeout=60)
        assert notebook.run("again") == "again"
    assert not list((machine.guest_home / ".lima-kernels").glob("*/k/*"))


def test_a_guest_kernel_that_is_killed_is_noticed(machine: Machine) -> None:
    guest_spec(machine, "other", IPYKERNEL)
    install("--kernel", "other")
    with running(machine, "lima-other") as notebook:
        os.kill(int(notebook.run("import os; print(os.getpid())")), signal.SIGKILL)
        until(lambda: not notebook.manager.is_alive())


def test_one_that_lost_its_server_goes_on(machine: Machine) -> None:
    guest_spec(machine, "other", IPYKERNEL)
    install("--kernel", "other")
    name, pid = orphan(machine, kernel="lima-other")
    with attached(machine, name) as (_, file), client(file) as one:
        assert ran(one, "print(x)") == "of before"
    with server(machine, "import os; print(x, os.getpid())", kernel="lima-other") as (_, found):
        assert found == f"of before {pid}"


def test_it_is_listed_beside_the_others_and_its_state_is_unknown(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    echo_spec(machine)
    install("--kernel", "echo")
    with running(machine, "lima-echo"):
        capsys.readouterr()
        assert main(["kernels", "list", "--json"]) == 0
        (survey,) = json.loads(capsys.readouterr().out)
        assert [(kernel["spec"], kernel["state"]) for kernel in survey["kernels"]] == [("lima-echo", "unknown")]


def test_a_program_that_does_not_exist_gives_one_clear_line(machine: Machine) -> None:
    guest_spec(machine, "gone", ["/nowhere/kernel", "{connection_file}"])
    install("--kernel", "gone")
    with pytest.raises(LimaKernelsError) as caught:
        KernelManager(kernel_name="lima-gone").start_kernel(cwd=str(machine.notebooks))
    assert "/nowhere/kernel cannot be run: No such file or directory" in str(caught.value)
    assert not list((machine.guest_home / ".lima-kernels").glob("*/k/*"))


def test_a_kernel_that_left_the_guest_since_gives_one_clear_line(machine: Machine) -> None:
    directory = guest_spec(machine, "other", IPYKERNEL)
    install("--kernel", "other")
    (directory / "kernel.json").unlink()
    with pytest.raises(LimaKernelsError) as caught:
        KernelManager(kernel_name="lima-other").start_kernel(cwd=str(machine.notebooks))
    assert "the guest has no kernel 'other'; it has: " in str(caught.value)


def test_one_that_never_binds_its_sockets_uses_kernel_timeout_up(machine: Machine) -> None:
    guest_spec(machine, "slow", ["/bin/sleep", "300"])
    install("--kernel", "slow")
    manager = KernelManager(kernel_name="lima-slow")
    assert manager.kernel_spec is not None
    manager.kernel_spec.metadata["kernel_provisioner"]["config"]["kernel_timeout"] = 0.5
    with pytest.raises(PhaseTimeout, match=r"kernel_timeout \(0 s\) was used up starting the kernel"):
        manager.start_kernel(cwd=str(machine.notebooks))
    assert not list((machine.guest_home / ".lima-kernels").glob("*/k/*"))
