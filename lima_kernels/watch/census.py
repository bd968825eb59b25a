"""All VMs of this user, as they are now: limactl is asked of those whose files change, and of no other, and never else.

Files tell of all but one change: a process that is killed leaves them as they are. So it is looked whether those that
limactl told of are still there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Protocol

from .. import paths
from ..errors import LimaKernelsError
from ..lima import hostagent
from ..lima.limactl import Limactl
from ..lima.models import Instance, Status
from ..vm import VM
from .cards import Card
from .files import Files
from .machine import Machine

logger = logging.getLogger(__name__)

# Seconds that changes are gathered for: whoever writes one file mostly writes more.
DEBOUNCE = 0.03
# Seconds until an instance that has just become broken is looked at again: between two files all are.
SETTLE = 1.0
# Seconds until limactl is asked again when it failed.
RETRY = 5.0
_CONFIG = "lima.yaml"


class Audience(Protocol):
    """Who is told; in the I/O thread."""

    def changed(self, card: Card) -> None:
        """A VM is new, or changed."""

    def gone(self, name: str) -> None:
        """A VM is no more."""

    def grown(self, name: str, lines: list[str]) -> None:
        """A VM's log has new lines."""


class Census:
    """What VMs there are; to be made, begun and closed in the I/O thread.

    :param vm: returns the handle of an instance.
    """

    def __init__(self, limactl: Limactl, vm: Callable[[str], VM], audience: Audience) -> None:
        self.machines: dict[str, Machine] = {}
        self._limactl = limactl
        self._vm = vm
        self._audience = audience
        self._home = paths.lima_home()
        self._shared = paths.shared_state()
        self._files = Files(self._noticed)
        self._paths: set[Path] = set()
        self._has_news = asyncio.Event()
        self._unsure: set[str] = set()
        self._has_doubts = asyncio.Event()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        """Take the first look.

        :raises LimaKernelsError: when limactl fails, or files cannot be watched.
        """
        for path in (self._home, self._shared):
            self._files.add(path)
        for name in self._watch_states():
            self.look_again(name)
        for name in self._names():
            self._watch(name)
        for instance in await self._limactl.list():
            self._apply(instance.name, instance)
        self._tasks = [asyncio.ensure_future(work) for work in (self._read(), self._ask())]

    async def close(self) -> None:
        """Look at nothing any more."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._files.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # Files

    def _noticed(self, path: Path) -> None:
        self._paths.add(path)
        self._has_news.set()

    def _names(self) -> set[str]:
        try:
            return {entry.name for entry in self._home.iterdir() if entry.name[0] not in "._" and entry.is_dir()}
        except OSError:
            return set()

    def _watch(self, name: str) -> None:
        """Watch an instance's files, those that are there: its directory tells when others come."""
        directory = self._home / name
        self._files.add(directory)
        self._files.add(directory / _CONFIG)
        machine = self._machine(name)
        if self._files.add(paths.host_agent_events(directory)):
            machine.read_events()
        if self._files.add(paths.host_agent_log(directory)):
            self._tell_log(machine)

    def _watch_states(self) -> set[str]:
        """Watch what processes share of instances, and return the names of those that are new."""
        try:
            return {entry.name for entry in self._shared.iterdir() if entry.is_dir() and self._files.add(entry)}
        except OSError:
            return set()

    def _machine(self, name: str) -> Machine:
        if name not in self.machines:
            self.machines[name] = Machine(self._vm(name))
        return self.machines[name]

    async def _read(self) -> None:
        while True:
            await self._has_news.wait()
            await asyncio.sleep(DEBOUNCE)
            self._has_news.clear()
            noticed, self._paths = self._paths, set()
            try:
                self._look_at(noticed)
            except LimaKernelsError as error:
                logger.warning("%s", error)

    def _look_at(self, noticed: Collection[Path]) -> None:
        changed: set[str] = set()
        if self._home in noticed:
            self.doubt(self._names() ^ {name for name, machine in self.machines.items() if machine.instance})
        if self._shared in noticed:
            changed |= self._watch_states()
        for path in noticed:
            parent = path.parent
            if parent == self._shared:
                changed.add(path.name)
            elif parent == self._home and path != self._shared:
                self.doubt([path.name])
                self._watch(path.name)
                changed.add(path.name)
            elif parent.parent == self._home:
                changed.add(parent.name)
                self._look_into(path)
        for name in changed:
            self.look_again(name)

    def _look_into(self, file: Path) -> None:
        """Read what is new in a file of an instance; one that is another now, as after a start, is found by name."""
        name = file.parent.name
        machine = self._machine(name)
        if file.name == _CONFIG:
            self.doubt([name])
        elif file == paths.host_agent_log(file.parent):
            self._tell_log(machine)
        elif machine.read_events():
            self.doubt([name])

    def _tell_log(self, machine: Machine) -> None:
        if lines := machine.read_log():
            self._audience.grown(machine.name, lines)

    # limactl

    def doubt(self, names: Collection[str]) -> None:
        """Have limactl asked of instances."""
        self._unsure.update(names)
        if self._unsure:
            self._has_doubts.set()

    async def _ask(self) -> None:
        while True:
            await self._has_doubts.wait()
            self._has_doubts.clear()
            names, self._unsure = sorted(self._unsure), set()
            try:
                await self._ask_of(names)
            except LimaKernelsError:
                # One that limactl cannot load hides the others.
                for name in names:
                    await self._ask_of_one(name)

    async def _ask_of(self, names: Collection[str]) -> None:
        found = await self._limactl.named(names)
        for name in names:
            self._apply(name, found.get(name))

    async def _ask_of_one(self, name: str) -> None:
        try:
            await self._ask_of([name])
        except LimaKernelsError as error:
            logger.warning("%s", error)
            self._doubt_later(name, RETRY)

    def _doubt_later(self, name: str, seconds: float) -> None:
        if timer := self._timers.pop(name, None):
            timer.cancel()

        def doubt() -> None:
            del self._timers[name]
            self.doubt([name])

        self._timers[name] = asyncio.get_running_loop().call_later(seconds, doubt)

    def _apply(self, name: str, instance: Instance | None) -> None:
        machine = self._machine(name)
        was_broken = machine.instance is not None and machine.instance.status is Status.BROKEN
        machine.instance = instance
        if instance is not None:
            self._watch(name)
            if instance.status is Status.BROKEN and not was_broken and machine.card is not None:
                self._doubt_later(name, SETTLE)
        self._tell(machine)

    # Who is told

    def look_again(self, name: str) -> None:
        """Look whether a VM has changed by what this process, and files beside Lima's, say of it."""
        machine = self._machine(name)
        if machine.card is not None and machine.card.phase and machine.under_way() is None:
            # What came of it is limactl's to say.
            self.doubt([name])
        else:
            self._tell(machine)

    def _tell(self, machine: Machine) -> None:
        """Tell what has changed of a VM since it was last told of, if anything has."""
        name = machine.name
        before, machine.card = machine.card, machine.describe()
        if machine.card is None:
            if machine.instance is None and not (self._home / name).exists():
                self.machines.pop(name, None)
            if before is not None:
                self._audience.gone(name)
        elif machine.card != before:
            self._audience.changed(machine.card)

    def check_processes(self) -> None:
        """See whether processes have ended, those of VMs and those that are at work on one."""
        self.doubt([machine.name for machine in self.machines.values() if machine.has_lost_a_process()])
        for machine in tuple(self.machines.values()):
            if machine.holder and not hostagent.is_alive(machine.holder):
                self.look_again(machine.name)
