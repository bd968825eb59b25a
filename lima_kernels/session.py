"""One kernel in a VM: its process in the guest and its five channels on the host, on one exit stack."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import shutil
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from . import added_mounts, leases, paths
from .errors import ConnectionFailed, GuestError, InstanceError, LimaKernelsError, PhaseTimeout
from .guest.calls import Calls
from .guest.events import KernelExit
from .guest.forwards import Address, Forwards
from .guest.kernels import Birth, KernelFacts, KernelState, Ownership
from .guest.startup import Layout
from .guest.streams import Claim
from .hibernation.state import awake, given_up, is_asleep
from .instances import Wish
from .launch import Entry, Launch
from .magics.protocol import NAME_VARIABLE, SOCKET_VARIABLE
from .progress import Phase
from .reproduce.syncing import Ready, ready
from .vm import VM, Guest

logger = logging.getLogger(__name__)

# A kernel that went with its VM ended as if it had been killed.
GONE = -int(signal.SIGKILL)
# Seconds.
RETRY_INTERVAL = 2.0
SIGNAL_TIMEOUT = 10.0
LOST_OUTPUT = "The connection to the VM was lost for a while; some output and replies of that time may be missing."


class Session:
    """A kernel in a VM that is ours; made by :func:`open_session` or :func:`adopt`, and closed when no longer needed.

    ``exit`` is None while the kernel lives, or cannot be reached: unreachable is not dead. ``connection`` is the
    content of the guest's connection file.

    :param name: the kernel's in the guest.
    """

    def __init__(self, vm: VM, wish: Wish, guest: Guest, name: str, keep: float | None) -> None:
        self.exit: KernelExit | None = None
        self.connection: dict[str, Any] = {}
        self.address: Address | None = None
        self.name = name
        self._ended = asyncio.Event()
        self._end_is_wanted = False
        self._has_lost = False
        self._vm = vm
        self._wish = wish
        self._guest = guest
        self._ownership = Ownership(secrets.token_hex(16), keep)
        self._calls: Calls | None = None
        self._stack = AsyncExitStack()

    # Starting

    async def start(self, launch: Launch) -> None:
        """Start the kernel and forward its channels; undone by :meth:`close` when it fails."""
        entry = Entry(launch.transport, launch.kernel_id, launch.facts, launch.control)
        lease = leases.acquire(self._vm.name, self.name, entry.facts, entry.sockets)
        assert lease is not None
        self._stack.callback(lease.release)
        self.connection = launch.connection_file(self._layout.channels(self.name))
        self._watch()
        self._stack.push_async_callback(self._remove)
        await self._have_directory()
        environment = await self._environment()
        self._vm.progress.enter(Phase.KERNEL)
        birth = Birth(
            cwd=str(launch.cwd),
            env={**launch.env, NAME_VARIABLE: self._vm.name, SOCKET_VARIABLE: self._layout.control(self.name)},
            connection=self.connection,
            arguments=launch.arguments,
            ownership=self._ownership,
            facts=launch.facts,
            spec=launch.guest_spec,
            notes=[*launch.notes, *environment.notes],
            python=environment.python,
        )
        try:
            await self._guest.forkserver.spawn(self.name, birth, timeout=launch.timeout)
        except TimeoutError as error:
            raise PhaseTimeout(
                f"The kernel in {self._vm.name!r} was not ready in time: kernel_timeout ({launch.timeout:.0f} s) was "
                f"used up {Phase.KERNEL.value}.",
                hint="Give it more with kernel_timeout in the kernel spec's config.",
            ) from error
        await self._forward(entry)

    async def take(self, entry: Entry, lease: leases.Lease) -> None:
        """Be the owner of a kernel that runs already, and forward its channels; given up again when that fails."""
        self._stack.callback(lease.release)
        self._watch()
        self._stack.push_async_callback(self._release)
        held = await self._guest.forkserver.hold(self.name, self._ownership)
        self.connection = held.connection
        await self._have_directory()
        await self._forward(entry)

    async def _have_directory(self) -> None:
        """Add the notebook's directory to a VM that runs and does not show it; see that it is served from now on."""
        directory = self._wish.directory
        if directory is not None and not self._vm.shows(directory):
            await added_mounts.add(self._vm, self._guest, self._wish, directory, user=self.name)
            keeper = asyncio.ensure_future(added_mounts.keep_served(self._vm.name))
            self._stack.push_async_callback(_cancelled, keeper)

    async def _environment(self) -> Ready:
        """Return the Python that the kernel runs in; the environment is made where the guest does not have it yet."""
        locked = self._wish.locked
        if locked is None:
            return Ready("")
        return await ready(self._vm, self._guest, locked, timeout=self._wish.create_timeout)

    @property
    def _layout(self) -> Layout:
        return Layout(self._guest.facts)

    def _watch(self) -> None:
        self._vm.watchers[self.name] = self._end
        self._stack.callback(self._vm.watchers.pop, self.name, None)

    async def _forward(self, entry: Entry) -> None:
        self._vm.progress.enter(Phase.FORWARD)
        directory = entry.sockets
        if directory:
            self._stack.callback(shutil.rmtree, directory, ignore_errors=True)
            paths.socket_directory(entry.kernel_id)
        self._forwards = Forwards(entry.transport, (directory or Path()) / "c")
        self._stack.push_async_callback(self._forwards.close)
        self.address = await self._forwards.listen()
        await self._connect()
        if entry.control is not None:
            self._calls = Calls(entry.control(self.name, self.connection["key"].encode()))
            self._stack.push_async_callback(self._calls.close)
            self._listen()
        keeper = asyncio.ensure_future(self._keep())
        self._stack.push_async_callback(_cancelled, keeper)
        self._vm.progress.enter(Phase.READY)

    async def _connect(self) -> bool:
        claim = Claim({"kernel": self.name}, self._ownership.token, self._guest.forkserver.socket)
        return await self._forwards.connect(self._guest.connection, claim)

    def _listen(self) -> None:
        """Let the kernel ask us for something, over the connection that there is now; nobody need wait for that."""
        if self._calls is not None:
            listening = asyncio.ensure_future(self._take_calls(self._calls))
            self._stack.push_async_callback(_cancelled, listening)

    async def _take_calls(self, calls: Calls) -> None:
        try:
            await calls.listen(self._guest.connection, self._layout.control(self.name))
        except LimaKernelsError as error:
            # A kernel that can ask for nothing is a kernel.
            logger.warning("The kernel in the VM %r cannot ask for anything. %s", self._vm.name, error)

    # Living

    async def _keep(self) -> None:
        """Come back after each loss of the connection, until the kernel is known to have ended."""
        while self.exit is None:
            connection, forkserver = self._guest.connection, self._guest.forkserver
            await _first(connection.closed.wait(), forkserver.wait_closed(), given_up(self._vm.name))
            if self._vm.is_abandoned:
                return
            if not self._guest.is_lost():
                # Whoever put it to sleep was killed before it slept.
                with contextlib.suppress(LimaKernelsError):
                    await self._vm.ensure(self._wish)
                continue
            logger.warning("The connection to the VM %r was lost; connecting again.", self._vm.name)
            self._forwards.disconnect()
            is_resumed = False
            while self.exit is None and not is_resumed:
                try:
                    self._guest = await (self._awake() if is_asleep(self._vm.name) else self._vm.reconnect(self._wish))
                    await self._resume()
                    is_resumed = True
                except InstanceError as error:
                    if is_asleep(self._vm.name):
                        logger.warning("%s", error)
                        await asyncio.sleep(RETRY_INTERVAL)
                    else:
                        self._end(KernelExit(self.name, GONE, reason=str(error)))
                except LimaKernelsError as error:
                    logger.warning("%s", error)
                    await asyncio.sleep(RETRY_INTERVAL)

    async def _awake(self) -> Guest:
        """Wait until somebody wakes the VM, or wake it when one of our clients asks for something."""
        logger.info("The VM %r sleeps, and the kernel with it, until it is asked for something.", self._vm.name)
        await _first(self._forwards.asked.wait(), awake(self._vm.name))
        # One that was started otherwise is not started by us.
        return await (self._vm.ensure if self._forwards.asked.is_set() else self._vm.reconnect)(self._wish)

    async def _resume(self) -> None:
        forkserver = self._guest.forkserver
        state = (await forkserver.list()).get(self.name)
        if state is None:
            self._end(KernelExit(self.name, GONE, reason="the guest no longer knows it"))
        elif state.code is not None:
            self._end(KernelExit(self.name, state.code, reason=state.reason))
        else:
            held = await forkserver.hold(self.name, self._ownership)
            # Remembered, for this connection may be lost as well before it has been said.
            self._has_lost = self._has_lost or held.lost
            self._has_lost = not await self._connect() or self._has_lost
            self._listen()
            if self._has_lost:
                logger.warning("The kernel in the VM %r is reached again. %s", self._vm.name, LOST_OUTPUT)
                await forkserver.note(self.name, LOST_OUTPUT)
                self._has_lost = False
            else:
                logger.warning("The kernel in the VM %r is reached again; nothing was lost.", self._vm.name)

    def _end(self, exit_: KernelExit) -> None:
        if self.exit is None:
            self.exit = exit_
            self._ended.set()
            if obituary := self.obituary():
                logger.warning("%s", "\n  ".join((obituary, *exit_.log)))

    def obituary(self) -> str:
        """Return in one line how the kernel ended, when nobody here wanted that; else nothing."""
        if self.exit is None or self._end_is_wanted or not self.exit.code:
            return ""
        reason = f": {self.exit.reason.rstrip('.')}" if self.exit.reason else ""
        advice = " Give the VM more: memory in its environment file." if "out of memory" in reason else ""
        return f"The kernel in {self._vm.name!r} {describe(self.exit.code)}{reason}.{advice}"

    async def signal(self, signum: int) -> None:
        """Send a signal to the kernel's process group."""
        if self.exit is None:
            self._end_is_wanted = self._end_is_wanted or signum in (signal.SIGTERM, signal.SIGKILL)
            try:
                await self._guest.forkserver.signal(self.name, signum)
            except ConnectionFailed:
                # The keeper is at it already.
                async with asyncio.timeout(SIGNAL_TIMEOUT):
                    guest = await self._reach()
                await guest.forkserver.signal(self.name, signum)

    async def _reach(self) -> Guest:
        """Return the guest, which is woken where it sleeps."""
        return await (self._vm.ensure if is_asleep(self._vm.name) else self._vm.reconnect)(self._wish)

    async def wait(self) -> int:
        """Wait for the kernel's end and return its exit code, negative for a signal."""
        await self._ended.wait()
        assert self.exit is not None
        return self.exit.code

    # Ending

    def keep_no_longer(self) -> None:
        """Let :meth:`close` end the kernel; what was adopted is otherwise left as it was."""
        self._stack.push_async_callback(self._remove)

    async def _release(self) -> None:
        with contextlib.suppress(LimaKernelsError):
            await self._guest.forkserver.release(self.name)

    async def _remove(self) -> None:
        self._end_is_wanted = True
        await self._vm.remove(self.name, self._wish)

    async def close(self) -> None:
        """End what is left of the kernel, close its channels and remove its files; may be called twice."""
        await self._stack.aclose()
        if self.exit is None:
            self._end(KernelExit(self.name, 0))


