"""The guest of a VM that runs."""

from __future__ import annotations

from ..errors import InstanceError
from ..instances import REACH
from ..vm import VM, Guest


async def reached(vm: VM) -> Guest:
    """Return the guest of a VM, which is not started for that.

    :raises InstanceError: when it does not run; says how it is started.
    :raises ConnectionFailed: when it runs but cannot be reached.
    """
    try:
        return await vm.reconnect(REACH)
    except InstanceError as error:
        raise InstanceError(error.message, hint=error.hint or f"%lima start {vm.name}") from error
