"""Faults from outside: limactl that does not do its work, processes that are killed, files that are damaged, floods.

Each ends in one clear line, in time, and leaves nothing behind: a start after it works.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import psutil
import pytest
from filelock import FileLock
from jupyter_client import AsyncKernelManager, KernelManager

from lima_kernels import paths
from lima_kernels.cli.main import main
from lima_kernels.errors import HostKeyChanged, LimaKernelsError
from lima_kernels.progress import Phase, Step
from lima_kernels.runtime import runtime
from tests.child import Child, child, in_child
from tests.client import Notebook
from tests.fake_guest import FakeGuest
from tests.locked_guest import Workshop

from .conftest import Machine
from .test_bad_input import start
from .test_contract import run
from .test_kernel import lives, started, until

VM = "lima-kernels"
PID = "import os; print(os.getpid())"


@pytest.fixture(autouse=True)
def _ready(guest: FakeGuest, spec: str) -> None:
    """Every test here has a guest and the kernel spec."""


def processes(**variables: Path) -> list[int]:
    """Return the processes that were started with these environment variables."""
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            if all(environment.get(name) == str(value) for name, value in variables.items()) and lives(process.pid):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def in_guest(machine: Machine) -> list[int]:
    """Return the processes of the guest: forkserver, kernels and what they started."""
    return processes(HOME=machine.guest_home)


def on_host(machine: Machine) -> list[int]:
    """Return the processes that were started on the host: limactl, servers."""
    return processes(LIMA_HOME=machine.lima_home)


def files_left(machine: Machine) -> list[Path]:
    """Return what is left of kernels, in the guest and on the host."""
    return [*(machine.guest_home / ".lima-kernels").glob("*/k/*"), *(machine.root / "run").glob("lima/*")]


def lock_is_free() -> bool:
    lock = FileLock(paths.lock_file(VM), timeout=0)
    with lock:
        return lock.is_locked


def check_that_it_works(machine: Machine, **config: object) -> None:
    """Start a kernel and run a cell in it."""
    manager = start(machine, **config)
    notebook = Notebook(manager)
    try:
        assert notebook.run("print(6 * 7)") == "42"
    finally:
        notebook.client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert files_left(machine) == []


# limactl

HANG, FAIL, GARBAGE = "hang", "fail", "garbage"
LIMACTL = {
    (HANG, "--version"): "create_timeout (1 s) was used up looking for the VM.",
    (HANG, "list"): "create_timeout (1 s) was used up looking for the VM.",
    (HANG, "create"): "create_timeout (1 s) was used up creating the VM.",
    (HANG, "start"): "boot_timeout (1 s) was used up booting the VM.",
    (FAIL, "--version"): "limactl --version failed with exit code 1: it will not",
    (FAIL, "list"): "failed with exit code 1: it will not",
    (FAIL, "create"): "limactl create --name=lima-kernels - failed with exit code 1: it will not",
    (FAIL, "start"): "The VM 'lima-kernels' did not start: limactl start ended with exit code 1: it will not",
    (GARBAGE, "--version"): "limactl --version printed no version but '<html>this is not what you asked for</html>'.",
    (GARBAGE, "list"): "limactl list printed what is no list of instances",
    (GARBAGE, "create"): "There is no Lima instance 'lima-kernels'.",
    (GARBAGE, "start"): "limactl start",
}


@pytest.mark.parametrize(("fault", "verb"), LIMACTL)
def test_limactl_that_does_not_do_its_work(machine: Machine, fault: str, verb: str) -> None:
    machine.tell(**{fault: {verb: "it will not"} if fault == FAIL else [verb]})
    limits = {"boot_timeout" if verb == "start" else "create_timeout": 1.0} if fault == HANG else {}
    with pytest.raises(LimaKernelsError) as caught:
        start(machine, **limits)
    line = str(caught.value)
    assert LIMACTL[fault, verb] in line
    assert "\n" not in line
    if verb in ("--version", "list"):
        # What cannot be looked for is not missing.
        assert machine.calls("create") == []
    assert machine.instances() == []
    assert not (machine.lima_home / VM).exists()
    assert on_host(machine) == []
    assert in_guest(machine) == []
    assert files_left(machine) == []
    assert lock_is_free()
    machine.tell(**{fault: {}})
    check_that_it_works(machine)


# Launches that are cancelled


@contextmanager
def at_phase(phase: Phase, act: Callable[[], None]) -> Iterator[None]:
    """Act on this thread's loop when a start enters a phase; the start waits for it."""
    loop = asyncio.get_running_loop()

    def listen(step: Step) -> None:
        if step.phase is phase:
            acted = threading.Event()

            def then() -> None:
                act()
                # What a cancellation does comes with the loop's next turns.
                loop.call_soon(lambda: loop.call_soon(lambda: loop.call_soon(acted.set)))

            loop.call_soon_threadsafe(then)
            assert acted.wait(30)

    with runtime().listening(listen):
        yield


