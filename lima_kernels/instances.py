"""See that an instance exists as an environment and a notebook's directory want it, or that it ends."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from . import history, paths, records
from .environment.instance import Plan, plan
from .environment.locked import Locked
from .environment.shares import check, mount_type_of, put_together, still_there
from .environment.spec import DEFAULT, Environment
from .errors import HostError, InstanceError, LimactlError, LimaKernelsError, PhaseTimeout
from .guest import mounts
from .guest.kernels import Conduct
from .hibernation import state as hibernation
from .lima import ending, hostagent, template
from .lima.limactl import CREATE, STOP, Limactl
from .lima.models import Instance, Status
from .locks import locked
from .progress import Phase, Progress

logger = logging.getLogger(__name__)

# Seconds, where a kernel spec names no others: until the instance exists, and then until its guest is ready.
CREATE_TIMEOUT = CREATE
BOOT_TIMEOUT = 600.0
# Seconds for an instance of which only the host agent runs: it is starting just now, or really broken.
SETTLE_TIMEOUT = 15.0
SETTLE_INTERVAL = 0.5
# A create that fails with fewer free bytes than this probably failed for that.
LOW_SPACE = 2 * 1024**3


class Wish(NamedTuple):
    """What a kernel asks of its VM.

    :param environment: what the VM is, when it has to be made.
    :param attach: use an instance that others made; it is never created, and never changed.
    :param directory: a host directory that the guest shall show, writable, at its own path, when it is next booted;
        None for none. A guest that runs already can be given it otherwise.
    :param create_timeout: seconds until the instance exists; an image may have to be downloaded for it.
    :param boot_timeout: seconds for all that follows, until the guest is ready.
    :param conduct: what the guest does by itself.
    :param locked: the lock of the environment that a kernel runs in; None for what the VM was provisioned with.
    :param golden: a stopped VM of ours that a new one may be a copy of; made anew when that does not exist.
    """

    environment: Environment
    attach: bool
    directory: Path | None
    create_timeout: float = CREATE_TIMEOUT
    boot_timeout: float = BOOT_TIMEOUT
    conduct: Conduct = Conduct()
    locked: Locked | None = None
    golden: str = ""

    @property
    def made_of(self) -> str:
        """The digest of what the VM is made of; empty when others made it."""
        return "" if self.attach else self.environment.digest


# Asks nothing beyond a way to the guest: for a VM that runs.
REACH = Wish(environment=DEFAULT, attach=False, directory=None)


class Present(NamedTuple):
    """An instance that exists; ``created`` when this call made it."""

    instance: Instance
    created: bool


def owner_mark(instance: Instance) -> template.OwnerMark | None:
    """Return the mark that tells an instance of ours, or None when others made it."""
    return template.owner_mark(instance, paths.GUEST_INSTANCE_FILE)


async def present(limactl: Limactl, name: str, wish: Wish, progress: Progress) -> Present:
    """Return the instance: made when it is missing, changed while it is stopped where its environment or mounts differ.

    :raises InstanceError: when it is broken, taken by others, or made from another image.
    :raises MountError: when it cannot be given its directories.
    """
    instance = await _settled(limactl, name, progress)
    if instance is None:
        if wish.attach:
            return Present(await limactl.get(name), created=False)
        progress.expected = history.expected(name, history.Kind.CREATE, wish.made_of)
        progress.enter(Phase.CREATE)
        return Present(await _create(limactl, name, wish), created=True)
    if not instance.is_up and instance.status is not Status.STOPPED:
        raise InstanceError(
            f"The VM {name!r} is {instance.status.value or 'in an unknown state'}: "
            f"{'; '.join(instance.errors) or 'Lima gives no reason'}.",
            hint=f"Try: limactl stop --force {name}",
        )
    if wish.attach:
        return Present(instance, created=False)
    mark = owner_mark(instance)
    if mark is None:
        raise InstanceError(
            f"The name {name!r} is taken by a VM that lima-kernels did not make.",
            hint=f"To use it all the same: lima-kernels install --attach {name}; or choose another --instance",
        )
    return Present(await _adapted(limactl, instance, mark, wish), created=False)


async def _settled(limactl: Limactl, name: str, progress: Progress) -> Instance | None:
    """Return the instance once it is not about to stop; one that is just being started by others is given a moment.

    :raises PhaseTimeout: when it does not stop in the time that Lima gives it.
    """
    limit: float | None = None
    clock = asyncio.get_running_loop().time
    while True:
        instance = await limactl.find(name)
        if instance is None or not hostagent.is_alive(instance.host_agent_pid):
            return instance
        if ending.is_stopping(instance.dir):
            if progress.phase is not Phase.STOPPING:
                progress.enter(Phase.STOPPING)
            try:
                async with asyncio.timeout(STOP):
                    await hostagent.gone(instance.host_agent_pid)
            except TimeoutError as error:
                raise PhaseTimeout(
                    f"The VM {name!r} did not stop within {STOP:.0f} s of {Phase.STOPPING.value}.",
                    hint=f"To end it as it is: lima-kernels stop --force {name}",
                ) from error
        elif instance.is_between:
            limit = limit or clock() + SETTLE_TIMEOUT
            if clock() > limit:
                return instance
            await asyncio.sleep(SETTLE_INTERVAL)
        else:
            return instance


async def _create(limactl: Limactl, name: str, wish: Wish) -> Instance:
    lock = wish.locked.lock if wish.locked else None
    planned = await plan(limactl, wish.environment, [wish.directory] if wish.directory else [], lock)
    if wish.golden and paths.has_golden_mark(wish.golden) and await limactl.find(wish.golden):
        return await _cloned(limactl, name, wish.golden, planned)
    existed = (paths.lima_home() / name).exists()
    # Of one of this name that was deleted by others.
    records.remove(paths.environments_file(name))
    records.remove(paths.hibernated_file(name))
    try:
        await limactl.create(name, planned.config, timeout=wish.create_timeout)
        return await limactl.get(name)
    except BaseException as error:
        if not existed:
            # Half an instance would be in everybody's way.
            await asyncio.shield(_discard(limactl, name, planned.config))
        if isinstance(error, LimactlError):
            raise _with_space(error) from error
        raise


async def _cloned(limactl: Limactl, name: str, golden: str, planned: Plan) -> Instance:
    """Make an instance as a copy of another one of ours, which nobody has ever used."""
    existed = (paths.lima_home() / name).exists()
    try:
        await limactl.clone(golden, name)
        instance = await limactl.get(name)
        _inherit(instance, golden)
        await limactl.replace_config(instance, planned.config)
        return await limactl.get(name)
    except BaseException:
        if not existed:
            await asyncio.shield(_discard_clone(limactl, name))
        raise


def _inherit(instance: Instance, golden: str) -> None:
    """Give a copy what this host knows of its original, but for the key: it will have one of its own."""
    try:
        paths.pinned_key_file(instance.dir).unlink(missing_ok=True)
        shutil.copyfile(paths.environments_file(golden), paths.environments_file(instance.name))
    except OSError as error:
        raise HostError(f"What is known of the VM {golden!r} cannot be copied: {error.strerror}.") from error


async def _discard_clone(limactl: Limactl, name: str) -> None:
    with contextlib.suppress(LimaKernelsError, OSError):
        if await limactl.find(name) is not None:
            await limactl.delete(name)
        # A copy begins with the directory, and its lima.yaml may be its last file.
        shutil.rmtree(paths.lima_home() / name, ignore_errors=True)
        records.remove(paths.environments_file(name))


async def _discard(limactl: Limactl, name: str, config: str) -> None:
    """Remove what a failed create of ours left; somebody else's instance, made meanwhile, is not ours to touch."""
    directory = paths.lima_home() / name
    with contextlib.suppress(LimaKernelsError, OSError):
        instance = await limactl.find(name)
        if instance is not None and (owner_mark(instance) is not None or _is_beginning(directory, config)):
            await limactl.delete(name)
        elif instance is None and directory.is_dir():
            # Lima makes the directory first: without a lima.yaml there is nothing in it that it knows.
            await asyncio.to_thread(_remove_half_made, directory, config)


