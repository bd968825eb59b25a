"""One instance: see that it exists and runs, reach it, and keep the one connection that its kernels share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

from filelock import AsyncFileLock, Timeout

from . import paths
from .errors import ConnectionFailed, InstanceError, LimactlError, LimaKernelsError, PhaseTimeout
from .guest import kernels, mounts
from .guest.connection import Connection, Endpoint, KeyStore, wait_for_connection
from .guest.readiness import Facts, Needs, wait_until_ready
from .instances import Wish, owner_mark, present
from .lima import boot as lima_boot
from .lima.limactl import Limactl
from .lima.models import Instance, Status
from .progress import Listener, Phase, Progress

# Seconds, for waits that no trait governs.
PORT_TIMEOUT = 30.0
# For one try; between tries it is looked whether the VM still runs.
RECONNECT_TIMEOUT = 20.0
CLOSING_TIMEOUT = 5.0
REMOVAL_TIMEOUT = 10.0


class Guest(NamedTuple):
    """A guest that is ready for kernels."""

    connection: Connection
    facts: Facts
    forkserver: kernels.Forkserver

    def is_lost(self) -> bool:
        return self.connection.closed.is_set() or self.forkserver.is_closed()


class VM:
    """One instance as its kernels see it, and the connection that they share.

    ``watchers`` has for each kernel whom to call, in the I/O thread, when it has ended.

    :param listener: told of each phase of a start, in the I/O thread.
    """

    def __init__(self, name: str, limactl: Limactl, listener: Listener) -> None:
        self.name = name
        self.progress = Progress(name, listener)
        self.watchers: dict[str, Callable[[kernels.KernelExit], None]] = {}
        self._unwanted: set[str] = set()
        self._limactl = limactl
        self._guest: Guest | None = None
        self._shown: tuple[Path, ...] = ()
        self._serial: list[str] = []
        self._turn = asyncio.Lock()
        self._stack = AsyncExitStack()

    def _on_exit(self, exit_: kernels.KernelExit) -> None:
        if watcher := self.watchers.get(exit_.kernel):
            watcher(exit_)

    async def ensure(self, wish: Wish) -> Guest:
        """Return a guest that is ready for a kernel: create, boot and connect as far as that is missing.

        :raises PhaseTimeout: when the time is used up; names the phase, and shows the end of the serial log.
        :raises LimaKernelsError: for each thing that can go wrong on the way, in one line.
        """
        async with self._turn:
            if self._guest is not None and self._is_ready_for(wish):
                return self._guest
            self.progress.restart()
            try:
                async with asyncio.timeout(wish.create_timeout) as limit:
                    return await self._prepare(wish, limit)
            except TimeoutError as error:
                creating = self.progress.phase in (Phase.CHECK, Phase.CREATE)
                name, seconds = (
                    ("create_timeout", wish.create_timeout) if creating else ("boot_timeout", wish.boot_timeout)
                )
                raise PhaseTimeout(
                    f"The VM {self.name!r} was not ready in time: {name} ({seconds:.0f} s) was used up "
                    f"{self.progress.phase.value}.",
                    hint=f"Give it more with {name} in the kernel spec's config.",
                    context=self._serial,
                ) from error

    def _is_ready_for(self, wish: Wish) -> bool:
        if self._guest is None or self._guest.is_lost():
            return False
        return wish.directory is None or any(wish.directory.is_relative_to(shown) for shown in self._shown)

    async def _prepare(self, wish: Wish, limit: asyncio.Timeout) -> Guest:
        async with AsyncExitStack() as stack:
            self.progress.enter(Phase.CHECK)
            await self._limactl.version()
            async with self._lock(wish.boot_timeout):
                instance, created = await present(self._limactl, self.name, wish, self.progress)
                if self._guest is not None and not self._guest.is_lost():
                    # It runs, and shows the directory: other kernels' connection is not touched for that.
                    return self._guest
                await self.disconnect()
                limit.reschedule(asyncio.get_running_loop().time() + wish.boot_timeout)
                boot = None
                if instance.status is not Status.RUNNING:
                    self.progress.enter(Phase.BOOT)
                    stack.push_async_exit(self._undo_boot(created, limit))
                    boot = await stack.enter_async_context(
                        lima_boot.booting(self._limactl, self.name, timeout=wish.boot_timeout)
                    )
                    await boot.ssh_port
                instance = await self._with_port()
            return self._keep(stack, await self._reach(stack, instance, wish, boot), instance)

    def _keep(self, stack: AsyncExitStack, guest: Guest, instance: Instance) -> Guest:
        """Make a guest the one that all kernels share."""
        self._stack = stack.pop_all()
        self._guest = guest
        self._shown = tuple(Path(mount.location) for mount in mounts.at_same_path(instance.config.mounts))
        return guest

    def _undo_boot(self, created: bool, limit: asyncio.Timeout) -> Callable[..., Awaitable[None]]:
        """What to do when the block of a boot ends by an error: a VM that does not boot is not left half-started.

        One that boots but lacks something is left for a look at it, and so is one whose start was merely cancelled.
        """

        async def undo(_type: object, error: BaseException | None, _traceback: object) -> None:
            if limit.expired() or isinstance(error, InstanceError):
                self._serial = lima_boot.serial_tail(paths.serial_logs(paths.lima_home() / self.name))
                with contextlib.suppress(LimactlError):
                    await self._limactl.stop_forcibly(self.name)
                    if created:
                        await self._limactl.delete(self.name)

        return undo

    @contextlib.asynccontextmanager
    async def _lock(self, timeout: float) -> AsyncIterator[None]:
        """Only one process at a time creates and boots; the system gives a dead holder's lock back."""
        lock = AsyncFileLock(paths.lock_file(self.name), timeout=timeout, run_in_executor=False)
        try:
            await lock.acquire()
        except Timeout as error:
            raise PhaseTimeout(
                f"Another process has been starting the VM {self.name!r} for {timeout:.0f} s."
            ) from error
        try:
            yield
        finally:
            await lock.release()

    async def _with_port(self) -> Instance:
        """Return the running instance once its SSH port is known: another process may just have started it."""
        try:
            async with asyncio.timeout(PORT_TIMEOUT):
                while True:
                    instance = await self._limactl.get(self.name)
                    if instance.ssh_local_port:
                        return instance
                    await asyncio.sleep(0.2)
        except TimeoutError as error:
            raise InstanceError(
                f"Lima gave the VM {self.name!r} no SSH port within {PORT_TIMEOUT:.0f} s.",
                hint=f"Try: limactl stop --force {self.name}",
            ) from error

    async def _reach(self, stack: AsyncExitStack, instance: Instance, wish: Wish, boot: lima_boot.Boot | None) -> Guest:
        """Connect and wait until the guest is ready; a boot that fails meanwhile ends the wait."""
        if boot is None:
            return await self._ready(stack, instance, wish)
        work = asyncio.ensure_future(self._ready(stack, instance, wish))
        try:
            await asyncio.wait((work, boot.finished), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                # Raises when the boot failed; a boot that Lima calls ready is no reason to wait no longer.
                await boot.finished
            return await work
        except InstanceError as error:
            serial = lima_boot.serial_tail(paths.serial_logs(instance.dir))
            raise InstanceError(error.message, hint=error.hint, context=(*error.context, *serial)) from error
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _ready(self, stack: AsyncExitStack, instance: Instance, wish: Wish) -> Guest:
        mark = owner_mark(instance)
        mount = mounts.covering(instance.config.mounts, wish.directory) if wish.directory else None
        needs = Needs(
            mounts=[mount.guest_path] if mount else [],
            mounted_at_boot=instance.config.mount_type != "reverse-sshfs",
            provisioned=mark.provisioned if mark else "",
            boot_done=bool(wish.environment.provision) and not wish.attach,
        )
        while True:
            connection = await self._connect(instance)
            stack.push_async_callback(connection.close)
            try:
                facts = await wait_until_ready(connection, needs, self.progress)
                self.progress.enter(Phase.FORKSERVER)
                forkserver = await kernels.connect(connection, facts, self._on_exit)
            except ConnectionFailed:
                # In a guest's first boot Lima ends all sessions once; any other failure is meant.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(connection.closed.wait(), CLOSING_TIMEOUT)
                if not connection.closed.is_set():
                    raise
                continue
            stack.push_async_callback(forkserver.close)
            await self._sweep(forkserver)
            return Guest(connection, facts, forkserver)

    async def _connect(self, instance: Instance) -> Connection:
        self.progress.enter(Phase.CONNECT)
        endpoint = Endpoint(
            instance.ssh_address, instance.ssh_local_port, instance.config.user.name, paths.identity_file()
        )
        ours = owner_mark(instance) is not None
        keys = KeyStore(paths.pinned_key_file(instance.dir), boot="" if ours else str(instance.host_agent_pid))
        return await wait_for_connection(endpoint, keys, lambda: self.progress.enter(Phase.CONNECT, "sshd answers"))

    async def reconnect(self, wish: Wish) -> Guest:
        """Reach the guest again after its connection was lost; the VM is never started for that.

        :raises InstanceError: when the VM no longer runs: then its kernels are gone.
        :raises ConnectionFailed: when it runs but cannot be reached in time.
        """
        async with self._turn:
            if self._guest is not None and not self._guest.is_lost():
                return self._guest
            await self.disconnect()
            instance = await self._limactl.get(self.name)
            if instance.status is not Status.RUNNING:
                raise InstanceError(f"The VM {self.name!r} is {instance.status.value.lower()}.")
            async with AsyncExitStack() as stack:
                try:
                    async with asyncio.timeout(RECONNECT_TIMEOUT):
                        guest = await self._ready(stack, instance, wish)
                except TimeoutError as error:
                    raise ConnectionFailed(
                        f"The VM {self.name!r} could not be reached again within {RECONNECT_TIMEOUT:.0f} s."
                    ) from error
                return self._keep(stack, guest, instance)

    async def remove(self, kernel: str, wish: Wish) -> None:
        """End a kernel and remove what it left; one that cannot be reached now is ended when the guest is next."""
        self._unwanted.add(kernel)
        with contextlib.suppress(LimaKernelsError, TimeoutError):
            async with asyncio.timeout(REMOVAL_TIMEOUT):
                guest = await self.reconnect(wish)
                await self._sweep(guest.forkserver)

    async def _sweep(self, forkserver: kernels.Forkserver) -> None:
        for kernel in tuple(self._unwanted):
            await forkserver.remove(kernel)
            self._unwanted.discard(kernel)

    async def disconnect(self) -> None:
        """Close the connection; kernels and VM live on. May be called twice."""
        self._guest = None
        self._shown = ()
        stack, self._stack = self._stack, AsyncExitStack()
        await stack.aclose()
