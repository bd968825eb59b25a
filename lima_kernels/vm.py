"""One instance: see that it exists and runs, reach it, and keep the one connection that its kernels share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

from filelock import AsyncFileLock, Timeout

from . import paths
from .environment.instance import Plan, plan
from .environment.spec import Environment
from .errors import ConnectionFailed, InstanceError, MountError, PhaseTimeout
from .guest import kernels, mounts
from .guest.connection import Connection, Endpoint, KeyStore, wait_for_connection
from .guest.readiness import Facts, Needs, wait_until_ready
from .lima import boot as lima_boot
from .lima import template
from .lima.limactl import Limactl
from .lima.models import Instance, Status
from .progress import Listener, Phase, Progress

# Seconds, for waits that no trait governs.
PORT_TIMEOUT = 30.0
RECONNECT_TIMEOUT = 60.0
CLOSING_TIMEOUT = 5.0


class Wish(NamedTuple):
    """What a kernel asks of its VM.

    :param environment: what the VM is, when it has to be made.
    :param attach: use an instance that others made; it is never created, and never changed.
    :param directory: a host directory that the guest must show, writable, at its own path; None for none.
    :param create_timeout: seconds until the instance exists; an image may have to be downloaded for it.
    :param boot_timeout: seconds for all that follows, until the guest is ready.
    """

    environment: Environment
    attach: bool
    directory: Path | None
    create_timeout: float = 3600.0
    boot_timeout: float = 600.0


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
        self._limactl = limactl
        self._guest: Guest | None = None
        self._shown: tuple[Path, ...] = ()
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
            await self.disconnect()
            try:
                async with asyncio.timeout(wish.create_timeout) as limit:
                    return await self._prepare(wish, limit)
            except TimeoutError as error:
                raise PhaseTimeout(
                    f"The VM {self.name!r} was not ready in time: its limit of "
                    f"{wish.create_timeout if self.progress.phase is Phase.CREATE else wish.boot_timeout:.0f} s "
                    f"was used up {self.progress.phase.value}.",
                    hint="Give it more with boot_timeout or create_timeout in the kernel spec, or look: limactl list",
                    context=lima_boot.serial_tail(paths.serial_logs(paths.lima_home() / self.name)),
                ) from error

    def _is_ready_for(self, wish: Wish) -> bool:
        if self._guest is None or self._guest.is_lost():
            return False
        return wish.directory is None or any(wish.directory.is_relative_to(shown) for shown in self._shown)

    async def _prepare(self, wish: Wish, limit: asyncio.Timeout) -> Guest:
        async with AsyncExitStack() as stack:
            async with self._lock(wish.boot_timeout):
                self.progress.enter(Phase.CHECK)
                instance = await self._present(wish)
                limit.reschedule(asyncio.get_running_loop().time() + wish.boot_timeout)
                boot = None
                if instance.status is not Status.RUNNING:
                    self.progress.enter(Phase.BOOT)
                    boot = await stack.enter_async_context(
                        lima_boot.booting(self._limactl, self.name, timeout=wish.boot_timeout)
                    )
                    await boot.ssh_port
                instance = await self._with_port()
            guest = await self._reach(stack, instance, wish, boot)
            self._stack = stack.pop_all()
            self._guest = guest
            self._shown = tuple(Path(mount.location) for mount in mounts.at_same_path(instance.config.mounts))
            return guest

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

    async def _present(self, wish: Wish) -> Instance:
        """Return the instance, made when it is missing, with the wished directory among its mounts."""
        instance = await self._limactl.find(self.name)
        if instance is None:
            if wish.attach:
                return await self._limactl.get(self.name)
            return await self._create(wish)
        if instance.status not in (Status.RUNNING, Status.STOPPED):
            raise InstanceError(
                f"The VM {self.name!r} is {instance.status.value or 'in an unknown state'}: "
                f"{'; '.join(instance.errors) or 'Lima gives no reason'}.",
                hint=f"Try: limactl stop --force {self.name}",
            )
        if not wish.attach and template.owner_mark(instance, paths.GUEST_INSTANCE_FILE) is None:
            raise InstanceError(
                f"The name {self.name!r} is taken by a VM that lima-kernels did not make.",
                hint=f"To use it all the same: lima-kernels install --attach {self.name}; or choose another --instance",
            )
        await self._show(instance, wish)
        return instance

    async def _create(self, wish: Wish) -> Instance:
        self.progress.enter(Phase.CREATE)
        directories = [wish.directory] if wish.directory else []
        config: Plan = await plan(self._limactl, wish.environment, directories)
        try:
            await self._limactl.create(self.name, config.config)
        except BaseException:
            # Half an instance would be in everybody's way.
            await asyncio.shield(self._limactl.delete(self.name))
            raise
        return await self._limactl.get(self.name)

    async def _show(self, instance: Instance, wish: Wish) -> None:
        """See that the directory is among the instance's mounts; only a stopped instance of ours can be given one."""
        if wish.directory is None or mounts.covering(instance.config.mounts, wish.directory):
            return
        shown = ", ".join(mount.location for mount in instance.config.mounts) or "nothing"
        attempt = f"The VM {self.name!r} does not show {wish.directory}, but {shown}"
        if wish.attach:
            raise MountError(
                f"{attempt}.", hint=f"Add it, writable: limactl edit {self.name} --mount {wish.directory}:w"
            )
        if instance.status is Status.RUNNING:
            raise MountError(
                f"{attempt}, and a running VM cannot be given another directory.",
                hint=f"Stop it, which ends its kernels, and start again: lima-kernels stop {self.name}",
            )
        await self._limactl.add_mounts(self.name, [str(wish.directory)])

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
        mark = template.owner_mark(instance, paths.GUEST_INSTANCE_FILE)
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
            return Guest(connection, facts, forkserver)

    async def _connect(self, instance: Instance) -> Connection:
        self.progress.enter(Phase.CONNECT)
        endpoint = Endpoint(
            instance.ssh_address, instance.ssh_local_port, instance.config.user.name, paths.identity_file()
        )
        ours = template.owner_mark(instance, paths.GUEST_INSTANCE_FILE) is not None
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
                self._stack = stack.pop_all()
                self._guest = guest
                return guest

    async def disconnect(self) -> None:
        """Close the connection; kernels and VM live on. May be called twice."""
        self._guest = None
        self._shown = ()
        stack, self._stack = self._stack, AsyncExitStack()
        await stack.aclose()
