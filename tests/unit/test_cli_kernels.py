"""`lima-kernels kernels`: kernels with and without a server, as another process of this host finds them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from jupyter_client import BlockingKernelClient, KernelManager

from lima_kernels import leases, vm
from lima_kernels.cli.main import main
from lima_kernels.kernelspec import make_request, write
from tests.child import Child, child
from tests.client import Notebook
from tests.fake_guest import FakeGuest

from .conftest import Machine
from .test_kernel import lives, started, until

NAME = "lima-kernels"


@pytest.fixture(autouse=True)
def _ready(guest: FakeGuest, spec: str) -> None:
    """Every test here has a guest and the kernel spec."""


def serve(machine: Machine, code: str, kernel: str, encryption: str) -> None:
    """A server with one kernel, until it is killed or told to end."""
    manager = KernelManager(kernel_name=kernel, transport_encryption=encryption)
    manager.start_kernel(cwd=str(machine.notebooks))
    notebook = Notebook(manager)
    print(notebook.run(code), flush=True)
    for line in sys.stdin:
        print(notebook.run(line) if manager.is_alive() else "dead", flush=True)


@contextmanager
def server(
    machine: Machine, code: str, *, notebook: str = "one.ipynb", kernel: str = "lima", encryption: str = "disabled"
) -> Iterator[tuple[Child, str]]:
    """A process with a kernel for a notebook, and what its first cell prints."""
    env = {"JPY_SESSION_NAME": str(machine.notebooks / notebook)}
    with child(serve, machine, code, kernel, encryption, env=env) as made:
        yield made, made.line()


def orphan(machine: Machine, **of_what: str) -> tuple[str, int]:
    """Leave a kernel whose server was killed by `kill -9`; returns its name and its process."""
    known = {kernel["name"] for kernel in listed()}
    with server(machine, "import os; x = 'of before'; print(os.getpid())", **of_what) as (made, pid):
        made.kill()
    return next(kernel["name"] for kernel in listed() if kernel["name"] not in known), int(pid)


def surveys(*arguments: str) -> list[dict[str, Any]]:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["kernels", "list", "--json", *arguments]) == 0
    found: list[dict[str, Any]] = json.loads(out.getvalue())
    return found


def listed(*arguments: str) -> list[dict[str, Any]]:
    return [kernel for survey in surveys(*arguments) for kernel in survey["kernels"]]


def attach(machine: Machine, *arguments: str) -> None:
    """`lima-kernels kernels attach`, for a process of its own."""
    print(f"exit code {main(['kernels', 'attach', *arguments])}", flush=True)


@contextmanager
def attached(machine: Machine, *arguments: str) -> Iterator[tuple[Child, Path]]:
    """A process that is attached to a kernel, and its connection file."""
    with child(attach, machine, *arguments) as made:
        command = shlex.split(made.line())
        assert command[:3] == ["jupyter", "console", "--existing"]
        yield made, Path(command[3])


@contextmanager
def client(file: Path) -> Iterator[BlockingKernelClient]:
    made = BlockingKernelClient(connection_file=str(file))
    made.load_connection_file()
    made.start_channels()
    try:
        made.wait_for_ready(timeout=60)
        yield made
    finally:
        made.stop_channels()


def ran(client: BlockingKernelClient, code: str) -> str:
    """Run a cell and return what it printed."""
    texts: list[str] = []

    def collect(message: dict[str, Any]) -> None:
        if message["msg_type"] == "stream":
            texts.append(message["content"]["text"])

    client.execute_interactive(code, timeout=60, output_hook=collect)
    return "".join(texts).strip()


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(["kernels", *arguments]) == 1
    return capsys.readouterr().err.strip()


# list


def test_a_vm_that_does_not_run_is_named_and_not_started(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "list"]) == 0
    assert capsys.readouterr().out == f"Does not run: {NAME} (not made yet)\n"
    assert main(["start", "--directory", str(machine.notebooks)]) == 0
    assert main(["stop"]) == 0
    capsys.readouterr()
    assert main(["kernels", "list", NAME]) == 0
    assert capsys.readouterr().out == f"Does not run: {NAME} (Stopped)\n"
    assert surveys() == [{"instance": NAME, "status": "Stopped", "problem": "", "kernels": []}]
    assert len(machine.calls("start")) == 1


def test_a_vm_without_kernels_says_so(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["start", "--directory", str(machine.notebooks)]) == 0
    capsys.readouterr()
    assert main(["kernels", "list"]) == 0
    assert capsys.readouterr().out == "There is no kernel.\n"


def test_list_without_a_kernel_spec_says_how_to_write_one(
    machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # That of the virtual environment is not meant.
    monkeypatch.setattr("jupyter_core.paths.ENV_JUPYTER_PATH", [])
    monkeypatch.setattr("jupyter_core.paths.SYSTEM_JUPYTER_PATH", [])
    assert main(["uninstall"]) == 0
    capsys.readouterr()
    assert main(["kernels", "list"]) == 0
    assert capsys.readouterr().out == "No kernel spec yet: lima-kernels install\n"


def test_list_names_the_nearest_vm(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["start", "--directory", str(machine.notebooks)]) == 0
    assert refused(capsys, "list", "lima-kernel") == (
        f"lima-kernels: There is no Lima instance 'lima-kernel'. Did you mean '{NAME}'?"
    )


def test_list_says_who_uses_a_kernel_and_what_it_does(machine: Machine) -> None:
    with server(machine, "import time; print('ready')") as (made, _):
        (kernel,) = listed()
        assert kernel["owner"] == {"program": "child.py", "pid": made.pid}
        assert (kernel["spec"], kernel["session"]) == ("lima", str(machine.notebooks / "one.ipynb"))
        assert kernel["state"] == "idle"
        assert abs(time.time() - time.mktime(time.strptime(kernel["started"][:19], "%Y-%m-%dT%H:%M:%S"))) < 86400
        made.say("time.sleep(5); print('slept')")
        until(lambda: listed()[0]["state"] == "busy")
        assert made.line() == "slept"
        until(lambda: listed()[0]["state"] == "idle")
        made.kill()
        assert listed() == [{**kernel, "owner": None}]


def test_list_in_words(machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    write(make_request("far", "Far", environment=None, instance="far", attach=False), user=True, prefix=None)
    name, _ = orphan(machine)
    monkeypatch.chdir(machine.notebooks)
    with started(machine):
        capsys.readouterr()
        assert main(["kernels", "list"]) == 0
    out = capsys.readouterr().out
    of_orphan = next(line for line in out.splitlines() if name in line)
    assert [cell.strip() for cell in of_orphan.split("│")][1:6] == [NAME, name, "one.ipynb", "idle", "nobody"]
    of_ours = next(line for line in out.splitlines() if f"process {os.getpid()}" in line)
    # Without a notebook's name the kernel spec stands for it.
    assert [cell.strip() for cell in of_ours.split("│")][3] == "lima"
    assert out.endswith("Does not run: far (not made yet)\n")


def test_what_the_guest_says_does_not_steer_the_terminal(
    machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    orphan(machine, notebook="[red]\x1b[2J\x07.ipynb")
    capsys.readouterr()
    assert main(["kernels", "list"]) == 0
    out = capsys.readouterr().out
    assert "[red].ipynb" in out
    assert "\x1b" not in out


def test_a_vm_that_cannot_be_reached_does_not_hide_the_others(
    machine: Machine, guest: FakeGuest, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vm, "RECONNECT_TIMEOUT", 1.0)
    write(make_request("far", "Far", environment=None, instance="far", attach=False), user=True, prefix=None)
    orphan(machine)
    guest.stop_listening()
    guest.drop_connections()
    capsys.readouterr()
    assert main(["kernels", "list"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "Does not run: far (not made yet)\n"
    assert "could not be reached" in captured.err
    assert "could not be reached" in refused(capsys, "attach", "a")
    guest.listen()


# attach


def test_attach_gives_a_kernel_of_before_to_any_client(machine: Machine) -> None:
    name, pid = orphan(machine)
    sockets = set((machine.root / "run" / "lima").iterdir())
    with attached(machine, name[:5]) as (process, file):
        assert file.name == f"kernel-lima-{name}.json"
        assert file.stat().st_mode & 0o777 == 0o600
        content = json.loads(file.read_text())
        assert content["jupyter_session"] == str(machine.notebooks / "one.ipynb")
        assert isinstance(content["key"], str)
        with client(file) as one:
            assert ran(one, "print(x)") == "of before"
            ran(one, "x = 'changed'")
        os.kill(process.pid, signal.SIGINT)
        assert process.line() == "exit code 0"
    assert not file.exists()
    assert set((machine.root / "run" / "lima").iterdir()) == sockets
    assert lives(pid)
    (kernel,) = listed()
    assert kernel["owner"] is None
    with attached(machine, name, "--instance", NAME) as (_, file), client(file) as two:
        assert ran(two, "print(x)") == "changed"


def test_attach_to_an_encrypted_kernel(machine: Machine) -> None:
    name, _ = orphan(machine, encryption="required")
    with attached(machine, name) as (_, file), client(file) as one:
        assert one.session.key
        assert json.loads(file.read_text())["curve_publickey"]
        assert ran(one, "print(x)") == "of before"


def test_the_command_that_attach_prints_works(machine: Machine) -> None:
    name, pid = orphan(machine)
    with attached(machine, name) as (_, file):
        console = [sys.executable, "-m", "jupyter_console", "--existing", str(file), "--simple-prompt"]
        done = subprocess.run(
            console,
            input="print(x.upper())\nexit(keep_kernel=True)\n",
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        assert "OF BEFORE" in done.stdout
    assert lives(pid)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_attach_that_is_told_to_end_leaves_nothing(machine: Machine, signum: signal.Signals) -> None:
    name, pid = orphan(machine)
    with attached(machine, name) as (process, file):
        os.kill(process.pid, signum)
        assert process.line() == "exit code 0"
    assert not file.exists()
    assert lives(pid)
    assert [kernel["owner"] for kernel in listed()] == [None]


def test_attach_that_is_killed_leaves_the_kernel_to_the_next(machine: Machine) -> None:
    name, _ = orphan(machine)
    with attached(machine, name) as (process, _):
        process.kill()
    with attached(machine, name) as (_, file), client(file) as one:
        assert ran(one, "print(x)") == "of before"


def test_attach_outlives_a_lost_connection(machine: Machine, guest: FakeGuest) -> None:
    name, _ = orphan(machine)
    with attached(machine, name) as (_, file), client(file) as one:
        assert guest.drop_connections() >= 1
        assert ran(one, "print(x)") == "of before"


def test_attach_ends_with_the_kernel(machine: Machine) -> None:
    name, pid = orphan(machine)
    with attached(machine, name) as (process, file):
        os.kill(pid, signal.SIGKILL)
        assert process.line() == "exit code 1"
    assert not file.exists()
    assert not list((machine.guest_home / ".lima-kernels").glob("*/k/*"))
    assert leases.held(NAME) == {}


def test_a_kernel_that_a_client_shuts_down_ends_attach_well(machine: Machine) -> None:
    name, _ = orphan(machine)
    with attached(machine, name) as (process, file):
        with client(file) as one:
            one.shutdown()
        assert process.line() == "exit code 0"
    assert listed() == []


def test_a_kernel_in_use_is_not_attached(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    with server(machine, "print(1)") as (made, _):
        (kernel,) = listed()
        assert refused(capsys, "attach", kernel["name"]) == (
            f"lima-kernels: The kernel {kernel['name']} in the VM '{NAME}' is used by child.py (process {made.pid}). "
            "That process's own connection file serves: jupyter console --existing"
        )
        assert listed() == [kernel]
        made.say("print('not disturbed')")
        assert made.line() == "not disturbed"


def test_an_attached_kernel_is_in_use(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    name, _ = orphan(machine)
    with attached(machine, name) as (process, _):
        assert f"(process {process.pid})" in refused(capsys, "attach", name)
        # The notebook's next server does not get it either, but a kernel of its own.
        with server(machine, "print('x' in globals())") as (_, found):
            assert found == "False"
            assert len(listed()) == 2


def test_a_kernel_that_is_taken_meanwhile_is_left_to_who_took_it(
    machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, pid = orphan(machine)
    with server(machine, "print(x)") as (_, found):
        assert found == "of before"
        # As it looked a moment ago.
        monkeypatch.setattr(leases, "held", lambda _instance: {})
        assert "has just been taken by another process." in refused(capsys, "attach", name)
        assert "has just been taken by another process." in refused(capsys, "kill", name)
        assert lives(pid)


def test_names_that_mean_no_kernel_or_several(
    machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    token_hex = secrets.token_hex
    monkeypatch.setattr(secrets, "token_hex", lambda length: "ab" + token_hex(length - 1))
    with started(machine), started(machine):
        one, two = (kernel["name"] for kernel in listed())
        assert refused(capsys, "attach", "") == (
            "lima-kernels: There is no kernel '' in a running VM that our kernel specs name. "
            "See them: lima-kernels kernels list"
        )
        assert refused(capsys, "kill", "--instance", NAME, "zz").startswith(
            f"lima-kernels: There is no kernel 'zz' in the VM '{NAME}', if that runs."
        )
        assert refused(capsys, "kill", "ab") == (
            f"lima-kernels: 'ab' is the beginning of more than one kernel's name: {one} in {NAME}, {two} in {NAME}."
        )


# kill


def test_kill_ends_a_kernel_without_a_user_and_its_children(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    name, pid = orphan(machine)
    other, other_pid = orphan(machine, notebook="two.ipynb")
    capsys.readouterr()
    assert main(["kernels", "kill", name[:6]]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"Ended the kernel {name} (")
    assert out.endswith(f"one.ipynb) in the VM {NAME}.\n")
    assert not lives(pid)
    assert lives(other_pid)
    assert [kernel["name"] for kernel in listed()] == [other]
    assert not list((machine.guest_home / ".lima-kernels").glob(f"*/k/{name}"))


def test_kill_ends_a_kernel_in_use_only_by_force(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    with server(machine, "import os; print(os.getpid())") as (made, pid):
        (kernel,) = listed()
        assert refused(capsys, "kill", kernel["name"]) == (
            f"lima-kernels: The kernel {kernel['name']} in the VM '{NAME}' is used by child.py (process {made.pid}). "
            f"To end it all the same: lima-kernels kernels kill --force {kernel['name']}"
        )
        assert lives(int(pid))
        assert main(["kernels", "kill", "--force", kernel["name"]]) == 0
        assert f"was used by child.py (process {made.pid})" in capsys.readouterr().out
        assert not lives(int(pid))
        assert listed() == []
        made.say("print('alive')")
        assert made.line() == "dead"


# stop


def test_a_vm_whose_kernel_waits_for_its_server_is_not_stopped(
    machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, pid = orphan(machine)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert main(["stop"]) == 1
    said = capsys.readouterr().err
    assert f"{machine.notebooks / 'one.ipynb'} (nobody: its server has died)" in said
    assert "The VM 'lima-kernels' is in use. To end its kernels all the same: lima-kernels stop --force" in said
    assert lives(pid)
    assert machine.calls("stop") == []
    assert main(["stop", "--force"]) == 0
    assert len(machine.calls("stop")) == 1
