"""What tests of verbs are given: a context whose words are kept, and instances of others and of ours."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from lima_kernels import leases, paths
from lima_kernels.guest.kernels import KernelFacts
from lima_kernels.lima import template
from lima_kernels.lima.limactl import Limactl
from lima_kernels.progress import Phase, Step
from lima_kernels.verbs.context import Context
from lima_kernels.vm import VM

from .conftest import Machine

CONFIG = "images:\n- location: x\n"


class Asking:
    """One who asks for verbs; keeps what is said meanwhile, and the phases."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.limactl = Limactl()
        self.said: list[str] = []
        self.steps: list[Step] = []
        self._vms: dict[str, VM] = {}
        self.context = Context(self.limactl, self.vm, self.said.append, "one")

    def vm(self, name: str) -> VM:
        if name not in self._vms:
            self._vms[name] = VM(name, self.limactl, self.steps.append)
        return self._vms[name]

    def phases(self) -> list[Phase]:
        return [step.phase for step in self.steps]

    async def __call__(self, verb: Callable[..., Any], **options: Any) -> Any:
        return await verb(self.context, argparse.Namespace(**options))

    async def given_up(self, verb: Callable[..., Any], ready: Callable[[], bool], **options: Any) -> None:
        """Ask, and cancel it as soon as something is so."""
        asked = asyncio.ensure_future(self(verb, **options))
        while not ready():
            assert not asked.done(), asked.exception() or "it has come to its end"
            await asyncio.sleep(0.02)
        asked.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asked
        assert asked.cancelled()

    async def close(self) -> None:
        for vm in self._vms.values():
            await vm.abandon()


async def make(asking: Asking, name: str, config: str = CONFIG, *, running: bool = False) -> None:
    """Make an instance of others."""
    await asking.limactl.create(name, config)
    if running:
        (asking.machine.lima_home / name / "running").touch()


def ours() -> str:
    """The lima.yaml of an instance that lima-kernels made."""
    mark = template.OwnerMark(template.MARK_VERSION, "e", "i", template.Source.TEMPLATE, "p", ())
    file = template.GuestFile(paths.GUEST_INSTANCE_FILE, msgspec.json.encode(mark).decode())
    return template.render(template.Config(images=[{"location": "x"}], mounts=[], provision=[], files=[file]))


@contextlib.contextmanager
def used(name: str) -> Iterator[None]:
    """Use an instance, as a kernel does."""
    lease = leases.acquire(name, "k1", KernelFacts(session="/nb/a.ipynb"))
    assert lease is not None
    try:
        yield
    finally:
        lease.release()


def log_line(level: str, message: str) -> str:
    return json.dumps({"level": level, "msg": message, "time": "2026-11-21T21:33:49Z"}) + "\n"
