"""Jobs: what is asked for goes on by itself, everybody is told how far it is, and it can be cancelled cleanly."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from lima_kernels.environment.spec import DEFAULT
from lima_kernels.errors import Cancelled, ConfigurationError, NotFound
from lima_kernels.instances import Wish
from lima_kernels.lima.sizes import shown
from lima_kernels.runtime import runtime
from lima_kernels.verbs import table
from lima_kernels.watch import jobs as jobs_module
from lima_kernels.watch.actions import Action, Create, Delete, Edit, Restart, Start, Stop, action
from lima_kernels.watch.cards import (
    Card,
    CardChanged,
    Follow,
    Job,
    JobChanged,
    JobState,
    Snapshot,
    State,
    Visible,
    decode_request,
    encode,
)
from lima_kernels.watch.shared import watcher
from tests.fake_guest import FakeGuest

from .conftest import Machine
from .verbs import CONFIG, ours, used
from .watching import Ear, Process, soon

# Of the spec's kernel, so that a start finds what it is.
NAME = "one"


@pytest_asyncio.fixture
async def process(machine: Machine) -> AsyncIterator[Process]:
    made = Process()
    yield made
    await made.close()


@pytest_asyncio.fixture
async def ear(process: Process) -> Ear:
    return (await process.watch())[0]


def wish(machine: Machine) -> Wish:
    return Wish(environment=DEFAULT, attach=False, directory=machine.notebooks)


async def over(ear: Ear, job: Job) -> Job:
    """Wait until a job is over, and return it."""
    found = await ear.until(lambda: (now := ear.job(job.id)) and now.state is not JobState.RUNNING and now)
    assert isinstance(found, Job)
    return found


async def of_kernel(ear: Ear) -> Job:
    """Wait for the job of a kernel's start."""
    told = await ear.until(lambda: [told.job for told in ear.all(JobChanged) if told.job.verb == "kernel"])
    assert isinstance(told[-1], Job)
    return told[-1]


# Actions


@pytest.mark.parametrize(
    ("asked", "arguments"),
    [
        (Start(), []),
        (Stop(), []),
        (Stop(force=True), ["--force"]),
        (Restart(force=True), ["--force"]),
        (Delete(), []),
        (Edit(cpus=2, memory="3GiB"), ["--cpus=2", "--memory=3GiB"]),
        (
            Create(name="one", template="--start", disk="5GiB", start=True),
            ["--template=--start", "--disk=5GiB", "--start"],
        ),
    ],
)
def test_an_action_is_a_verb_with_its_arguments(asked: Action, arguments: list[str]) -> None:
    call = asked.call(NAME)
    assert list(call.arguments) == [NAME, *arguments]
    assert call.verb in table.FUNCTIONS
    options = jobs_module.parser_of(call.verb).parse_args(list(call.arguments))
    assert options.name == NAME


