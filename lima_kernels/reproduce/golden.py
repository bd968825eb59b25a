"""Golden VMs: each has what one lock says and was never used, so that new VMs of that lock are copies of it."""

from __future__ import annotations

import asyncio
import contextlib

from filelock import AsyncFileLock, Timeout

from .. import paths
from ..errors import GuestError, LimaKernelsError, PhaseTimeout
from ..guest.kernels import Conduct
from ..instances import Wish
from ..lima.limactl import Limactl
from ..vm import VM
from . import syncing

# What makes one machine another than its copy. A boot makes each of them anew.
_FORGET = """
set -eu
rm -f /etc/ssh/ssh_host_* /var/lib/dbus/machine-id /var/lib/systemd/random-seed
: > /etc/machine-id
rm -rf /var/cache/apt/archives/*.deb /var/lib/apt/lists/* /opt/lima-kernels/environments/.cache
sync
"""
_FORGET_TIMEOUT = 120.0


async def make(vm: VM, wish: Wish) -> None:
    """Make the golden VM of a lock, and stop it; one that is complete is left as it is. Awaited in the I/O thread.

    :param wish: what a kernel of the lock would ask.
    :raises LimaKernelsError: when it cannot be made; nothing of it is left.
    """
    try:
        async with AsyncFileLock(
            paths.golden_lock(vm.name), timeout=wish.create_timeout, mode=0o600, run_in_executor=False
        ):
            if not paths.has_golden_mark(vm.name) or await Limactl().find(vm.name) is None:
                await _make(vm, wish)
    except Timeout as error:
        raise PhaseTimeout(
            f"Another process has not finished the golden VM {vm.name!r} within {wish.create_timeout:.0f} s.",
            hint="End that process if it hangs: that gives its lock back.",
        ) from error


async def _make(vm: VM, wish: Wish) -> None:
    assert wish.locked is not None
    try:
        guest = await vm.ensure(wish._replace(directory=None, golden="", conduct=Conduct()))
        await syncing.sync(vm, guest, wish.locked, timeout=wish.create_timeout)
        done = await guest.connection.run("sudo -n sh -s", stdin=_FORGET, timeout=_FORGET_TIMEOUT)
        if done.status:
            said = done.stderr.splitlines()[-10:]
            raise GuestError("The golden VM could not be made ready for copies.", context=said)
        await vm.stop()
        paths.golden_mark(vm.name).touch(mode=0o600)
    except BaseException:
        await asyncio.shield(_remove(vm))
        raise


async def remove(vm: VM) -> None:
    """Remove a golden VM; its copies live on."""
    with contextlib.suppress(FileNotFoundError):
        paths.golden_mark(vm.name).unlink()
    await vm.delete(force=True)


async def _remove(vm: VM) -> None:
    with contextlib.suppress(LimaKernelsError):
        await remove(vm)
