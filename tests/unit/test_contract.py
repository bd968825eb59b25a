"""jupyter_client's contract with a provisioner, through each of its managers."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from typing import Any

import pytest
from jupyter_client import AsyncKernelManager, KernelManager
from jupyter_client.ioloop import AsyncIOLoopKernelManager
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.provisioning import KernelProvisionerFactory

from lima_kernels.errors import InstanceError
from lima_kernels.runtime import runtime
from lima_kernels.settings import DEFAULT_INSTANCE
from tests.client import Notebook, control
from tests.fake_guest import FakeGuest

from .conftest import Machine
from .test_kernel import lives, started, until


@pytest.fixture(autouse=True)
def _ready(guest: FakeGuest, spec: str) -> None:
    """Every test here has a guest and the kernel spec."""


async def run(manager: AsyncKernelManager, code: str) -> str:
    client = manager.client()
    client.start_channels()
    printed: list[str] = []

    def collect(message: dict[str, Any]) -> None:
        if message["msg_type"] == "stream" and message["content"]["name"] == "stdout":
            printed.append(message["content"]["text"])

    try:
        await client.wait_for_ready(timeout=60)
        await client.execute_interactive(code, timeout=60, output_hook=collect)
    finally:
        client.stop_channels()
    return "".join(printed).strip()


async def test_an_async_manager(machine: Machine) -> None:
    manager = AsyncKernelManager(kernel_name="lima")
    await manager.start_kernel(cwd=str(machine.notebooks))
    assert await run(manager, "print(1)") == "1"
    await manager.restart_kernel(now=True)
    assert await run(manager, "print(2)") == "2"
    await manager.shutdown_kernel()
    assert not await manager.is_alive()


def test_each_call_may_come_from_another_loop_and_thread(machine: Machine) -> None:
    manager = AsyncKernelManager(kernel_name="lima")
    asyncio.run(manager.start_kernel(cwd=str(machine.notebooks)))
    answers: list[object] = []
    other = threading.Thread(target=lambda: answers.append(asyncio.run(manager.is_alive())))
    other.start()
    other.join()
    asyncio.run(manager.shutdown_kernel(now=True))
    answers.append(asyncio.run(manager.is_alive()))
    assert answers == [True, False]


async def test_a_look_at_a_kernel_that_is_to_end_waits_for_that(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manager would look again only a tenth of a second later."""
    manager = AsyncKernelManager(kernel_name="lima")
    await manager.start_kernel(cwd=str(machine.notebooks))
    kernel = manager.provisioner
    assert kernel is not None
    assert await kernel.poll() is None
    await kernel.shutdown_requested()
    monkeypatch.setattr("lima_kernels.provisioner.END_WAIT", 0.05)
    assert await kernel.poll() is None
    monkeypatch.setattr("lima_kernels.provisioner.END_WAIT", 30.0)
    looking = asyncio.ensure_future(kernel.poll())
    await asyncio.wait([looking], timeout=0.2)
    assert not looking.done()
    await kernel.send_signal(signal.SIGKILL)
    assert await looking == -signal.SIGKILL
    await manager.shutdown_kernel(now=True)


async def test_a_crashed_kernel_is_started_again_by_itself(machine: Machine) -> None:
    manager = AsyncIOLoopKernelManager(kernel_name="lima")
    await manager.start_kernel(cwd=str(machine.notebooks))
    restarted = asyncio.Event()
    manager.add_restart_callback(restarted.set)
    pid = int(await run(manager, "import os; print(os.getpid())"))
    os.kill(pid, signal.SIGKILL)
    await asyncio.wait_for(restarted.wait(), 30)
    # The callback comes before the restart; ports are final once the new kernel lives.
    while not await manager.is_alive():
        await asyncio.sleep(0.05)
    assert int(await run(manager, "import os; print(os.getpid())")) != pid
    assert len(machine.calls("start")) == 1
    await manager.shutdown_kernel(now=True)


