"""A dead kernel that a server cannot start again by itself is called dead, and not waited for; a person can have it."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from jupyter_client.ioloop import AsyncIOLoopKernelManager
from traitlets.config import Config

from lima_kernels.errors import ConfigurationError
from lima_kernels.runtime import runtime
from lima_kernels.settings import DEFAULT_INSTANCE
from tests.fake_guest import FakeGuest

from .conftest import Machine
from .test_contract import run

# A dead kernel is looked for this often, in seconds: Jupyter's own 3 s would make a test wait for nothing.
OFTEN = Config({"KernelRestarter": {"time_to_dead": 0.1, "restart_limit": 3}})


@pytest.fixture(autouse=True)
def _ready(guest: FakeGuest, spec: str) -> None:
    """Every test here has a guest and the kernel spec."""


async def started(machine: Machine, **config: str) -> tuple[AsyncIOLoopKernelManager, asyncio.Event]:
    """Start a kernel as a server does, and return its manager and what is set when that calls it dead."""
    manager = AsyncIOLoopKernelManager(kernel_name="lima", config=OFTEN)
    assert manager.kernel_spec is not None
    manager.kernel_spec.metadata["kernel_provisioner"]["config"].update(config)
    await manager.start_kernel(cwd=str(machine.notebooks))
    is_dead = asyncio.Event()
    manager.add_restart_callback(is_dead.set, "dead")
    return manager, is_dead


async def stop() -> None:
    await runtime().vm(DEFAULT_INSTANCE).stop()


async def test_a_kernel_whose_vm_was_stopped_is_called_dead(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    manager, is_dead = await started(machine)
    await runtime().run(stop())
    await asyncio.wait_for(is_dead.wait(), 60)
    # Said once, however often the manager tries.
    assert caplog.text.count("is not started again by itself: it was shut down by `lima-kernels stop`") == 1
    assert not await manager.is_alive()
    assert len(machine.calls("start")) == 1
    await manager.restart_kernel()
    assert await run(manager, "print('again')") == "again"
    # The new one is watched as the first was.
    assert manager.has_kernel
    assert len(machine.calls("start")) == 2
    await manager.shutdown_kernel(now=True)
    assert not manager.has_kernel


async def test_another_failure_is_not_repeated_for_nobody(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    environment = machine.root / "env.yaml"
    environment.write_text("cpus: 2\n")
    manager, is_dead = await started(machine, environment=str(environment))
    pid = int(await run(manager, "import os; print(os.getpid())"))
    environment.write_text("cpus: many\n")
    os.kill(pid, signal.SIGKILL)
    await asyncio.wait_for(is_dead.wait(), 60)
    refusal = "expected int, got str at cpus"
    assert caplog.text.count(refusal) == 1
    # A person is told why, each time.
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=refusal):
            await manager.restart_kernel()
    environment.write_text("cpus: 2\n")
    await manager.restart_kernel()
    assert await run(manager, "print('again')") == "again"
    await manager.shutdown_kernel(now=True)
