"""What a guest's panels may see of their host, and what they get that should not ask."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from lima_kernels.control import CONVERSATIONS, WATCHES, Control
from lima_kernels.guest import calls
from lima_kernels.lima.limactl import Limactl
from lima_kernels.magics import protocol
from lima_kernels.magics.results import Note
from lima_kernels.settings import Policy
from lima_kernels.verbs.context import Context
from lima_kernels.vm import VM
from lima_kernels.watch import guests, jobs
from lima_kernels.watch.actions import Start
from lima_kernels.watch.cards import LogGrown
from lima_kernels.watch.conversation import JOBS
from lima_kernels.watch.guests import SAID
from lima_kernels.watch.watcher import Watcher
from lima_kernels.widget.pending import Pending

from .conftest import Machine
from .test_control import KEY, OTHER, OWN, ask, message, request, two_vms  # noqa: F401  # a fixture


class Door:
    """The host's socket, and its watcher."""

    def __init__(self, path: Path, watcher: Watcher) -> None:
        self.path = path
        self.watcher = watcher

    async def quiet(self) -> None:
        """Wait until nobody watches."""
        async with asyncio.timeout(30):
            while self.watcher._subscriptions:
                await asyncio.sleep(0.02)


async def served(tmp_path: Path, policy: Policy) -> AsyncIterator[Door]:
    vms: dict[str, VM] = {}

    def vm(name: str) -> VM:
        return vms.setdefault(name, VM(name, Limactl(), lambda _step: None))

    watcher = Watcher(Limactl(), vm)
    control = Control(policy, OWN, "k1", KEY, vm, watcher=lambda: watcher)
    path = tmp_path / "control"
    server = await asyncio.start_unix_server(control.answer, path, limit=calls.LIMIT)
    async with server:
        yield (made := Door(path, watcher))
    await made.quiet()


@pytest.fixture
async def door(two_vms: Machine, tmp_path: Path) -> AsyncIterator[Door]:  # noqa: F811
    async for made in served(tmp_path, Policy.OWN_VM):
        yield made


