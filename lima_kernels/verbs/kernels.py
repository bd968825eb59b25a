"""kernels: what lives in the VMs that run."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from .. import leases
from ..errors import LimaKernelsError, printable
from ..guest.kernels import KernelState
from ..instances import REACH
from ..kernelspec import installed
from ..lima.limactl import Limactl
from ..magics.results import Table
from ..vm import VM, Guest
from .context import Context

BUSY = {True: "busy", False: "idle", None: "unknown"}


class Living(NamedTuple):
    """A kernel that lives in a VM; ``owner`` is the live process that uses it."""

    instance: str
    guest: Guest
    name: str
    state: KernelState
    owner: leases.LeaseRecord | None

    @property
    def user(self) -> str:
        return f"{self.owner.program} (process {self.owner.pid})" if self.owner else "nobody"

    @property
    def title(self) -> str:
        facts = self.state.facts
        return printable(_short(facts.session) if facts.session else facts.spec)

    @property
    def since(self) -> datetime:
        """The guest's time of its start, whatever it says."""
        try:
            return datetime.fromtimestamp(self.state.started, UTC)
        except (OverflowError, OSError, ValueError):
            return datetime.fromtimestamp(0, UTC)


class Survey(NamedTuple):
    """What one VM has; ``problem`` says why a VM that runs could not be asked."""

    instance: str
    status: str
    is_up: bool
    kernels: Sequence[Living] = ()
    problem: LimaKernelsError | None = None


async def survey(limactl: Limactl, vm: Callable[[str], VM], instance: str | None) -> list[Survey]:
    """Ask the VMs that run for their kernels; none is started for that.

    :param instance: one VM only, not all that our kernel specs name.
    """
    if instance:
        # Names the nearest when there is none.
        await limactl.get(instance)
    known = {found.name: found for found in await limactl.list()}
    names = [instance] if instance else sorted({spec.instance for spec in installed()})
    return list(
        await asyncio.gather(
            *(
                _ask(vm(name), known[name].status.value)
                if name in known and known[name].is_up
                else _silent(name, known[name].status.value if name in known else "not made yet")
                for name in names
            )
        )
    )


async def _silent(name: str, status: str) -> Survey:
    return Survey(name, status, is_up=False)


async def _ask(vm: VM, status: str) -> Survey:
    try:
        guest = await vm.reconnect(REACH)
        states = await guest.forkserver.list()
        owners = leases.held(vm.name)
    except LimaKernelsError as error:
        return Survey(vm.name, status, is_up=True, problem=error)
    kernels = [
        Living(vm.name, guest, kernel, state, owners.get(kernel))
        for kernel, state in sorted(states.items(), key=lambda entry: entry[1].started)
        if state.code is None
    ]
    return Survey(vm.name, status, is_up=True, kernels=kernels)


def _short(path: str) -> str:
    """Return a path relative to this directory or to the home directory, where it is below and that is shorter."""
    found = [path]
    with contextlib.suppress(OSError, ValueError):
        found.append(str(Path(path).relative_to(Path.cwd())))
    with contextlib.suppress(ValueError):
        found.append(f"~/{Path(path).relative_to(Path.home())}")
    return min(found, key=len)


async def kernels(context: Context, options: argparse.Namespace) -> Table:
    """List the kernels that live in a VM that runs.

    :raises LimaKernelsError: when it cannot be asked.
    """
    name = context.instance(options.name)
    (found,) = await survey(context.limactl, context.vm, name)
    if found.problem:
        raise found.problem
    rows = [
        (kernel.name, kernel.title, BUSY[kernel.state.busy], kernel.user, kernel.since.isoformat(timespec="seconds"))
        for kernel in found.kernels
    ]
    title = "" if found.is_up else f"The VM {name} is {found.status}."
    return Table(("kernel", "notebook_or_kernel_spec", "state", "used_by", "since"), rows, title)
