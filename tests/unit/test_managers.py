"""Each of jupyter_client's managers, several kernels at once, and what a manager keeps of a start that failed.

What uses a MultiKernelManager runs in a process of its own: its `__del__` destroys the ZMQ context in the garbage
collector, where `term()` may wait for ever.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from jupyter_client import (
    AsyncKernelManager,
    AsyncMultiKernelManager,
    BlockingKernelClient,
    KernelManager,
    MultiKernelManager,
)
from jupyter_client.ioloop import AsyncIOLoopKernelManager

from lima_kernels.errors import LimactlError
from tests.child import child, in_child
from tests.client import Notebook
from tests.fake_guest import FakeGuest

from .conftest import Machine
from .test_contract import run
from .test_kernel import lives, started, until

PID = "import os; print(os.getpid())"
CHANNELS = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")


@pytest.fixture(autouse=True)
def _ready(guest: FakeGuest, spec: str) -> None:
    """Every test here has a guest and the kernel spec."""


def nothing_left(machine: Machine) -> bool:
    """Tell whether neither guest nor host has anything of a kernel."""
    in_guest = list((machine.guest_home / ".lima-kernels").glob("*/k/*"))
    return not in_guest and not list((machine.root / "run").glob("lima/*"))


def asked(client: BlockingKernelClient, code: str) -> str:
    """Run a cell and return what it printed, then close the client."""
    printed: list[str] = []

    def collect(message: dict[str, Any]) -> None:
        if message["msg_type"] == "stream":
            printed.append(message["content"]["text"])

    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        client.execute_interactive(code, timeout=60, output_hook=collect)
    finally:
        client.stop_channels()
    return "".join(printed).strip()


# One process, many kernels


def sync_multi(machine: Machine) -> None:
    # No restarter: that needs an event loop of tornado's, which nobody runs here.
    kernels = MultiKernelManager(kernel_manager_class="jupyter_client.manager.KernelManager")
    ids = [kernels.start_kernel(kernel_name="lima", cwd=str(machine.notebooks)) for _ in range(3)]
    pids = [int(asked(kernels.get_kernel(id_).client(), PID)) for id_ in ids]
    assert len(set(pids)) == 3
    kernels.restart_kernel(ids[1])
    again = [int(asked(kernels.get_kernel(id_).client(), PID)) for id_ in ids]
    assert again[0] == pids[0]
    assert again[1] not in pids
    assert again[2] == pids[2]
    kernels.shutdown_kernel(ids[0])
    assert sorted(kernels.list_kernel_ids()) == sorted(ids[1:])
    assert not lives(again[0])
    assert lives(again[1])
    kernels.shutdown_all()
    assert kernels.list_kernel_ids() == []
    assert not any(lives(pid) for pid in again)
    assert nothing_left(machine)
    assert len(machine.calls("start")) == 1


def test_three_kernels_of_a_multi_kernel_manager(machine: Machine) -> None:
    in_child(sync_multi, machine)


async def async_multi(machine: Machine) -> None:
    kernels = AsyncMultiKernelManager()
    ids = await asyncio.gather(
        *(kernels.start_kernel(kernel_name="lima", cwd=str(machine.notebooks)) for _ in range(3))
    )
    pids = await asyncio.gather(*(run(kernels.get_kernel(id_), PID) for id_ in ids))
    assert len(set(pids)) == 3
    await kernels.restart_kernel(ids[0], now=True)
    again = await asyncio.gather(*(run(kernels.get_kernel(id_), PID) for id_ in ids))
    assert again[0] not in pids
    assert again[1:] == pids[1:]
    await kernels.shutdown_all(now=True)
    assert kernels.list_kernel_ids() == []
    assert not any(lives(int(pid)) for pid in again)
    assert nothing_left(machine)
    assert len(machine.calls("start")) == 1


def test_three_kernels_at_once_of_an_async_multi_kernel_manager(machine: Machine) -> None:
    in_child(async_multi, machine)


async def pending(machine: Machine) -> None:
    kernels = AsyncMultiKernelManager(use_pending_kernels=True)
    id_ = await kernels.start_kernel(kernel_name="lima", cwd=str(machine.notebooks))
    kernel = kernels.get_kernel(id_)
    assert not kernel.ready.done()
    assert id_ in kernels
    await kernel.ready
    pid = await run(kernel, PID)
    await kernels.restart_kernel(id_)
    await kernel.ready
    assert await run(kernel, PID) != pid
    await kernels.shutdown_all()
    while kernels.list_kernel_ids():
        await asyncio.sleep(0.02)
    assert nothing_left(machine)


def test_a_kernel_that_is_pending_while_it_starts(machine: Machine) -> None:
    in_child(pending, machine)


async def pending_that_fails(machine: Machine) -> None:
    kernels = AsyncMultiKernelManager(use_pending_kernels=True)
    id_ = await kernels.start_kernel(kernel_name="lima", cwd=str(machine.notebooks))
    with pytest.raises(LimactlError, match="no space left on device"):
        await kernels.get_kernel(id_).ready
    await kernels.shutdown_kernel(id_)
    assert kernels.list_kernel_ids() == []
    assert nothing_left(machine)


def test_a_pending_kernel_that_fails_says_why_and_can_be_removed(machine: Machine) -> None:
    machine.tell(fail={"create": "no space left on device"})
    in_child(pending_that_fails, machine)


async def failed(machine: Machine) -> None:
    machine.tell(fail={"create": "no space left on device"})
    kernels = AsyncMultiKernelManager()
    with pytest.raises(LimactlError, match="no space left on device"):
        await kernels.start_kernel(kernel_name="lima", kernel_id="one", cwd=str(machine.notebooks))
    assert kernels.list_kernel_ids() == []
    assert "one" not in kernels
    assert nothing_left(machine)
    machine.tell(fail={})
    # The very same id may be used again: nothing of the failure is in its way.
    await kernels.start_kernel(kernel_name="lima", kernel_id="one", cwd=str(machine.notebooks))
    assert await run(kernels.get_kernel("one"), "print(1)") == "1"
    await kernels.shutdown_all(now=True)
    assert kernels.list_kernel_ids() == []


def test_a_failed_start_leaves_no_ghost_in_an_async_manager(machine: Machine) -> None:
    in_child(failed, machine)


def failed_sync(machine: Machine) -> None:
    machine.tell(fail={"create": "no space left on device"})
    kernels = MultiKernelManager(kernel_manager_class="jupyter_client.manager.KernelManager")
    with pytest.raises(LimactlError, match="no space left on device"):
        kernels.start_kernel(kernel_name="lima", kernel_id="one", cwd=str(machine.notebooks))
    assert kernels.list_kernel_ids() == []
    machine.tell(fail={})
    kernels.start_kernel(kernel_name="lima", kernel_id="one", cwd=str(machine.notebooks))
    assert asked(kernels.get_kernel("one").client(), "print(1)") == "1"
    kernels.shutdown_all(now=True)
    assert kernels.list_kernel_ids() == []
    assert nothing_left(machine)


def test_a_failed_start_leaves_no_ghost_in_a_sync_manager(machine: Machine) -> None:
    in_child(failed_sync, machine)


async def cancelled(machine: Machine) -> None:
    kernels = AsyncMultiKernelManager()
    start = asyncio.ensure_future(kernels.start_kernel(kernel_name="lima", kernel_id="one", cwd=str(machine.notebooks)))
    print("starting", flush=True)
    while not machine.calls("start"):
        await asyncio.sleep(0.02)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert kernels.list_kernel_ids() == []
    print("cancelled", flush=True)
    await asyncio.to_thread(input)
    await kernels.start_kernel(kernel_name="lima", kernel_id="one", cwd=str(machine.notebooks))
    assert await run(kernels.get_kernel("one"), "print(1)") == "1"
    await kernels.shutdown_all(now=True)
    assert kernels.list_kernel_ids() == []
    assert nothing_left(machine)


def test_a_cancelled_start_leaves_no_ghost(machine: Machine, guest: FakeGuest) -> None:
    guest.stop_listening()
    with child(cancelled, machine) as made:
        assert made.line() == "starting"
        assert made.line() == "cancelled"
        assert nothing_left(machine)
        guest.listen()
        made.say("go on")
        made.finish()


# Loops and threads


def test_managers_in_threads_of_their_own_with_loops_of_their_own(machine: Machine) -> None:
    printed: dict[int, str] = {}

    async def life(number: int) -> None:
        manager = AsyncKernelManager(kernel_name="lima")
        await manager.start_kernel(cwd=str(machine.notebooks))
        printed[number] = await run(manager, f"print({number} * 7)")
        await manager.restart_kernel(now=True)
        assert await manager.is_alive()
        await manager.shutdown_kernel(now=True)

    threads = [threading.Thread(target=asyncio.run, args=(life(number),)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert printed == {0: "0", 1: "7", 2: "14"}
    assert len(machine.calls("start")) == 1
    assert nothing_left(machine)


# jupyter_core leaves the loops open that it makes for threads; so these are in processes of their own, too.


async def below_a_loop(machine: Machine) -> None:
    manager = KernelManager(kernel_name="lima")
    manager.start_kernel(cwd=str(machine.notebooks))
    assert manager.is_alive()
    pid = int(asked(manager.client(), PID))
    manager.restart_kernel(now=True)
    assert int(asked(manager.client(), PID)) != pid
    manager.shutdown_kernel()
    assert not manager.is_alive()
    assert nothing_left(machine)


def test_the_sync_manager_below_a_running_loop(machine: Machine) -> None:
    in_child(below_a_loop, machine)


async def busy(machine: Machine) -> None:
    manager = AsyncKernelManager(kernel_name="lima")
    await manager.start_kernel(cwd=str(machine.notebooks))
    client = BlockingKernelClient()
    client.load_connection_info(manager.get_connection_info())
    # The whole conversation happens while this loop does nothing else.
    assert asked(client, "print('x' * 100_000)") == "x" * 100_000
    await manager.shutdown_kernel(now=True)


def test_a_callers_loop_that_is_busy_does_not_stop_the_channels(machine: Machine) -> None:
    in_child(busy, machine)


# Restarts


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
@pytest.mark.parametrize("now", [True, False])
def test_a_restart_is_a_new_kernel_at_an_address_that_answers(machine: Machine, now: bool, transport: str) -> None:
    with started(machine, transport=transport) as notebook:
        if not now:
            notebook.run(f"import atexit; atexit.register(lambda: open({str(machine.root / 'bye')!r}, 'w').close())")
        pid = int(notebook.run(PID))
        # Two clients of one manager have one identity, and would be in each other's way.
        notebook.client.stop_channels()
        notebook.manager.restart_kernel(now=now)
        assert not lives(pid)
        # A graceful restart lets the kernel tidy up; the other does not ask.
        assert (machine.root / "bye").exists() is not now
        assert int(asked(notebook.manager.client(), PID)) != pid
        written = json.loads(Path(notebook.manager.connection_file).read_text())
        info = notebook.manager.get_connection_info()
        assert {name: written[name] for name in CHANNELS} == {name: info[name] for name in CHANNELS}
        assert machine.calls("stop") == []


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
async def test_an_early_death_restarts_with_new_ports_after_the_callback(machine: Machine, transport: str) -> None:
    manager = AsyncIOLoopKernelManager(kernel_name="lima")
    assert manager.kernel_spec is not None
    manager.kernel_spec.metadata["kernel_provisioner"]["config"]["transport"] = transport
    await manager.start_kernel(cwd=str(machine.notebooks))
    ports = [manager.get_connection_info()[name] for name in CHANNELS]
    pid = int(await run(manager, PID))
    restarts: list[list[int]] = []
    called = asyncio.Event()

    def on_restart() -> None:
        restarts.append([manager.get_connection_info()[name] for name in CHANNELS])
        called.set()

    manager.add_restart_callback(on_restart)
    # In its first seconds: the restarter asks for new ports then.
    os.kill(pid, signal.SIGKILL)
    await asyncio.wait_for(called.wait(), 60)
    while not await manager.is_alive():
        await asyncio.sleep(0.05)
    assert int(await run(manager, PID)) != pid
    # At the callback's time the address was still the old one.
    assert restarts == [ports]
    new = [manager.get_connection_info()[name] for name in CHANNELS]
    if transport == "tcp":
        assert not set(new) & set(ports)
        for port in ports:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), timeout=5).close()
    else:
        # The numbers of sockets are no ports.
        assert new == ports
    await manager.shutdown_kernel(now=True)
    assert nothing_left(machine)


# The provisioner by default


def by_default(machine: Machine) -> None:
    manager = KernelManager(kernel_name="plain")
    manager.start_kernel(cwd=str(machine.notebooks))
    notebook = Notebook(manager)
    print(notebook.run("import os; print(os.environ['HOME'])"))
    notebook.client.stop_channels()
    manager.shutdown_kernel(now=True)


@pytest.mark.parametrize(("provisioner", "home"), [("lima-provisioner", "guest"), ("local-provisioner", "home")])
def test_a_spec_without_a_stanza_by_the_environments_default(machine: Machine, provisioner: str, home: str) -> None:
    directory = machine.root / "jupyter" / "kernels" / "plain"
    directory.mkdir(parents=True)
    argv = ["python3", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (directory / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Plain", "language": "python"}))
    printed = in_child(by_default, machine, env={"JUPYTER_DEFAULT_PROVISIONER_NAME": provisioner})
    assert printed == str(machine.root / home)


# Encryption


def mechanism(address: str | tuple[str, int]) -> str:
    """Return the security mechanism that a ZMTP peer demands, by its greeting (RFC 23)."""
    # As far as the version: by a mechanism that it does not like it would hang up before it has told its own.
    greeting = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00"
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as sock:
        sock.settimeout(30)
        sock.connect(address)
        sock.sendall(greeting)
        got = b""
        while len(got) < 64:
            data = sock.recv(64 - len(got))
            assert data, "the peer hung up in its greeting"
            got += data
    return got[12:32].rstrip(b"\0").decode()


def mechanisms(manager: KernelManager) -> set[str]:
    info = manager.get_connection_info()
    ipc = info["transport"] == "ipc"
    return {mechanism(f"{info['ip']}-{info[name]}" if ipc else (info["ip"], info[name])) for name in CHANNELS}


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
@pytest.mark.parametrize(
    ("encryption", "expected"), [("required", {"CURVE"}), ("auto", {"CURVE"}), ("disabled", {"NULL"})]
)
def test_every_channel_is_encrypted_as_demanded(
    machine: Machine, encryption: str, expected: set[str], transport: str
) -> None:
    with started(machine, encryption=encryption, transport=transport) as notebook:
        assert mechanisms(notebook.manager) == expected
        assert notebook.run("print('heard')") == "heard"
        notebook.client.stop_channels()
        notebook.manager.restart_kernel(now=True)
        assert mechanisms(notebook.manager) == expected
        assert asked(notebook.manager.client(), "print('again')") == "again"


def test_encryption_demanded_for_one_start(machine: Machine) -> None:
    manager = KernelManager(kernel_name="lima")
    manager.start_kernel(cwd=str(machine.notebooks), transport_encryption="required")
    assert mechanisms(manager) == {"CURVE"}
    assert asked(manager.client(), "print('sealed')") == "sealed"
    manager.shutdown_kernel(now=True)


def test_encryption_demanded_of_a_spec_that_has_none_is_refused(machine: Machine) -> None:
    manager = KernelManager(kernel_name="lima", transport_encryption="required")
    assert manager.kernel_spec is not None
    del manager.kernel_spec.metadata["supported_encryption"]
    with pytest.raises(RuntimeError, match="supported_encryption"):
        manager.start_kernel(cwd=str(machine.notebooks))
    assert not manager.has_kernel
    assert machine.calls("start") == []
    assert nothing_left(machine)
    manager.cleanup_resources()


def test_encryption_that_is_lost_on_the_way_is_no_kernel(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manager that gives its keys away between demand and launch gets encrypted channels or an error."""
    with started(machine, encryption="required") as notebook:
        notebook.client.stop_channels()
        notebook.manager.curve_publickey = notebook.manager.curve_secretkey = None
        notebook.manager.restart_kernel(now=True)
        assert mechanisms(notebook.manager) == {"CURVE"}
        until(notebook.manager.is_alive)
        assert asked(notebook.manager.client(), "print('sealed')") == "sealed"
