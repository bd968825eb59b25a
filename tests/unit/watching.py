"""What tests of the watcher are given: somebody who watches, and what a host agent does by itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from lima_kernels.lima.limactl import Limactl
from lima_kernels.vm import VM
from lima_kernels.watch.cards import Card, CardChanged, CardGone, Job, JobChanged, Message, Snapshot, State
from lima_kernels.watch.watcher import Subscription, Watcher

T = TypeVar("T", bound=Message)
# Seconds that a test waits for what has to come.
PATIENCE = 30.0


class Ear:
    """Hears what a subscriber is told, and knows what that makes of all."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._news = asyncio.Event()

    def __call__(self, message: Message) -> None:
        self.messages.append(message)
        self._news.set()

    async def until(self, condition: Callable[[], Any]) -> Any:
        """Wait until something is so, as far as messages tell; returns what the condition does."""
        async with asyncio.timeout(PATIENCE):
            while not (found := condition()):
                self._news.clear()
                await self._news.wait()
        return found

    def all(self, kind: type[T]) -> list[T]:
        return [message for message in self.messages if isinstance(message, kind)]

    def card(self, name: str) -> Card | None:
        """The VM as the messages leave it."""
        found = None
        for message in self.messages:
            if isinstance(message, Snapshot):
                found = next((card for card in message.vms if card.name == name), None)
            elif isinstance(message, CardChanged) and message.vm.name == name:
                found = message.vm
            elif isinstance(message, CardGone) and message.name == name:
                found = None
        return found

    def states(self, name: str) -> list[State]:
        """The states that a VM was told to be in, one after another."""
        told = [message.vm.state for message in self.all(CardChanged) if message.vm.name == name]
        return [state for number, state in enumerate(told) if number == 0 or told[number - 1] is not state]

    def job(self, id_: str) -> Job | None:
        """A job as it was last told of."""
        told = [message.job for message in self.all(JobChanged) if message.job.id == id_]
        return told[-1] if told else None

    async def state(self, name: str, state: State) -> Card:
        """Wait until a VM is in a state."""

        def is_so() -> Card | None:
            card = self.card(name)
            return card if card is not None and card.state is state else None

        found = await self.until(is_so)
        assert isinstance(found, Card)
        return found


class Process:
    """What a process has that watches: limactl, one handle for each VM, and the watcher."""

    def __init__(self) -> None:
        self.limactl = Limactl()
        self.vms: dict[str, VM] = {}
        self.watcher = Watcher(self.limactl, self.vm)
        self._subscriptions: list[Subscription] = []

    def vm(self, name: str) -> VM:
        if name not in self.vms:
            self.vms[name] = VM(name, self.limactl, self.watcher.on_step)
        return self.vms[name]

    async def watch(self) -> tuple[Ear, Subscription]:
        ear = Ear()
        subscription = await self.watcher.subscribe(ear)
        self._subscriptions.append(subscription)
        return ear, subscription

    async def close(self) -> None:
        for subscription in self._subscriptions:
            await subscription.close()
        for vm in self.vms.values():
            await vm.disconnect()


async def soon(condition: Callable[[], Any]) -> None:
    """Wait until something is so that no message tells of."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.02)


def event(directory: Path, **status: Any) -> None:
    """Let the host agent tell limactl something."""
    line = json.dumps({"time": datetime.now(UTC).isoformat(), "status": status})
    with (directory / "ha.stdout.log").open("a") as file:
        file.write(line + "\n")


def logged(directory: Path, message: str, level: str = "info") -> None:
    """Let the host agent log a line."""
    line = json.dumps({"level": level, "msg": message, "time": datetime.now(UTC).isoformat()})
    with (directory / "ha.stderr.log").open("a") as file:
        file.write(line + "\n")