@pytest.mark.parametrize(
    ("verb", "arguments", "text"),
    [
        ("strat", {}, "There is no action 'strat'. Did you mean 'start'?"),
        ("stop", {"forced": True}, "The action 'stop' cannot be understood: Object contains unknown field `forced`."),
        ("stop", {"force": 1}, "The action 'stop' cannot be understood: Expected `bool`, got `int` - at `$.force`."),
        ("edit", {"cpus": 0}, "The action 'edit' cannot be understood: Expected `int` >= 1 - at `$.cpus`."),
        ("create", {}, "The action 'create' cannot be understood: Object missing required field `name`."),
    ],
)
def test_an_action_that_cannot_be_understood_says_where(verb: str, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        action(verb, arguments)
    assert str(caught.value) == text


def test_an_action_takes_no_option_for_a_name() -> None:
    with pytest.raises(ConfigurationError, match="'--force' cannot be a Lima instance's name"):
        Stop().call("--force")


def test_messages_are_json_with_a_type() -> None:
    told = encode(CardChanged(Card(name="a", state=State.RUNNING, disk_used=5)))
    assert told.startswith(b'{"type":"vm","vm":{"name":"a","state":"running"')
    assert b'"diskUsed":5' in told
    assert decode_request('{"type":"visible","names":["a"],"new":1}') == Visible(["a"])
    assert decode_request('{"type":"follow","name":null}') == Follow(None)


# Verbs


async def test_a_job_goes_on_by_itself_and_is_told_of_to_all(process: Process, ear: Ear) -> None:
    other, _ = await process.watch()
    asked = Create(name=NAME, template="debian-13", cpus=3, start=True)
    job = process.watcher.jobs.start(NAME, asked)
    assert (job.vm, job.verb, job.state, job.cancellable) == (NAME, "create", JobState.RUNNING, True)
    done = await over(ear, job)
    size = f"3 CPUs, {shown(4 << 30)} of memory, a disk of {shown(100 << 30)}"
    assert (done.state, done.message) == (JobState.DONE, f"The VM one is made, and runs: {size}.")
    steps = [told.job.step for told in ear.all(JobChanged)]
    assert "creating the VM (from the template debian-13)" in steps
    assert "booting the VM" in steps
    assert await over(other, job) == done
    await ear.state(NAME, State.RUNNING)
    assert ear.states(NAME)[0] is State.CREATING
    late, _ = await process.watch()
    assert late.messages == [Snapshot([ear.card(NAME)], [done])]


async def test_a_vm_is_made_from_an_environment_file(
    machine: Machine, process: Process, ear: Ear, guest: FakeGuest
) -> None:
    file = machine.root / "env.yaml"
    file.write_text("cpus: 5\n")
    job = process.watcher.jobs.start(NAME, Create(name=NAME, environment=str(file), start=True))
    assert (await over(ear, job)).message.startswith("The VM one is made, and runs: 5 CPUs")
    card = await ear.state(NAME, State.RUNNING)
    assert (card.ours, card.cpus) == (True, 5)
    both = Create(name="two", environment=str(file), cpus=3)
    failed = await over(ear, process.watcher.jobs.start("two", both))
    assert failed.message == "An environment file says itself which CPUs, memory and disk its VM has."
    missing = Create(name="two", environment=str(machine.root / "nothing.yaml"))
    assert "nothing.yaml" in (await over(ear, process.watcher.jobs.start("two", missing))).message
    assert machine.instances() == [NAME]


async def test_a_job_that_is_over_is_forgotten_after_a_while(
    process: Process, ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    await process.limactl.create(NAME, CONFIG)
    job = process.watcher.jobs.start(NAME, Stop())
    assert (await over(ear, job)).message == "The VM one is stopped already."
    process.watcher.jobs.cancel(job.id)
    assert [job.id for job in process.watcher.jobs.all()] == [job.id]
    monkeypatch.setattr(jobs_module, "KEPT", 0.0)
    assert process.watcher.jobs.all() == []
    with pytest.raises(NotFound):
        process.watcher.jobs.cancel(job.id)


async def test_a_job_that_fails_says_why_and_what_to_do(process: Process, ear: Ear) -> None:
    await process.limactl.create(NAME, CONFIG)
    (process.limactl.path.parent.parent / "lima" / NAME / "running").touch()
    with used(NAME):
        failed = await over(ear, process.watcher.jobs.start(NAME, Stop()))
    assert (failed.state, failed.message) == (JobState.FAILED, "The VM 'one' is in use.")
    assert failed.hint == "To end its kernels all the same: %lima stop one --force"
    assert [line.partition(" (")[0] for line in failed.context] == ["/nb/a.ipynb"]
    failed = await over(ear, process.watcher.jobs.start("two", Start()))
    assert failed.message == "There is no Lima instance 'two'."


async def test_a_job_that_we_fail_at_is_failed_too(
    process: Process, ear: Ear, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def stop(_context: object, _options: object) -> None:
        raise ZeroDivisionError("no")

    monkeypatch.setattr(jobs_module, "FUNCTIONS", {"stop": stop})
    with caplog.at_level(logging.ERROR):
        failed = await over(ear, process.watcher.jobs.start(NAME, Stop()))
    assert (failed.state, failed.message) == (JobState.FAILED, "lima-kernels failed: ZeroDivisionError: no")
    assert "ZeroDivisionError" in caplog.text


async def test_what_is_asked_twice_is_done_once(machine: Machine, process: Process, ear: Ear) -> None:
    machine.tell(delay={"create": 0.3})
    asked = Create(name=NAME, template="debian-13")
    job = process.watcher.jobs.start(NAME, asked)
    assert process.watcher.jobs.start(NAME, asked).id == job.id
    assert (await over(ear, job)).state is JobState.DONE
    assert len(machine.calls("create")) == 2  # one of them lists templates


async def test_what_is_asked_otherwise_meanwhile_is_done_too(process: Process, ear: Ear) -> None:
    await process.limactl.create(NAME, ours())
    first = process.watcher.jobs.start(NAME, Edit(cpus=2))
    second = process.watcher.jobs.start(NAME, Edit(cpus=3))
    assert first.id != second.id
    assert [(await over(ear, job)).state for job in (first, second)] == [JobState.DONE] * 2
    assert (await process.limactl.get(NAME)).cpus == 3


async def test_a_job_for_another_vm_than_it_says_is_refused(process: Process) -> None:
    with pytest.raises(ConfigurationError, match="'two' cannot be made as 'one'"):
        process.watcher.jobs.start(NAME, Create(name="two"))
    with pytest.raises(ConfigurationError, match="cannot be a Lima instance's name"):
        process.watcher.jobs.start("../one", Start())
    assert process.watcher.jobs.all() == []


async def test_a_create_that_is_cancelled_leaves_nothing(machine: Machine, process: Process, ear: Ear) -> None:
    machine.tell(hang=["prepare"])
    job = process.watcher.jobs.start(NAME, Create(name=NAME, template="debian-13"))
    await ear.state(NAME, State.CREATING)
    await soon(lambda: machine.instances() == [NAME])
    process.watcher.jobs.cancel(job.id)
    done = await over(ear, job)
    assert (done.state, done.message) == (JobState.CANCELLED, "create of the VM one was cancelled.")
    await ear.until(lambda: ear.card(NAME) is None)
    assert machine.instances() == []


async def test_what_cannot_be_cancelled_says_so(machine: Machine, process: Process, ear: Ear) -> None:
    await process.limactl.create(NAME, ours())
    machine.tell(delay={"delete": 0.3})
    job = process.watcher.jobs.start(NAME, Delete())
    assert not job.cancellable
    with pytest.raises(ConfigurationError, match="cannot be cancelled"):
        process.watcher.jobs.cancel(job.id)
    assert (await over(ear, job)).state is JobState.DONE
    await ear.until(lambda: ear.card(NAME) is None)


async def test_an_unknown_job_cannot_be_cancelled(process: Process) -> None:
    with pytest.raises(NotFound, match="There is no job 'x'"):
        process.watcher.jobs.cancel("x")


# Starts that kernels wait for


async def test_a_kernels_start_is_a_job_when_its_vm_has_to_be_made(
    machine: Machine, process: Process, ear: Ear, guest: FakeGuest
) -> None:
    await process.vm(NAME).ensure(wish(machine))
    job = await of_kernel(ear)
    done = await over(ear, job)
    assert (done.state, done.message, done.expected) == (JobState.DONE, "The VM one is ready.", None)
    await ear.state(NAME, State.RUNNING)
    assert ear.states(NAME) == [State.CREATING, State.STARTING, State.RUNNING]
    # One that finds its VM is none.
    await process.vm(NAME).disconnect()
    await process.vm(NAME).ensure(wish(machine))
    assert [job.id for job in process.watcher.jobs.all()] == [done.id]


async def test_the_next_start_knows_how_long_it_takes(
    machine: Machine, process: Process, ear: Ear, guest: FakeGuest
) -> None:
    for _ in range(2):
        await process.vm(NAME).ensure(wish(machine))
        await process.vm(NAME).stop()
    await process.vm(NAME).ensure(wish(machine))
    known = [told.job.expected for told in ear.all(JobChanged) if told.job.verb == "kernel"]
    assert known[0] is None
    assert known[-1] is not None
    booting = [told.vm.expected for told in ear.all(CardChanged) if told.vm.phase == "booting the VM"]
    assert booting[0] is None
    assert booting[-1] is not None


@pytest.mark.parametrize("moment", ["create", "prepare"])
async def test_a_kernels_start_is_cancelled_while_its_vm_is_made(
    machine: Machine, process: Process, ear: Ear, guest: FakeGuest, moment: str
) -> None:
    machine.tell(hang=[moment])
    start = asyncio.ensure_future(process.vm(NAME).ensure(wish(machine)))
    job = await of_kernel(ear)
    await soon(lambda: machine.calls("create") and (moment == "create" or machine.instances()))
    process.watcher.jobs.cancel(job.id)
    process.watcher.jobs.cancel(job.id)
    with pytest.raises(Cancelled) as caught:
        await start
    assert caught.value.message == "The start of the VM 'one' was cancelled."
    assert (await over(ear, job)).state is JobState.CANCELLED
    assert machine.instances() == []
    machine.tell(hang=[])
    await process.vm(NAME).ensure(wish(machine))
    await ear.state(NAME, State.RUNNING)


async def test_a_kernels_start_is_cancelled_while_its_vm_boots(
    machine: Machine, process: Process, ear: Ear, guest: FakeGuest
) -> None:
    await process.vm(NAME).ensure(wish(machine))
    await process.vm(NAME).stop()
    guest.stop_listening()
    machine.tell(hang=["ready"])
    vm = process.vm(NAME)
    starts = [asyncio.ensure_future(vm.ensure(wish(machine))) for _ in range(3)]
    booting = await ear.until(lambda: [job for job in process.watcher.jobs.all() if job.step == "waiting for SSH"])
    process.watcher.jobs.cancel(booting[0].id)
    assert all(isinstance(error, Cancelled) for error in await asyncio.gather(*starts, return_exceptions=True))
    assert (await over(ear, booting[0])).state is JobState.CANCELLED
    # The VM is not left booting for nobody, and no other start was begun.
    await ear.state(NAME, State.STOPPED)
    assert machine.instances() == [NAME]
    assert len(machine.calls("start")) == 2
    assert not (await process.limactl.get(NAME)).is_up


async def test_whoever_waits_for_a_start_may_be_cancelled_himself(
    machine: Machine, process: Process, ear: Ear, guest: FakeGuest
) -> None:
    machine.tell(hang=["create"])
    start = asyncio.ensure_future(process.vm(NAME).ensure(wish(machine)))
    job = await of_kernel(ear)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert (await over(ear, job)).state is JobState.CANCELLED


async def test_a_kernels_start_that_fails_is_told(machine: Machine, process: Process, ear: Ear) -> None:
    machine.tell(fail={"start": "no bootable device"})
    await process.limactl.create(NAME, CONFIG)
    with pytest.raises(Exception, match="no bootable device"):
        await process.vm(NAME).ensure(wish(machine)._replace(attach=True))
    failed = await over(ear, await of_kernel(ear))
    assert failed.state is JobState.FAILED
    assert "no bootable device" in failed.message


async def test_the_verb_start_shows_its_phases_and_is_cancelled_with_its_vm(
    machine: Machine, process: Process, ear: Ear, guest: FakeGuest
) -> None:
    await process.limactl.create(NAME, CONFIG)
    guest.stop_listening()
    machine.tell(hang=["ready"])
    job = process.watcher.jobs.start(NAME, Start())
    await ear.until(lambda: (now := ear.job(job.id)) and now.step == "waiting for SSH")
    process.watcher.jobs.cancel(job.id)
    assert (await over(ear, job)).state is JobState.CANCELLED
    await ear.state(NAME, State.STOPPED)
    assert [job.verb for job in process.watcher.jobs.all()] == ["start"]


# The process's watcher


def test_a_process_has_one_watcher_that_hears_of_every_start(machine: Machine, guest: FakeGuest) -> None:
    io = runtime()
    ear = io.run_blocking(made())
    one = io.run_blocking(shared())
    subscription = io.run_blocking(one.subscribe(ear))
    io.run_blocking(started(machine))
    assert io.run_blocking(shared()) is one
    assert [job.verb for job in one.jobs.all()] == ["kernel"]
    io.run_blocking(subscription.close())


async def made() -> Ear:
    return Ear()


async def shared() -> Any:
    return watcher()


async def started(machine: Machine) -> None:
    await runtime().vm(NAME).ensure(wish(machine))
