"""See that an instance exists as an environment and a notebook's directory want it; booting it is not done here."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import NamedTuple

from . import paths
from .environment.instance import plan
from .environment.spec import Environment
from .errors import InstanceError, MountError
from .guest import mounts
from .lima import template
from .lima.limactl import Limactl
from .lima.models import Instance, Status
from .progress import Phase, Progress

logger = logging.getLogger(__name__)


class Wish(NamedTuple):
    """What a kernel asks of its VM.

    :param environment: what the VM is, when it has to be made.
    :param attach: use an instance that others made; it is never created, and never changed.
    :param directory: a host directory that the guest must show, writable, at its own path; None for none.
    :param create_timeout: seconds until the instance exists; an image may have to be downloaded for it.
    :param boot_timeout: seconds for all that follows, until the guest is ready.
    """

    environment: Environment
    attach: bool
    directory: Path | None
    create_timeout: float = 3600.0
    boot_timeout: float = 600.0


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
    :raises MountError: when it cannot be given the directory.
    """
    instance = await limactl.find(name)
    if instance is None:
        if wish.attach:
            return Present(await limactl.get(name), created=False)
        progress.enter(Phase.CREATE)
        return Present(await _create(limactl, name, wish), created=True)
    if instance.status not in (Status.RUNNING, Status.STOPPED):
        raise InstanceError(
            f"The VM {name!r} is {instance.status.value or 'in an unknown state'}: "
            f"{'; '.join(instance.errors) or 'Lima gives no reason'}.",
            hint=f"Try: limactl stop --force {name}",
        )
    if wish.attach:
        _check_attached(instance, wish)
        return Present(instance, created=False)
    mark = owner_mark(instance)
    if mark is None:
        raise InstanceError(
            f"The name {name!r} is taken by a VM that lima-kernels did not make.",
            hint=f"To use it all the same: lima-kernels install --attach {name}; or choose another --instance",
        )
    return Present(await _adapted(limactl, instance, mark, wish), created=False)


async def _create(limactl: Limactl, name: str, wish: Wish) -> Instance:
    planned = await plan(limactl, wish.environment, [wish.directory] if wish.directory else [])
    try:
        await limactl.create(name, planned.config)
        return await limactl.get(name)
    except BaseException:
        # Half an instance would be in everybody's way.
        await asyncio.shield(limactl.delete(name))
        raise


def _shown(instance: Instance) -> str:
    return ", ".join(mount.location for mount in instance.config.mounts) or "nothing"


def _check_attached(instance: Instance, wish: Wish) -> None:
    if wish.directory and not mounts.covering(instance.config.mounts, wish.directory):
        raise MountError(
            f"The VM {instance.name!r} does not show {wish.directory}, writable and at the same path, "
            f"but {_shown(instance)}.",
            hint=f"Add it: limactl edit {instance.name} --mount {wish.directory}:w",
        )


async def _adapted(limactl: Limactl, instance: Instance, mark: template.OwnerMark, wish: Wish) -> Instance:
    """Return an instance of ours with the wished directory and environment."""
    changed = mark.environment != wish.environment.digest
    covered = wish.directory is None or mounts.covering(instance.config.mounts, wish.directory)
    if changed and mark.image != wish.environment.image_digest:
        raise InstanceError(
            f"The VM {instance.name!r} was made from another image than its environment now names.",
            hint=f"To make it anew, which deletes its disk: lima-kernels delete {instance.name}",
        )
    if instance.status is Status.RUNNING:
        if not covered:
            raise MountError(
                f"The VM {instance.name!r} does not show {wish.directory}, but {_shown(instance)}, "
                "and a running VM cannot be given another directory.",
                hint=f"Stop it, which ends its kernels, and start again: lima-kernels stop {instance.name}",
            )
        if changed:
            logger.warning(
                "The environment of the VM %r has changed; that holds when it is next started.", instance.name
            )
        return instance
    if changed or not covered:
        await _change(limactl, instance, mark.source, wish)
        return await limactl.get(instance.name)
    return instance


async def _change(limactl: Limactl, instance: Instance, source: template.Source, wish: Wish) -> None:
    """Plan a stopped instance anew; directories that it showed for other notebooks stay."""
    asked = {mount.location for mount in wish.environment.mounts}
    before = [Path(mount.location) for mount in mounts.at_same_path(instance.config.mounts)]
    kept = [path for path in before if str(path) not in asked]
    if wish.directory and str(wish.directory) not in asked:
        kept = [path for path in kept if not path.is_relative_to(wish.directory)]
        if not any(wish.directory.is_relative_to(path) for path in kept):
            kept.append(wish.directory)
    planned = await plan(limactl, wish.environment, kept, source)
    await limactl.replace_config(instance, planned.config)