def life(machine: Machine, environment: str) -> None:
    check_that_it_works(machine, environment=environment)


@contextmanager
def another_stops_it(machine: Machine, environment: Path) -> Iterator[None]:
    """While the block runs, another process stops the VM: that takes its time."""
    # By a process of its own: this one has no connection yet, so it looks at the instance.
    in_child(life, machine, str(environment))
    machine.tell(hang=["stop"])
    other = subprocess.Popen([sys.executable, "-m", "lima_kernels", "stop", "--force", VM], start_new_session=True)
    try:
        until(lambda: bool(machine.calls("stop")))
        yield
    finally:
        for pid in on_host(machine):
            psutil.Process(pid).kill()
        other.wait()
        machine.tell(hang=[])


# A VM that sleeps has tests of its own.
OF_A_START = [phase for phase in Phase if phase not in (Phase.WAKE, Phase.HIBERNATE)]


@pytest.mark.parametrize("phase", OF_A_START, ids=lambda phase: phase.name)
async def test_a_launch_that_is_cancelled_leaves_nothing(machine: Machine, workshop: Workshop, phase: Phase) -> None:
    environment = machine.notebooks / "env.yaml"
    environment.write_text("provision:\n- script: '#!/bin/sh'\n")
    if phase is Phase.ENVIRONMENT:
        # What has a lock is made in the guest before its kernel is.
        assert await asyncio.to_thread(main, ["env", "lock", str(environment), "--instance", VM]) == 0
    manager = AsyncKernelManager(kernel_name="lima")
    assert manager.kernel_spec is not None
    manager.kernel_spec.metadata["kernel_provisioner"]["config"]["environment"] = str(environment)
    with another_stops_it(machine, environment) if phase.name == "STOPPING" else nullcontext():
        begin = asyncio.ensure_future(manager.start_kernel(cwd=str(machine.notebooks)))
        with at_phase(phase, begin.cancel), pytest.raises(asyncio.CancelledError):
            await begin
    assert not manager.has_kernel
    await nothing_is_left(machine)
    await manager.start_kernel(cwd=str(machine.notebooks))
    assert await run(manager, "print('again')") == "again"
    await manager.shutdown_kernel(now=True)
    assert files_left(machine) == []
    assert machine.instances() == [VM]


async def nothing_is_left(machine: Machine) -> None:
    """Wait for what a cancelled launch undoes behind the canceller's back; the forkserver may run, a kernel may not."""
    async with asyncio.timeout(30):
        while files_left(machine) or on_host(machine) or len(in_guest(machine)) > 1 or not lock_can_be_had():
            await asyncio.sleep(0.05)


async def test_kernels_that_are_given_up_as_soon_as_they_are_forked_hold_nobody_up(machine: Machine) -> None:
    other = AsyncKernelManager(kernel_name="lima")
    await other.start_kernel(cwd=str(machine.notebooks))
    files, pids = files_left(machine), in_guest(machine)
    try:
        for _ in range(10):
            manager = AsyncKernelManager(kernel_name="lima")
            begin = asyncio.ensure_future(manager.start_kernel(cwd=str(machine.notebooks)))
            with at_phase(Phase.KERNEL, begin.cancel), pytest.raises(asyncio.CancelledError):
                await begin
            async with asyncio.timeout(20):
                while len(files_left(machine)) > len(files) or len(in_guest(machine)) > len(pids):
                    await asyncio.sleep(0.02)
        assert await run(other, "print('there')") == "there"
    finally:
        await other.shutdown_kernel(now=True)
    assert files_left(machine) == []


def lock_can_be_had() -> bool:
    try:
        return lock_is_free()
    except TimeoutError:
        return False


# Owners that are killed


