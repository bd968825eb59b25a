"""status, list, start, stop, delete: VMs as a whole."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .. import wishes
from ..errors import LimaKernelsError
from ..guest.mounts import directory_to_share
from ..hibernation.saving import described, discard
from ..hibernation.state import is_asleep
from ..instances import Wish, owner_mark
from ..lima.limactl import Limactl
from ..lima.models import Instance, Status
from ..lima.sizes import shown
from ..magics.results import Note, Scalar, Table
from ..settings import DEFAULT_INSTANCE, Settings
from .context import Context
from .usage import check_unused

_COLUMNS = ("name", "status", "kernels", "cpus", "memory", "disk", "arch", "vm_type", "made_by")


# What Lima calls stopped.
_ASLEEP = "Asleep"


def _status(instance: Instance) -> str:
    if instance.status is Status.STOPPED and is_asleep(instance.name):
        return _ASLEEP
    return instance.status.value or "Unknown"


def _row(instance: Instance, kernels: int | None) -> Sequence[Scalar]:
    return (
        instance.name,
        _status(instance),
        kernels,
        instance.cpus,
        shown(instance.memory),
        shown(instance.disk),
        instance.arch,
        instance.vm_type,
        "lima-kernels" if owner_mark(instance) else "others",
    )


async def status(context: Context, options: argparse.Namespace) -> Table:
    """Say how a VM is; one that we are connected to is asked itself, at the cost of a message."""
    name = context.instance(options.name)
    vm = context.vm(name)
    if live := vm.live():
        states = await live.guest.forkserver.list()
        return Table(_COLUMNS, [_row(live.instance, sum(state.code is None for state in states.values()))])
    return Table(_COLUMNS, [_row(await context.limactl.get(name), None)])


async def list_all(context: Context, _options: argparse.Namespace) -> Table:
    """List every instance of this host, and the kernels of those that we are connected to."""
    rows = []
    for instance in await context.limactl.list():
        count = None
        if instance.is_up and (live := context.vm(instance.name).live()):
            try:
                count = sum(state.code is None for state in (await live.guest.forkserver.list()).values())
            except LimaKernelsError:
                # The others are of interest, too.
                count = None
        rows.append(_row(instance, count))
    return Table(_COLUMNS, rows)


async def wish_to_start(limactl: Limactl, name: str, here: Path | None) -> Wish:
    """Return what is asked of a VM that is to be started: what its kernel spec says, else nothing but that it runs.

    :param here: the directory that it shall show, as for a notebook there; None for no other than it shows already.
    :raises InstanceError: when it is not there, and nothing says what it should be.
    """
    settings = wishes.settings_of(name)
    instance = await limactl.find(name)
    if settings is None and (instance is not None or name != DEFAULT_INSTANCE):
        # Names the nearest when there is none.
        await limactl.get(name)
        return wishes.wish_of(Settings(), directory=None)._replace(attach=True)
    wish = wishes.wish_of(settings or Settings(), directory=None)
    if here is None:
        return wish
    return wish._replace(directory=directory_to_share(here, server_root=None, asked=wish.environment.mounts))


async def start(context: Context, options: argparse.Namespace) -> Note:
    """Start a VM, which is made when its kernel spec says what it is, and wait until it can be used."""
    name = context.instance(options.name)
    wish = await wish_to_start(context.limactl, name, context.here)
    guest = await context.vm(name).ensure(wish)
    await guest.forkserver.obey(wish.conduct)
    return Note(f"The VM {name} is ready.")


async def stop(context: Context, options: argparse.Namespace) -> Note:
    """Shut a VM down, unless somebody uses it."""
    name = context.instance(options.name)
    instance = await context.limactl.get(name)
    if instance.status is Status.STOPPED and not options.force:
        return Note(f"The VM {name} is stopped already.")
    vm = context.vm(name)
    if not options.force:
        await check_unused(vm, instance, "stop", context.asked_by)
    await vm.stop(force=options.force)
    return Note(f"The VM {name} is stopped.")


async def hibernate(context: Context, options: argparse.Namespace) -> Note:
    """Save a VM's memory and end it, or remove what was saved."""
    name = context.instance(options.name)
    vm = context.vm(name)
    if options.discard:
        return Note(await discard(context.limactl, vm.progress))
    return Note(described(name, await vm.hibernate(force=options.force)))


async def delete(context: Context, options: argparse.Namespace) -> Note:
    """Delete a VM with its disk; what others made only when it is forced."""
    name = context.instance(options.name)
    await context.vm(name).delete(force=options.force)
    return Note(f"The VM {name} is deleted.")
