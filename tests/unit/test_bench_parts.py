"""The benchmark's parts on the fake guest: that each measures what it says and leaves nothing behind."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack

import psutil
import pytest

from tests.benchmarks import boots, cost, guest_cells, loopback, many, others, warm
from tests.benchmarks.machine_room import Room, delete_all
from tests.benchmarks.samples import (
    COLD_BOOT,
    DIRECT,
    FIRST_BOOT,
    GUEST,
    HOST,
    LOCAL,
    NO_VM,
    OURS,
    READY,
    RESTART,
    RESTART_AT_ONCE,
    ROUND_TRIP,
    SHUTDOWN,
    SSH,
    START,
    Sample,
    collected,
    output_of,
)
from tests.fake_guest import FakeGuest
from tests.sshd import running

from .conftest import Machine


@pytest.fixture
def real_sshd(machine: Machine, guest: FakeGuest) -> Iterator[None]:
    """OpenSSH's own sshd in place of the fake guest's: what is forwarded by its client, it does not forget."""
    # Below the guest's home, for that is how its processes are found at the end.
    root = machine.guest_home / "sshd"
    root.mkdir()
    with running(root) as sshd:
        shutil.copy(machine.lima_home / "_config" / "user.pub", root / "identity.pub")
        shutil.copytree(machine.root / "guest-bin", sshd.bin, dirs_exist_ok=True)
        machine.tell(ssh_port=sshd.port)
        yield


@pytest.fixture
def room(machine: Machine, real_sshd: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:
    for module in (warm, others):
        monkeypatch.setattr(module, "TIMES", 1)
    monkeypatch.setattr(boots, "COLD_TIMES", 1)
    # Whose kernels the local ones are.
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    root = machine.root / "bench"
    root.mkdir()
    with ExitStack() as stack:
        yield Room(root, stack, lambda _text: None)
    assert machine.instances() == []


def rows(samples: Iterator[Sample]) -> dict[tuple[str, str], int]:
    """How often each figure was measured of each contender."""
    found = list(samples)
    assert all(sample.value > 0 for sample in found)
    return {(series.row.figure, series.row.contender): len(series.values) for series in collected(found)}


def test_ours_and_the_local_kernel_by_turns(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "REST", 0.1)
    lives = {(figure, of): 1 for of in (OURS, LOCAL) for figure in (START, RESTART, RESTART_AT_ONCE, SHUTDOWN)}
    assert rows(warm.measure(room)) == lives


def test_boots_of_our_vm(room: Room) -> None:
    room.warm()
    # The VM that there is by now is no new one.
    assert rows(boots.measure(room)) == {(FIRST_BOOT, OURS): 1, (COLD_BOOT, OURS): 1, (READY, OURS): 1}


def test_a_kernel_that_ssh_starts(room: Room) -> None:
    assert rows(others.measure_openssh(room)) == {(figure, SSH): 1 for figure in (START, RESTART, SHUTDOWN)}


def test_one_kernel_of_the_vm_by_both_ways(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_cells, "ROUNDS", 6)
    monkeypatch.setattr(guest_cells, "LIMIT", 0.0)
    found = rows(guest_cells.measure(room))
    assert {contender for _, contender in found} == {OURS, SSH}
    assert found[ROUND_TRIP, OURS] == found[ROUND_TRIP, SSH] == 6
    # The guest is too slow for the largest.
    assert (output_of(10), OURS) in found
    assert (output_of(100), OURS) not in found


def test_what_idle_kernels_cost(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "WATCHED", 0.5)
    monkeypatch.setattr(cost, "SETTLING", 0.0)
    monkeypatch.setattr(cost, "COUNTS", (0, 2))
    room.warm()
    # The process that has them knows nothing of this fake guest: its kernels are local ones.
    monkeypatch.setattr(Room, "spec", lambda _room: "python3")
    samples = list(cost.measure(room))
    assert {(sample.row.contender, sample.row.figure.split()[-2]) for sample in samples} >= {
        *((NO_VM, "0"), (HOST, "0"), (HOST, "2"), (GUEST, "0"), (GUEST, "2"))
    }
    assert all(sample.value > 0 for sample in samples if sample.row.figure.startswith("memory"))
    assert "tests.benchmarks.holder" not in arguments()


def test_kernels_behind_an_sshd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loopback, "ROUNDS", 10)
    monkeypatch.setattr(loopback, "BULK_ROUNDS", 1)
    found = rows(loopback.measure())
    for contender in (DIRECT, OURS, SSH):
        assert found[ROUND_TRIP, contender] == 10
        assert found[output_of(100), contender] == 1


def test_many_kernels_behind_an_sshd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many, "STAGES", (1, 3))
    monkeypatch.setattr(many, "LINES", 2)
    monkeypatch.setattr(many, "ROUNDS", 2)
    monkeypatch.setattr(many, "BUSY", 0.1)
    found = rows(many.measure())
    assert {contender for _, contender in found} == {DIRECT, OURS, SSH}
    assert {figure for figure, _ in found if "3 kernels" in figure} == {
        "round trip of a cell among 3 kernels",
        "cells of 3 kernels at once",
        "1 MB of output of 3 kernels at once",
    }


def arguments() -> Iterator[str]:
    """All arguments of all processes."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            yield from process.cmdline()


def test_nothing_is_left_of_an_interrupted_part(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(machine.root))
    measuring = loopback.measure()
    next(measuring)
    ours = [argument for argument in arguments() if argument.startswith(f"{machine.root}/lk")]
    assert any("forkserver" in argument for argument in ours)
    measuring.close()
    assert not set(ours) & set(arguments())


def test_deleting_all_where_there_is_nothing(machine: Machine) -> None:
    delete_all()
    assert machine.calls("delete") == []
