"""mount, unmount: which directories of this host a VM shows."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from .. import added_mounts
from ..errors import InstanceError, MountError, printable
from ..guest.kernels import KEPT, KernelState
from ..guest.mounts import check_directory
from ..instances import REACH, owner_mark
from ..lima.limactl import Limactl
from ..lima.models import Instance
from ..lima.mounting import default_mount_type
from ..magics.results import Note, Result, Table
from ..vm import VM
from .context import Context


class Shown(NamedTuple):
    """A directory of this host that a VM shows; ``users`` are words for a person, and ``added`` while it ran."""

    directory: str
    point: str
    kind: str
    writable: bool
    added: bool
    users: Sequence[str]


def absolute(directory: str | Path) -> Path:
    """Return a directory as a user means it: with ~, from here, links kept."""
    return Path(os.path.abspath(Path(directory).expanduser()))


async def _running(limactl: Limactl, name: str) -> Instance:
    instance = await limactl.get(name)
    if not instance.is_up:
        raise InstanceError(
            f"The VM {name!r} does not run.",
            hint=f"Start it, and the directory is shown from the beginning: lima-kernels start {name} --directory DIR",
        )
    return instance


async def add(limactl: Limactl, vm: VM, directory: Path, *, read_only: bool) -> None:
    """Show a directory to a running VM, until it is removed or the VM stops.

    :raises MountError: when it cannot be shown, or is already.
    """
    check_directory(directory)
    instance = await _running(limactl, vm.name)
    wish = REACH._replace(attach=owner_mark(instance) is None)
    guest = await vm.reconnect(wish)
    if vm.shows(directory):
        raise MountError(f"The VM {vm.name!r} shows {directory} already.")
    await added_mounts.add(vm, guest, wish, directory, read_only=read_only)


async def remove(limactl: Limactl, vm: VM, directory: Path) -> Sequence[str]:
    """Show a directory no longer, and return the kernels that need it still: for as long as they live it stays."""
    await _running(limactl, vm.name)
    return [printable(user) for user in await added_mounts.remove(vm, await vm.reconnect(REACH), directory)]


async def survey(limactl: Limactl, vm: VM) -> list[Shown]:
    """Return what a VM shows of this host: since it was booted, and what was added."""
    instance = await limactl.get(vm.name)
    kind = instance.config.mount_type or default_mount_type(instance.config.mount_types_unsupported).value
    found = [
        Shown(mount.location, mount.guest_path, kind, mount.writable, added=False, users=())
        for mount in instance.config.mounts
    ]
    if instance.is_up:
        guest = await vm.reconnect(REACH)
        states = await guest.forkserver.list()
        for state in (await guest.forkserver.mounts()).values():
            users = [_title(user, states) for user in state.users]
            found.append(Shown(state.point, state.point, "sshfs", not state.read_only, added=True, users=users))
    return found


def _title(user: str, states: Mapping[str, KernelState]) -> str:
    if user == KEPT:
        return "kept"
    facts = states[user].facts if user in states else None
    return printable(Path(facts.session).name or facts.spec if facts else user)


async def mount(context: Context, options: argparse.Namespace) -> Result:
    """Show a directory to a running VM; without one, list what it shows."""
    vm = context.vm(context.instance(options.name))
    if options.directory is None:
        rows = [
            (shown.directory, shown.point, shown.kind, shown.writable, shown.added, ", ".join(shown.users))
            for shown in await survey(context.limactl, vm)
        ]
        return Table(("directory", "in_the_vm", "type", "writable", "added", "used_by"), rows)
    directory = absolute(options.directory)
    await add(context.limactl, vm, directory, read_only=options.read_only)
    mode = "read-only" if options.read_only else "writable"
    return Note(f"The VM {vm.name} shows {directory}, {mode}, until it stops.")


async def unmount(context: Context, options: argparse.Namespace) -> Note:
    """Show a directory no longer that was added."""
    vm = context.vm(context.instance(options.name))
    directory = absolute(options.directory)
    if left := await remove(context.limactl, vm, directory):
        return Note(f"The VM {vm.name} shows {directory} for as long as its kernels need it: {', '.join(left)}.")
    return Note(f"The VM {vm.name} shows {directory} no longer.")
