"""create, factory-reset, edit, clone, restart, info, logs: one VM, and what it is."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Collection, Sequence
from pathlib import Path

from .. import paths, records, wishes
from ..errors import (
    ConfigurationError,
    InstanceError,
    LimactlError,
    LimaKernelsError,
    PhaseTimeout,
    nearest,
    printable,
)
from ..hibernation import state as hibernation
from ..instances import BOOT_TIMEOUT, REACH, owner_mark, present
from ..lima import boot, ending, hostagent, sizes
from ..lima import logs as lima_logs
from ..lima.limactl import Limactl, check_name, is_there, make_accessible
from ..lima.logs import LogEntry, LogSource
from ..lima.models import Instance, Status
from ..lima.template import Hardware, with_hardware
from ..magics.results import Note, Scalar, Table
from ..progress import Phase, Progress
from ..settings import Settings
from ..vm import VM
from . import vms
from .alone import alone, check_stopped
from .context import Context
from .usage import LOOK_TIMEOUT, check_unused

# Seconds beside those that Lima gives a boot: then limactl itself hangs.
_MORE = 30.0
# What limactl says when somebody else was faster.
TAKEN = "already exists"
# An instance's disk is what makes it what it became (lima ``pkg/limatype/filenames``).
_DISK = "disk"
_CONFIG = "lima.yaml"
_PROVISION_LOG = "provision.log"
# Why an edit needs a VM that is stopped.
EDITED_WHILE_STOPPED = "its CPUs, memory and disk can be changed only while it is stopped"


def asked_size(text: str | None, option: str) -> int | None:
    """Return a size that was asked for, in bytes; None when none was.

    :raises ConfigurationError: when the text is no size.
    """
    if text is None:
        return None
    size = sizes.asked(text)
    if size is None:
        raise ConfigurationError(f"expected a size such as 4GiB, got {text!r} at {option}.")
    return size


def _hardware(options: argparse.Namespace) -> Hardware:
    if options.cpus is not None and options.cpus < 1:
        raise ConfigurationError(f"expected at least one CPU, got {options.cpus} at --cpus.")
    return Hardware(
        cpus=options.cpus,
        memory=asked_size(options.memory, "--memory"),
        disk=asked_size(options.disk, "--disk"),
        # Of a new instance alone.
        arch=vars(options).get("arch"),
        vm_type=vars(options).get("vm_type"),
    )


def _described(instance: Instance) -> str:
    memory, disk = sizes.shown(instance.memory), sizes.shown(instance.disk)
    return f"{instance.cpus} CPUs, {memory} of memory, a disk of {disk}"


async def check_free(limactl: Limactl, name: str) -> None:
    """See that no instance has a name.

    :raises InstanceError: when one has it.
    """
    if await limactl.find(name) is not None or (paths.lima_home() / name).exists():
        raise InstanceError(f"The name {name!r} is taken by another VM.", hint="See them all: %lima list")


def _is_beginning(directory: Path, config: str, files: Collection[str]) -> bool:
    """Tell whether a directory is what was made of an instance when limactl failed or was ended, or all of it.

    :param files: what may be there before its lima.yaml is.
    """
    file = directory / _CONFIG
    if file.exists():
        return config.startswith(file.read_text(encoding="utf-8", errors="replace"))
    return {entry.name for entry in directory.iterdir()} <= set(files)


async def _discard(limactl: Limactl, name: str, config: str, files: Collection[str]) -> None:
    directory = paths.lima_home() / name
    with contextlib.suppress(LimaKernelsError, OSError):
        if not directory.is_dir() or not _is_beginning(directory, config, files):
            return
        make_accessible(directory)
        # Without that file Lima leaves it alone: somebody might just be making it.
        if is_there(name):
            await limactl.delete(name)
        else:
            await asyncio.to_thread(shutil.rmtree, directory)


@contextlib.asynccontextmanager
async def _whole_or_nothing(
    limactl: Limactl, name: str, config: str, files: Collection[str] = ()
) -> AsyncIterator[None]:
    """Remove the instance that the block makes unless it comes to its end; somebody else's of that name is left."""
    try:
        yield
    except BaseException as error:
        if not (isinstance(error, LimactlError) and TAKEN in error.message):
            await asyncio.shield(_discard(limactl, name, config, files))
        raise


async def _template(limactl: Limactl, asked: str) -> str:
    name = asked.removeprefix("template:")
    names = await limactl.templates()
    if name not in names:
        raise InstanceError(
            f"There is no Lima template {asked!r}.", hint=nearest(name, names) or "See them: %lima template list"
        )
    return await limactl.template(name)


async def _boot(limactl: Limactl, progress: Progress) -> None:
    """Start an instance that others made, and wait until Lima calls it ready; it is ours alone meanwhile."""
    name = progress.instance
    progress.enter(Phase.BOOT)
    try:
        async with (
            asyncio.timeout(BOOT_TIMEOUT + _MORE),
            boot.booting(limactl, name, timeout=BOOT_TIMEOUT) as booting,
        ):
            await booting.finished
    except TimeoutError as error:
        raise PhaseTimeout(
            f"The VM {name!r} was not ready in time: {BOOT_TIMEOUT + _MORE:.0f} s were used up {Phase.BOOT.value}.",
            hint=f"See what it says: %lima logs {name} --source serial",
            context=boot.serial_tail(paths.serial_logs(paths.lima_home() / name)),
        ) from error
    progress.enter(Phase.READY)


