"""One instance: see that it exists and runs, reach it, and keep the one connection that its kernels share."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

from . import arrival, history, instances, paths
from .errors import ConnectionFailed, InstanceError, LimaKernelsError, PhaseTimeout
from .guest import events, kernels, mounts
from .guest.connection import Connection, Endpoint, wait_for_connection
from .guest.host_keys import KeyStore
from .guest.kernels import Conduct
from .guest.readiness import Facts
from .hibernation import saving, waking
from .hibernation.idle import WhenIdle
from .hibernation.state import Hibernated, is_asleep
from .instances import REACH, Wish, owner_mark, present
from .lima import boot as lima_boot
from .lima import ending, hostagent
from .lima.limactl import Limactl
from .lima.models import Instance, Status
from .locks import locked
from .progress import Listener, Phase, Progress
from .starting import Ended, Limit, Start, warn_without_host_agent, was_cancelled, with_port

logger = logging.getLogger(__name__)

# Seconds, for waits that no trait governs. For one try; between tries it is looked whether the VM still runs.
RECONNECT_TIMEOUT = 20.0
CLOSING_TIMEOUT = 5.0
UNDO_TIMEOUT = 10.0
REMOVAL_TIMEOUT = 10.0


class Guest(NamedTuple):
    """A guest that is ready for kernels."""

    connection: Connection
    facts: Facts
    forkserver: kernels.Forkserver

    def is_lost(self) -> bool:
        return self.connection.closed.is_set() or self.forkserver.is_closed()


class Live(NamedTuple):
    """A guest that we are connected to, and its instance as it was when we connected."""

    instance: Instance
    guest: Guest


class VM:
    """One instance as its kernels see it, and the connection that they share.

    ``watchers`` has for each kernel whom to call, in the I/O thread, when it has ended; ``on_mount_event`` is told of
    directories that were added to the guest. ``is_abandoned`` is set when
    this process ends: then a lost connection is no news. ``starting`` is the start that is under way, ``started_for``
    what was wanted of a VM of ours that was started here.

    :param listener: told of each phase of a start, in the I/O thread.
    """

    def __init__(self, name: str, limactl: Limactl, listener: Listener) -> None:
        self.name = name
        self.progress = Progress(name, listener)
        self.watchers: dict[str, Callable[[events.KernelExit], None]] = {}
        self.on_mount_event: Callable[[events.MountEvent], None] | None = None
        self.is_abandoned = False
        self.starting: Start | None = None
        self.started_for: Conduct | None = None
        self._cancels = 0
        self._unwanted: set[str] = set()
        self._limactl = limactl
        self._guest: Guest | None = None
        self._instance: Instance | None = None
        self._shown: tuple[Path, ...] = ()
        self._serial: list[str] = []
        # The VM process whose missing host agent was warned of.
        self._warned = 0
        # A host agent that we took for ended, and never again: limactl may run where we cannot see its processes.
        self._unseen = 0
        self._turn = asyncio.Lock()
        self._when_idle = WhenIdle(name, self.hibernate)
        self._stack = AsyncExitStack()

    def _on_event(self, event: events.GuestEvent) -> None:
        if isinstance(event, events.PowerOff):
            logger.warning("The VM %r shuts down: nobody used it for %.0f s.", self.name, event.idle)
        elif isinstance(event, events.Idle):
            self._when_idle.begin(event.idle)
        elif isinstance(event, events.KernelExit):
            if watcher := self.watchers.get(event.kernel):
                watcher(event)
        elif self.on_mount_event is not None:
            self.on_mount_event(event)

    async def ensure(self, wish: Wish) -> Guest:
        """Return a guest that is ready for a kernel: create, boot and connect as far as that is missing.

        :raises PhaseTimeout: when the time is used up; names the phase, and shows the end of the serial log.
        :raises Cancelled: when somebody cancelled it meanwhile.
        :raises LimaKernelsError: for each thing that can go wrong on the way, in one line.
        """
        cancels = self._cancels
        async with self._turn:
            if self._guest is not None and not self._guest.is_lost() and not is_asleep(self.name):
                return self._guest
            if cancels != self._cancels:
                raise was_cancelled(self.name)
            self.progress.restart()
            try:
                with Start(self.name) as self.starting:
                    return await self._in_time(wish)
            finally:
                self.starting = None

    def cancel_start(self) -> None:
        """Undo the start that is under way; all who wait for it fail."""
        if self.starting is not None:
            self._cancels += 1
            self.starting.cancel()

    async def _in_time(self, wish: Wish) -> Guest:
        limit: Limit | None = None
        try:
            async with asyncio.timeout(wish.create_timeout) as timer:
                limit = Limit(wish, timer)
                return await self._prepare(wish, limit)
        except TimeoutError as error:
            assert limit is not None
            raise PhaseTimeout(
                f"The VM {self.name!r} was not ready in time: {limit.name} ({limit.seconds:.0f} s) was used up "
                f"{self.progress.phase.value}.",
                hint=f"Give it more with {limit.name} in the kernel spec's config.",
                context=self._serial,
            ) from error

    def live(self) -> Live | None:
        """Return the guest that we are connected to, without any wait; None when we are not."""
        if self._guest is None or self._instance is None or self._guest.is_lost():
            return None
        return Live(self._instance, self._guest)

    def shows(self, directory: Path) -> bool:
        """Tell whether the guest, once it is reached, shows a directory since it booted."""
        return any(mounts.holds(shown, directory) for shown in self._shown)

    async def _prepare(self, wish: Wish, limit: Limit) -> Guest:
        while True:
            try:
                return await self._attempt(wish, limit)
            except waking.NotWoken as failed:
                logger.warning("%s", failed)
            except Ended as ended:
                self._unseen = ended.pid
                logger.warning("The VM %r stopped, or lost its host agent, while it was started; again.", self.name)

    async def _attempt(self, wish: Wish, limit: Limit) -> Guest:
        async with AsyncExitStack() as stack:
            self.progress.enter(Phase.CHECK)
            await self._limactl.version()
            async with locked(self.progress, wish.boot_timeout):
                asleep = await waking.settled(self._limactl, self.name)
                instance, created = await present(self._limactl, self.name, wish, self.progress)
                if self._guest is not None and not self._guest.is_lost():
                    # It runs, and shows the directory: other kernels' connection is not touched for that.
                    return self._guest
                await self.disconnect()
                limit.exists()
                boot, iid = None, ""
                kind = history.Kind.CREATE if created else history.Kind.WAKE if asleep else history.Kind.BOOT
                ours: list[Instance] = []
                if not instance.is_up:
                    self.progress.expected = history.expected(self.name, kind, wish.made_of)
                    if asleep is None:
                        stack.push_async_exit(self._undo_boot(created, limit, ours))
                        boot = await self._boot(stack, wish)
                    else:
                        boot, iid = await self._wake(stack, instance, asleep, wish)
                    instance = await self._limactl.get(self.name)
                instance = await with_port(self._limactl, instance, boot)
                if boot is not None:
                    ours.append(instance)
            guest = self._keep(stack, await self._reach(stack, instance, wish, boot, iid), instance)
            if boot is not None:
                self.started_for = None if wish.attach else wish.conduct
                history.note(self.name, kind, self.progress.elapsed, wish.made_of)
            return guest

    async def _boot(self, stack: AsyncExitStack, wish: Wish) -> lima_boot.Boot:
        self.progress.enter(Phase.BOOT)
        boot = await stack.enter_async_context(lima_boot.booting(self._limactl, self.name, timeout=wish.boot_timeout))
        await boot.ssh_port
        return boot

    async def _wake(
        self, stack: AsyncExitStack, instance: Instance, asleep: Hibernated, wish: Wish
    ) -> tuple[lima_boot.Boot, str]:
        self.progress.enter(Phase.WAKE)
        boot = await stack.enter_async_context(
            waking.waking(self._limactl, instance, asleep, timeout=wish.boot_timeout)
        )
        return boot, waking.instance_id(instance)

    def _keep(self, stack: AsyncExitStack, guest: Guest, instance: Instance) -> Guest:
        """Make a guest the one that all kernels share."""
        self._stack = stack.pop_all()
        self._guest = guest
        self._instance = instance
        self._shown = tuple(Path(mount.location) for mount in mounts.at_same_path(instance.config.mounts))
        return guest

    def _undo_boot(self, created: bool, limit: Limit, ours: list[Instance]) -> Callable[..., Awaitable[None]]:
        """What to do when the block of a boot ends by an error: a VM that does not boot is not left half-started.

        One that boots but lacks something is left for a look at it, and so is one that nobody waits for any more.

        :param ours: what we booted, once it is known: another process may have ended that and booted it anew.
        """

        async def undo(_type: object, error: BaseException | None, _traceback: object) -> None:
            is_cancelled = self.starting is not None and self.starting.is_cancelled
            if is_cancelled or limit.expired() or isinstance(error, InstanceError):
                self._serial = lima_boot.serial_tail(paths.serial_logs(paths.lima_home() / self.name))
                # The phase that used the time up stays in the one that is ours.
                silent = Progress(self.name, lambda _step: None)
                with contextlib.suppress(LimaKernelsError):
                    async with locked(silent, UNDO_TIMEOUT):
                        silent.enter(Phase.STOPPING)
                        found = await self._limactl.find(self.name)
                        if found is None or (found.is_up and ours and found.driver_pid != ours[0].driver_pid):
                            return
                        await self._limactl.stop_forcibly(self.name)
                        if created:
                            await self._limactl.delete(self.name)

        return undo

    async def _reach(
        self, stack: AsyncExitStack, instance: Instance, wish: Wish, boot: lima_boot.Boot | None, iid: str
    ) -> Guest:
        """Connect and wait until the guest is ready; a boot that fails, or a VM that stops, ends the wait."""
        work = asyncio.ensure_future(self._ready(stack, instance, wish, iid))
        watch = asyncio.ensure_future(self._watch(instance, boot))
        try:
            await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                await watch
            return await work
        except InstanceError as error:
            serial = lima_boot.serial_tail(paths.serial_logs(instance.dir))
            raise InstanceError(error.message, hint=error.hint, context=(*error.context, *serial)) from error
        except LimaKernelsError:
            # A guest that shuts down is no longer as it should be.
            agent = instance.host_agent_pid
            if ending.is_stopping(instance.dir) or not (hostagent.is_alive(agent) or agent in (0, self._unseen)):
                raise Ended(agent) from None
            raise
        finally:
            for task in (work, watch):
                task.cancel()
            await asyncio.gather(work, watch, return_exceptions=True)

    async def _watch(self, instance: Instance, boot: lima_boot.Boot | None) -> None:
        """Wait until the VM can no longer come up, for whoever waits for it.

        :raises InstanceError: when our boot of it failed.
        :raises Ended: when its host agent, or the VM itself where that has none, has ended.
        """
        if boot is not None:
            await boot.finished
        pid = instance.host_agent_pid or instance.driver_pid
        if pid in (0, self._unseen):
            await asyncio.get_running_loop().create_future()
        await hostagent.gone(pid)
        raise Ended(pid)

    async def _ready(self, stack: AsyncExitStack, instance: Instance, wish: Wish, iid: str = "") -> Guest:
        wanted = arrival.needs(instance, wish)
        while True:
            connection = await self._connect(instance)
            stack.push_async_callback(connection.close)
            try:
                found = await arrival.arrive(connection, instance, wanted, self.progress, self._on_event, iid=iid)
            except ConnectionFailed:
                # In a guest's first boot Lima ends all sessions once; any other failure is meant.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CLOSING_TIMEOUT):
                        await connection.closed.wait()
                if not connection.closed.is_set():
                    raise
                continue
            stack.push_async_callback(found.forkserver.close)
            await self._sweep(found.forkserver)
            return Guest(connection, found.facts, found.forkserver)

    async def _connect(self, instance: Instance) -> Connection:
        self.progress.enter(Phase.CONNECT)
        if instance.status is not Status.RUNNING and self._warned != instance.driver_pid:
            self._warned = instance.driver_pid
            warn_without_host_agent(instance)
        endpoint = Endpoint(
            instance.ssh_address, hostagent.ssh_port(instance), instance.config.user.name, paths.identity_file()
        )
        ours = owner_mark(instance) is not None
        keys = KeyStore(paths.pinned_key_file(instance.dir), boot="" if ours else str(instance.driver_pid))
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
            if instance.status is Status.UNKNOWN:
                raise ConnectionFailed(f"limactl does not know whether the VM {self.name!r} runs.")
            if not instance.is_up:
                state = "stopped" if instance.status is Status.STOPPED else "not running"
                raise InstanceError(f"The VM {self.name!r} is {state}: {ending.how_it_ended(instance.dir)}.")
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

    async def abandon(self) -> None:
        """Close the connection for good, for this process ends."""
        self.is_abandoned = True
        await self.disconnect()

    async def stop(self, *, force: bool = False) -> None:
        """Stop the VM; its kernels end.

        :param force: end its processes; what its guest had not written to disk is lost.
        """
        async with self._turn:
            self.progress.restart()
            await self.disconnect()
            await instances.stop(self._limactl, self.progress, force=force)

    async def hibernate(self, *, force: bool = False) -> Hibernated:
        """Save the VM's memory and end it; its kernels live on when it is next started.

        :param force: also while cells run; they go on then.
        :raises InstanceError: when it cannot be; names who or what is in the way.
        """
        guest = await self.reconnect(REACH)
        async with self._turn:
            self.progress.restart()
            found = await saving.hibernate(self._limactl, self.progress, guest.forkserver, force=force)
            await self.disconnect()
            return found

    async def delete(self, *, force: bool = False) -> None:
        """Delete the VM with its disk.

        :param force: also while it runs.
        """
        async with self._turn:
            self.progress.restart()
            await instances.delete(self._limactl, self.progress, force=force)
            await self.disconnect()
