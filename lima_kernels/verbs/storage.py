"""snapshot, disk, prune, template: what Lima keeps on this host."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import shlex
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

from .. import added_mounts
from ..errors import ConfigurationError, InstanceError, LimactlError, LimaKernelsError, nearest
from ..lima import sizes, storage
from ..lima.limactl import Limactl, check_name
from ..lima.models import Disk, Instance, Snapshot
from ..lima.mounting import MountType, default_mount_type
from ..magics.results import Note, Result, Table
from .alone import alone, check_whole
from .context import Context
from .machines import TAKEN, asked_size
from .ports import disconnected
from .usage import check_unused

# QEMU takes a number for a snapshot's id, and Lima hands the tag to its monitor without quotes.
_TAG = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")
_QCOW2 = b"QFI\xfb"
# A snapshot of a VM that was stopped, in QEMU's words.
_NO_MEMORY = "0 B"
# Seconds to take back what was given up.
_UNDO_TIMEOUT = 60.0


async def snapshot(context: Context, options: argparse.Namespace) -> Result:
    """Keep a VM's state, go back to it, forget it, or list what is kept."""
    name = context.instance(options.name)
    instance = await context.limactl.get(name)
    if instance.vm_type != "qemu":
        raise InstanceError(
            f"The VM {name!r} is of the type {instance.vm_type}: Lima has snapshots of QEMU's VMs only.",
            hint=f"A copy of the stopped VM keeps its state as well: %lima clone {name} NEW",
        )
    if options.action == "list":
        rows = [(kept.tag, kept.made, _memory(kept)) for kept in await storage.snapshots(context.limactl, instance)]
        return Table(("tag", "made", "memory"), rows)
    if not options.tag:
        raise ConfigurationError(
            f"A tag is needed that names the snapshot to {options.action}.",
            hint=f"%lima snapshot {options.action} TAG --instance {name}",
        )
    async with alone(context.vm(name)):
        instance = await context.limactl.get(name)
        check_whole(instance)
        return await _SNAPSHOT_ACTIONS[options.action](context, instance, options.tag)


def _memory(kept: Snapshot) -> str:
    return "" if kept.memory == _NO_MEMORY else kept.memory


def _check_mounts(instance: Instance) -> None:
    """See that QEMU can keep the memory of a VM that runs: one with host directories hangs when it cannot."""
    kind = instance.config.mount_type or default_mount_type(instance.config.mount_types_unsupported).value
    if instance.is_up and instance.config.mounts and kind != MountType.REVERSE_SSHFS.value:
        raise InstanceError(
            f"The VM {instance.name!r} runs and shows directories of this host by {kind}: QEMU has no snapshots then.",
            hint=f"Stop it, which ends its kernels: %lima stop {instance.name}",
        )
    if instance.is_up and (added := added_mounts.served(instance.name)):
        # Whoever goes back to it would wait there for a connection that ended long ago.
        directory = next(iter(added.values())).directory
        raise InstanceError(
            f"The VM {instance.name!r} runs and shows {directory}, which was added: no snapshot can keep that.",
            hint=f"%lima unmount {shlex.quote(directory)} --instance {instance.name}",
        )


async def _create_snapshot(context: Context, instance: Instance, tag: str) -> Note:
    if not _TAG.fullmatch(tag):
        raise ConfigurationError(
            f"{tag!r} cannot be a snapshot's tag.", hint="Use letters, digits, '.', '_' and '-', a letter first."
        )
    _check_mounts(instance)
    file = instance.dir / "disk"
    if not file.exists():
        raise InstanceError(
            f"The VM {instance.name!r} has no disk yet.", hint=f"Start it first: %lima start {instance.name}"
        )
    with file.open("rb") as disk:
        if disk.read(len(_QCOW2)) != _QCOW2:
            raise InstanceError(
                f"The disk of the VM {instance.name!r} is no qcow2 image, and can hold no snapshots.",
                hint=f"A copy of the stopped VM keeps its state as well: %lima clone {instance.name} NEW",
            )
    # On a running VM QEMU would replace it, on a stopped one there would be two.
    if any(kept.tag == tag for kept in await storage.snapshots(context.limactl, instance)):
        raise InstanceError(
            f"The VM {instance.name!r} has a snapshot {tag!r} already.",
            hint=f"Choose another tag, or: %lima snapshot delete {tag} --instance {instance.name}",
        )
    context.say(f"{instance.name}: making the snapshot {tag}")
    try:
        await storage.create_snapshot(context.limactl, instance.name, tag)
        found = await storage.snapshots(context.limactl, instance)
    except BaseException:
        await asyncio.shield(_forget(context.limactl, instance, tag))
        raise
    if all(kept.tag != tag for kept in found):
        raise LimactlError(f"limactl snapshot create {instance.name} made no snapshot {tag!r}, and does not say why.")
    what = "disk and memory" if instance.is_up else "disk"
    return Note(f"The snapshot {tag} keeps the {what} of the VM {instance.name}.")


