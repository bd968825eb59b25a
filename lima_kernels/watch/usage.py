"""What VMs use now: their processes' time on this host; the memory and kernels of guests that we are connected to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import NamedTuple

import psutil

from .. import leases
from ..errors import LimaKernelsError, printable
from ..lima.models import Instance
from ..verbs.kernels import Living
from ..vm import VM, Live
from .cards import Kernel, Usage

# Seconds that a guest has to answer; one that does not is asked again in the next look.
TIMEOUT = 1.5
# A guest may say that it has any number of kernels, of any name.
_MOST_KERNELS = 200
_LONGEST = 200


class Look(NamedTuple):
    """One look at a VM; ``kernels`` is None when its guest did not say."""

    usage: Usage
    kernels: Sequence[Kernel] | None


class Meter:
    """Measures how much of its CPUs a VM's process takes between two looks; ``looked`` is when the last was made."""

    def __init__(self) -> None:
        self.looked = float("-inf")
        self._process: psutil.Process | None = None
        self._before = (0.0, 0.0)

    def share(self, instance: Instance) -> float | None:
        """Return the share since the last look; None when there was none, or there is no process."""
        try:
            if self._process is None or self._process.pid != instance.driver_pid or not self._process.is_running():
                self._process = psutil.Process(instance.driver_pid) if instance.driver_pid else None
                self._before = (0.0, 0.0)
            if self._process is None:
                return None
            taken = self._process.cpu_times()
        except psutil.Error:
            self._process = None
            return None
        (then, used), now = self._before, time.monotonic()
        self._before = now, taken.user + taken.system
        if not then or now <= then:
            return None
        return round(max(0.0, taken.user + taken.system - used) / (now - then) / max(1, instance.cpus), 4)


async def look(vm: VM, instance: Instance, meter: Meter) -> Look:
    """Look at a VM that runs; its guest is asked only if we are connected to it."""
    share = meter.share(instance)
    memory, kernels = None, None
    if live := vm.live():
        try:
            async with asyncio.timeout(TIMEOUT):
                memory, kernels = await asyncio.gather(_memory(live), kernels_of(vm, live))
        except (LimaKernelsError, TimeoutError):
            # It may just be going.
            pass
    return Look(Usage(vm.name, time.time(), share, memory), kernels)


async def _memory(live: Live) -> int:
    said = await live.guest.forkserver.usage()
    return min(said.used, said.total)


async def kernels_of(vm: VM, live: Live) -> Sequence[Kernel]:
    """Return the kernels that live in a VM, of many the first."""
    states = await live.guest.forkserver.list()
    owners = leases.held(vm.name)
    found = [
        Living(vm.name, live.guest, name, state, owners.get(name))
        for name, state in sorted(states.items(), key=lambda entry: entry[1].started)
        if state.code is None
    ]
    return [
        Kernel(
            id=printable(kernel.name)[:_LONGEST],
            title=kernel.title[:_LONGEST],
            busy=kernel.state.busy,
            user=kernel.user,
            since=kernel.since.timestamp(),
        )
        for kernel in found[:_MOST_KERNELS]
    ]
