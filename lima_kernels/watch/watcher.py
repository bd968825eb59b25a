"""One watcher for all who look at VMs: it watches while anybody does, and tells each what he shows and follows."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Sequence

from ..lima.limactl import Limactl
from ..progress import Step
from ..vm import VM
from .cards import (
    Card,
    CardChanged,
    CardGone,
    Job,
    JobChanged,
    LogGrown,
    Message,
    Snapshot,
    UsageTaken,
)
from .census import Census
from .jobs import Jobs
from .machine import Machine
from .usage import Meter, look

logger = logging.getLogger(__name__)

# Seconds between looks at what is shown, and at processes that may have been killed.
INTERVAL = 2.0
# Seconds between looks at one VM, whoever begins to show it.
_LEAST = 0.5


class Subscription:
    """Somebody who watches; made by :meth:`Watcher.subscribe`. Shows no usage and follows no log until it says so."""

    def __init__(self, watcher: Watcher, send: Callable[[Message], None]) -> None:
        self._watcher = watcher
        self._send = send
        self._shown: frozenset[str] | None = frozenset()
        self._followed: str | None = None

    def show(self, names: Collection[str] | None) -> None:
        """Say of which VMs the usage is wanted from now on; None for all."""
        self._shown = None if names is None else frozenset(names)
        self._watcher.look_soon()

    def shows(self, name: str) -> bool:
        """Tell whether a VM's usage is wanted."""
        return self._shown is None or name in self._shown

    def follow(self, name: str | None) -> None:
        """Say which VM's log is wanted from now on, its last lines at once; None for none."""
        self._followed = name
        if name is not None and (lines := self._watcher.log(name)):
            self.tell(LogGrown(name, lines))

    def follows(self, name: str) -> bool:
        """Tell whether a VM's log is wanted."""
        return self._followed == name

    def tell(self, message: Message) -> None:
        """Send a message; who cannot take it is told nothing more."""
        try:
            self._send(message)
        except Exception:
            logger.exception("Somebody who watches VMs failed, and is told nothing more.")
            self._watcher.drop(self)

    async def close(self) -> None:
        """Watch no longer; may be called twice."""
        await self._watcher.leave(self)


class Watcher:
    """Watches the VMs of this user while anybody is subscribed; to be used in the I/O thread.

    ``jobs`` go on whether or not anybody watches.

    :param vm: returns the handle of an instance.
    """

    def __init__(self, limactl: Limactl, vm: Callable[[str], VM]) -> None:
        self.jobs = Jobs(limactl, vm, self._job_changed)
        self._limactl = limactl
        self._vm = vm
        self._subscriptions: list[Subscription] = []
        self._turn = asyncio.Lock()
        self._census: Census | None = None
        self._beat: asyncio.Task[None] | None = None
        self._has_to_look = asyncio.Event()
        self._meters: dict[str, Meter] = {}

    async def subscribe(self, send: Callable[[Message], None]) -> Subscription:
        """Tell somebody what there is, before this returns, and then all that changes.

        :param send: called in the I/O thread; it must not block.
        :raises LimaKernelsError: when limactl fails, or files cannot be watched.
        """
        async with self._turn:
            if self._census is None:
                census = Census(self._limactl, self._vm, self)
                try:
                    await census.begin()
                except BaseException:
                    await census.close()
                    raise
                self._census = census
                self._beat = asyncio.ensure_future(self._look_in_time(census))
            subscription = Subscription(self, send)
            self._subscriptions.append(subscription)
            subscription.tell(Snapshot(self.cards(), self.jobs.all()))
        return subscription

    def cards(self) -> Sequence[Card]:
        """Return the VMs as they were last told of, by name; none while nobody is subscribed."""
        machines = self._census.machines if self._census else {}
        return [machine.card for _, machine in sorted(machines.items()) if machine.card is not None]

    def drop(self, subscription: Subscription) -> None:
        """Tell somebody nothing more."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)

    async def leave(self, subscription: Subscription) -> None:
        """Tell somebody nothing more; with the last one the watching ends."""
        self.drop(subscription)
        async with self._turn:
            census, beat = self._census, self._beat
            if self._subscriptions or census is None or beat is None:
                return
            self._census, self._beat = None, None
            beat.cancel()
            await asyncio.gather(beat, return_exceptions=True)
            await census.close()
            self._meters.clear()

    def log(self, name: str) -> Sequence[str]:
        """Return the last lines of a VM's log."""
        machine = self._census.machines.get(name) if self._census else None
        return list(machine.log) if machine else ()

    def on_step(self, step: Step) -> None:
        """Take notice of a step of a start or stop in this process."""
        self.jobs.on_step(step)
        self._look_again(step.instance)

    def look_soon(self) -> None:
        """Look now at what is shown."""
        self._has_to_look.set()

    # What the census tells

    def changed(self, card: Card) -> None:
        self._tell(CardChanged(card))

    def gone(self, name: str) -> None:
        self._meters.pop(name, None)
        self._tell(CardGone(name))

    def grown(self, name: str, lines: list[str]) -> None:
        for subscription in tuple(self._subscriptions):
            if subscription.follows(name):
                subscription.tell(LogGrown(name, lines))

    def _tell(self, message: Message) -> None:
        for subscription in tuple(self._subscriptions):
            subscription.tell(message)

    def _job_changed(self, job: Job) -> None:
        self._tell(JobChanged(job))
        self._look_again(job.vm)

    def _look_again(self, name: str) -> None:
        if self._census is not None:
            self._census.look_again(name)

    # What no file tells

    async def _look_in_time(self, census: Census) -> None:
        while True:
            census.check_processes()
            shown = [machine for machine in census.machines.values() if self._is_to_be_looked_at(machine)]
            results = await asyncio.gather(*map(self._look, shown), return_exceptions=True)
            for error in (result for result in results if isinstance(result, BaseException)):
                logger.error("A VM could not be looked at.", exc_info=error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL):
                    await self._has_to_look.wait()
            self._has_to_look.clear()

    def _is_to_be_looked_at(self, machine: Machine) -> bool:
        if machine.instance is None or not machine.instance.is_up:
            return False
        is_shown = any(subscription.shows(machine.name) for subscription in self._subscriptions)
        return is_shown and time.monotonic() - self._meter(machine.name).looked > _LEAST

    def _meter(self, name: str) -> Meter:
        return self._meters.setdefault(name, Meter())

    async def _look(self, machine: Machine) -> None:
        assert machine.instance is not None
        meter = self._meter(machine.name)
        meter.looked = time.monotonic()
        found = await look(machine.vm, machine.instance, meter)
        if found.kernels is not None:
            machine.kernels = found.kernels
        self._look_again(machine.name)
        for subscription in tuple(self._subscriptions):
            if subscription.shows(machine.name):
                subscription.tell(UsageTaken(found.usage))
