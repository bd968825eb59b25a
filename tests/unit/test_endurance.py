"""Many starts and shutdowns, and many lost connections: afterwards there is exactly as much of everything as before."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections import Counter
from typing import Any

import psutil
import pytest

from lima_kernels.runtime import runtime
from tests.fake_guest import FakeGuest

from .conftest import Machine
from .test_faults import in_guest
from .test_kernel import started, until

# After these, nothing may become more: what is made once is made.
WARM_UP = 4
# How a kernel is started and ended, in turns: transport, and whether it is asked to end or just killed.
WAYS = [("ipc", True), ("tcp", True), ("ipc", False), ("tcp", False)]


@pytest.fixture(autouse=True)
def _ready(guest: FakeGuest, spec: str) -> None:
    """Every test here has a guest and the kernel spec."""


async def _tasks() -> list[str]:
    return [task.get_coro().__qualname__ for task in asyncio.all_tasks() - {asyncio.current_task()}]


def held(machine: Machine, guest: FakeGuest) -> dict[str, Any]:
    """Return how much there is of everything that could become more."""
    gc.collect()
    process = psutil.Process()
    guest_pids = in_guest(machine)
    # What IPython keeps in the guest's home is not ours.
    names = (str(path.relative_to(machine.root)) for path in machine.root.rglob("*"))
    return {
        "descriptors": process.num_fds(),
        # Those of the loops' executors come as they are needed, and are never more than it allows.
        "threads": process.num_threads() - sum(thread.name.startswith("asyncio_") for thread in threading.enumerate()),
        "sockets": len(process.net_connections("all")),
        "tasks of the I/O thread": Counter(runtime().run_blocking(_tasks(), 10)),
        "SSH connections": len(guest.connections),
        "processes on the host": len(process.children(recursive=True)),
        "processes in the guest": len(guest_pids),
        "descriptors in the guest": sum(psutil.Process(pid).num_fds() for pid in guest_pids),
        "files": {name for name in names if not name.startswith("guest/") or name.startswith("guest/.lima-kernels")},
    }


def settled(machine: Machine, guest: FakeGuest) -> dict[str, Any]:
    """Return what is held once nothing is on its way any more: three looks see the same."""
    seen = [held(machine, guest)]

    def same() -> bool:
        seen.append(held(machine, guest))
        return len(seen) > 3 and seen[-1] == seen[-2] == seen[-3]

    until(same)
    return seen[-1]


def check_that_no_more_is_held(machine: Machine, guest: FakeGuest, before: dict[str, Any]) -> None:
    """Compare once what is on its way has come to its end; what lingers goes in time, what leaks does not."""
    try:
        # Longer than ZMQ takes to give up a handshake.
        until(lambda: held(machine, guest) == before, 45)
    except AssertionError:
        now = settled(machine, guest)
        assert now["files"] == before["files"]
        assert {name: (before[name], now[name]) for name in before if now[name] != before[name]} == {}


def live_and_end(machine: Machine, number: int) -> None:
    transport, now = WAYS[number % len(WAYS)]
    with started(machine, transport=transport) as notebook:
        assert notebook.run(f"print({number})") == str(number)
        notebook.client.stop_channels()
        notebook.manager.shutdown_kernel(now=now)


def check_rounds(machine: Machine, guest: FakeGuest, rounds: int) -> None:
    for number in range(WARM_UP):
        live_and_end(machine, number)
    before = settled(machine, guest)
    for number in range(rounds):
        live_and_end(machine, number)
    check_that_no_more_is_held(machine, guest, before)
    assert len(machine.calls("start")) == 1


@pytest.mark.timeout(300)
def test_30_starts_and_shutdowns_leave_nothing(machine: Machine, guest: FakeGuest) -> None:
    check_rounds(machine, guest, 30)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_200_starts_and_shutdowns_leave_nothing(machine: Machine, guest: FakeGuest) -> None:
    check_rounds(machine, guest, 200)


def drop(guest: FakeGuest) -> None:
    """Cut the connection and wait until there is another."""
    old = list(guest.connections)
    assert guest.drop_connections() == 1
    until(lambda: len(guest.connections) == 1 and guest.connections[0] not in old)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_20_lost_connections_of_one_kernel_leave_nothing(machine: Machine, guest: FakeGuest, transport: str) -> None:
    with started(machine, transport=transport) as notebook:
        pid = notebook.run("import os; n = 0; print(os.getpid())")
        for _ in range(WARM_UP):
            drop(guest)
            notebook.run("n += 1")
        before = settled(machine, guest)
        for _ in range(20):
            drop(guest)
            notebook.run("n += 1")
        assert notebook.manager.is_alive()
        check_that_no_more_is_held(machine, guest, before)
        assert notebook.run("print(os.getpid(), n)") == f"{pid} {WARM_UP + 20}"
    assert list((machine.root / "run").glob("lima/*")) == []