class Guest:
    """A guest's side of a watch, that says what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def say(self, **said: Any) -> None:
        self.send(protocol.line(said))

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def next(self, kind: str) -> dict[str, Any]:
        """Return the next message of a kind; nothing of another VM is among those before it."""
        while True:
            line = await asyncio.wait_for(self._reader.readline(), 60)
            assert line, "the host hung up"
            assert OTHER.encode() not in line
            found = json.loads(line)
            if found.get("type") == kind:
                return found

    async def end(self) -> bytes:
        """Return all that comes until the host hangs up."""
        return await asyncio.wait_for(self._reader.read(), 60)

    def act(self, verb: str, vm: str = OWN, yes: bool = False, **arguments: Any) -> None:
        self.say(type="act", ref="r", vm=vm, verb=verb, arguments=arguments, yes=yes)


@contextlib.asynccontextmanager
async def watching(door: Door, *names: str) -> AsyncIterator[Guest]:
    reader, writer = await asyncio.open_unix_connection(door.path)
    writer.write(request(protocol.WATCH, *names))
    try:
        yield Guest(reader, writer)
    finally:
        writer.close()


# What it sees


@pytest.mark.parametrize("names", [(), (OWN,), ("",)])
async def test_a_kernel_sees_its_own_vm_only(door: Door, two_vms: Machine, names: tuple[str, ...]) -> None:  # noqa: F811
    async with watching(door, *names) as guest:
        snapshot = await guest.next("snapshot")
        assert [(vm["name"], vm["state"]) for vm in snapshot["vms"]] == [(OWN, "stopped")]
        guest.say(type="visible", names=None)
        guest.say(type="follow", name=OTHER)
        guest.say(type="follow", name="../" + OTHER)
        log = two_vms.lima_home / OTHER / "ha.stderr.log"
        log.write_text('{"level":"info","msg":"a secret","time":"2026-11-21T14:48:47Z"}\n')
        door.watcher.jobs.start(OTHER, Start())
        # The other VM changes first, and nothing of it comes.
        async with asyncio.timeout(30):
            while {card.name: card.state.value for card in door.watcher.cards()}[OTHER] == "stopped":
                await asyncio.sleep(0.02)
        (two_vms.lima_home / OWN / "lima.yaml").write_text("images: []\ncpus: 3\n")
        while (await guest.next("vm"))["vm"]["cpus"] != 3:
            pass
    await door.quiet()


@pytest.mark.parametrize("name", [OTHER, f"../{OTHER}", f"{OWN}/", "*", "\x00", "--yes", f"{OWN}\n"])
async def test_other_vms_cannot_be_watched(door: Door, name: str, caplog: pytest.LogCaptureFixture) -> None:
    answer = await ask(door.path, request(protocol.WATCH, name))
    assert "may ask for nothing of" in message(answer)
    assert "was refused 'watch'" in caplog.text
    assert door.watcher._subscriptions == []


async def test_who_has_no_token_watches_nothing(door: Door) -> None:
    answer = await ask(door.path, request(protocol.WATCH, token="x"))
    assert message(answer) == "The host does not know who asks."
    assert message(await ask(door.path, request(protocol.WATCH, OWN, OWN))).startswith("A panel shows one VM")


async def test_all_may_watch_any(two_vms: Machine, tmp_path: Path) -> None:  # noqa: F811
    async for door in served(tmp_path, Policy.ALL):
        for names, seen in (((), {OWN, OTHER}), ((OTHER,), {OTHER})):
            async with watching(door, *names) as guest:
                first = json.loads(await guest._reader.readline())
                assert {vm["name"] for vm in first["vms"]} == seen
        answer = await ask(door.path, request(protocol.WATCH, "their"))
        assert answer["error"]["message"] == "There is no Lima instance 'their'."
        assert answer["error"]["hint"] == f"Did you mean {OTHER!r}?"


async def test_a_host_that_cannot_say_is_one_line(door: Door, two_vms: Machine) -> None:  # noqa: F811
    two_vms.tell(fail={"list": "no such file"})
    assert "limactl list" in message(await ask(door.path, request(protocol.WATCH)))


# What it may do


@pytest.mark.parametrize(
    ("act", "line"),
    [
        ({"verb": "stop", "vm": OTHER, "yes": True}, "may ask for nothing of 'theirs'"),
        ({"verb": "restart", "vm": OTHER, "yes": True}, "may ask for nothing of 'theirs'"),
        ({"verb": "start", "vm": OTHER}, "may ask for nothing of 'theirs'"),
        ({"verb": "stop"}, "would end with it"),
        ({"verb": "stop", "force": True}, "would end with it"),
        ({"verb": "restart"}, "would end with it"),
        ({"verb": "edit", "cpus": 64, "yes": True}, "may not ask for 'edit'"),
        ({"verb": "delete", "force": True, "yes": True}, "may not ask for 'delete'"),
        ({"verb": "create", "name": "new"}, "may not ask for 'create'"),
        ({"verb": "kernels"}, "There is no action 'kernels'"),
        ({"verb": "stop", "vm": "--help", "yes": True}, "--help"),
        ({"verb": "stop", "vm": f"../{OTHER}", "yes": True}, f"../{OTHER}"),
        ({"verb": "stop", "force": "yes"}, "cannot be understood"),
        ({"verb": "stop", "verbose": True}, "cannot be understood"),
    ],
)
async def test_what_it_may_not_is_refused(door: Door, two_vms: Machine, act: dict[str, Any], line: str) -> None:  # noqa: F811
    reader, writer = await asyncio.open_unix_connection(door.path)
    writer.write(request(protocol.WATCH))
    guest = Guest(reader, writer)
    await guest.next("snapshot")
    guest.act(**act)
    answer = json.loads(await asyncio.wait_for(reader.readline(), 30))
    assert (answer["type"], answer["ref"]) == ("refused", "r")
    assert line in answer["message"]
    writer.close()
    assert door.watcher.jobs.all() == []
    assert [two_vms.calls(verb) for verb in ("stop", "start", "edit", "delete", "create")] == [[]] * 5


async def test_what_it_may_is_a_job_that_outlives_it(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    async with watching(door) as guest:
        guest.act("stop", yes=True)
        job = (await guest.next("acted"))["job"]
        while (ended := (await guest.next("job"))["job"])["state"] == "running":
            pass
        assert (ended["id"], ended["message"]) == (job["id"], "The VM lima-kernels is stopped already.")
    assert "asks: stop lima-kernels" in caplog.text


async def test_a_guest_that_starts_its_vm_again_sees_no_more_than_before(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, Path | None]] = []

    async def remember(context: Context, _options: object) -> Note:
        asked.append((context.asked_by, context.here))
        return Note("no further")

    monkeypatch.setattr(jobs, "FUNCTIONS", {"start": remember})
    async with watching(door) as guest:
        guest.act("start")
        while (await guest.next("job"))["job"]["message"] != "no further":
            pass
    assert asked == [("k1", None)]


async def test_nobody_cancels_what_others_asked_for(
    door: Door,
    two_vms: Machine,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with watching(door) as guest:
        await guest.next("snapshot")
        two_vms.tell(hang=["list"])
        job = door.watcher.jobs.start(OWN, Start())
        guest.say(type="cancel", job=job.id)
        # What others have begun already does not become its own.
        guest.act("start")
        assert (await guest.next("acted"))["job"]["id"] == job.id
        guest.say(type="cancel", job=job.id)
        guest.say(type="cancel", job="nothing")
        guest.act("kernels")
        await guest.next("refused")
        assert caplog.text.count("was refused to cancel") == 3
        assert [one.state.value for one in door.watcher.jobs.all()] == ["running"]
    door.watcher.jobs.cancel(job.id)
    await ended(door)


async def test_it_cancels_what_it_asked_for_itself(door: Door, two_vms: Machine) -> None:  # noqa: F811
    async with watching(door) as guest:
        await guest.next("snapshot")
        two_vms.tell(hang=["list"])
        guest.act("start")
        job = (await guest.next("acted"))["job"]
        guest.say(type="cancel", job=job["id"])
        while (await guest.next("job"))["job"]["state"] == "running":
            pass
    assert [one.state.value for one in door.watcher.jobs.all()] == ["cancelled"]


async def ended(door: Door) -> None:
    async with asyncio.timeout(60):
        while any(job.state.value == "running" for job in door.watcher.jobs.all()):
            await asyncio.sleep(0.02)


async def test_it_has_few_things_under_way_at_once(two_vms: Machine, tmp_path: Path) -> None:  # noqa: F811
    async for door in served(tmp_path, Policy.ALL):
        reader, writer = await asyncio.open_unix_connection(door.path)
        writer.write(request(protocol.WATCH))
        await asyncio.wait_for(reader.readline(), 30)
        two_vms.tell(hang=["list"])
        guest = Guest(reader, writer)
        for number in range(JOBS + 1):
            guest.say(type="act", ref=str(number), vm=f"vm{number}", verb="stop", arguments={})
        answers = []
        while len(answers) <= JOBS:
            found = json.loads(await asyncio.wait_for(reader.readline(), 30))
            if found["type"] in ("acted", "refused"):
                answers.append(found)
        assert [answer["type"] for answer in answers] == ["acted"] * JOBS + ["refused"]
        assert answers[-1]["message"] == f"A kernel in a VM may have {JOBS} things under way at once."
        writer.close()
        two_vms.tell(hang=[])
        for task in tuple(door.watcher.jobs._tasks):
            task.cancel()
        await ended(door)


# Floods


@pytest.mark.parametrize(
    "data",
    [
        b"\n",
        b"null\n",
        b'{"type": "of tomorrow"}\n',
        b'{"type": "act"}\n',
        b'{"type": "visible", "names": [1]}\n',
        b'{"type": "visible", "names": ' + json.dumps(["x"] * 1001).encode() + b"}\n",
        b'{"type": "follow", "name": "' + b"x" * 300 + b'"}\n',
        b'{"type": "act", "ref": "r", "vm": "a", "verb": "edit", "arguments": {"a": ' + b"[" * 30_000 + b"\n",
        b"\xff\xfe\n",
        b"x" * (calls.LIMIT + 1),
    ],
)
async def test_what_is_nothing_known_ends_the_watch(door: Door, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with watching(door) as guest:
        await guest.next("snapshot")
        guest.send(data)
        await guest.end()
    assert "said what is nothing known" in caplog.text
    await door.quiet()
    assert "table" in await ask(door.path, request("status"))


async def test_a_guest_that_talks_without_end_is_hung_up_on(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    async with watching(door) as guest:
        await guest.next("snapshot")
        with contextlib.suppress(OSError):
            for _ in range(SAID + 1):
                guest.say(type="follow", name=OWN)
            await guest.end()
    assert "talks without end" in caplog.text
    await door.quiet()
    assert "table" in await ask(door.path, request("status"))


async def test_a_guest_that_does_not_listen_costs_no_memory(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting: list[Pending] = []
    monkeypatch.setattr(guests, "Pending", lambda: waiting.append(Pending()) or waiting[-1])
    async with watching(door):
        async with asyncio.timeout(30):
            while not door.watcher._subscriptions:
                await asyncio.sleep(0.02)
        (subscription,) = door.watcher._subscriptions
        for _ in range(2000):
            subscription.tell(LogGrown(OWN, ["x" * 1000] * 10))
            await asyncio.sleep(0)
        # A hundred times more was told.
        (pending,) = waiting
        assert 0 < len(json.dumps(list(pending._messages.values()))) < 300_000
        assert "table" in await ask(door.path, request("status"))


async def test_a_few_watches_leave_room_for_verbs(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    assert WATCHES < CONVERSATIONS
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(WATCHES):
            guest = await stack.enter_async_context(watching(door))
            await guest.next("snapshot")
        answer = await ask(door.path, request(protocol.WATCH))
        assert message(answer) == f"A kernel in a VM may watch {WATCHES} times at once."
        assert "has too many panels" in caplog.text
        assert "table" in await ask(door.path, request("status"))
    await door.quiet()
    async with watching(door) as guest:
        await guest.next("snapshot")
