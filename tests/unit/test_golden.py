"""Golden VMs: made once, copied for each new VM of their lock, and never seen half-made."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from lima_kernels import paths, places
from lima_kernels.errors import GuestError, LimaKernelsError
from lima_kernels.lima.limactl import Limactl
from lima_kernels.reproduce import golden, removing, syncing
from lima_kernels.runtime import runtime
from tests.fake_guest import FakeGuest
from tests.locked_guest import Workshop

from .conftest import Machine
from .test_cli_locks import NAME, VM, env, main, project

__all__ = ["env", "project"]

AS_ROOT = "as root"


@pytest.fixture
def place(project: Path, env: Any) -> places.Place:
    """A locked environment, whose VM does not exist."""
    env("lock")
    assert main(["delete", VM, "--force"]) == 0
    return places.find(project / "lima-env.yaml", None, project)


def golden_of(place: places.Place) -> str:
    return place.described.golden


def make(place: places.Place) -> None:
    async def made() -> None:
        await golden.make(runtime().vm(golden_of(place)), places.wish_of(place))

    runtime().run_blocking(made(), 60)


def nothing_is_left(machine: Machine, place: places.Place) -> bool:
    return machine.instances() == [] and not paths.has_golden_mark(golden_of(place))


def test_a_new_vm_is_a_copy_of_the_golden_one(
    machine: Machine, place: places.Place, workshop: Workshop, guest: FakeGuest, env: Any
) -> None:
    env("sync")
    name = golden_of(place)
    assert machine.instances() == sorted([VM, name])
    assert machine.calls("clone") == [["clone", name, VM]]
    assert len(machine.calls("create")) == 2, "the VM in which it was locked, and the golden one"
    assert syncing.hosted(VM) == syncing.hosted(name)
    assert "ssh_host_" in (workshop.debian.directory / AS_ROOT).read_text()
    # Nobody works in it.
    assert removing.hosting() == {VM: [NAME]}
    assert removing.goldens(NAME) == [name]
    assert main(["delete", VM, "--force"]) == 0
    env("sync")
    assert len(machine.calls("create")) == 2
    assert machine.calls("clone") == [["clone", name, VM]] * 2


def test_a_copy_has_a_host_key_of_its_own(machine: Machine, place: places.Place, guest: FakeGuest, env: Any) -> None:
    make(place)
    assert paths.pinned_key_file(machine.lima_home / golden_of(place)).exists()
    guest.drop_connections()
    guest.change_host_key()
    machine.tell(ssh_port=guest.port)
    env("sync")
    assert machine.instances() == sorted([VM, golden_of(place)])


def test_it_is_made_once_however_many_want_it(machine: Machine, place: places.Place) -> None:
    async def twice() -> None:
        wish = places.wish_of(place)
        vm = runtime().vm(golden_of(place))
        await asyncio.gather(golden.make(vm, wish), golden.make(vm, wish))

    before = len(machine.calls("create"))
    runtime().run_blocking(twice(), 60)
    make(place)
    assert len(machine.calls("create")) == before + 1
    assert len(machine.calls("stop")) == 1


def test_one_that_was_deleted_by_hand_is_made_anew(machine: Machine, place: places.Place) -> None:
    make(place)
    runtime().run_blocking(Limactl().delete(golden_of(place)))
    assert paths.has_golden_mark(golden_of(place))
    make(place)
    assert machine.instances() == [golden_of(place)]


@pytest.mark.parametrize("fault", ["create", "start", "stop", "as root", "packages"])
def test_a_failure_leaves_nothing(machine: Machine, place: places.Place, workshop: Workshop, fault: str) -> None:
    if fault == "as root":
        workshop.debian.set("root fails", 3)
    elif fault == "packages":
        for file in workshop.index.root.glob("*/*.whl"):
            file.write_bytes(b"no wheel")
    else:
        machine.tell(fail={fault: "it will not"})
    with pytest.raises(LimaKernelsError) as caught:
        make(place)
    assert "\n" not in str(caught.value)
    assert nothing_is_left(machine, place)


def test_what_says_why_it_cannot_be_copied(place: places.Place, workshop: Workshop) -> None:
    workshop.debian.set("root fails", 3)
    with pytest.raises(GuestError, match="The golden VM could not be made ready for copies"):
        make(place)


def test_cancelling_leaves_nothing(machine: Machine, place: places.Place) -> None:
    async def cancelled() -> None:
        wish = places.wish_of(place)
        vm = runtime().vm(golden_of(place))
        making = asyncio.ensure_future(golden.make(vm, wish))
        while vm.live() is None and not making.done():
            await asyncio.sleep(0.01)
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making

    runtime().run_blocking(cancelled(), 60)
    assert nothing_is_left(machine, place)
    make(place)


def test_a_half_made_one_is_not_copied(machine: Machine, place: places.Place, env: Any) -> None:
    """As a process leaves it that was killed: it is there, and nothing says that it is whole."""
    make(place)
    paths.golden_mark(golden_of(place)).unlink()
    before = len(machine.calls("create"))

    async def start() -> None:
        await runtime().vm(VM).ensure(places.wish_of(place))

    runtime().run_blocking(start(), 60)
    assert machine.calls("clone") == []
    assert len(machine.calls("create")) == before + 1
    # Whoever wants it next finishes it.
    make(place)
    assert paths.has_golden_mark(golden_of(place))
    assert len(machine.calls("create")) == before + 1


@pytest.mark.parametrize("fault", ["clone", "template"])
def test_a_copy_that_fails_leaves_nothing_and_the_golden_one(
    machine: Machine, place: places.Place, env: Any, fault: str
) -> None:
    make(place)
    if fault == "clone":
        machine.tell(fail={"clone": "no space left"}, clone_stops_at="lima.yaml")
    else:
        machine.tell(fail={"template": "it will not"})
    assert env("sync", code=1).startswith("lima-kernels: limactl ")
    assert machine.instances() == [golden_of(place)]
    assert not (machine.lima_home / VM).exists()
    assert not paths.environments_file(VM).exists()
    machine.tell(fail={})
    env("sync")
    assert machine.instances() == sorted([VM, golden_of(place)])


def test_it_goes_with_its_environment(machine: Machine, place: places.Place, env: Any) -> None:
    env("sync")
    said = env("remove", NAME)
    assert said == (f"Removed {NAME} from the VM {VM} Removed the VM {golden_of(place)}, of which new ones were copies")
    assert machine.instances() == [VM]
    assert removing.goldens(NAME) == []
