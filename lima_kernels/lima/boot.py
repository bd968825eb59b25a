"""One `limactl start` that is under way: its SSH port as soon as it is known, its end, and what it said."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections import deque
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from .. import paths
from ..errors import InstanceError, printable
from . import ending, logs
from .limactl import Limactl
from .models import decode_log_line

logger = logging.getLogger(__name__)

_SSH_PORT = re.compile(r"^SSH Local Port: (\d+)$")
# What limactl says when the host agent ended: a Go struct, which tells nobody why.
_STATUS_DUMP = "exiting, status={"
LOG_TAIL = 20
# No more of a serial log is read than this many bytes from its end.
_SERIAL_TAIL = 16 * 1024


def serial_tail(files: list[Path], lines: int = LOG_TAIL) -> list[str]:
    """Return the last lines that a VM wrote to its serial console, without control sequences."""
    for file in files:
        clean = (printable(raw.decode(errors="replace")).strip() for raw in logs.tail(file, _SERIAL_TAIL))
        if written := [line for line in clean if line]:
            return written[-lines:]
    return []


class Boot:
    """A boot that `limactl start` watches over; made by :func:`booting`.

    ``ssh_port`` is known when the host agent runs, long before the guest answers. ``finished`` ends when Lima calls the
    instance ready, with an InstanceError when it failed.
    """

    def __init__(self, arch: str, options: Sequence[str]) -> None:
        self._arch = arch
        self._options = options
        self.ssh_port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def watch(self, limactl: Limactl, name: str, timeout: float) -> None:
        """Run `limactl start` to its end; an end by cancellation leaves the VM itself booting.

        A VM whose process fails as it begins, as it does when another program takes the port that Lima chose for its
        SSH in that moment, is started once more; not one that was started with options, which are for one time.
        """
        error = InstanceError(f"Starting the VM {name!r} was given up.")
        try:
            result = await self._start(limactl, name, timeout)
            if result is not None and not self._options and (reason := ending.driver_failure(paths.lima_home() / name)):
                logger.warning("The VM %r ended as it began to boot (%s); it is started once more.", name, reason)
                result = await self._start(limactl, name, timeout)
            if result is None:
                self.finished.set_result(None)
                result = InstanceError(
                    f"limactl start {name} ended without naming an SSH port.", hint="Look at it by hand: limactl list"
                )
            error = result
        except OSError as failure:
            error = InstanceError(f"limactl start {name} could not be run: {failure}.")
        finally:
            for future in (self.ssh_port, self.finished):
                if not future.done():
                    future.set_exception(error)
                    # Whoever waits gets it; when nobody does any more it is no news.
                    future.exception()

    async def _start(self, limactl: Limactl, name: str, timeout: float) -> InstanceError | None:
        """Run `limactl start` to its end, and return why it failed."""
        tail: deque[str] = deque(maxlen=LOG_TAIL)
        async with limactl.start(name, timeout=timeout, arch=self._arch, options=self._options) as running:
            async for raw in running.lines():
                line = decode_log_line(raw)
                tail.append(line.msg)
                if (found := _SSH_PORT.match(line.msg)) and not self.ssh_port.done():
                    self.ssh_port.set_result(int(found[1]))
            code = await running.wait()
        if not code:
            return None
        said = next((line for line in reversed(tail) if line), "nothing")
        reason = ending.how_it_ended(paths.lima_home() / name)
        if said.startswith(_STATUS_DUMP) and reason != ending.NO_REASON:
            said = reason
        return InstanceError(
            f"The VM {name!r} did not start: limactl start ended with exit code {code}: {said}",
            hint=f"Look at it by hand: limactl start {name}",
            context=tuple(tail),
        )


@contextlib.asynccontextmanager
async def booting(
    limactl: Limactl, name: str, *, timeout: float, arch: str = "", options: Sequence[str] = ()
) -> AsyncIterator[Boot]:
    """Start an instance; `limactl start` is ended with the block, the VM goes on.

    :param timeout: seconds that Lima gives the instance to be ready.
    :param options: more of them for the QEMU of the instance's ``arch``.
    """
    boot = Boot(arch, options)
    task = asyncio.ensure_future(boot.watch(limactl, name, timeout))
    try:
        yield boot
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