def _is_beginning(directory: Path, config: str) -> bool:
    """Tell whether an instance's lima.yaml is what was written of ours when the disk was full or limactl ended."""
    text = (directory / "lima.yaml").read_text(encoding="utf-8", errors="replace")
    return len(text) < len(config) and config.startswith(text)


def _remove_half_made(directory: Path, config: str) -> None:
    if not any(directory.iterdir()):
        directory.rmdir()
    elif (directory / "lima.yaml").exists() and _is_beginning(directory, config):
        shutil.rmtree(directory)


def _with_space(error: LimactlError) -> LimactlError:
    """Add to limactl's line how much space is left, where that may be the cause."""
    free = paths.free_space(paths.lima_home())
    if free >= LOW_SPACE and os.strerror(errno.ENOSPC).lower() not in error.message.lower():
        return error
    return LimactlError(
        f"{error.message} ({free / 1024**2:.0f} MiB are free in {paths.lima_home()}.)",
        hint="Free some space there, or set LIMA_HOME to a directory on another disk.",
        context=error.context,
    )


async def stop(limactl: Limactl, progress: Progress, *, force: bool) -> None:
    """Stop the instance that a progress is about; a start meanwhile waits for it, and what ended it is recorded.

    :param force: end its processes; what its guest had not written to disk is lost.
    :raises InstanceError: when it is missing, or broken and may not be forced.
    """
    name = progress.instance
    await limactl.get(name)
    async with locked(progress, BOOT_TIMEOUT):
        progress.enter(Phase.STOPPING)
        instance = await limactl.get(name)
        if instance.status is Status.STOPPED and not force:
            return
        if instance.status is not Status.RUNNING and not force:
            raise InstanceError(
                f"The VM {name!r} cannot be shut down in good order: it is {instance.status.value or 'unreadable'}: "
                f"{'; '.join(instance.errors) or 'Lima gives no reason'}.",
                hint=f"To end it as it is: lima-kernels stop --force {name}",
            )
        if instance.status is not Status.STOPPED:
            ending.note_stop(instance.dir, f"{ending.STOP_COMMAND} --force" if force else ending.STOP_COMMAND)
        try:
            await (limactl.stop_forcibly(name) if force else limactl.stop(name))
        except BaseException:
            if not ending.is_stopping(instance.dir):
                ending.forget_stop(instance.dir)
            raise


