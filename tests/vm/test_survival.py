"""What must not cost a kernel, on a real VM; and what does, with its reason. The tests run in this order."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from jupyter_client import KernelManager

from lima_kernels import leases, runtime
from lima_kernels.lima.limactl import Limactl
from lima_kernels.lima.models import Instance, Status
from lima_kernels.progress import Phase, Step
from tests.client import Notebook

from .conftest import INSTANCE, Figures, Start, entered, guest_shell, kernels_in_guest, run, until

pytestmark = pytest.mark.timeout(900)
FORKSERVER = "pgrep --full 'lima_kernels_forkserver --root' --oldest"
LOST = "connection to the VM was lost"
# By its powers of two, to the last block that a user may have.
FILL_DISK = """
for size in 64G 32G 16G 8G 4G 2G 1G 512M 256M 128M 64M 32M 16M 8M 4M 2M 1M 512K 256K 128K 64K 32K 16K 8K 4K; do
  fallocate --length $size /var/tmp/ballast.$size 2>/dev/null || true
done
"""
# Starts a kernel as a Jupyter server does for a notebook, says so, and waits to be killed.
OWNER = """
import os, sys, time
from jupyter_client import KernelManager
from tests.client import Notebook
os.environ["JPY_SESSION_NAME"] = "analysis.ipynb"
manager = KernelManager(kernel_name="lima")
manager.start_kernel(cwd=sys.argv[1])
notebook = Notebook(manager)
print("cell:", notebook.run(sys.argv[2]), flush=True)
time.sleep(600)
"""


def instance() -> Instance:
    found: Instance = run(Limactl().get(INSTANCE))
    return found


def obituary(notebook: Notebook) -> str:
    assert notebook.manager.provisioner is not None
    text: str = notebook.manager.provisioner._session.obituary()
    return text


def dead(notebook: Notebook) -> str:
    """Wait until a kernel is called dead and return the reason that is given."""
    until(lambda: not notebook.manager.is_alive(), "the kernel is still called alive", seconds=400)
    return obituary(notebook)


@contextmanager
def owner(notebooks: Path, code: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has a kernel; killed in the end, as by kill -9."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    argv = [sys.executable, "-c", OWNER, str(notebooks), code]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env) as process:
        try:
            yield process
        finally:
            process.kill()


def first_line(process: subprocess.Popen[str]) -> str:
    """Return what the cell printed; what went wrong instead is this test's failure."""
    assert process.stdout is not None
    said = []
    while line := process.stdout.readline():
        said.append(line.rstrip())
        if line.startswith("cell: "):
            return line.removeprefix("cell: ").strip()
    raise AssertionError("\n".join(said))


def test_output_and_reply_of_a_cell_cross_a_cut_connection(start: Start) -> None:
    notebook = start()
    notebook.run("x = 'kept'")
    cut = """
import subprocess, sys
for number in range(300):
    print(number, flush=True)
    if number == 100:
        subprocess.run(["sudo", "pkill", "-f", "^sshd: .*@notty"])
"""
    printed = notebook.outputs(cut)
    assert printed["stdout"].split() == [str(number) for number in range(300)]
    assert "stderr" not in printed
    assert notebook.run("print(x)") == "kept"


def test_kernels_survive_the_forkserver(start: Start) -> None:
    notebook = start()
    notebook.run("x = 'kept'")
    before = guest_shell(FORKSERVER)
    guest_shell(f"kill -9 {before}")
    until(lambda: guest_shell(f"{FORKSERVER} || true") not in ("", before), "no forkserver was started again")
    assert notebook.manager.is_alive()
    # ZMQ itself has to come back here.
    notebook.wait_until_subscribed()
    printed = notebook.outputs("print(x)")
    assert printed["stdout"] == "kept\n"
    assert LOST in printed.get("stderr", "") + notebook.outputs("print(x)").get("stderr", "")
    assert start().run("print('another')") == "another"
    notebook.manager.shutdown_kernel()
    assert len(kernels_in_guest()) == 1


def test_a_paused_vm_goes_on(start: Start) -> None:
    notebook = start()
    notebook.begin("import time; time.sleep(5); y = 'slept'")
    driver = psutil.Process(instance().driver_pid)
    driver.suspend()
    time.sleep(60)
    assert notebook.manager.is_alive()
    driver.resume()
    assert notebook.reply()["status"] == "ok"
    assert notebook.run("print(y)") == "slept"


def test_a_jump_of_the_guests_clock_costs_nothing(start: Start) -> None:
    notebook = start()
    notebook.run("x = 'kept'")
    for jump in ("+3 days", "-6 days"):
        guest_shell(f"sudo date --set='{jump}'")
        assert notebook.run("print(x)") == "kept"
        assert start().run("print('new')") == "new"
    guest_shell("sudo date --set='+3 days'")


def test_out_of_memory_is_said_with_figures_and_in_the_next_kernel(start: Start) -> None:
    notebook = start()
    notebook.client.execute("hog = [b'x' * (64 << 20) for _ in range(1000)]")
    reason = dead(notebook)
    assert "SIGKILL: out of memory: it had " in reason
    assert "GiB, the VM has " in reason
    notebook.manager.restart_kernel(now=True)
    notebook.client.wait_for_ready(timeout=120)
    assert "out of memory: it had" in notebook.outputs("print('again')").get("stderr", "")
    assert "stderr" not in notebook.outputs("print('again')")


def test_a_full_disk_of_the_guest_is_said(start: Start) -> None:
    notebook = start()
    guest_shell(FILL_DISK)
    try:
        with pytest.raises(Exception, match="the guest's disk is full: 0 MiB of"):
            start()
        assert "still here" in notebook.run("print('still here')")
    finally:
        guest_shell("rm -f /var/tmp/ballast.*")
    assert start().run("print('again')") == "again"