def server(machine: Machine) -> None:
    """A Jupyter server as far as kernels are concerned; it runs the cells that it reads until there are no more."""
    manager = KernelManager(kernel_name="lima")
    manager.start_kernel(cwd=str(machine.notebooks))
    notebook = Notebook(manager)
    print(notebook.run(PID), flush=True)
    for line in sys.stdin:
        print(notebook.run(line), manager.is_alive(), flush=True)
    notebook.client.stop_channels()
    manager.shutdown_kernel(now=True)


def said(server_: Child, cell: str) -> str:
    server_.say(cell)
    return server_.line()


def test_two_servers_use_one_vm_and_one_does_not_notice_the_others_death(machine: Machine, guest: FakeGuest) -> None:
    with child(server, machine) as one, child(server, machine) as two:
        pids = [int(one.line()), int(two.line())]
        assert len(machine.calls("start")) == 1
        assert said(one, "x = 'one'; print(x)") == "one True"
        assert said(two, "x = 'two'; print(x)") == "two True"
        connections = list(guest.connections)
        assert len(connections) == 2
        one.kill()
        until(lambda: len(guest.connections) == 1)
        assert guest.connections[0] in connections
        assert said(two, "print(x)") == "two True"
        assert lives(pids[1])
        two.process.stdin.close()
        two.process.stdin = None
        two.finish()
    assert not lives(pids[1])


def test_a_killed_server_leaves_no_process_and_nothing_in_the_next_ones_way(machine: Machine) -> None:
    with child(server, machine) as one:
        one.line()
        assert on_host(machine) != []
        one.kill()
        until(lambda: on_host(machine) == [])
        assert lock_is_free()
    with child(server, machine) as two:
        two.line()
        assert said(two, "print(1)") == "1 True"
    assert len(machine.calls("start")) == 1


def test_a_server_that_is_killed_while_it_makes_the_vm_blocks_nobody(machine: Machine) -> None:
    machine.tell(hang=["create"])
    with child(server, machine) as one:
        until(lambda: bool(machine.calls("create")))
        with pytest.raises(TimeoutError):
            lock_is_free()
        one.kill()
        machine.tell(hang=[])
        check_that_it_works(machine)
        # What hangs for ever here, limactl ends by itself.
        for pid in on_host(machine):
            psutil.Process(pid).kill()


# Instances


def test_an_instance_that_is_deleted_by_hand_while_in_use(
    machine: Machine, guest: FakeGuest, caplog: pytest.LogCaptureFixture
) -> None:
    with started(machine) as notebook:
        pid = int(notebook.run(PID))
        shutil.rmtree(machine.lima_home / VM)
        # With the instance goes its VM, and with that all that runs in it.
        os.kill(pid, 9)
        guest.drop_connections()
        with caplog.at_level(logging.WARNING):
            until(lambda: not notebook.manager.is_alive())
        told = [record.getMessage() for record in caplog.records if "lima-kernels" in record.getMessage()]
        assert any("SIGKILL" in message or "no Lima instance" in message for message in told), told
        # The fake guest's sshd reads what its programs print; asyncssh stumbles there when one ends as we hang up.
        failed = [record.getMessage() for record in caplog.records if record.exc_info]
        assert not [message for message in failed if "_PipeReader" not in message]
        notebook.client.stop_channels()
        notebook.manager.shutdown_kernel(now=True)
        check_that_it_works(machine)
    assert machine.instances() == [VM]
    assert len([call for call in machine.calls("create") if "-" in call]) == 2


def test_an_instance_that_becomes_broken_is_told_with_its_reasons_at_the_next_start(
    machine: Machine, guest: FakeGuest
) -> None:
    check_that_it_works(machine)
    ended = subprocess.Popen(["true"])
    ended.wait()
    reasons = ["host agent is gone", "and more"]
    machine.tell(status="Broken", errors=reasons, host_agent_pid=ended.pid, driver_pid=ended.pid)
    guest.drop_connections()
    until(lambda: not guest.connections)
    with pytest.raises(LimaKernelsError) as caught:
        start(machine)
    assert str(caught.value).startswith("The VM 'lima-kernels' is Broken: host agent is gone; and more. ")
    assert "\n" not in str(caught.value)
    assert lock_is_free()
    machine.tell(status="", errors=[], host_agent_pid=os.getpid(), driver_pid=os.getpid())
    check_that_it_works(machine)


# State files


