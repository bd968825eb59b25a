"""One kernel in a VM: its process in the guest and its five channels on the host, on one exit stack."""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
import signal
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

from . import paths
from .errors import ConnectionFailed, InstanceError, LimaKernelsError
from .guest.forwards import CHANNELS, Address, Pause, Transport, forward_channels, new_address
from .guest.kernels import KernelExit, Layout
from .instances import Wish
from .progress import Phase
from .vm import VM, Guest

logger = logging.getLogger(__name__)

# A kernel that went with its VM ended as if it had been killed.
GONE = -int(signal.SIGKILL)
# Seconds.
RETRY_INTERVAL = 2.0
SIGNAL_TIMEOUT = 10.0


class Launch(NamedTuple):
    """What a kernel is started with.

    :param kernel_id: Jupyter's; names the sockets' directory on the host.
    :param key: the connection's secret, and how messages are signed with it.
    :param curve: the CurveZMQ keys where encryption is on: ``curve_publickey`` and ``curve_secretkey``.
    :param timeout: seconds for the kernel itself, once the guest is ready.
    """

    kernel_id: str
    cwd: Path
    env: Mapping[str, str]
    arguments: Sequence[str]
    transport: Transport
    key: str
    signature_scheme: str
    kernel_name: str
    curve: Mapping[str, str]
    timeout: float


class Session:
    """A kernel that was started in a VM; made by :func:`open_session`, and closed once it is no longer needed.

    ``exit`` is None while the kernel lives, or cannot be reached: unreachable is not dead.
    """

    def __init__(self, vm: VM, wish: Wish, guest: Guest, name: str) -> None:
        self.exit: KernelExit | None = None
        self.address: Address | None = None
        self._ended = asyncio.Event()
        self._end_is_wanted = False
        self._vm = vm
        self._wish = wish
        self._guest = guest
        self._name = name
        self._channels = AsyncExitStack()
        self._stack = AsyncExitStack()

    # Starting

    async def start(self, launch: Launch) -> Address:
        """Start the kernel, forward its channels and return the host's end; undone by :meth:`close` when it fails."""
        progress = self._vm.progress
        directory = paths.socket_directory(launch.kernel_id) if launch.transport is Transport.IPC else None
        if directory:
            self._stack.callback(shutil.rmtree, directory, ignore_errors=True)
        self._host_prefix = (directory or Path()) / "c"
        self._guest_prefix = Layout(self._guest.facts).channels(self._name)
        self._vm.watchers[self._name] = self._end
        self._stack.callback(self._vm.watchers.pop, self._name, None)
        self._stack.push_async_callback(self._remove)
        progress.enter(Phase.KERNEL)
        await self._guest.forkserver.spawn(
            self._name,
            cwd=str(launch.cwd),
            env=launch.env,
            connection=self._connection_file(launch),
            arguments=launch.arguments,
            timeout=launch.timeout,
        )
        progress.enter(Phase.FORWARD)
        await self._forward(new_address(launch.transport, self._host_prefix), Pause.NONE)
        keeper = asyncio.ensure_future(self._keep())
        self._stack.push_async_callback(_cancelled, keeper)
        progress.enter(Phase.READY)
        assert self.address is not None
        return self.address

    def _connection_file(self, launch: Launch) -> dict[str, Any]:
        return {
            "transport": "ipc",
            "ip": self._guest_prefix,
            **CHANNELS,
            "key": launch.key,
            "signature_scheme": launch.signature_scheme,
            "kernel_name": launch.kernel_name,
            **launch.curve,
        }

    async def _forward(self, like: Address, pause: Pause) -> None:
        await self._channels.aclose()
        async with AsyncExitStack() as stack:
            self.address = await forward_channels(
                stack, self._guest.connection, self._guest_prefix, self._host_prefix, like=like, pause=pause
            )
            self._channels = stack.pop_all()

    # Living

    async def _keep(self) -> None:
        """Come back after each loss of the connection, until the kernel is known to have ended."""
        while self.exit is None:
            await _first(self._guest.connection.closed.wait(), self._guest.forkserver.wait_closed())
            logger.warning("The connection to the VM %r was lost; connecting again.", self._vm.name)
            # At once: a client that is let in by a dead listener would wait for its handshake to time out.
            await self._channels.aclose()
            try:
                self._guest = await self._vm.reconnect(self._wish)
                await self._resume()
            except InstanceError as error:
                self._end(KernelExit(self._name, GONE, (str(error),)))
            except LimaKernelsError as error:
                logger.warning("%s", error)
                await asyncio.sleep(RETRY_INTERVAL)

    async def _resume(self) -> None:
        state = (await self._guest.forkserver.list()).get(self._name)
        if state is None:
            self._end(KernelExit(self._name, GONE, ("The guest's forkserver no longer knows the kernel.",)))
        elif state.code is not None:
            self._end(KernelExit(self._name, state.code))
        else:
            assert self.address is not None
            await self._forward(self.address, Pause.FOR_SUBSCRIBERS)
            logger.warning("The kernel in the VM %r is reached again; output of the meantime is lost.", self._vm.name)

    def _end(self, exit_: KernelExit) -> None:
        if self.exit is None:
            self.exit = exit_
            self._ended.set()
            if exit_.code and not self._end_is_wanted:
                logger.warning(
                    "%s", "\n  ".join((f"The kernel in {self._vm.name!r} {describe(exit_.code)}.", *exit_.log))
                )

    async def signal(self, signum: int) -> None:
        """Send a signal to the kernel's process group."""
        if self.exit is None:
            self._end_is_wanted = self._end_is_wanted or signum in (signal.SIGTERM, signal.SIGKILL)
            try:
                await self._guest.forkserver.signal(self._name, signum)
            except ConnectionFailed:
                # The keeper is at it already.
                async with asyncio.timeout(SIGNAL_TIMEOUT):
                    guest = await self._vm.reconnect(self._wish)
                await guest.forkserver.signal(self._name, signum)

    async def wait(self) -> int:
        """Wait for the kernel's end and return its exit code, negative for a signal."""
        await self._ended.wait()
        assert self.exit is not None
        return self.exit.code

    # Ending

    async def _remove(self) -> None:
        await self._vm.remove(self._name, self._wish)

    async def close(self) -> None:
        """End what is left of the kernel, close its channels and remove its files; may be called twice."""
        await self._channels.aclose()
        await self._stack.aclose()
        if self.exit is None:
            self._end(KernelExit(self._name, 0))


async def open_session(vm: VM, wish: Wish, launch: Launch) -> Session:
    """Start a kernel in a VM that is made, booted and connected to as needed; a failure leaves nothing behind.

    :raises LimaKernelsError: one line that says what failed.
    """
    guest = await vm.ensure(wish)
    try:
        return await _started(vm, wish, guest, launch)
    except ConnectionFailed:
        # A connection that looked alive may have been dead for a while: a laptop slept.
        if not guest.is_lost():
            raise
    return await _started(vm, wish, await vm.ensure(wish), launch)


async def _started(vm: VM, wish: Wish, guest: Guest, launch: Launch) -> Session:
    session = Session(vm, wish, guest, secrets.token_hex(8))
    try:
        await session.start(launch)
    except BaseException:
        await asyncio.shield(session.close())
        raise
    return session


def describe(code: int) -> str:
    """Return how a process ended, in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


async def _first(*waits: Any) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


async def _cancelled(task: asyncio.Future[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
