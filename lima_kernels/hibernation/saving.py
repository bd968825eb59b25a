"""A VM falls asleep: its guest lets go of this host, its memory goes into a file, its processes end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from .. import paths
from ..errors import GuestError, HostError, InstanceError, LimaKernelsError, printable
from ..guest import sleeping
from ..guest.kernels import Forkserver, KernelState
from ..lima import ending, hostagent, template
from ..lima.limactl import Limactl
from ..lima.models import Instance
from ..lima.monitor import Monitor, monitor
from ..lima.sizes import shown
from ..locks import locked
from ..progress import Phase, Progress
from . import state
from .state import Hibernated

T = TypeVar("T")
COMMAND = "lima-kernels hibernate"
# Seconds for another process to end what it does with the VM.
LOCK_TIMEOUT = 60.0
# Seconds: for the memory to be written, for QEMU to let go of what the guest let go of, for Lima's processes to end.
SAVE_TIMEOUT = 600.0
SETTLE_TIMEOUT = 5.0
END_TIMEOUT = 60.0
_INTERVAL = 0.05
_RUNNING = "running"
# Bytes beside the memory itself: devices, and the headers of pages.
_MORE = 64 * 1024**2


def _refusal(instance: Instance, why: str, hint: str = "", context: Sequence[str] = ()) -> InstanceError:
    return InstanceError(f"The VM {instance.name!r} cannot hibernate: {why}.", hint=hint, context=context)


def check(instance: Instance) -> None:
    """See that a VM can be put to sleep, as far as that can be told from here.

    :raises InstanceError: when it cannot; names the cause.
    """
    if not instance.is_up:
        raise _refusal(instance, "it does not run")
    if template.owner_mark(instance, paths.GUEST_INSTANCE_FILE) is None:
        raise _refusal(instance, "lima-kernels did not make it, and does not know its guest well enough")
    if instance.vm_type != "qemu":
        raise _refusal(instance, f"its vmType is {instance.vm_type}, and only QEMU can save a VM's memory")
    # Lima names no type where it is what QEMU has by default.
    if instance.config.mounts and instance.config.mount_type not in ("", "9p"):
        raise _refusal(instance, f"its mountType is {instance.config.mount_type}, and only 9p can be left for a while")
    needed, free = instance.memory + _MORE, paths.free_space(instance.dir)
    if free < needed:
        raise _refusal(
            instance,
            f"up to {shown(needed)} are needed in {instance.dir}, and {shown(free)} are free",
            "Free some space there, or stop it.",
        )


def _name(kernel: str, states: dict[str, KernelState]) -> str:
    found = states.get(kernel)
    return printable((found.facts.session or found.facts.spec if found else "") or kernel)


def _in_the_way(instance: Instance, left: sleeping.Left, states: dict[str, KernelState]) -> InstanceError:
    """Return why a guest has not let go, as an error that names who is in the way."""
    if left.busy:
        busy = [f"{_name(kernel, states)}: a cell runs" for kernel in left.busy]
        return _refusal(instance, "kernels work", "Let them come to their end; they go on after with --force.", busy)
    held = [
        f"{_name(holder.kernel, states) + ', ' if holder.kernel else ''}{holder.program} ({holder.pid}): {holder.path}"
        for holder in left.held
    ]
    return _refusal(
        instance,
        "what it shows of this host is in use there",
        "Close these files, or end these programs.",
        [printable(line) for line in held] or ["by nobody who can be seen: a container, perhaps"],
    )


async def let_go(instance: Instance, forkserver: Forkserver, *, force: bool) -> tuple[str, ...]:
    """Let a guest unmount what it has of this host, and return which kernels it has, in words.

    :raises InstanceError: when that is in use; all is as before then.
    """
    states = await forkserver.list()
    try:
        left = await sleeping.leave(forkserver, mount_points(instance), force=force)
    except BaseException:
        with contextlib.suppress(LimaKernelsError):
            await asyncio.shield(come_back(instance, forkserver, iid=""))
        raise
    if not left.is_away:
        raise _in_the_way(instance, left, states)
    return tuple(_name(kernel, states) for kernel, found in states.items() if found.code is None)


async def hibernate(limactl: Limactl, progress: Progress, forkserver: Forkserver, *, force: bool) -> Hibernated:
    """Put the VM that a progress is about to sleep; a start meanwhile waits for it, and wakes it.

    :param force: also while cells run; they go on when it wakes.
    :raises InstanceError: when it cannot be, or somebody is in the way; it goes on as it was then.
    """
    async with locked(progress, LOCK_TIMEOUT):
        progress.enter(Phase.HIBERNATE)
        instance = await limactl.get(progress.instance)
        check(instance)
        kernels = await let_go(instance, forkserver, force=force)
        try:
            state.begin(instance, kernels)
            version = await save(instance)
        except BaseException:
            await asyncio.shield(undo(instance, forkserver))
            raise
        return await _to_its_end(_finish(instance, version))


async def _to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Do something that is not to be given up in its middle; who gives it up has to wait."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


async def _finish(instance: Instance, version: str) -> Hibernated:
    """End a VM whose memory is saved, and write down that it sleeps."""
    ending.note_stop(instance.dir, COMMAND)
    try:
        # It may end before it has answered.
        with contextlib.suppress(InstanceError):
            async with monitor(instance.dir) as talk:
                await talk.execute("quit")
        await _gone(instance)
        return await asyncio.to_thread(state.complete, instance, version)
    except BaseException as error:
        state.discard(instance)
        if isinstance(error, OSError):
            raise HostError(f"The memory of the VM {instance.name!r} could not be kept: {error.strerror}.") from error
        raise


def described(name: str, record: Hibernated) -> str:
    """Say in one line what a VM that sleeps costs, and what it keeps."""
    kernels = f" {len(record.kernels)} kernel(s) live on when it wakes." if record.kernels else ""
    return f"The VM {name} sleeps; its memory takes {shown(record.size)} on the disk.{kernels}"


async def discard(limactl: Limactl, progress: Progress) -> str:
    """Remove the memory of the VM that a progress is about, which boots then; returns what that cost, in words.

    :raises InstanceError: when it does not sleep.
    """
    name = progress.instance
    progress.restart()
    async with locked(progress, LOCK_TIMEOUT):
        instance = await limactl.get(name)
        record = state.read(name)
        if record is None or instance.is_up:
            raise InstanceError(f"The VM {name!r} does not sleep.")
        state.discard(instance)
    lost = f" Its kernels are lost: {', '.join(map(printable, record.kernels))}." if record.kernels else ""
    return f"The memory of the VM {name} is removed; it boots when it is started.{lost}"


def mount_points(instance: Instance) -> list[str]:
    """Return where an instance's guest shows directories of this host."""
    return [mount.guest_path for mount in instance.config.mounts]


