"""What happens on a connection to a guest until kernels can start there."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from . import paths
from .guest import events, kernels, mounts, readiness, startup
from .guest.connection import Connection
from .guest.readiness import Facts, Needs
from .hibernation import saving
from .instances import Wish, owner_mark
from .lima.models import Instance
from .progress import Phase, Progress


class Arrived(NamedTuple):
    """What the guest tells of itself, and its forkserver."""

    facts: Facts
    forkserver: kernels.Forkserver


def needs(instance: Instance, wish: Wish) -> Needs:
    """Return what a guest must have before a kernel of this wish starts in it."""
    mark = owner_mark(instance)
    # Of a VM that others made only what we need ourselves.
    shown = instance.config.mounts if mark else ()
    if mark is None and wish.directory and (mount := mounts.covering(instance.config.mounts, wish.directory)):
        shown = (mount,)
    return Needs(
        mounts=[mount.guest_path for mount in shown],
        mounted_at_boot=instance.config.mount_type != "reverse-sshfs",
        provisioned=mark.provisioned if mark else "",
        boot_done=bool(wish.environment.provision) and not wish.attach,
    )


async def arrive(
    connection: Connection,
    instance: Instance,
    wanted: Needs,
    progress: Progress,
    on_event: Callable[[events.GuestEvent], None],
    *,
    iid: str,
) -> Arrived:
    """Wait until a guest has what is needed, and return its forkserver, which is started where it does not run.

    :param on_event: called in the I/O thread for what the guest tells of itself.
    :param iid: what Lima calls this start of a VM that has just woken; else empty.
    :raises GuestError: when it cannot have that.
    :raises ConnectionFailed: when the connection ends meanwhile.
    """
    if found := await _known(connection, instance, wanted, on_event, iid):
        return found
    facts = await readiness.wait_until_ready(connection, wanted, progress)
    progress.enter(Phase.FORKSERVER)
    return Arrived(facts, await startup.connect(connection, facts, on_event))


async def _known(
    connection: Connection,
    instance: Instance,
    wanted: Needs,
    on_event: Callable[[events.GuestEvent], None],
    iid: str,
) -> Arrived | None:
    """Return the forkserver that runs already in a guest of ours, where all that is needed is there.

    A program in the guest takes long to begin, and a guest of ours is known well enough to ask its forkserver instead.
    """
    user = instance.config.user
    if not wanted.provisioned or not user.home or user.uid is None:
        return None
    # The group is the guest's to tell.
    guess = Facts(user.home, user.uid, 0, paths.GUEST_PYTHON)
    forkserver = await startup.find(connection, guess, on_event)
    if forkserver is None:
        return None
    try:
        if iid:
            await saving.come_back(instance, forkserver, iid=iid)
        identity = await forkserver.ready(readiness.question(wanted))
    except BaseException:
        await forkserver.close()
        raise
    if not identity.is_ready:
        await forkserver.close()
        return None
    return Arrived(guess._replace(uid=identity.uid, gid=identity.gid), forkserver)