def check_deletable(instance: Instance, *, force: bool) -> None:
    """See that an instance may be deleted.

    :raises InstanceError: when it is not ours, or runs, and that is not forced.
    """
    name = instance.name
    if owner_mark(instance) is None and not force:
        raise InstanceError(f"The VM {name!r} was not made by lima-kernels.", hint="To delete it all the same: --force")
    if instance.is_up and not force:
        raise InstanceError(f"The VM {name!r} runs.", hint=f"lima-kernels stop {name}, or --force")


async def delete(limactl: Limactl, progress: Progress, *, force: bool) -> None:
    """Delete the instance that a progress is about, with its disk.

    :raises InstanceError: when it is missing, not ours, or runs, and that is not forced.
    """
    name = progress.instance
    await limactl.get(name)
    async with locked(progress, BOOT_TIMEOUT):
        instance = await limactl.get(name)
        check_deletable(instance, force=force)
        await limactl.delete(name)
        records.remove(paths.environments_file(name))
        hibernation.discard(instance)
        ending.forget_stop(instance.dir)


async def _adapted(limactl: Limactl, instance: Instance, mark: template.OwnerMark, wish: Wish) -> Instance:
    """Return an instance of ours with the wished directory and environment; one that runs is left as it is."""
    changed = mark.environment != wish.environment.digest
    covered = wish.directory is None or mounts.covering(instance.config.mounts, wish.directory)
    if changed and mark.image != wish.environment.image_digest:
        raise InstanceError(
            f"The VM {instance.name!r} was made from another image than its environment now names.",
            hint=f"To make it anew, which deletes its disk: lima-kernels delete {instance.name}",
        )
    if instance.is_up or hibernation.is_asleep(instance.name):
        if changed:
            logger.warning(
                "The environment of the VM %r has changed; that holds when it is next started.", instance.name
            )
        return instance
    before = _notebooks(instance, mark)
    kept = await still_there(before, wish.environment)
    if changed or not covered or kept != before:
        await _change(limactl, instance, mark, wish, kept)
        return await limactl.get(instance.name)
    unsupported = instance.config.mount_types_unsupported
    await check(put_together(wish.environment, kept), mount_type_of(wish.environment, unsupported))
    return instance


def _notebooks(instance: Instance, mark: template.OwnerMark) -> list[Path]:
    """The directories that an instance of ours shows for notebooks."""
    shown = [mount.location for mount in mounts.at_same_path(instance.config.mounts)]
    return [Path(location) for location in (shown if mark.directories is None else mark.directories)]


async def _change(
    limactl: Limactl, instance: Instance, mark: template.OwnerMark, wish: Wish, kept: Sequence[Path]
) -> None:
    """Plan a stopped instance anew; directories that it showed for other notebooks stay."""
    kept = list(kept)
    if wish.directory:
        kept = [path for path in kept if not path.is_relative_to(wish.directory)]
        if not any(mounts.holds(path, wish.directory) for path in kept):
            kept.append(wish.directory)
    planned = await plan(limactl, wish.environment, kept, mark)
    await limactl.replace_config(instance, planned.config)