async def create(context: Context, options: argparse.Namespace) -> Note:
    """Make a VM from one of Lima's templates or from an environment file, and start it if that is asked for."""
    limactl, name = context.limactl, options.name
    check_name(name)
    hardware = _hardware(options)
    await check_free(limactl, name)
    if environment := vars(options).get("environment"):
        if hardware.said:
            raise ConfigurationError("An environment file says itself which CPUs, memory and disk its VM has.")
        return await _create_from_environment(context, name, environment, start=options.start)
    config = with_hardware(await _template(limactl, options.template), hardware)
    async with alone(context.vm(name)) as progress:
        await check_free(limactl, name)
        progress.enter(Phase.CREATE, f"from the template {options.template}")
        async with _whole_or_nothing(limactl, name, config):
            await limactl.create(name, config)
            instance = await limactl.get(name)
        if not options.start:
            return Note(f"The VM {name} is made: {_described(instance)}. To start it: %lima start {name}")
        await _boot(limactl, progress)
    return Note(f"The VM {name} is made, and runs: {_described(instance)}.")


async def _create_from_environment(context: Context, name: str, file: str, *, start: bool) -> Note:
    wish = wishes.wish_of(Settings(environment=file, instance=name), directory=None)
    vm = context.vm(name)
    async with alone(vm) as progress:
        await check_free(context.limactl, name)
        instance = (await present(context.limactl, name, wish, progress)).instance
    if start:
        guest = await vm.ensure(wish)
        await guest.forkserver.obey(wish.conduct)
        return Note(f"The VM {name} is made, and runs: {_described(instance)}.")
    return Note(f"The VM {name} is made: {_described(instance)}. To start it: %lima start {name}")


async def factory_reset(context: Context, options: argparse.Namespace) -> Note:
    """Remove a VM's disk: its next start makes a new one from the image, as when it was made."""
    name = context.instance(options.name)
    vm = context.vm(name)
    instance = await context.limactl.get(name)
    if instance.protected:
        raise InstanceError(f"The VM {name!r} is protected.", hint=f"limactl unprotect {name}")
    if not options.force:
        await check_unused(vm, instance, "factory-reset")
    elif instance.is_up:
        await vm.stop(force=True)
    async with alone(vm):
        instance = await context.limactl.get(name)
        if not options.force:
            check_stopped(instance, "a VM's disk is removed when it is stopped, or with --force")
        context.say(f"{name}: removing its disk")
        left = await context.limactl.factory_reset(name)
        if (instance.dir / _DISK).exists():
            raise LimactlError(f"limactl factory-reset {name} left the disk there: {'; '.join(left)}", context=left)
        # The guest's next key is another one, and nothing is left that ended.
        records.remove(paths.pinned_key_file(instance.dir))
        hibernation.discard(instance)
        ending.forget_stop(instance.dir)
    remark = f" limactl could not remove all else: {'; '.join(map(printable, left))}." if left else ""
    return Note(f"The VM {name} is as it was made; its next start gives it a new disk.{remark}")


async def edit(context: Context, options: argparse.Namespace) -> Note:
    """Change a stopped VM's CPUs, memory or disk."""
    name = context.instance(options.name)
    hardware = _hardware(options)
    if not hardware.said:
        raise ConfigurationError("Nothing is said that could be changed.", hint="Give --cpus, --memory or --disk.")
    await context.limactl.get(name)
    async with alone(context.vm(name)):
        before = await context.limactl.get(name)
        check_stopped(before, EDITED_WHILE_STOPPED)
        if hardware.disk is not None and hardware.disk < before.disk:
            raise InstanceError(
                f"The disk of the VM {name!r} has {sizes.shown(before.disk)} and cannot shrink to "
                f"{sizes.shown(hardware.disk)}.",
                hint="A disk can only grow.",
            )
        await context.limactl.edit(before, hardware)
        after = await context.limactl.get(name)
    return Note(f"The VM {name} has, when it is next started: {_described(after)}.{_how_long(after, hardware)}")


def _how_long(instance: Instance, hardware: Hardware) -> str:
    """Say what becomes of an edit of a VM that is planned anew when its environment changes; a disk never shrinks."""
    if owner_mark(instance) is None or (hardware.cpus is None and hardware.memory is None):
        return ""
    return (
        " That holds until its environment file, or a directory that it shows for notebooks, changes: "
        "write cpus and memory into the environment file to keep them."
    )


