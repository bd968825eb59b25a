"""What an action would fail for is said before it begins, as far as that can be seen at once."""

from __future__ import annotations

from collections.abc import Callable

from ..hibernation import saving
from ..instances import check_deletable
from ..lima.limactl import Limactl
from ..verbs.alone import check_stopped
from ..verbs.machines import EDITED_WHILE_STOPPED, check_free
from ..verbs.usage import check_unused
from ..verbs.vms import wish_to_start
from ..vm import VM
from ..watch.actions import Action, Create, Delete, Edit, Hibernate, Restart, Start, Stop


async def check(limactl: Limactl, vm: Callable[[str], VM], name: str, action: Action) -> None:
    """See that a VM can be acted on now; its job looks again, with the VM for itself.

    :param vm: returns the handle of an instance; to be called in the I/O thread.
    :raises NotFound: when there is no such VM.
    :raises InstanceError: when it is in a state, or in use, so that it cannot be done.
    """
    match action:
        case Create():
            await check_free(limactl, name)
        case Start():
            await wish_to_start(limactl, name, None)
        case Stop() | Restart():
            instance = await limactl.get(name)
            if not action.force:
                await check_unused(vm(name), instance, action.call(name).verb)
        case Hibernate():
            saving.check(await limactl.get(name))
        case Edit():
            check_stopped(await limactl.get(name), EDITED_WHILE_STOPPED)
        case Delete():
            check_deletable(await limactl.get(name), force=action.force)
