"""The whole way on a real VM. The tests share it and build on each other's state of it: they run in this order."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from lima_kernels import runtime
from lima_kernels.lima.limactl import Limactl
from lima_kernels.lima.models import Status
from lima_kernels.lima.template import EPHEMERAL_PORTS
from lima_kernels.progress import Phase, Step
from tests.client import ENDLESS

from .conftest import INSTANCE, Figures, Start, entered, guest_shell, kernels_in_guest, run

pytestmark = pytest.mark.timeout(900)
ENVIRONMENT = """
memory: 3GiB
apt: [tree]
python: [toolz]
env:
  GREETING: grüß dich
provision:
- script: |
    #!/bin/sh
    id -un > /var/tmp/provisioned-by
"""
EXAMPLE = Path(__file__).parents[2] / "notebooks" / "01-first-kernel.ipynb"


def test_first_start_makes_the_vm_and_runs_a_cell(
    start: Start, notebooks: Path, steps: list[Step], figures: Figures
) -> None:
    with figures.timed("first boot of a new VM to first cell"):
        notebook = start()
        assert notebook.run("print(6 * 7)") == "42"
    assert entered(steps, 0, Phase.CREATE)
    assert notebook.run("import os; print(os.getcwd())") == str(notebooks)
    assert notebook.run("import platform; print(platform.uname().node)") == f"lima-{INSTANCE}"
    assert "debian" in notebook.run("print(open('/etc/os-release').read())").lower()


def test_udev_knows_every_device_when_the_boot_has_ended(start: Start) -> None:
    start()
    # In a boot it is told of most of them only when the way to a kernel is free.
    guest_shell("sudo systemctl start lima-kernels-devices && udevadm settle --timeout=100", timeout=110)
    unknown = "cd /sys/dev/char && for one in *; do [ -e /run/udev/data/c$one ] || readlink $one; done"
    assert guest_shell(unknown) == ""


def test_a_warm_start_needs_no_phase_of_a_boot(start: Start, steps: list[Step], figures: Figures) -> None:
    since = len(steps)
    with figures.timed("warm VM, start to first cell"):
        notebook = start()
        assert notebook.run("print('warm')") == "warm"
    assert [step.phase for step in steps[since:]] == [Phase.KERNEL, Phase.FORWARD, Phase.READY]


def test_files_are_the_same_on_both_sides(start: Start, notebooks: Path) -> None:
    notebook = start()
    (notebooks / "from-host.txt").write_text("hello guest, grüße\n", encoding="utf-8")
    assert notebook.run("print(open('from-host.txt').read())") == "hello guest, grüße"
    notebook.run("open('from-guest.txt', 'w').write('hello host')")
    written = notebooks / "from-guest.txt"
    assert written.read_text() == "hello host"
    assert written.stat().st_uid == os.getuid()


def test_nothing_else_of_home_is_visible(start: Start, notebooks: Path) -> None:
    (Path.home() / "lk-private.txt").write_text("private")
    try:
        notebook = start()
        assert notebook.run(f"import os; print(os.path.exists({str(Path.home() / 'lk-private.txt')!r}))") == "False"
        mounted = guest_shell("findmnt --noheadings --raw --output TARGET --types 9p").splitlines()
        assert [entry.encode().decode("unicode_escape").encode("latin-1").decode() for entry in mounted] == [
            str(notebooks)
        ]
    finally:
        (Path.home() / "lk-private.txt").unlink()


def test_interrupt_ends_a_sleep_and_keeps_the_kernel(start: Start, figures: Figures) -> None:
    notebook = start()
    notebook.run("x = 1")
    notebook.begin(ENDLESS)
    with figures.timed("interrupt of a cell"):
        notebook.manager.interrupt_kernel()
        assert notebook.reply()["ename"] == "KeyboardInterrupt"
    assert notebook.run("print(x)") == "1"


def test_interrupt_reaches_child_processes(start: Start) -> None:
    notebook = start()
    notebook.client.execute("!sleep 1000")
    while "sleep 1000" not in guest_shell("ps -eo args"):
        pass
    notebook.manager.interrupt_kernel()
    limit = time.monotonic() + 60
    while "sleep 1000" in guest_shell("ps -eo args"):
        assert time.monotonic() < limit


def test_restart_keeps_the_vm_and_shutdown_leaves_nothing(start: Start, steps: list[Step], figures: Figures) -> None:
    notebook = start()
    booted = notebook.run("print(open('/proc/sys/kernel/random/boot_id').read())")
    notebook.run("x = 1")
    since = len(steps)
    with figures.timed("restart to first cell"):
        notebook.manager.restart_kernel()
        notebook.client.wait_for_ready(timeout=120)
        assert notebook.run("print('x' in globals())") == "False"
    assert not entered(steps, since, Phase.BOOT)
    assert notebook.run("print(open('/proc/sys/kernel/random/boot_id').read())") == booted
    notebook.run("import subprocess; subprocess.Popen(['sleep', '2000'])")
    with figures.timed("shutdown"):
        notebook.manager.shutdown_kernel()
    assert kernels_in_guest() == []
    assert "sleep 2000" not in guest_shell("ps -eo args")


def test_two_kernels_at_once(start: Start) -> None:
    one, two = start(), start()
    one.run("name = 'one'")
    two.run("name = 'two'")
    assert (one.run("print(name)"), two.run("print(name)")) == ("one", "two")
    assert len(kernels_in_guest()) == 2


def test_no_port_of_ours_is_open_anywhere(start: Start) -> None:
    listening_before = {c.laddr.port for c in psutil.Process().net_connections() if c.status == psutil.CONN_LISTEN}
    notebook = start()
    notebook.run("print(1)")
    # The one port that ipykernel opens itself, for the output of forked children (`IOPubThread._setup_pipe_in`), is on
    # the guest's loopback and among those that are never forwarded.
    in_guest = guest_shell("sudo ss --no-header --listening --tcp --udp --processes --numeric").splitlines()
    of_kernels = [line.split()[4] for line in in_guest if "python" in line]
    assert len(of_kernels) == 1
    address, _, port = of_kernels[0].rpartition(":")
    assert address == "127.0.0.1"
    assert int(port) >= EPHEMERAL_PORTS[0]
    after = {c.laddr.port for c in psutil.Process().net_connections() if c.status == psutil.CONN_LISTEN}
    assert after == listening_before
    # Lima forwards what it calls safe; nothing but its own SSH port may answer for this VM on the host.
    instance = run(Limactl().get(INSTANCE))
    ports = {
        c.laddr.port
        for pid in (instance.host_agent_pid, instance.driver_pid)
        for c in psutil.Process(pid).net_connections("tcp")
        if c.status == psutil.CONN_LISTEN
    }
    assert instance.ssh_local_port in ports
    assert int(port) not in ports
    assert [port for port in ports if _is_zmq(port)] == []


def _is_zmq(port: int) -> bool:
    """Tell whether a ZMTP peer greets on a loopback port (RFC 23: it sends 0xff first)."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
        sock.settimeout(3)
        try:
            return sock.recv(1) == b"\xff"
        except OSError:
            return False