def damaged(file: Path, how: str) -> None:
    text = file.read_bytes()
    if how == "empty":
        file.write_bytes(b"")
    elif how == "truncated":
        file.write_bytes(text[: len(text) // 2])
    elif how == "no text":
        file.write_bytes(b"\xff\xfe\x00" * 100)
    elif how == "of another form":
        file.write_bytes(b'{"key": [1, 2]}')
    else:
        file.chmod(0)


DAMAGES = ["empty", "truncated", "no text", "of another form", "unreadable"]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_pin_of_the_host_key_is_one_line(machine: Machine, guest: FakeGuest, how: str) -> None:
    check_that_it_works(machine)
    file = paths.pinned_key_file(machine.lima_home / VM)
    damaged(file, how)
    guest.drop_connections()
    until(lambda: not guest.connections)
    with pytest.raises(HostKeyChanged) as caught:
        start(machine)
    line = str(caught.value)
    assert line.startswith(f"The pinned host key in {file} cannot be read: ")
    assert "\n" not in line
    assert files_left(machine) == []
    file.unlink()
    check_that_it_works(machine)


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_record_of_the_guest_image_is_one_line(machine: Machine, image_files: Path, how: str) -> None:
    file = image_files / "image.json"
    before = file.read_bytes()
    damaged(file, how)
    with pytest.raises(LimaKernelsError) as caught:
        start(machine)
    line = str(caught.value)
    assert str(file.parent) in line
    assert file.name in line
    assert "\n" not in line
    assert machine.instances() == []
    file.chmod(0o600)
    file.write_bytes(before)
    check_that_it_works(machine)


def test_a_lock_file_that_cannot_be_opened_is_one_line(machine: Machine) -> None:
    file = paths.lock_file(VM)
    file.touch()
    file.chmod(0)
    with pytest.raises(LimaKernelsError) as caught:
        start(machine)
    assert str(file) in str(caught.value)
    file.chmod(0o600)
    check_that_it_works(machine)


def test_a_host_that_cannot_write_the_pin_is_one_line(machine: Machine) -> None:
    """As on a full disk: the guest is there, and its key cannot be kept."""
    directory = machine.lima_home / VM

    def listen(step: Step) -> None:
        if step.phase is Phase.CONNECT:
            directory.chmod(0o500)

    try:
        with runtime().listening(listen), pytest.raises(LimaKernelsError) as caught:
            start(machine)
    finally:
        directory.chmod(0o700)
    assert str(directory) in str(caught.value)
    assert files_left(machine) == []
    check_that_it_works(machine)


# Floods


@pytest.mark.timeout(300)
async def test_forty_kernels_at_once(machine: Machine) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Both sides of every channel, and the guest, are in this one process.
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 16384), hard))
    try:
        managers = [AsyncKernelManager(kernel_name="lima") for _ in range(40)]
        await asyncio.gather(*(manager.start_kernel(cwd=str(machine.notebooks)) for manager in managers))
        cells = (run(manager, f"print({number} * 7)") for number, manager in enumerate(managers))
        assert await asyncio.gather(*cells) == [str(number * 7) for number in range(40)]
        assert len(machine.calls("start")) == 1
        await asyncio.gather(*(manager.shutdown_kernel(now=True) for manager in managers))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert files_left(machine) == []
    # The forkserver itself.
    until(lambda: len(in_guest(machine)) == 1)


MESSAGES, SIZE = 50, 10_000_000
# What host and client may hold at one time, of 500 MB.
HELD = 200 << 20


def flood(machine: Machine) -> None:
    manager = KernelManager(kernel_name="lima")
    manager.start_kernel(cwd=str(machine.notebooks))
    notebook = Notebook(manager)
    notebook.run("print('x' * 10_000_000)")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counted: dict[str, int] = {}

    def count(message: dict) -> None:
        if message["msg_type"] == "stream":
            text = message["content"]["text"]
            counted[text[0]] = counted.get(text[0], 0) + len(text)

    code = f"for n in range({MESSAGES}): print(chr(33 + n) * {SIZE}, end='', flush=True)"
    reply = notebook.client.execute_interactive(code, timeout=240, output_hook=count)
    assert reply["content"]["status"] == "ok"
    assert counted == {chr(33 + n): SIZE for n in range(MESSAGES)}
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    print(grown)
    assert grown < HELD, f"{grown >> 20} MiB were held at once"
    assert notebook.run("print('and on')") == "and on"
    notebook.client.stop_channels()
    manager.shutdown_kernel(now=True)


@pytest.mark.timeout(300)
def test_500_mb_of_output_of_one_cell_arrive_and_are_not_held(machine: Machine) -> None:
    in_child(flood, machine)
