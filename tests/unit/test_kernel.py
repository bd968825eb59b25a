"""A kernel's life behind a real SSH server, through jupyter_client as clients use it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from jupyter_client import KernelManager

from tests.client import CellError, Notebook
from tests.fake_guest import FakeGuest

from .conftest import Machine


@contextmanager
def started(
    machine: Machine,
    *,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    encryption: str = "disabled",
    **config: object,
) -> Iterator[Notebook]:
    manager = KernelManager(kernel_name="lima", transport_encryption=encryption)
    assert manager.kernel_spec is not None
    manager.kernel_spec.env = env or {}
    manager.kernel_spec.metadata["kernel_provisioner"]["config"].update(config)
    manager.start_kernel(cwd=str(cwd or machine.notebooks))
    notebook = Notebook(manager)
    try:
        yield notebook
    finally:
        notebook.client.stop_channels()
        manager.shutdown_kernel(now=True)


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it did not come about"
        time.sleep(0.05)


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(autouse=True)
def _ready(guest: FakeGuest, spec: str) -> None:
    """Every test here has a guest and the kernel spec."""


def test_runs_cells_in_the_notebooks_directory(machine: Machine) -> None:
    with started(machine) as notebook:
        assert notebook.run("import os; print(os.getcwd())") == str(machine.notebooks)
        assert notebook.run("print(6 * 7)") == "42"
        assert machine.instances() == ["lima-kernels"]


def test_ipc_is_the_default_and_its_sockets_are_private(machine: Machine) -> None:
    with started(machine) as notebook:
        assert notebook.manager.transport == "ipc"
        directory = Path(notebook.manager.ip).parent
        assert directory.stat().st_mode & 0o777 == 0o700
        assert len(list(directory.iterdir())) == 5
    assert not directory.exists()


def test_tcp_listens_on_loopback_only(machine: Machine) -> None:
    with started(machine, transport="tcp") as notebook:
        ports = set(notebook.manager.ports)
        assert len(ports) == 5
        listening = [c for c in psutil.Process().net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        assert {c.laddr.ip for c in listening if c.laddr.port in ports} == {"127.0.0.1"}
        assert notebook.run("print(1)") == "1"


def test_only_allowed_variables_reach_the_guest(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "hidden")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    with started(machine) as notebook:
        names = notebook.run("import os; print(*os.environ)").split()
        assert "TZ" in names
        assert not {"A_SECRET", "JPY_PARENT_PID", "LIMA_HOME", "JUPYTER_DATA_DIR"} & set(names)
        assert notebook.run("print(os.environ['HOME'])") == str(machine.guest_home)


def test_the_specs_variables_are_substituted_and_passed(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHO", "world")
    with started(machine, env={"GREETING": "hello ${WHO}"}) as notebook:
        assert notebook.run("import os; print(os.environ['GREETING'])") == "hello world"


def test_interrupt_stops_a_cell_and_its_children(machine: Machine) -> None:
    with started(machine) as notebook:
        notebook.begin("import subprocess; subprocess.run(['sleep', '100'])")
        notebook.manager.interrupt_kernel()
        assert notebook.reply()["ename"] == "KeyboardInterrupt"
        assert notebook.run("print('alive')") == "alive"


def test_restart_keeps_the_vm_and_forgets_variables(machine: Machine) -> None:
    with started(machine) as notebook:
        notebook.run("x = 1")
        notebook.manager.restart_kernel()
        notebook.client.wait_for_ready(timeout=60)
        with pytest.raises(CellError, match="NameError"):
            notebook.run("x")
        assert len(machine.calls("start")) == 1
        assert machine.calls("stop") == []


def test_shutdown_leaves_nothing(machine: Machine) -> None:
    with started(machine) as notebook:
        pid = int(notebook.run("import os; print(os.getpid())"))
        child = int(notebook.run("import subprocess; print(subprocess.Popen(['sleep', '300']).pid)"))
        notebook.manager.shutdown_kernel()
        assert not lives(pid)
        assert not lives(child)
        assert list((machine.guest_home / ".lima-kernels").glob("*/k"))
        assert not list((machine.guest_home / ".lima-kernels").glob("*/k/*"))
        assert not list((machine.root / "run" / "lima").iterdir())


def test_two_kernels_share_a_vm_and_nothing_else(machine: Machine) -> None:
    with started(machine) as one, started(machine) as two:
        one.run("x = 'one'")
        two.run("x = 'two'")
        assert (one.run("print(x)"), two.run("print(x)")) == ("one", "two")
        assert len(machine.calls("start")) == 1


def test_a_lost_connection_costs_no_variable(machine: Machine, guest: FakeGuest) -> None:
    with started(machine) as notebook:
        notebook.run("x = 'kept'")
        assert guest.drop_connections() == 1
        until(lambda: len(guest.connections) == 1)
        assert notebook.manager.is_alive()
        assert notebook.run("print(x)") == "kept"


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_a_result_that_is_ready_after_a_lost_connection_arrives(
    machine: Machine, guest: FakeGuest, transport: str
) -> None:
    with started(machine, transport=transport) as notebook:
        notebook.begin("import time; time.sleep(3); y = 5")
        guest.drop_connections()
        assert notebook.reply()["status"] == "ok"
        assert notebook.run("print(y)") == "5"


def test_a_new_kernel_after_a_lost_connection_uses_the_one_that_was_made_anew(
    machine: Machine, guest: FakeGuest
) -> None:
    with started(machine) as one:
        guest.drop_connections()
        until(lambda: len(guest.connections) == 1)
        assert one.run("print('back')") == "back"
        connections = list(guest.connections)
        with started(machine) as two:
            assert two.run("print(2)") == "2"
        assert guest.connections == connections


def test_unreachable_is_not_dead_but_a_stopped_vm_is(machine: Machine, guest: FakeGuest) -> None:
    with started(machine) as notebook:
        guest.stop_listening()
        guest.drop_connections()
        time.sleep(0.5)
        assert notebook.manager.is_alive()
        (machine.lima_home / "lima-kernels" / "running").unlink()
        guest.listen()
        assert notebook.run("print('back')") == "back"
        guest.drop_connections()
        until(lambda: not notebook.manager.is_alive())


def test_a_kernel_that_dies_is_noticed_with_its_signal(machine: Machine) -> None:
    with started(machine) as notebook:
        pid = int(notebook.run("import os; print(os.getpid())"))
        os.kill(pid, signal.SIGKILL)
        until(lambda: not notebook.manager.is_alive())
        assert notebook.manager.provisioner is not None
        session = notebook.manager.provisioner._session
        assert session.exit.code == -signal.SIGKILL


def test_a_crash_in_native_code_says_where(machine: Machine) -> None:
    with started(machine) as notebook:
        notebook.client.execute("import ctypes; ctypes.string_at(0)")
        until(lambda: not notebook.manager.is_alive())
        assert notebook.manager.provisioner is not None
        session = notebook.manager.provisioner._session
        assert session.obituary() == "The kernel in 'lima-kernels' was ended by SIGSEGV."
        assert "Fatal Python error: Segmentation fault" in session.exit.log


def test_pythonpath_of_the_spec_is_obeyed(machine: Machine) -> None:
    (machine.root / "modules").mkdir()
    (machine.root / "modules" / "of_mine.py").write_text("value = 'found'")
    with started(machine, env={"PYTHONPATH": str(machine.root / "modules")}) as notebook:
        assert notebook.run("import of_mine; print(of_mine.value)") == "found"


def test_encryption_is_end_to_end_where_it_is_demanded(machine: Machine) -> None:
    with started(machine, encryption="required") as notebook:
        assert notebook.run("print('sealed')") == "sealed"
        assert notebook.manager.curve_secretkey
