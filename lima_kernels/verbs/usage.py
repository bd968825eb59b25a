"""Who uses a VM, for whoever would end it."""

from __future__ import annotations

import asyncio
import contextlib

from ..errors import InstanceError, LimaKernelsError, printable
from ..instances import REACH, owner_mark
from ..leases import held, users_of
from ..lima.models import Instance
from ..vm import VM

# Seconds that a guest has to say which kernels it has.
LOOK_TIMEOUT = 8.0


async def users(vm: VM, instance: Instance, but: str = "") -> list[str]:
    """Return who uses a VM, a line for each kernel, those among them that wait for a server.

    :param but: a kernel that does not count.
    """
    found = users_of(instance.name, but)
    if instance.is_up and owner_mark(instance) is not None:
        # A guest that cannot be asked has no kernel that anybody could use.
        with contextlib.suppress(LimaKernelsError, TimeoutError):
            async with asyncio.timeout(LOOK_TIMEOUT):
                guest = await vm.reconnect(REACH)
                states = await guest.forkserver.list()
            owned = held(instance.name)
            found += [
                f"{state.facts.session or state.facts.spec or kernel} (nobody: its server has died)"
                for kernel, state in states.items()
                if state.code is None and kernel not in owned
            ]
    return [printable(user) for user in found]


async def check_unused(vm: VM, instance: Instance, verb: str, but: str = "") -> None:
    """See that nobody loses a kernel by what a verb does.

    :param but: the kernel that asks for it, which knows.
    :raises InstanceError: when somebody would.
    """
    if found := await users(vm, instance, but):
        raise InstanceError(
            f"The VM {instance.name!r} is in use.",
            hint=f"To end its kernels all the same: %lima {verb} {instance.name} --force",
            context=found,
        )
