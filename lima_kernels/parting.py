"""The process that does with an unused VM what `on_idle` says once its Jupyter server has ended:
`python -m lima_kernels.parting INSTANCE ON_IDLE`.

The server starts it as it ends, and holds the other end of its standard input until then. A minute later it looks
whether anybody uses the VM: the next server, a terminal, what listens at a port, a program that computes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys

from . import paths, runtime
from .errors import LimaKernelsError
from .guest import sleeping
from .hibernation.state import is_asleep
from .instances import REACH
from .settings import OnIdle
from .vm import VM

logger = logging.getLogger(__name__)

PROGRAM = (sys.executable, "-P", "-m", f"{__package__}.parting")
# Seconds between looks, and before the first: a server that ends is often started anew.
GRACE = 60.0
# How often it is looked: what computes may come to its end.
LOOKS = 10
# Those that wait for our end.
_waiting: list[subprocess.Popen[bytes]] = []


def leave_vms() -> None:
    """See that the VMs that this process started are not left running for nobody, once it has ended."""
    for vm in runtime.vms():
        conduct = vm.started_for
        if conduct is not None and conduct.on_idle != OnIdle.NOTHING.value:
            try:
                _waiting.append(_begin(vm.name, conduct.on_idle))
            except OSError as error:
                logger.warning("The VM %r goes on without us: %s", vm.name, error)


def _begin(name: str, on_idle: str) -> subprocess.Popen[bytes]:
    log = os.open(paths.parting_log(name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        # A terminal that is closed ends its session.
        return subprocess.Popen(
            [*PROGRAM, name, on_idle], stdin=subprocess.PIPE, stdout=log, stderr=log, cwd="/", start_new_session=True
        )
    finally:
        os.close(log)


async def part(vm: VM, on_idle: OnIdle) -> bool:
    """Put a VM to sleep, or stop it, and tell that nothing is left to do; not while somebody uses it.

    :raises LimaKernelsError: when it cannot be reached, or not put to sleep; it goes on then.
    """
    if is_asleep(vm.name):
        return True
    guest = await vm.reconnect(REACH)
    if by := await sleeping.used_by(guest.forkserver):
        logger.warning("The VM %r goes on: it is used by %s.", vm.name, by)
        return False
    await (vm.stop() if on_idle is OnIdle.STOP else vm.hibernate())
    return True


def main(name: str, on_idle: str) -> int:
    """Wait for our server's end and a minute more, and part with its VM."""
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)

    async def wait_and_part() -> None:
        for _ in range(LOOKS):
            await asyncio.sleep(GRACE)
            if await part(runtime.runtime().vm(name), OnIdle(on_idle)):
                return

    # Nobody writes: it is the end of the server that ends this.
    sys.stdin.buffer.read()
    try:
        runtime.runtime().run_blocking(wait_and_part())
    except LimaKernelsError as error:
        logger.warning("The VM %r goes on. %s", name, error)
        return 1
    finally:
        runtime.runtime().close()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
