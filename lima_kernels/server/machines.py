"""Routes of VMs and of what is asked of them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from ..errors import ConfigurationError, NotFound, nearest
from ..instances import REACH
from ..lima.limactl import Limactl
from ..lima.logs import host_agent
from ..runtime import runtime
from ..watch.actions import Action, Create, action
from ..watch.cards import Card, Job, Kernel, Message, Snapshot
from ..watch.shared import watcher
from ..watch.usage import kernels_of
from . import foresight
from .base import EVENT_SCHEMA, Route, answers, named

# Lines of a log.
_LINES = 200
_MOST_LINES = 10_000
# What a POST can ask of a VM that is there.
_POSTED = ("start", "stop", "hibernate", "restart")


class Everything(msgspec.Struct, frozen=True):
    """All there is."""

    vms: Sequence[Card]
    jobs: Sequence[Job]


async def look() -> Everything:
    """Return all there is now; to be called in the I/O thread."""
    found: list[Message] = []
    subscription = await watcher().subscribe(found.append)
    await subscription.close()
    (snapshot,) = (message for message in found if isinstance(message, Snapshot))
    return Everything(snapshot.vms, snapshot.jobs)


async def _begin(vm: str, asked: Action) -> Job:
    await foresight.check(Limactl(), runtime().vm, vm, asked)
    return watcher().jobs.start(vm, asked)


class Acting(Route):
    """A route by which something can be asked of a VM."""

    async def begin(self, verb: str, vm: str, arguments: Mapping[str, Any]) -> Job:
        """Begin an action, and return its job."""
        if "verb" in arguments:
            raise ConfigurationError("The request has the unknown field 'verb': the route says it.")
        asked = action(verb, arguments)
        name = named(asked.name if isinstance(asked, Create) else vm)
        job = await runtime().run(_begin(name, asked))
        self.event_logger.emit(schema_id=EVENT_SCHEMA, data={"action": verb, "vm": job.vm, "job": job.id})
        self.set_status(HTTPStatus.ACCEPTED)
        return job


class Machines(Acting):
    """All VMs."""

    @answers
    async def get(self) -> Everything:
        return await runtime().run(look())

    @answers
    async def post(self) -> Job:
        return await self.begin("create", "", self.body())


class Machine(Acting):
    """One VM."""

    @answers
    async def get(self, name: str) -> Card:
        named(name)
        cards = {card.name: card for card in (await runtime().run(look())).vms}
        if name not in cards:
            raise NotFound(f"There is no Lima instance {name!r}.", hint=nearest(name, list(cards)))
        return cards[name]

    @answers
    async def patch(self, name: str) -> Job:
        return await self.begin("edit", name, self.body())

    @answers
    async def delete(self, name: str) -> Job:
        force = self.get_query_argument("force", "0")
        if force not in ("0", "1"):
            raise ConfigurationError(f"expected 0 or 1, got {force!r} at force.")
        return await self.begin("delete", name, {"force": force == "1"})


class Verb(Acting):
    """What can be asked of one VM."""

    @answers
    async def post(self, name: str, verb: str) -> Job:
        if verb not in _POSTED:
            raise NotFound(f"There is no action {verb!r}.", hint=nearest(verb, _POSTED))
        return await self.begin(verb, name, self.body())


class Log(Route):
    """The end of a VM's log."""

    @answers
    async def get(self, name: str) -> Mapping[str, Sequence[str]]:
        said = self.get_query_argument("lines", str(_LINES))
        lines = int(said) if said.isascii() and said.isdecimal() and len(said) < 9 else 0
        if not 0 < lines <= _MOST_LINES:
            raise ConfigurationError(f"expected a number from 1 to {_MOST_LINES}, got {said[:20]!r} at lines.")
        return {"lines": await runtime().run(_log(named(name), lines))}


class Kernels(Route):
    """The kernels that live in a VM; None when it does not run."""

    @answers
    async def get(self, name: str) -> Mapping[str, Sequence[Kernel] | None]:
        return {"kernels": await runtime().run(_kernels(named(name)))}


async def _log(name: str, lines: int) -> Sequence[str]:
    instance = await Limactl().get(name)
    entries = await asyncio.to_thread(host_agent, instance.dir)
    return [entry.line for entry in entries[-lines:]]


async def _kernels(name: str) -> Sequence[Kernel] | None:
    if not (await Limactl().get(name)).is_up:
        return None
    vm = runtime().vm(name)
    await vm.reconnect(REACH)
    live = vm.live()
    return None if live is None else await kernels_of(vm, live)