async def _forget(limactl: Limactl, instance: Instance, tag: str) -> None:
    """Remove a snapshot that was given up while it was made: it may be there all the same, and may be half of one."""
    with contextlib.suppress(LimaKernelsError, TimeoutError):
        async with asyncio.timeout(_UNDO_TIMEOUT):
            if any(kept.tag == tag for kept in await storage.snapshots(limactl, instance)):
                await storage.delete_snapshot(limactl, instance.name, tag)


async def _known(limactl: Limactl, instance: Instance, tag: str) -> Snapshot:
    known = {kept.tag: kept for kept in await storage.snapshots(limactl, instance)}
    if tag not in known:
        hint = nearest(tag, list(known)) or f"See them: %lima snapshot list --instance {instance.name}"
        raise InstanceError(f"The VM {instance.name!r} has no snapshot {tag!r}.", hint=hint)
    return known[tag]


async def _apply_snapshot(context: Context, instance: Instance, tag: str) -> Note:
    kept = await _known(context.limactl, instance, tag)
    if instance.is_up:
        await check_unused(context.vm(instance.name), instance, "stop")
        _check_mounts(instance)
        if not _memory(kept):
            raise InstanceError(
                f"The snapshot {tag!r} was made while the VM {instance.name!r} was stopped, and holds no memory.",
                hint=f"Stop it first: %lima stop {instance.name}",
            )
    context.say(f"{instance.name}: going back to the snapshot {tag}")
    # The guest will know nothing of the connections of today.
    async with disconnected(context.vm(instance.name)):
        await storage.apply_snapshot(context.limactl, instance, tag)
    return Note(f"The VM {instance.name} is as it was at {kept.made}.")


async def _delete_snapshot(context: Context, instance: Instance, tag: str) -> Note:
    await _known(context.limactl, instance, tag)
    await storage.delete_snapshot(context.limactl, instance.name, tag)
    return Note(f"The snapshot {tag} of the VM {instance.name} is deleted.")


_SNAPSHOT_ACTIONS = {"create": _create_snapshot, "apply": _apply_snapshot, "delete": _delete_snapshot}


async def disk(context: Context, options: argparse.Namespace) -> Result:
    """List, make, grow, free or delete disks of Lima's own, which instances can name beside their first."""
    if options.action == "list":
        rows = [
            (found.name, sizes.shown(found.size), found.format, found.instance, found.dir)
            for found in await storage.disks(context.limactl)
        ]
        return Table(("name", "size", "format", "in_use_by", "directory"), rows)
    if not options.disk:
        raise ConfigurationError(
            f"A name is needed for the disk to {options.action}.", hint=f"%lima disk {options.action} NAME"
        )
    return await _DISK_ACTIONS[options.action](context, options)


def _wanted(options: argparse.Namespace) -> int:
    size = asked_size(options.size, "--size")
    if size is None:
        raise ConfigurationError(
            f"A size is needed for the disk {options.disk!r}.",
            hint=f"%lima disk {options.action} {options.disk} --size 10GiB",
        )
    return size


async def _create_disk(context: Context, options: argparse.Namespace) -> Note:
    name, size = options.disk, _wanted(options)
    check_name(name, "Lima disk")
    directory = storage.disk_directory(name)
    if directory.exists():
        raise InstanceError(f"The name {name!r} is taken by another disk.", hint="See them: %lima disk list")
    try:
        await storage.create_disk(context.limactl, name, sizes.written(size))
    except BaseException as error:
        if not (isinstance(error, LimactlError) and TAKEN in error.message):
            await asyncio.shield(asyncio.to_thread(_remove_half_made, directory))
        raise
    return Note(
        f"The disk {name} is made, with {sizes.shown(size)}. An instance has it when its lima.yaml names it: "
        f"additionalDisks: [{name}]"
    )


