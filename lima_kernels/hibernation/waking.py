"""A VM wakes: QEMU is started with its memory, which is gone before the guest takes its first step."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator

from .. import paths
from ..errors import InstanceError, LimaKernelsError
from ..lima import hostagent
from ..lima.boot import Boot, booting
from ..lima.limactl import Limactl
from ..lima.models import Instance
from ..lima.monitor import monitor
from . import saving, state
from .state import Hibernated, Stage

logger = logging.getLogger(__name__)

# What QEMU is started with: it waits to be told where the memory is, and then to be let go.
OPTIONS = ("-incoming", "defer", "-S")
# Seconds.
LOAD_TIMEOUT = 600.0
_IID = re.compile(rb"(?:instance-id: |LIMA_CIDATA_IID=)(iid-\d+)")


def lost(name: str, record: Hibernated, why: str) -> str:
    """Say in one line that a VM's kernels cannot be had back."""
    kernels = f" Its kernels are lost: {', '.join(record.kernels)}." if record.kernels else ""
    return f"The VM {name!r} was hibernated, and boots instead of waking: {why}.{kernels}"


async def settled(limactl: Limactl, name: str) -> Hibernated | None:
    """Return what is known of the sleep of an instance that can be woken; what became void is cleared away.

    To be called by whoever holds the instance's lock.
    """
    record = state.read(name)
    if record is None:
        return None
    instance = await limactl.find(name)
    if instance is None:
        return None
    if instance.is_up:
        # Somebody started it by hand, or was killed while he saved or woke it.
        if record.stage is not Stage.ASLEEP:
            await saving.go_on(instance)
        state.discard(instance)
        return None
    if why := state.objection(instance, record):
        state.discard(instance)
        logger.warning("%s", lost(name, record, why))
        return None
    return record


class NotWoken(Exception):
    """A VM did not wake: its start has to begin again, and is a boot where its memory is gone."""


class Unfit(InstanceError):
    """A memory is not for this VM, whoever tries."""


@contextlib.asynccontextmanager
async def waking(limactl: Limactl, instance: Instance, record: Hibernated, *, timeout: float) -> AsyncIterator[Boot]:
    """Wake an instance; `limactl start` is ended with the block, the VM goes on.

    :param timeout: seconds that Lima gives it to be ready.
    :raises NotWoken: when it does not wake; says in one line which kernels are lost, if they are.
    """
    has_woken = False
    # The VM is ended behind `limactl start`, which may begin it as long as it lives itself.
    try:
        async with booting(limactl, instance.name, timeout=timeout, arch=instance.arch, options=OPTIONS) as boot:
            await boot.ssh_port
            await load(instance, record)
            has_woken = True
            yield boot
    except InstanceError as error:
        if has_woken:
            raise
        await asyncio.shield(_end(limactl, instance.name))
        raise NotWoken(_failed(instance, record, error)) from error
    except BaseException:
        # Until it runs it has changed nothing: it sleeps on.
        if not has_woken and paths.memory_file(instance.dir).exists():
            await asyncio.shield(_end(limactl, instance.name))
        raise


def _failed(instance: Instance, record: Hibernated, error: InstanceError) -> str:
    """Take notice that a VM did not wake, and say so; QEMU may have been killed by somebody, so it is tried twice."""
    why = error.message.rstrip(".")
    if paths.memory_file(instance.dir).exists() and not record.failed and not isinstance(error, Unfit):
        state.note_failure(instance.name, record)
        return f"The VM {instance.name!r} did not wake ({why}); it is tried once more."
    state.discard(instance)
    return lost(instance.name, record, why)


async def _end(limactl: Limactl, name: str) -> None:
    with contextlib.suppress(LimaKernelsError):
        found = await limactl.find(name)
        if found is not None and (found.is_up or hostagent.is_alive(found.host_agent_pid)):
            await limactl.stop_forcibly(name)


async def load(instance: Instance, record: Hibernated) -> None:
    """Give a VM that was started with :data:`OPTIONS` its memory, and let it run.

    :raises InstanceError: when the memory is damaged or QEMU does not take it; the disk is as it was.
    """
    file = paths.memory_file(instance.dir)
    checking = asyncio.ensure_future(asyncio.to_thread(state.checksum, file))
    try:
        async with monitor(instance.dir) as talk:
            version = await talk.version()
            if version != record.qemu:
                raise Unfit(f"QEMU {record.qemu} saved it, and this is QEMU {version}")
            await talk.load(file, timeout=LOAD_TIMEOUT)
            if await checking != record.checksum:
                raise Unfit(state.DAMAGED)
            # From here on the disk changes: nobody may ever load this again.
            state.begin_to_wake(instance, record)
            await talk.execute("cont")
            state.discard(instance)
    except OSError as error:
        raise InstanceError(f"{error.filename} cannot be read: {error.strerror}") from error
    finally:
        await asyncio.gather(checking, return_exceptions=True)


def instance_id(instance: Instance) -> str:
    """Return what Lima calls this start of an instance, from the disk that it made for it; nothing when not found.

    Its host agent waits until the guest knows it (lima ``pkg/hostagent/requirements.go``).
    """
    try:
        found = _IID.search(paths.cidata_file(instance.dir).read_bytes())
    except OSError:
        return ""
    return found[1].decode() if found else ""
