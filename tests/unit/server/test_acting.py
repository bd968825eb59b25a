"""What is asked of VMs: jobs, and what is refused at once."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from jupyter_server.serverapp import ServerApp

from lima_kernels.lima.limactl import Limactl
from lima_kernels.server.base import EVENT_SCHEMA, LONGEST
from tests.unit.conftest import Machine
from tests.unit.verbs import CONFIG, ours, used

from .conftest import Answer, Ask, Open, Page


async def make(machine: Machine, name: str, config: str = CONFIG, *, running: bool = False) -> None:
    await Limactl().create(name, config)
    if running:
        (machine.lima_home / name / "running").touch()


def jobs(said: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The jobs that a message tells of, by their ids."""
    found = said["jobs"] if said["type"] == "snapshot" else [said["job"]] if said["type"] == "job" else []
    return {job["id"]: job for job in found}


async def ended(page: Page, answer: Answer) -> dict[str, Any]:
    """The job of an answer when it has ended, which it may have before the page is told anything."""
    assert answer.code == 202, answer.said
    id_ = answer.said["id"]
    told = await page.until(lambda said: jobs(said).get(id_, {"state": "running"})["state"] != "running")
    return jobs(told)[id_]


def refused(answer: Answer, code: int, message: str) -> None:
    assert (answer.code, answer.said["message"]) == (code, message)


# create


async def test_a_vm_is_made(ask: Ask, page: Open, machine: Machine) -> None:
    async with page() as here:
        answer = await ask("POST", "vms", body={"name": "web", "template": "debian-13", "cpus": 3, "memory": "2GiB"})
        assert {key: answer.said[key] for key in ("vm", "verb", "state")} == {
            "vm": "web",
            "verb": "create",
            "state": "running",
        }
        job = await ended(here, answer)
    assert (job["state"], job["message"][:22]) == ("done", "The VM web is made: 3 ")
    assert (await ask("GET", "vms", "web")).said["cpus"] == 3


async def test_a_name_that_is_taken(ask: Ask, machine: Machine) -> None:
    await make(machine, "web")
    refused(await ask("POST", "vms", body={"name": "web"}), 409, "The name 'web' is taken by another VM.")
    assert len(machine.calls("create")) == 1


async def test_what_cannot_be_a_new_name(ask: Ask, machine: Machine) -> None:
    for name in ("..", "a/b", "-x", "é", "x" * 200, "x.yaml"):
        answer = await ask("POST", "vms", body={"name": name})
        assert answer.code == 400, name
        assert "cannot be a Lima instance's name" in answer.said["message"]
    assert machine.instances() == []


async def test_a_template_that_is_not_there_is_the_job_s_failure(ask: Ask, page: Open, machine: Machine) -> None:
    async with page() as here:
        job = await ended(here, await ask("POST", "vms", body={"name": "web", "template": "debian13"}))
    assert (job["state"], job["message"], job["hint"]) == (
        "failed",
        "There is no Lima template 'debian13'.",
        "Did you mean 'debian-13'?",
    )


# stop, restart


@pytest.mark.parametrize("verb", ["stop", "restart"])
async def test_a_vm_in_use_is_left_alone_unless_it_is_forced(ask: Ask, page: Open, machine: Machine, verb: str) -> None:
    await make(machine, "one", running=True)
    async with page() as here:
        with used("one"):
            answer = await ask("POST", "vms", "one", verb, body={})
            refused(answer, 409, "The VM 'one' is in use.")
            assert answer.said["hint"] == f"To end its kernels all the same: %lima {verb} one --force"
            (user,) = answer.said["context"]
            assert user.startswith("/nb/a.ipynb (")
            assert machine.calls("stop") == []
            job = await ended(here, await ask("POST", "vms", "one", verb, body={"force": True}))
    assert job["state"] == "done", job
    assert machine.calls("stop") == [["stop", "--force", "one"]]


async def test_a_vm_is_stopped(ask: Ask, page: Open, machine: Machine) -> None:
    await make(machine, "one", running=True)
    async with page() as here:
        # A body is not needed.
        job = await ended(here, await ask("POST", "vms", "one", "stop"))
        assert (job["state"], job["message"]) == ("done", "The VM one is stopped.")
    assert (await ask("GET", "vms", "one")).said["state"] == "stopped"


async def test_a_stop_that_fails(ask: Ask, page: Open, machine: Machine) -> None:
    await make(machine, "one", running=True)
    machine.tell(fail={"stop": "it does not want to"})
    async with page() as here:
        job = await ended(here, await ask("POST", "vms", "one", "stop"))
    assert job["state"] == "failed"
    assert job["message"] == "limactl stop one failed with exit code 1: it does not want to"