async def test_a_vm_that_was_stopped_is_booted_by_a_persons_restart_only(machine: Machine) -> None:
    async def stop() -> None:
        await runtime().vm(DEFAULT_INSTANCE).stop()

    refusal = r"not started again by itself: it was shut down by `lima-kernels stop`"
    manager = AsyncKernelManager(kernel_name="lima")
    await manager.start_kernel(cwd=str(machine.notebooks))
    await runtime().run(stop())
    while await manager.is_alive():
        await asyncio.sleep(0.05)
    for _ in range(2):
        # As the server's restarter does when it sees a dead kernel.
        with pytest.raises(InstanceError, match=refusal):
            await manager.restart_kernel(now=True)
    assert len(machine.calls("start")) == 1
    await manager.restart_kernel()
    assert await run(manager, "print('again')") == "again"
    assert len(machine.calls("start")) == 2
    await manager.shutdown_kernel(now=True)


def test_cleanup_may_come_twice_and_after_a_shutdown(machine: Machine) -> None:
    with started(machine) as notebook:
        provisioner = notebook.manager.provisioner
        assert provisioner is not None
        notebook.client.stop_channels()
        notebook.manager.shutdown_kernel()
        asyncio.run(provisioner.cleanup())
        asyncio.run(provisioner.cleanup())
        asyncio.run(provisioner.kill())
        assert asyncio.run(provisioner.wait()) == 0
        assert not provisioner.has_process


def test_cleanup_of_a_live_kernel_ends_it(machine: Machine) -> None:
    with started(machine) as notebook:
        pid = int(notebook.run("import os; print(os.getpid())"))
        notebook.client.stop_channels()
        notebook.manager.cleanup_resources()
        assert not lives(pid)


def test_interrupt_before_shutdown_of_an_unreachable_guest_does_not_stop_it(machine: Machine, guest: FakeGuest) -> None:
    with started(machine) as notebook:
        guest.stop_listening()
        guest.drop_connections()
        (machine.lima_home / "lima-kernels" / "running").unlink()
        notebook.client.stop_channels()
        notebook.manager.shutdown_kernel(now=True)
        assert not notebook.manager.has_kernel
        guest.listen()


def test_extra_arguments_reach_ipykernel(machine: Machine) -> None:
    manager = KernelManager(kernel_name="lima")
    manager.start_kernel(cwd=str(machine.notebooks), extra_arguments=["--IPKernelApp.exec_lines=x='of the arguments'"])
    notebook = Notebook(manager)
    try:
        assert notebook.run("print(x)") == "of the arguments"
    finally:
        notebook.client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_input_is_asked_of_the_client(machine: Machine) -> None:
    with started(machine) as notebook:
        notebook.client.execute("print('got', input('what? '))", allow_stdin=True)
        request = notebook.client.get_stdin_msg(timeout=30)
        assert request["content"]["prompt"] == "what? "
        notebook.client.input("this")
        until(lambda: notebook.client.get_iopub_msg(timeout=30)["content"].get("text", "").startswith("got this"))


def test_control_carries_debugger_usage_and_subshells(machine: Machine) -> None:
    with started(machine) as notebook:
        info = control(
            notebook.client, "debug_request", {"type": "request", "seq": 1, "command": "debugInfo", "arguments": {}}
        )
        assert info["success"] is True
        # ipykernel answers with the figures at the top or below "content", as its version has it.
        usage = control(notebook.client, "usage_request", {})
        assert "kernel_memory" in str(usage)
        assert control(notebook.client, "create_subshell_request", {})["status"] == "ok"


def test_interrupt_by_message(machine: Machine) -> None:
    with started(machine) as notebook:
        assert notebook.manager.kernel_spec is not None
        notebook.manager.kernel_spec.interrupt_mode = "message"
        assert notebook.interrupted()["ename"] == "KeyboardInterrupt"