def test_tcp_on_the_host_when_asked_for(start: Start) -> None:
    notebook = start(transport="tcp")
    assert notebook.manager.transport == "tcp"
    assert notebook.run("print('by tcp')") == "by tcp"


def test_the_example_notebook_runs_by_the_command_line(vm: str, notebooks: Path, figures: Figures) -> None:
    (notebooks / EXAMPLE.name).write_bytes(EXAMPLE.read_bytes())
    command = [sys.executable, "-m", "lima_kernels", "run", EXAMPLE.name, "--output", "executed.ipynb"]
    with figures.timed("the example notebook by `lima-kernels run`"):
        done = subprocess.run(command, cwd=notebooks, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    executed = nbformat.read(notebooks / "executed.ipynb", as_version=4)
    outputs = [output for cell in executed.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.get("text", "") for output in outputs)
    assert guest_shell("uname -r") in printed
    assert "Debian GNU/Linux 12" in printed
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert guest_shell("uname -r") in (notebooks / "from-the-guest.txt").read_text()


def test_a_failing_cell_gives_exit_code_3_and_the_result_so_far(vm: str, notebooks: Path) -> None:
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("print('before')"), nbformat.v4.new_code_cell("1 / 0")]
    )
    nbformat.write(notebook, notebooks / "failing.ipynb")
    command = [sys.executable, "-m", "lima_kernels", "run", "failing.ipynb"]
    done = subprocess.run(command, cwd=notebooks, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 3
    assert "ZeroDivisionError" in done.stderr
    cells = nbformat.read(notebooks / "failing.ipynb", as_version=4).cells
    assert cells[0].outputs[0].text == "before\n"
    assert cells[1].outputs[0].ename == "ZeroDivisionError"


def test_the_host_key_is_pinned_for_the_instances_life(start: Start, directories: Path) -> None:
    start()
    pin = directories / "lima" / INSTANCE / "lima-kernels-host-key.json"
    assert pin.stat().st_mode & 0o777 == 0o600
    in_guest = guest_shell("cat /etc/ssh/ssh_host_ed25519_key.pub").split()[:2]
    assert " ".join(in_guest) in pin.read_text()


def test_a_vm_stopped_by_hand_ends_its_kernels_and_a_cold_start_brings_it_back(
    start: Start, notebooks: Path, directories: Path, steps: list[Step], figures: Figures
) -> None:
    notebook = start()
    pin = (directories / "lima" / INSTANCE / "lima-kernels-host-key.json").read_text()
    run(Limactl().stop(INSTANCE))
    limit = time.monotonic() + 60
    while notebook.manager.is_alive():
        assert time.monotonic() < limit, "the kernel of a stopped VM is still called alive"
        time.sleep(0.2)
    notebook.manager.shutdown_kernel(now=True)
    # A directory that the VM did not show is added while it is stopped.
    other = directories / "another directory"
    other.mkdir()
    since = len(steps)
    with figures.timed("cold VM to first cell"):
        again = start(cwd=other)
        assert again.run("import os; print(os.getcwd())") == str(other)
    assert entered(steps, since, Phase.BOOT)
    assert not entered(steps, since, Phase.CREATE)
    assert (directories / "lima" / INSTANCE / "lima-kernels-host-key.json").read_text() == pin
    assert start().run("print(open('from-host.txt').read()[:5])") == "hello"


def test_an_environment_file_is_applied_when_the_vm_next_starts(
    start: Start, directories: Path, figures: Figures
) -> None:
    file = directories / "env.yaml"
    file.write_text(ENVIRONMENT, encoding="utf-8")
    start(environment=str(file)).manager.shutdown_kernel(now=True)
    run(Limactl().stop(INSTANCE))
    with figures.timed("cold VM to first cell, with an apt and a Python package to install"):
        notebook = start(environment=str(file))
        assert notebook.run("import os; print(os.environ['GREETING'])") == "grüß dich"
    assert notebook.run("import toolz; print(toolz.__name__)") == "toolz"
    assert notebook.run("import subprocess; print(subprocess.check_output(['which', 'tree'], text=True))") == (
        "/usr/bin/tree"
    )
    assert notebook.run("print(open('/var/tmp/provisioned-by').read())") == "root"
    assert 2.5 < float(notebook.run("import psutil; print(psutil.virtual_memory().total / 2**30)")) < 3
    # The venv is the guest user's: a notebook may install into it.
    assert notebook.run("import sys; print(os.access(os.path.dirname(sys.executable), os.W_OK))") == "True"


def test_a_killed_kernel_is_noticed(start: Start) -> None:
    notebook = start()
    pid = int(notebook.run("import os; print(os.getpid())"))
    guest_shell(f"kill -9 {pid}")
    limit = time.monotonic() + 30
    while notebook.manager.is_alive():
        assert time.monotonic() < limit
        time.sleep(0.1)


def test_a_lost_connection_keeps_variables(start: Start) -> None:
    notebook = start()
    notebook.run("x = 'kept'")
    # Ends every SSH session, Lima's own and that of this command among them.
    with pytest.raises(subprocess.CalledProcessError):
        guest_shell("sudo pkill -f '^sshd: .*@notty'")
    time.sleep(1)
    assert notebook.manager.is_alive()
    assert notebook.run("print(x)") == "kept"


def test_nothing_of_ours_is_left_on_the_host(vm: str, directories: Path) -> None:
    sockets = directories / "run" / "lima"
    assert list(sockets.iterdir()) == []
    assert runtime._runtime is not None
    tasks = asyncio.run_coroutine_threadsafe(_tasks(), runtime._runtime._loop).result(10)
    assert [name for name in tasks if "_keep" in name] == []
    assert run(Limactl().get(INSTANCE)).status is Status.RUNNING
    assert kernels_in_guest() == []


async def _tasks() -> list[str]:
    return [repr(task.get_coro()) for task in asyncio.all_tasks()]