async def save(instance: Instance) -> str:
    """Save the memory of a VM whose guest has let go, which stands still then; returns the version of its QEMU.

    :raises InstanceError: when it cannot be saved.
    """
    file = paths.memory_file(instance.dir)
    try:
        file.unlink(missing_ok=True)
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError as error:
        raise HostError(f"The file {file} cannot be written: {error.strerror}.") from error
    async with monitor(instance.dir) as talk:
        await _unblocked(instance, talk)
        version = await talk.version()
        await talk.execute("stop")
        await talk.save(file, timeout=SAVE_TIMEOUT)
    return version


async def _unblocked(instance: Instance, talk: Monitor) -> None:
    """Wait until QEMU has taken notice that the guest has let go.

    :raises InstanceError: with what QEMU says is in the way, when that stays so.
    """
    reasons: Sequence[str] = ()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SETTLE_TIMEOUT):
            # QEMU has no event for that.
            while reasons := (await talk.migration()).blocked:  # noqa: ASYNC110
                await asyncio.sleep(_INTERVAL)
    if reasons:
        raise _refusal(instance, "; ".join(map(printable, reasons)))


async def _gone(instance: Instance) -> None:
    try:
        async with asyncio.timeout(END_TIMEOUT):
            for pid in (instance.driver_pid, instance.host_agent_pid):
                await hostagent.gone(pid, interval=_INTERVAL)
    except TimeoutError as error:
        raise InstanceError(
            f"The VM {instance.name!r} is saved, but its processes did not end within {END_TIMEOUT:.0f} s.",
            hint=f"lima-kernels stop --force {instance.name}",
        ) from error


async def undo(instance: Instance, forkserver: Forkserver) -> None:
    """Let a VM that is not to sleep after all go on, as it was."""
    if hostagent.is_alive(instance.driver_pid):
        with contextlib.suppress(LimaKernelsError):
            await go_on(instance)
        state.discard(instance)
        with contextlib.suppress(LimaKernelsError):
            await come_back(instance, forkserver, iid="")
    else:
        state.discard(instance)


async def go_on(instance: Instance) -> None:
    """Let a VM run whose memory was about to be saved, or has been."""
    async with monitor(instance.dir) as talk:
        if await talk.status() != _RUNNING:
            await talk.execute("cont")


async def come_back(instance: Instance, forkserver: Forkserver, *, iid: str) -> None:
    """Let a guest have this host's directories again.

    :raises GuestError: when it cannot.
    """
    try:
        await sleeping.come_back(forkserver, mount_points(instance), iid=iid, now=time.time())
    except GuestError as error:
        raise GuestError(f"The VM {instance.name!r} is awake. {error.message}", context=error.context) from error