def test_rich_output_and_comms(machine: Machine) -> None:
    with started(machine) as notebook:
        notebook.client.execute("from IPython.display import HTML, display; display(HTML('<b>x</b>'))")
        until(lambda: "text/html" in notebook.client.get_iopub_msg(timeout=30)["content"].get("data", {}))
        notebook.client.execute("from comm import create_comm; c = create_comm('of_mine', data={'a': 1})")
        until(lambda: notebook.client.get_iopub_msg(timeout=30)["msg_type"] == "comm_open")


def test_a_path_of_the_kernel_is_resolved_where_both_sides_see_it(machine: Machine) -> None:
    (machine.notebooks / "module.py").touch()
    with started(machine) as notebook:
        resolve = notebook.manager.resolve_path
        assert resolve("module.py") == str(machine.notebooks / "module.py")
        assert resolve(str(machine.notebooks / "module.py")) == str(machine.notebooks / "module.py")
        assert resolve("missing.py") is None
        assert resolve("../home") is None
        assert resolve("/etc/passwd") is None
        assert resolve("~/module.py") is None


def test_provisioner_info_is_json_and_can_be_loaded(machine: Machine) -> None:
    with started(machine) as notebook:
        provisioner = notebook.manager.provisioner
        assert provisioner is not None
        info = asyncio.run(provisioner.get_provisioner_info())
        assert info["connection_info"]["key"] == notebook.manager.session.key.decode()
        assert info["instance"] == "lima-kernels"


def test_a_spec_without_a_stanza_by_the_default_provisioner(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KernelProvisionerFactory.instance(), "default_provisioner_name", "lima-provisioner")
    manager = KernelManager(kernel_name="python3")
    manager._kernel_spec = KernelSpec(
        argv=["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"], display_name="Python", language="python"
    )
    manager.start_kernel(cwd=str(machine.notebooks))
    notebook = Notebook(manager)
    try:
        assert notebook.run("import os; print(os.environ['HOME'])") == str(machine.guest_home)
    finally:
        notebook.client.stop_channels()
        manager.shutdown_kernel(now=True)


async def test_two_starts_at_once_make_and_boot_the_vm_once(machine: Machine) -> None:
    managers = [AsyncKernelManager(kernel_name="lima") for _ in range(2)]
    await asyncio.gather(*(manager.start_kernel(cwd=str(machine.notebooks)) for manager in managers))
    assert len(machine.calls("start")) == 1
    assert len([call for call in machine.calls("create") if "-" in call]) == 1
    await asyncio.gather(*(manager.shutdown_kernel(now=True) for manager in managers))


async def test_a_start_that_is_cancelled_leaves_nothing(machine: Machine, guest: FakeGuest) -> None:
    guest.stop_listening()
    manager = AsyncKernelManager(kernel_name="lima")
    start = asyncio.ensure_future(manager.start_kernel(cwd=str(machine.notebooks)))
    # A limactl that is ended before it has begun to boot the VM leaves that to the next.
    while not (machine.lima_home / DEFAULT_INSTANCE / "running").exists():
        await asyncio.sleep(0.02)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    guest.listen()
    assert not manager.has_kernel
    await manager.start_kernel(cwd=str(machine.notebooks))
    assert await run(manager, "print('again')") == "again"
    await manager.shutdown_kernel(now=True)
    assert len(machine.calls("start")) == 1


async def test_kernels_in_two_vms(machine: Machine) -> None:
    managers = []
    for instance in ("one", "two"):
        manager = AsyncKernelManager(kernel_name="lima")
        assert manager.kernel_spec is not None
        manager.kernel_spec.metadata["kernel_provisioner"]["config"]["instance"] = instance
        managers.append(manager)
    await asyncio.gather(*(manager.start_kernel(cwd=str(machine.notebooks)) for manager in managers))
    assert machine.instances() == ["one", "two"]
    assert [await run(manager, "print(6 * 7)") for manager in managers] == ["42", "42"]
    await managers[0].shutdown_kernel(now=True)
    assert await managers[1].is_alive()
    await managers[1].shutdown_kernel(now=True)