def test_a_kernel_whose_server_was_killed_is_adopted(
    start: Start, notebooks: Path, monkeypatch: pytest.MonkeyPatch, figures: Figures
) -> None:
    with owner(notebooks, "x = 'of before'; import os; print(os.getpid())") as process:
        pid = first_line(process)
    monkeypatch.setenv("JPY_SESSION_NAME", "analysis.ipynb")
    with figures.timed("adoption of a kernel to first cell"):
        notebook = start()
        assert notebook.run("import os; print(x, os.getpid())") == f"of before {pid}"
    notebook.manager.shutdown_kernel()
    assert kernels_in_guest() == []


def test_twenty_starts_and_shutdowns_leave_nothing(start: Start, notebooks: Path, figures: Figures) -> None:
    def one() -> None:
        manager = KernelManager(kernel_name="lima")
        manager.start_kernel(cwd=str(notebooks))
        manager.shutdown_kernel(now=True)

    def state() -> tuple[int, int, int, str]:
        here = psutil.Process()
        # The forkserver and, a second after the last start, the kernel that stands by.
        processes = "pgrep --count --uid $(id -u) python"
        until(lambda: guest_shell(processes) == "2", "there are not two processes")
        files = guest_shell(f"sudo ls /proc/$({FORKSERVER})/fd | wc -l")
        return here.num_fds(), here.num_threads(), len(here.children(recursive=True)), files

    one()
    before = state()
    with figures.timed("20 starts and shutdowns"):
        for _ in range(20):
            one()
    assert state() == before


def test_a_killed_host_agent_costs_nothing(start: Start) -> None:
    notebook = start()
    notebook.run("x = 'kept'")
    os.kill(instance().host_agent_pid, signal.SIGKILL)
    assert notebook.run("print(x)") == "kept"
    assert start().run("print('new')") == "new"
    # Cut, so that the way to the guest has to be found again without the host agent's help.
    notebook.run("import subprocess; subprocess.run(['sudo', 'pkill', '-f', '^sshd: .*@notty'])")
    assert notebook.run("print(x)") == "kept"
    assert notebook.manager.is_alive()


def test_a_killed_vm_ends_its_kernels_with_the_reason(start: Start) -> None:
    notebook = start()
    os.kill(instance().driver_pid, signal.SIGKILL)
    assert "was ended by SIGKILL: " in dead(notebook)


def test_a_start_that_was_killed_in_mid_boot_is_gone_on_with(
    start: Start, notebooks: Path, steps: list[Step], figures: Figures
) -> None:
    command = [sys.executable, "-m", "lima_kernels", "start", INSTANCE]
    process = subprocess.Popen(command, cwd=notebooks, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while Phase.CONNECT.value not in (line := process.stderr.readline()):
        assert line, "it ended before it waited for SSH"
    process.kill()
    process.wait()
    process.stderr.close()
    with figures.timed("cold VM to first cell, after a start that was killed"):
        assert start().run("print('up')") == "up"


def test_a_start_while_the_vm_stops_waits_and_boots_it(start: Start, steps: list[Step]) -> None:
    stop = subprocess.Popen(["limactl", "--tty=false", "stop", INSTANCE], stdin=subprocess.DEVNULL)
    time.sleep(1)
    since = len(steps)
    assert start().run("print('again')") == "again"
    assert stop.wait(60) is not None
    assert entered(steps, since, Phase.BOOT)


def test_an_idle_vm_stops_itself_though_its_owner_is_dead(start: Start, notebooks: Path) -> None:
    spec = Path(os.environ["JUPYTER_DATA_DIR"]) / "kernels" / "lima" / "kernel.json"
    before = spec.read_text()
    document = json.loads(before)
    document["metadata"]["kernel_provisioner"]["config"].update(idle_timeout=3, on_idle="stop", orphan_timeout=3)
    spec.write_text(json.dumps(document))
    try:
        with owner(notebooks, "print('busy')") as process:
            assert first_line(process) == "busy"
            time.sleep(6)
            assert instance().status is Status.RUNNING
    finally:
        spec.write_text(before)
    until(lambda: instance().status is Status.STOPPED, "the idle VM still runs")


def test_two_processes_start_one_cold_vm(start: Start, notebooks: Path, steps: list[Step]) -> None:
    since = len(steps)
    with owner(notebooks, "print('one')") as process:
        assert start().run("print('two')") == "two"
        assert first_line(process) == "one"
        assert len(kernels_in_guest()) == 2
    assert any("process" in step.detail for step in steps[since:]) or entered(steps, since, Phase.BOOT)


def test_stop_is_refused_while_a_kernel_runs(start: Start) -> None:
    notebook = start()
    command = [sys.executable, "-m", "lima_kernels", "stop", INSTANCE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 1
    assert "--force" in done.stderr
    assert notebook.run("print('alive')") == "alive"


def test_an_instance_deleted_by_hand_ends_its_kernels(start: Start, directories: Path) -> None:
    notebook = start()
    subprocess.run(["limactl", "--tty=false", "delete", "--force", INSTANCE], check=True, timeout=120)
    assert "no Lima instance" in dead(notebook)
    assert not (directories / "lima" / INSTANCE).exists()


def test_nothing_of_ours_is_left_on_the_host(directories: Path) -> None:
    # The killed owners' own is gone with the first look.
    assert leases.held(INSTANCE) == {}
    assert list((directories / "run" / "lima").iterdir()) == []
    assert runtime._runtime is not None
    tasks = asyncio.run_coroutine_threadsafe(_tasks(), runtime._runtime._loop).result(10)
    assert [name for name in tasks if "_keep" in name] == []


async def _tasks() -> list[str]:
    return [repr(task.get_coro()) for task in asyncio.all_tasks()]