# edit, delete


async def test_a_stopped_vm_is_edited(ask: Ask, page: Open, machine: Machine) -> None:
    await make(machine, "one")
    async with page() as here:
        job = await ended(here, await ask("PATCH", "vms", "one", body={"cpus": 5}))
        assert job["state"] == "done", job
    assert (await ask("GET", "vms", "one")).said["cpus"] == 5


async def test_a_vm_that_runs_is_not_edited(ask: Ask, machine: Machine) -> None:
    await make(machine, "one", running=True)
    answer = await ask("PATCH", "vms", "one", body={"cpus": 5})
    message = "The VM 'one' runs: its CPUs, memory and disk can be changed only while it is stopped."
    refused(answer, 409, message)
    assert machine.calls("edit") == []


async def test_a_vm_is_deleted(ask: Ask, page: Open, machine: Machine) -> None:
    await make(machine, "mine", ours(), running=True)
    refused(await ask("DELETE", "vms", "mine"), 409, "The VM 'mine' runs.")
    async with page() as here:
        job = await ended(here, await ask("DELETE", "vms", "mine", params={"force": "1"}))
        assert (job["state"], job["message"]) == ("done", "The VM mine is deleted.")
    assert machine.instances() == []
    refused(await ask("DELETE", "vms", "mine"), 404, "There is no Lima instance 'mine'.")


async def test_what_others_made_is_deleted_only_when_that_is_forced(ask: Ask, page: Open, machine: Machine) -> None:
    await make(machine, "theirs")
    refused(await ask("DELETE", "vms", "theirs"), 409, "The VM 'theirs' was not made by lima-kernels.")
    for force in ("yes", "", "2"):
        answer = await ask("DELETE", "vms", "theirs", params={"force": force})
        refused(answer, 400, f"expected 0 or 1, got {force!r} at force.")
    assert machine.instances() == ["theirs"]
    async with page() as here:
        assert (await ended(here, await ask("DELETE", "vms", "theirs", params={"force": "1"})))["state"] == "done"
    assert machine.instances() == []


# what cannot be understood


BODIES: dict[str, Any] = {
    "no JSON": "{force: true}",
    "half": '{"force": tr',
    "a list": [],
    "a text": '"stop"',
    "null": "null",
    "no UTF-8": b'{"force": "\xff"}',
    "unknown": {"forced": True},
    "the verb": {"verb": "delete"},
    "a wrong type": {"force": "yes"},
    "a number": {"force": 1},
    "nested": '{"force": ' + "[" * 20_000 + "]" * 20_000 + "}",
    "two": "{}{}",
}


@pytest.mark.parametrize("body", BODIES)
async def test_a_body_that_cannot_be_understood(ask: Ask, machine: Machine, body: str) -> None:
    await make(machine, "one", running=True)
    answer = await ask("POST", "vms", "one", "stop", body=BODIES[body])
    assert answer.code == 400
    assert answer.said["message"].count("\n") == 0
    assert machine.calls("stop") == []


EDITS: dict[str, tuple[Any, str]] = {
    "cpus": ({"cpus": "two"}, "cpus"),
    "half a CPU": ({"cpus": 1.5}, "cpus"),
    "no CPU": ({"cpus": 0}, "cpus"),
    "yes": ({"cpus": True}, "cpus"),
    "memory": ({"memory": 4}, "memory"),
    "a list": ({"disk": ["1GiB"]}, "disk"),
    "unknown": ({"cpu": 2}, "cpu"),
    "name": ({"name": "two"}, "name"),
}


@pytest.mark.parametrize("edit", EDITS)
async def test_an_edit_that_cannot_be_understood_says_where(ask: Ask, machine: Machine, edit: str) -> None:
    await make(machine, "one")
    body, where = EDITS[edit]
    answer = await ask("PATCH", "vms", "one", body=body)
    assert answer.code == 400
    assert where in answer.said["message"].partition(": ")[2]
    assert machine.calls("edit") == []


async def test_values_that_look_like_options(ask: Ask, page: Open, machine: Machine) -> None:
    await make(machine, "one")
    async with page() as here:
        for body in ({"memory": "--force"}, {"disk": "-x"}, {"memory": "1GiB --cpus 9"}):
            job = await ended(here, await ask("PATCH", "vms", "one", body=body))
            assert (job["state"], job["message"][:32]) == ("failed", "expected a size such as 4GiB, go")
    assert machine.calls("edit") == []


async def test_a_body_that_is_too_long(ask: Ask, machine: Machine) -> None:
    await make(machine, "one", running=True)
    body = json.dumps({"force": True, "x": "y" * LONGEST})
    refused(await ask("POST", "vms", "one", "stop", body=body), 413, f"The request is longer than {LONGEST} bytes.")
    assert machine.calls("stop") == []


