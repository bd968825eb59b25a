"""Reaching a guest again: where its forkserver runs and says that all is there, no program is begun in the guest."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from lima_kernels import arrival, paths
from lima_kernels.environment.spec import DEFAULT
from lima_kernels.errors import GuestError
from lima_kernels.guest import readiness
from lima_kernels.instances import Wish
from lima_kernels.lima.template import MARK_VERSION, Config, GuestFile, OwnerMark, Source, render
from lima_kernels.runtime import runtime
from lima_kernels.vm import Guest
from tests.fake_guest import FakeGuest

from .conftest import Machine

NAME = "lima-kernels"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[readiness.Needs]:
    """What was waited for by a script in the guest."""
    asked: list[readiness.Needs] = []
    real = readiness.wait_until_ready

    async def wait(connection: Any, needs: readiness.Needs, progress: Any) -> readiness.Facts:
        asked.append(needs)
        return await real(connection, needs, progress)

    monkeypatch.setattr(arrival.readiness, "wait_until_ready", wait)
    return asked


@pytest.fixture
def reach(machine: Machine, guest: FakeGuest) -> Callable[..., Guest]:
    """Reach a VM's guest anew, as another process would."""

    def reach(*mounted: str) -> Guest:
        directory = machine.lima_home / NAME
        directory.mkdir(exist_ok=True)
        mark = OwnerMark(
            version=MARK_VERSION,
            environment=DEFAULT.digest,
            image=DEFAULT.image_digest,
            source=Source.LOCAL,
            provisioned="image",
        )
        file = GuestFile(paths.GUEST_INSTANCE_FILE, msgspec.json.encode(mark).decode())
        mounts = [{"location": point} for point in mounted]
        text = render(Config(images=[{"location": "x"}], mounts=mounts, provision=[], files=[file]))
        (directory / "lima.yaml").write_text(text)
        (directory / "running").touch()
        vm = runtime().vm(NAME)
        runtime().run_blocking(vm.disconnect())
        return runtime().run_blocking(vm.ensure(Wish(environment=DEFAULT, attach=False, directory=None)))

    machine.tell(user={"home": str(guest.home)})
    return reach


def test_the_first_time_it_is_waited_for_and_then_asked(
    reach: Callable[..., Guest], waits: list[readiness.Needs]
) -> None:
    first = reach()
    assert len(waits) == 1
    second = reach()
    assert len(waits) == 1
    assert second.facts == first.facts
    assert runtime().run_blocking(second.forkserver.list()) == {}


def test_what_is_mounted_need_not_be_waited_for(reach: Callable[..., Guest], waits: list[readiness.Needs]) -> None:
    reach("/proc")
    reach("/proc")
    assert len(waits) == 1


def test_what_is_not_mounted_is_waited_for(reach: Callable[..., Guest], waits: list[readiness.Needs]) -> None:
    reach()
    reach("/nowhere")
    assert [needs.mounts for needs in waits] == [[], ["/nowhere"]]


def test_another_provisioning_is_waited_for(
    reach: Callable[..., Guest], waits: list[readiness.Needs], machine: Machine
) -> None:
    reach()
    (machine.root / "state" / "provisioned").write_text("other\n")
    (machine.root / "state" / "failed").write_text("no\n")
    with pytest.raises(GuestError, match="packages"):
        reach()
    assert [needs.provisioned for needs in waits] == ["image", "image"]


def test_a_home_that_lima_does_not_know_is_asked_for(
    reach: Callable[..., Guest], waits: list[readiness.Needs], machine: Machine
) -> None:
    machine.tell(user={"home": "/elsewhere"})
    first = reach()
    assert reach().facts == first.facts
    assert len(waits) == 2
    assert first.facts.uid == os.getuid()
