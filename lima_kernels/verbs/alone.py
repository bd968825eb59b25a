"""What a verb needs that changes an instance: nobody else at it meanwhile, and a state in which it can be changed."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from ..errors import InstanceError
from ..hibernation.state import is_asleep
from ..instances import BOOT_TIMEOUT
from ..lima.models import Instance, Status
from ..locks import locked
from ..progress import Progress
from ..vm import VM


@contextlib.asynccontextmanager
async def alone(vm: VM) -> AsyncIterator[Progress]:
    """Hold an instance's lock, so that a start meanwhile waits; gives what tells of our phases.

    :raises PhaseTimeout: when another process has it for too long.
    """
    vm.progress.restart()
    async with locked(vm.progress, BOOT_TIMEOUT):
        yield vm.progress


def check_stopped(instance: Instance, why: str) -> None:
    """See that an instance is stopped.

    :param why: what of it can be changed then only.
    :raises InstanceError: when it is not.
    """
    if instance.is_up:
        raise InstanceError(
            f"The VM {instance.name!r} runs: {why}.",
            hint=f"Stop it, which ends its kernels: %lima stop {instance.name}",
        )
    if is_asleep(instance.name):
        raise InstanceError(
            f"The VM {instance.name!r} sleeps, with its kernels: {why}.",
            hint=f"Start it and stop it, or give its kernels up: %lima hibernate {instance.name} --discard",
        )
    check_whole(instance)


def check_whole(instance: Instance) -> None:
    """See that an instance runs or is stopped, as far as Lima knows.

    :raises InstanceError: when it is broken.
    """
    if instance.status not in (Status.STOPPED, Status.RUNNING):
        raise InstanceError(
            f"The VM {instance.name!r} is {instance.status.value or 'in an unknown state'}: "
            f"{'; '.join(instance.errors) or 'Lima gives no reason'}.",
            hint=f"To end what is left of it: %lima stop {instance.name} --force",
        )
