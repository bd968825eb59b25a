"""What a start of a VM goes by: how long it may take, and when it has to begin again."""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType

from .errors import Cancelled, InstanceError
from .instances import Wish
from .lima import hostagent
from .lima.boot import Boot
from .lima.limactl import Limactl
from .lima.models import Instance, Status

logger = logging.getLogger(__name__)

# Seconds.
PORT_TIMEOUT = 30.0
_PORT_INTERVAL = 0.2


class Ended(Exception):
    """The VM's host agent ended while we were on our way to the guest: it has to be looked at anew.

    :param pid: the process that ended, 0 when it was not seen.
    """

    def __init__(self, pid: int = 0) -> None:
        super().__init__()
        self.pid = pid


class Limit:
    """The time that a start has: first until the instance exists, then, counted once, until its guest is ready."""

    def __init__(self, wish: Wish, timer: asyncio.Timeout) -> None:
        self.name, self.seconds = "create_timeout", wish.create_timeout
        self._boot_timeout = wish.boot_timeout
        self._timer = timer

    def exists(self) -> None:
        """Say that the instance exists."""
        if self.name != "boot_timeout":
            self.name, self.seconds = "boot_timeout", self._boot_timeout
            self._timer.reschedule(asyncio.get_running_loop().time() + self.seconds)

    def expired(self) -> bool:
        """Tell whether it is used up."""
        return self._timer.expired()


class Start:
    """A start that is under way, as a block: whoever watches learns of its end, and may cancel it.

    ``ended`` is done when it is over, with its error if it failed; who awaits it has to shield it.

    :raises Cancelled: from the block, when somebody cancelled it.
    """

    def __init__(self, name: str) -> None:
        self.is_cancelled = False
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._name = name
        self._task = asyncio.current_task()
        self._cancels = self._task.cancelling() if self._task else 0

    def cancel(self) -> None:
        """Let it undo what it has done, and fail."""
        if not self.is_cancelled and self._task is not None:
            self.is_cancelled = True
            self._task.cancel()

    def __enter__(self) -> Start:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        # As asyncio.timeout does: who waits was not cancelled itself.
        ours = self.is_cancelled and self._task is not None and self._task.uncancel() <= self._cancels
        if ours and isinstance(error, asyncio.CancelledError):
            self._end(failure := was_cancelled(self._name))
            raise failure from error
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        if error is None:
            self.ended.set_result(None)
        elif isinstance(error, Exception):
            self.ended.set_exception(error)
            # When nobody watches it is no news.
            self.ended.exception()
        else:
            self.ended.cancel()


def was_cancelled(name: str) -> Cancelled:
    """Return what whoever waits for a start is told that somebody cancelled."""
    return Cancelled(f"The start of the VM {name!r} was cancelled.", hint="Start the kernel again to try anew.")


def warn_without_host_agent(instance: Instance) -> None:
    """Say what does not work in a VM that runs alone."""
    logger.warning(
        "The VM %r runs, but Lima's host agent for it does not answer (%s). Kernels work; Lima's own port "
        "forwards and reverse-sshfs mounts do not. To mend it, which ends its kernels: "
        "lima-kernels stop --force %s, then start.",
        instance.name,
        "; ".join(instance.errors) or "Lima gives no reason",
        instance.name,
    )


async def with_port(limactl: Limactl, instance: Instance, boot: Boot | None) -> Instance:
    """Return a running instance once its SSH port is known: another process may just have started it.

    :param instance: as it was a moment ago.
    :raises Ended: when it does not run any more.
    :raises InstanceError: when Lima gives it no port in time.
    """
    name = instance.name
    try:
        async with asyncio.timeout(PORT_TIMEOUT):
            while not hostagent.ssh_port(instance):
                if boot is not None and boot.finished.done():
                    # Raises when it failed.
                    await boot.finished
                if instance.status is Status.STOPPED:
                    raise Ended
                await asyncio.sleep(_PORT_INTERVAL)
                instance = await limactl.get(name)
            return instance
    except TimeoutError as error:
        raise InstanceError(
            f"Lima gave the VM {name!r} no SSH port within {PORT_TIMEOUT:.0f} s.",
            hint=f"Try: limactl stop --force {name}",
        ) from error