async def test_an_action_that_is_not_there(ask: Ask, machine: Machine) -> None:
    await make(machine, "one", running=True)
    answer = await ask("POST", "vms", "one", "stopp", body={})
    assert answer == (404, {"message": "There is no action 'stopp'.", "hint": "Did you mean 'stop'?", "context": []})
    for verb in ("delete", "create", "edit", "shell", "kernels", "log"):
        assert (await ask("POST", "vms", "one", verb, body={})).code in (404, 405)


async def test_an_action_on_a_vm_that_is_not_there(ask: Ask, machine: Machine) -> None:
    await make(machine, "one")
    for method, *route in (
        ("POST", "vms", "onee", "start"),
        ("POST", "vms", "onee", "stop"),
        ("POST", "vms", "onee", "restart"),
        ("PATCH", "vms", "onee"),
        ("DELETE", "vms", "onee"),
    ):
        answer = await ask(method, *route, body='{"cpus": 2}' if method == "PATCH" else None)
        refused(answer, 404, "There is no Lima instance 'onee'.")
        assert answer.said["hint"] == "Did you mean 'one'?"
    assert (await ask("GET", "jobs")).said == {"jobs": []}
    assert not (machine.lima_home / "_lima-kernels" / "onee").exists()


# jobs


async def test_a_job_is_cancelled_and_leaves_nothing(ask: Ask, page: Open, machine: Machine) -> None:
    machine.tell(hang=["prepare"])
    async with page() as here:
        await here.told("snapshot")
        answer = await ask("POST", "vms", body={"name": "web", "template": "debian-13"})
        assert answer.code == 202
        await here.until(lambda said: said["type"] == "vm" and said["vm"]["name"] == "web")
        assert [job["id"] for job in (await ask("GET", "jobs")).said["jobs"]] == [answer.said["id"]]
        assert await ask("DELETE", "jobs", answer.said["id"]) == (204, None)
        job = await ended(here, answer)
        assert job["state"] == "cancelled"
        await here.until(lambda said: said == {"type": "gone", "name": "web"})
    assert machine.instances() == []


async def test_a_job_that_is_not_there(ask: Ask) -> None:
    for id_ in ("1", "x" * 5000, "..%2f..", "\N{SNOWMAN}"):
        assert (await ask("DELETE", "jobs", id_)).code == 404


async def test_two_ask_for_the_same_at_once(ask: Ask, page: Open, machine: Machine) -> None:
    await make(machine, "one", running=True)
    async with page() as here:
        answers = await asyncio.gather(*(ask("POST", "vms", "one", "stop") for _ in range(4)))
        assert {answer.code for answer in answers} <= {202, 409}
        ids = {answer.said["id"] for answer in answers if answer.code == 202}
        states = {}
        while ids - states.keys():
            told = jobs(await here.until(jobs)).values()
            states |= {job["id"]: job["state"] for job in told if job["state"] != "running"}
    assert "done" in states.values()
    assert (await ask("GET", "vms", "one")).said["state"] == "stopped"


# Jupyter's events


async def test_each_action_is_an_event_of_jupyter(
    ask: Ask, page: Open, machine: Machine, jp_serverapp: ServerApp
) -> None:
    heard: list[dict[str, Any]] = []

    async def listen(logger: Any, schema_id: str, data: dict[str, Any]) -> None:
        heard.append({key: value for key, value in data.items() if not key.startswith("__")})

    jp_serverapp.event_logger.add_listener(schema_id=EVENT_SCHEMA, listener=listen)
    machine.tell(hang=["prepare"])
    async with page() as here:
        answer = await ask("POST", "vms", body={"name": "web", "template": "debian-13"})
        await ask("POST", "vms", "webb", "stop")
        await ask("DELETE", "jobs", "x")
        await ask("DELETE", "jobs", answer.said["id"])
        assert (await ended(here, answer))["state"] == "cancelled"
    await jp_serverapp.event_logger.gather_listeners()
    id_ = answer.said["id"]
    assert heard == [{"action": "create", "vm": "web", "job": id_}, {"action": "cancel", "vm": "web", "job": id_}]


async def test_what_cannot_be_cancelled(ask: Ask, page: Open, machine: Machine) -> None:
    await make(machine, "one", running=True)
    machine.tell(delay={"stop": 1})
    async with page() as here:
        answer = await ask("POST", "vms", "one", "stop")
        assert not answer.said["cancellable"]
        refused(await ask("DELETE", "jobs", answer.said["id"]), 400, "'stop' of the VM 'one' cannot be cancelled.")
        assert (await ended(here, answer))["state"] == "done"
