"""The kernel managers of jupyter_server, each in a process of its own as in test_managers.py."""

from __future__ import annotations

import asyncio
import json
import socket
import urllib.request
from typing import Any

import pytest
from jupyter_client import BlockingKernelClient
from jupyter_client.utils import ensure_async
from jupyter_server.serverapp import ServerApp
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager, MappingKernelManager

from lima_kernels.errors import LimactlError
from tests.child import Child, child, in_child
from tests.fake_guest import FakeGuest

from .conftest import Machine
from .test_contract import run
from .test_kernel import lives, until
from .test_managers import PID, asked, nothing_left


@pytest.fixture(autouse=True)
def _ready(guest: FakeGuest, spec: str) -> None:
    """Every test here has a guest and the kernel spec."""


async def mapping(machine: Machine, pending: str) -> None:
    (machine.notebooks / "sub").mkdir()
    kernels = AsyncMappingKernelManager(root_dir=str(machine.notebooks), use_pending_kernels=pending == "pending")
    ids = [await kernels.start_kernel(kernel_name="lima", path=path) for path in ("sub/a.ipynb", "")]
    for id_ in ids:
        await kernels.get_kernel(id_).ready
    places = [await run(kernels.get_kernel(id_), "import os; print(os.getcwd())") for id_ in ids]
    assert places == [str(machine.notebooks / "sub"), str(machine.notebooks)]
    # The server's root is what the VM shows, so that all its notebooks can use it.
    assert f"location: {machine.notebooks}\n" in (machine.lima_home / "lima-kernels" / "lima.yaml").read_text()
    assert {model["id"] for model in kernels.list_kernels()} == set(ids)
    json.dumps(kernels.list_kernels())
    pid = await run(kernels.get_kernel(ids[0]), PID)
    await kernels.restart_kernel(ids[0])
    assert await run(kernels.get_kernel(ids[0]), PID) != pid
    await kernels.interrupt_kernel(ids[0])
    await kernels.shutdown_all()
    async with asyncio.timeout(60):
        while kernels.list_kernels():
            await asyncio.sleep(0.05)
    assert nothing_left(machine)
    assert len(machine.calls("start")) == 1


@pytest.mark.parametrize("pending", ["pending", "waiting"])
def test_the_servers_async_manager(machine: Machine, pending: str) -> None:
    in_child(mapping, machine, pending)


async def failing(machine: Machine) -> None:
    kernels = AsyncMappingKernelManager(root_dir=str(machine.notebooks))
    with pytest.raises(LimactlError, match="no space left on device"):
        await kernels.start_kernel(kernel_name="lima", path="")
    assert kernels.list_kernels() == []
    assert nothing_left(machine)


def test_a_failed_start_leaves_no_ghost_in_the_server(machine: Machine) -> None:
    machine.tell(fail={"create": "no space left on device"})
    in_child(failing, machine)


async def sync_mapping(machine: Machine) -> None:
    kernels = MappingKernelManager(root_dir=str(machine.notebooks))
    id_ = await kernels.start_kernel(kernel_name="lima", path="")
    pid = int(await asyncio.to_thread(asked, kernels.get_kernel(id_).client(), PID))
    await kernels.restart_kernel(id_)
    again = int(await asyncio.to_thread(asked, kernels.get_kernel(id_).client(), PID))
    assert again != pid
    await ensure_async(kernels.shutdown_all(now=True))
    assert kernels.list_kernels() == []
    assert not lives(again)
    assert nothing_left(machine)


def test_the_servers_sync_manager(machine: Machine) -> None:
    in_child(sync_mapping, machine)


TOKEN = "of-this-test"


def serve(machine: Machine, *more: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = ServerApp()
    options = [f"ServerApp.port={port}", f"IdentityProvider.token={TOKEN}", f"ServerApp.root_dir={machine.notebooks}"]
    server.initialize([f"--{option}" for option in (*options, *more)])
    print(port, flush=True)
    server.start()


def answers(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def opened(server: Child) -> str:
    """Open the notebook as JupyterLab does and return its kernel's id."""
    port = int(server.line())
    until(lambda: answers(port), 60)
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/sessions",
        data=json.dumps(
            {"path": "a.ipynb", "name": "a.ipynb", "type": "notebook", "kernel": {"name": "lima"}}
        ).encode(),
        headers={"Authorization": f"token {TOKEN}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        session: dict[str, Any] = json.load(answer)
    return str(session["kernel"]["id"])


def said(machine: Machine, kernel: str, code: str) -> str:
    client = BlockingKernelClient(connection_file=str(machine.root / "run" / f"kernel-{kernel}.json"))
    client.load_connection_file()
    return asked(client, code)


def test_a_notebook_has_its_variables_back_after_the_server_was_killed(machine: Machine) -> None:
    with child(serve, machine) as server:
        kernel = opened(server)
        pid = said(machine, kernel, "x = 'of before'; import os; print(os.getpid())")
        server.kill()
    assert lives(int(pid))
    with child(serve, machine) as server:
        again = opened(server)
        assert again != kernel
        assert said(machine, again, "import os; print(x, os.getpid())") == f"of before {pid}"
        # The killed server's sockets are gone.
        assert len(list((machine.root / "run" / "lima").iterdir())) == 1
        server.kill()
