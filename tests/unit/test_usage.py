"""What a VM uses: measured on this host, and asked of a guest only by who is connected to it and only for who looks."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from lima_kernels.environment.spec import DEFAULT
from lima_kernels.errors import GuestError
from lima_kernels.guest.forkserver import memory
from lima_kernels.guest.kernels import Birth, Forkserver, KernelFacts, MemoryUse, Ownership
from lima_kernels.instances import Wish
from lima_kernels.lima.models import Instance
from lima_kernels.watch import usage, watcher
from lima_kernels.watch.cards import CardChanged, State, UsageTaken
from lima_kernels.watch.usage import Meter
from tests.fake_guest import FakeGuest

from .conftest import Machine
from .watching import Process

NAME = "one"


@pytest_asyncio.fixture
async def process(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Process]:
    monkeypatch.setattr(watcher, "INTERVAL", 0.02)
    monkeypatch.setattr(watcher, "_LEAST", 0.0)
    made = Process()
    yield made
    await made.close()


def wish(machine: Machine) -> Wish:
    return Wish(environment=DEFAULT, attach=False, directory=machine.notebooks)


def instance(pid: int) -> Instance:
    return Instance(name=NAME, raw_dir="/x", cpus=2, driver_pid=pid)


def test_the_share_of_a_vms_cpus_is_that_of_its_process() -> None:
    meter = Meter()
    assert meter.share(instance(os.getpid())) is None
    began = psutil.Process().cpu_times()
    while psutil.Process().cpu_times().user < began.user + 0.1:
        sum(range(10_000))
    found = meter.share(instance(os.getpid()))
    assert found is not None
    assert 0.05 < found < 0.7
    assert meter.share(instance(0)) is None
    assert meter.share(instance(2**22 + 1)) is None
    assert meter.share(instance(os.getpid())) is None


def test_the_guest_says_how_much_of_its_memory_is_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "meminfo"
    file.write_text("MemTotal:        2048 kB\nMemFree:  100 kB\nMemAvailable:    512 kB\nHugePages_Total:       0\n")
    monkeypatch.setattr(memory, "_MEMINFO", str(file))
    assert memory.usage() == {"total": 2048 << 10, "used": 1536 << 10}


async def test_a_guest_tells_its_memory_and_its_kernels_to_who_is_connected(
    machine: Machine, process: Process, guest: FakeGuest
) -> None:
    ear, subscription = await process.watch()
    reached = await process.vm(NAME).ensure(wish(machine))
    said = await reached.forkserver.usage()
    assert 0 < said.used < said.total
    await ear.state(NAME, State.RUNNING)
    assert ear.all(UsageTaken) == []
    assert ear.card(NAME).kernels is None  # type: ignore[union-attr]
    subscription.show([NAME])
    await ear.until(lambda: ear.card(NAME).kernels == [])  # type: ignore[union-attr]
    birth = Birth(
        cwd=str(machine.notebooks),
        env={},
        connection={"transport": "ipc", "ip": str(machine.guest_home / "c"), "key": "k"}
        | {f"{channel}_port": number for number, channel in enumerate(("shell", "iopub", "stdin", "control", "hb"), 1)},
        arguments=[],
        ownership=Ownership("t", 60.0),
        facts=KernelFacts(session="/nb/a\x1b.ipynb"),
    )
    await reached.forkserver.spawn("k1", birth, timeout=60)
    card = await ear.until(lambda: (found := ear.card(NAME)) and found.kernels and found)
    (kernel,) = card.kernels
    assert (kernel.id, kernel.title, kernel.user) == ("k1", "/nb/a.ipynb", "nobody")
    assert kernel.since > 0
    told = ear.all(UsageTaken)[-1].usage
    assert told.memory is not None
    assert 0 < told.memory < psutil.virtual_memory().total
    await reached.forkserver.remove("k1")
    await ear.until(lambda: ear.card(NAME).kernels == [])  # type: ignore[union-attr]
    # What stays as it is is told once.
    before = len(ear.all(CardChanged))
    looks = len(ear.all(UsageTaken))
    await ear.until(lambda: len(ear.all(UsageTaken)) > looks + 5)
    assert len(ear.all(CardChanged)) == before
    await process.vm(NAME).disconnect()
    await ear.until(lambda: ear.card(NAME).kernels is None)  # type: ignore[union-attr]


async def test_a_guest_is_not_asked_for_who_does_not_look(
    machine: Machine, process: Process, guest: FakeGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    real = Forkserver.usage

    async def counted(self: Forkserver) -> MemoryUse:
        asked.append(self)
        return await real(self)

    monkeypatch.setattr(Forkserver, "usage", counted)
    await process.vm(NAME).ensure(wish(machine))
    hidden, subscription = await process.watch()
    other, looking = await process.watch()
    # A look at another VM is how a test knows that time has passed.
    await process.limactl.create("two", "images: []")
    (machine.lima_home / "two" / "running").touch()
    await other.state("two", State.RUNNING)
    looking.show(["two"])
    subscription.show([])
    await other.until(lambda: len(other.all(UsageTaken)) > 5)
    assert asked == []
    subscription.show([NAME])
    await hidden.until(lambda: hidden.all(UsageTaken))
    assert asked


async def test_a_guest_that_does_not_answer_holds_up_nothing(
    machine: Machine, process: Process, guest: FakeGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(self: Forkserver) -> MemoryUse:
        raise GuestError("unknown operation")

    monkeypatch.setattr(Forkserver, "usage", refuse)
    monkeypatch.setattr(usage, "TIMEOUT", 0.2)
    await process.vm(NAME).ensure(wish(machine))
    ear, subscription = await process.watch()
    subscription.show(None)
    await ear.until(lambda: len(ear.all(UsageTaken)) > 1)
    assert all(message.usage.memory is None for message in ear.all(UsageTaken))