async def open_session(vm: VM, wish: Wish, launch: Launch) -> Session:
    """Start a kernel in a VM that is made, booted and connected to as needed; a failure leaves nothing behind.

    A kernel of the same notebook and kernel spec that lives on without an owner is adopted instead.

    :raises LimaKernelsError: one line that says what failed.
    """
    guest = await vm.ensure(wish)
    try:
        return await _opened(vm, wish, guest, launch)
    except (ConnectionFailed, GuestError):
        # A connection that looked alive may have been dead for a while: a laptop slept, an idle VM stopped itself.
        if not guest.is_lost():
            raise
    return await _opened(vm, wish, await vm.ensure(wish), launch)


async def _opened(vm: VM, wish: Wish, guest: Guest, launch: Launch) -> Session:
    # What killed processes left on this host goes.
    leases.held(vm.name)
    await guest.forkserver.obey(wish.conduct)
    if launch.facts.session and (found := await _adopted(vm, wish, guest, launch)):
        return found
    session = Session(vm, wish, guest, secrets.token_hex(8), launch.keep)
    return await _or_closed(session, session.start(launch))


async def _adopted(vm: VM, wish: Wish, guest: Guest, launch: Launch) -> Session | None:
    """Take over a kernel of the same notebook, if there is one."""
    entry = Entry(launch.transport, launch.kernel_id, launch.facts)
    for name, state in await _orphans(guest, launch.facts):
        try:
            session = await adopt(vm, wish, guest, name, entry, keep=launch.keep)
        except GuestError as error:
            # It has just ended, or lacks something: that is no reason to have no kernel.
            logger.warning("The kernel of %s cannot be had again. %s", state.facts.session, error)
            continue
        if session is not None:
            logger.warning(
                "The kernel of %s that an earlier server left in the VM %r goes on, with its variables.",
                state.facts.session,
                vm.name,
            )
            session.keep_no_longer()
            return session
    return None


async def _orphans(guest: Guest, facts: KernelFacts) -> list[tuple[str, KernelState]]:
    """Return the living kernels of a notebook and kernel spec, encrypted as we are, the newest first."""
    known = (await guest.forkserver.list()).items()
    same = [(name, state) for name, state in known if state.code is None and state.facts == facts]
    return sorted(same, key=lambda entry: -entry[1].started)


async def adopt(
    vm: VM, wish: Wish, guest: Guest, name: str, entry: Entry, *, keep: float | None = None
) -> Session | None:
    """Take over a kernel whose owner is dead; None when its owner lives.

    :param keep: seconds that it lives on when we die; None to leave that as its owner said.
    """
    lease = leases.acquire(vm.name, name, entry.facts, entry.sockets)
    if lease is None:
        return None
    session = Session(vm, wish, guest, name, keep)
    return await _or_closed(session, session.take(entry, lease))


async def _or_closed(session: Session, opening: Any) -> Session:
    try:
        await opening
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