async def clone(context: Context, options: argparse.Namespace) -> Note:
    """Make a copy of a stopped VM under another name."""
    limactl, source, target = context.limactl, options.source, options.target
    check_name(target)
    await limactl.get(source)
    await check_free(limactl, target)
    async with contextlib.AsyncExitStack() as stack:
        # In one order, whoever clones what: so nobody waits for who waits for him.
        progress = {name: await stack.enter_async_context(alone(context.vm(name))) for name in sorted((source, target))}
        original = await limactl.get(source)
        check_stopped(original, "only a stopped VM can be copied")
        await check_free(limactl, target)
        progress[target].enter(Phase.CREATE, f"a copy of {source}")
        config = (original.dir / _CONFIG).read_text(encoding="utf-8", errors="replace")
        files = {entry.name for entry in original.dir.iterdir()}
        async with _whole_or_nothing(limactl, target, config, files):
            await limactl.clone(source, target)
            copy = await limactl.get(target)
    whose = " To run kernels in it: lima-kernels install --instance " + target if owner_mark(copy) else ""
    return Note(f"The VM {target} is a copy of {source}: {_described(copy)}. It is stopped.{whose}")


async def restart(context: Context, options: argparse.Namespace) -> Note:
    """Stop a VM and start it again; its kernels end."""
    name = context.instance(options.name)
    vm = context.vm(name)
    instance = await context.limactl.get(name)
    if not options.force:
        await check_unused(vm, instance, "restart", context.asked_by)
    if options.force or instance.status is not Status.STOPPED:
        await vm.stop(force=options.force)
        # Its kernels may be started again by whoever sees them dead.
        ending.note_stop(instance.dir, ending.RESTART_COMMAND)
    if owner_mark(instance) is not None:
        return await vms.start(context, options)
    async with alone(vm) as progress:
        if not (await context.limactl.get(name)).is_up:
            await _boot(context.limactl, progress)
    return Note(f"The VM {name} is ready.")


async def info(context: Context, options: argparse.Namespace) -> Table:
    """Tell what is known of a VM, or of Lima itself when none is named."""
    rows = await (_of_lima(context.limactl) if options.name is None else _of_instance(context.limactl, options.name))
    return Table(("what", "value"), rows)


async def _of_lima(limactl: Limactl) -> Sequence[tuple[str, Scalar]]:
    found = await limactl.info()
    return (
        ("version", found.version),
        ("lima_home", found.lima_home),
        ("vm_types", ", ".join(found.vm_types)),
        ("host", f"{found.host_os} {found.host_arch}"),
        ("templates", len(await limactl.templates())),
        ("instances", len(await limactl.list())),
        ("key", found.identity_file),
        ("limactl", str(limactl.path)),
    )


async def _of_instance(limactl: Limactl, name: str) -> Sequence[tuple[str, Scalar]]:
    instance = await limactl.get(name)
    port = hostagent.ssh_port(instance)
    shown = [
        f"{mount.location}{'' if mount.guest_path == mount.location else f' at {mount.guest_path}'}"
        f" ({'writable' if mount.writable else 'read-only'})"
        for mount in instance.config.mounts
    ]
    return (
        ("name", instance.name),
        ("status", instance.status.value or "Unknown"),
        ("errors", "; ".join(map(printable, instance.errors))),
        ("directory", str(instance.dir)),
        ("vm_type", instance.vm_type),
        ("arch", instance.arch),
        ("cpus", instance.cpus),
        ("memory", sizes.shown(instance.memory)),
        ("disk", sizes.shown(instance.disk)),
        ("disks_of_lima", ", ".join(disk.name for disk in instance.additional_disks)),
        ("ssh", f"{instance.config.user.name}@{instance.ssh_address}:{port}" if port else ""),
        ("mounts", ", ".join(shown)),
        ("mount_type", instance.config.mount_type),
        ("made_by", "lima-kernels" if owner_mark(instance) else "others"),
        ("made_with_lima", instance.lima_version),
        ("protected", instance.protected),
    )


_READERS = {
    LogSource.HOST_AGENT: lima_logs.host_agent,
    LogSource.SERIAL: lima_logs.serial,
    LogSource.BOOT: lima_logs.events,
}


async def logs(context: Context, options: argparse.Namespace) -> Table:
    """Return the end of what Lima's host agent, the guest's console, or our provisioning of the guest said."""
    name = context.instance(options.name)
    if options.lines < 1:
        raise ConfigurationError(f"expected at least one line, got {options.lines} at --lines.")
    source = LogSource(options.source)
    instance = await context.limactl.get(name)
    entries = await asyncio.to_thread(_READERS[source], instance.dir)
    if source is LogSource.BOOT:
        entries += await _provisioning(context.vm(name), instance, options.lines)
    return Table(("time", "level", "message"), entries[-options.lines :])


async def _provisioning(vm: VM, instance: Instance, lines: int) -> list[LogEntry]:
    """Return what our provision script said in a guest of ours; nothing where the guest cannot be asked."""
    if not instance.is_up or owner_mark(instance) is None:
        return []
    with contextlib.suppress(LimaKernelsError, TimeoutError):
        async with asyncio.timeout(LOOK_TIMEOUT):
            guest = await vm.reconnect(REACH)
            command = f"tail -n {lines} {paths.GUEST_PREFIX}/{_PROVISION_LOG}"
            said = (await guest.connection.run(command, timeout=LOOK_TIMEOUT)).stdout
        return [LogEntry("", "", printable(line)) for line in said.splitlines()]
    return []
