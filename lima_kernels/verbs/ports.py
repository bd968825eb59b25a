"""forward, unforward, ports, socket: a guest's ports and sockets on this host, for as long as this process lives."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from ..errors import ConfigurationError, InstanceError, LimaKernelsError
from ..guest.listeners import GuestPort, guest_ports, is_forwarded_by_default
from ..guest.ports import LOOPBACK, Direction, Forward, PortForwards
from ..instances import REACH, owner_mark
from ..magics.results import Note, Table
from ..vm import VM
from .context import Context
from .reach import reached

logger = logging.getLogger(__name__)

# Seconds between tries to reach a VM again.
RETRY_INTERVAL = 2.0


class _Kept:
    """The forwards of one VM, and who sees that they go on after a lost connection."""

    def __init__(self, vm: VM) -> None:
        self.forwards = PortForwards()
        # Held by who reaches for the VM, and by who does not want it to be reached.
        self.turn = asyncio.Lock()
        self._vm = vm
        self._is_attached = asyncio.Event()
        self._keeper = asyncio.ensure_future(self._keep())

    async def _keep(self) -> None:
        """Attach the forwards to each new connection, until the VM has stopped."""
        try:
            while not self._vm.is_abandoned:
                try:
                    async with self.turn:
                        guest = await self._vm.reconnect(REACH)
                    for failure in await self.forwards.attach(guest.connection):
                        logger.warning("%s", failure)
                    self._is_attached.set()
                    await guest.connection.closed.wait()
                except InstanceError:
                    return
                except LimaKernelsError as error:
                    logger.warning("%s", error)
                    await asyncio.sleep(RETRY_INTERVAL)
        finally:
            _kept.pop(self._vm, None)
            await self.forwards.close()

    async def attached(self) -> PortForwards:
        """Return the forwards once they have a connection.

        :raises LimaKernelsError: when there is none.
        """
        waiting = asyncio.ensure_future(self._is_attached.wait())
        try:
            await asyncio.wait((waiting, self._keeper), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if not self._is_attached.is_set():
            raise InstanceError(f"The VM {self._vm.name!r} stopped.", hint=f"%lima start {self._vm.name}")
        return self.forwards


# Of this process.
_kept: dict[VM, _Kept] = {}


async def _forwards(vm: VM) -> PortForwards:
    await reached(vm)
    if vm not in _kept:
        _kept[vm] = _Kept(vm)
    return await _kept[vm].attached()


@contextlib.asynccontextmanager
async def disconnected(vm: VM) -> AsyncIterator[None]:
    """Have no connection to a VM while the block runs; what is forwarded goes on after it."""
    async with contextlib.AsyncExitStack() as stack:
        if vm in _kept:
            await stack.enter_async_context(_kept[vm].turn)
        await vm.disconnect()
        yield


def present(vm: VM) -> Sequence[Forward]:
    """Return the forwards that this process keeps for a VM."""
    return _kept[vm].forwards.all() if vm in _kept else ()


async def forward(context: Context, options: argparse.Namespace) -> Note:
    """Show a port of the guest on this host's loopback address."""
    vm = context.vm(context.instance(options.name))
    guest, host = options.ports
    made = await (await _forwards(vm)).forward(guest, host)
    return Note(f"Port {guest} of {vm.name} is http://{LOOPBACK}:{made.host} here, until %lima unforward {guest}.")


async def unforward(context: Context, options: argparse.Namespace) -> Note:
    """End the forwards of a port."""
    vm = context.vm(context.instance(options.name))
    found = [made for made in present(vm) if made.guest == options.port]
    if not found:
        known = ", ".join(str(made.guest) for made in present(vm)) or "none"
        raise ConfigurationError(
            f"Port {options.port} of {vm.name} is not forwarded by this kernel; forwarded: {known}."
        )
    for made in found:
        await _kept[vm].forwards.remove(made)
    return Note(f"Port {options.port} of {vm.name} is forwarded no longer.")


async def socket(context: Context, options: argparse.Namespace) -> Note:
    """Share a unix socket between the guest and this host."""
    vm = context.vm(context.instance(options.name))
    forwards = await _forwards(vm)
    if options.reverse:
        source = Path(options.source).expanduser().absolute()
        if not source.is_socket():
            raise ConfigurationError(f"{source} is no unix socket of this host.")
        made = await forwards.share(str(source), options.target)
        return Note(f"{source} of this host is {made.guest} in {vm.name}.")
    target = Path(options.target).expanduser().absolute()
    await forwards.forward(options.source, str(target))
    return Note(f"{options.source} of {vm.name} is {target} here.")


async def ports(context: Context, options: argparse.Namespace) -> Table:
    """List where something listens in the guest, and where on this host that can be reached."""
    vm = context.vm(context.instance(options.name))
    guest = await reached(vm)
    live = vm.live()
    by_lima: Callable[[GuestPort], bool] = is_forwarded_by_default
    if live is not None and owner_mark(live.instance) is not None:
        by_lima = _never
    ours = {made.guest: made.host for made in present(vm) if made.direction is Direction.TO_GUEST}
    rows: list[tuple[int | None, str, str, str]] = []
    for port in await guest_ports(guest.connection):
        here = ours.get(port.port) or (port.port if by_lima(port) else None)
        rows.append((port.port, port.address, port.process, f"{LOOPBACK}:{here}" if here else ""))
    rows += [(None, made.guest, "", str(made.host)) for made in present(vm) if isinstance(made.guest, str)]
    return Table(("port", "address", "process", "on_this_host"), rows)


def _never(_port: GuestPort) -> bool:
    """Our own VMs forward nothing by themselves."""
    return False