def _remove_half_made(directory: Path) -> None:
    if not storage.is_in_use(directory):
        shutil.rmtree(directory, ignore_errors=True)


async def _users(limactl: Limactl, found: Disk) -> tuple[Instance | None, Sequence[str]]:
    """Return the running instance that uses a disk, and the names of all that name it or have it locked."""
    instances = await limactl.list()
    running = next((instance for instance in instances if instance.name == found.instance and instance.is_up), None)
    naming = [one.name for one in instances if any(its.name == found.name for its in one.additional_disks)]
    return running, list(dict.fromkeys([*filter(None, [found.instance]), *naming]))


def _refuse_while_running(running: Instance | None, found: Disk) -> None:
    if running is not None:
        raise InstanceError(
            f"The disk {found.name!r} is in use by the VM {running.name!r}, which runs.",
            hint=f"Stop it, which ends its kernels: %lima stop {running.name}",
        )


async def _delete_disk(context: Context, options: argparse.Namespace) -> Note:
    found = await storage.get_disk(context.limactl, options.disk)
    running, users = await _users(context.limactl, found)
    _refuse_while_running(running, found)
    if users and not options.force:
        raise InstanceError(
            f"The disk {found.name!r} belongs to the VM {', '.join(map(repr, users))}.",
            hint=f"To delete it all the same; that VM does not start then: %lima disk delete {found.name} --force",
        )
    if options.force:
        await storage.delete_disk_forcibly(context.limactl, found.name)
    else:
        await storage.delete_disk(context.limactl, found.name)
    return Note(f"The disk {found.name} is deleted.")


async def _resize_disk(context: Context, options: argparse.Namespace) -> Note:
    size = _wanted(options)
    found = await storage.get_disk(context.limactl, options.disk)
    if size < found.size:
        raise InstanceError(
            f"The disk {found.name!r} has {sizes.shown(found.size)} and cannot shrink to {sizes.shown(size)}.",
            hint="A disk can only grow.",
        )
    running, _ = await _users(context.limactl, found)
    _refuse_while_running(running, found)
    await storage.resize_disk(context.limactl, found.name, sizes.written(size))
    return Note(f"The disk {found.name} has {sizes.shown(size)}.")


async def _unlock_disk(context: Context, options: argparse.Namespace) -> Note:
    found = await storage.get_disk(context.limactl, options.disk)
    if not found.instance:
        return Note(f"The disk {found.name} is not locked.")
    running, _ = await _users(context.limactl, found)
    _refuse_while_running(running, found)
    await storage.unlock_disk(context.limactl, found.name)
    return Note(f"The disk {found.name} is free; the VM {found.instance} had left it locked.")


_DISK_ACTIONS = {"create": _create_disk, "delete": _delete_disk, "resize": _resize_disk, "unlock": _unlock_disk}


def _occupied(directory: Path) -> int:
    """Return how many bytes the files in a directory take on its disk; what vanishes meanwhile takes none."""
    total = 0
    for file in directory.rglob("*"):
        with contextlib.suppress(OSError):
            about = file.lstat()
            total += about.st_blocks * 512 if stat.S_ISREG(about.st_mode) else 0
    return total


async def prune(context: Context, options: argparse.Namespace) -> Note:
    """Remove what Lima keeps of its downloads; VMs that exist are not touched."""
    directory = storage.cache_directory()
    before = await asyncio.to_thread(_occupied, directory)
    context.say(f"removing downloads in {directory}")
    await (storage.prune_unreferred if options.keep_referred else storage.prune)(context.limactl)
    after = await asyncio.to_thread(_occupied, directory)
    rest = f"; {sizes.shown(after)} are kept" if after else ""
    return Note(f"{sizes.shown(max(0, before - after))} are freed in {directory}{rest}.")


async def template(context: Context, _options: argparse.Namespace) -> Table:
    """List the templates that Lima offers."""
    return Table(("name",), [(name,) for name in await context.limactl.templates()])
