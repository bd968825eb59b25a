"""Starts that meet other starts, stops and crashes of the same VM: two real processes, and VMs that go away."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lima_kernels import instances, locks, paths, progress
from lima_kernels.cli.main import main
from lima_kernels.environment.spec import DEFAULT
from lima_kernels.errors import ConnectionFailed, InstanceError, LimactlError, PhaseTimeout
from lima_kernels.instances import Wish, present
from lima_kernels.lima import hostagent
from lima_kernels.lima.limactl import Limactl
from lima_kernels.lima.models import Status
from lima_kernels.lima.template import MARK_VERSION, Config, GuestFile, OwnerMark, Source, render
from lima_kernels.progress import Phase, Progress, Step
from lima_kernels.verbs import usage
from lima_kernels.vm import VM
from tests.fake_guest import FakeGuest

from .conftest import Machine

NAME = "lima-kernels"


@pytest.fixture(autouse=True)
def _short_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no guest, none is waited for as long as for one that is slow."""
    monkeypatch.setattr(usage, "LOOK_TIMEOUT", 0.5)


@pytest.fixture
def processes() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start real processes; what is left of them is killed."""
    made: list[subprocess.Popen[str]] = []

    def start(*argv: str, **options: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            **options,
        )
        made.append(process)
        return process

    yield start
    for process in made:
        process.kill()
        process.communicate()


def cli(processes: Callable[..., subprocess.Popen[str]], *arguments: str) -> subprocess.Popen[str]:
    return processes(sys.executable, "-m", "lima_kernels", *arguments)


def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it did not come about"
        time.sleep(0.02)


def shared_phase() -> Phase | None:
    found = progress.holder(paths.progress_file(NAME))
    return found.phase if found else None


def make(machine: Machine, *, ours: bool = True, running: bool = False, **behaviour: Any) -> Path:
    """Make an instance by hand; running unless told otherwise."""
    directory = machine.lima_home / NAME
    directory.mkdir()
    mark = OwnerMark(
        version=MARK_VERSION,
        environment=DEFAULT.digest,
        image=DEFAULT.image_digest,
        source=Source.LOCAL,
        provisioned="image",
    )
    files = [GuestFile(paths.GUEST_INSTANCE_FILE, msgspec.json.encode(mark).decode())] if ours else []
    mounts = [{"location": str(machine.notebooks), "writable": True}]
    (directory / "lima.yaml").write_text(
        render(Config(images=[{"location": "x"}], mounts=mounts, provision=[], files=files))
    )
    if running:
        (directory / "running").touch()
    machine.tell(**behaviour)
    return directory


def wish(machine: Machine, **limits: float) -> Wish:
    return Wish(environment=DEFAULT, attach=False, directory=machine.notebooks, **limits)


def handle(steps: list[Step]) -> VM:
    return VM(NAME, Limactl(), steps.append)


def silent() -> Progress:
    return Progress(NAME, lambda _step: None)


def says(directory: Path, message: str) -> None:
    """Let the host agent log a line."""
    with (directory / "ha.stderr.log").open("a") as log:
        log.write(json.dumps({"level": "info", "msg": message, "time": "2026-11-21T14:48:47Z"}) + "\n")


# Two processes


def test_who_waits_for_another_start_sees_its_phases(
    machine: Machine, image_files: Path, processes: Callable[..., subprocess.Popen[str]]
) -> None:
    machine.tell(delay={"create": 1.5, "start": 1.5}, fail={"start": "no"})
    first = cli(processes, "start", "--directory", str(machine.notebooks))
    until(lambda: shared_phase() is Phase.CREATE)
    seen: list[Step] = []

    async def wait() -> None:
        async with locks.locked(Progress(NAME, seen.append), 20.0):
            pass

    asyncio.run(wait())
    said = f"in another process, pid {first.pid}"
    told = [(step.phase, step.detail) for step in seen]
    assert told[:2] == [(Phase.CREATE, said), (Phase.BOOT, said)]
    assert told[-1] == (Phase.CHECK, "")
    assert first.wait(20) == 1
    assert not paths.progress_file(NAME).exists()


def test_two_processes_start_one_vm(
    machine: Machine, guest: FakeGuest, spec: str, processes: Callable[..., subprocess.Popen[str]]
) -> None:
    """The second is let on as soon as the first has booted the VM; neither of them gets a kernel here."""
    machine.tell(delay={"create": 1.0})
    program = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from lima_kernels.environment.spec import DEFAULT\n"
        "from lima_kernels.instances import Wish\n"
        "from lima_kernels.lima.limactl import Limactl\n"
        "from lima_kernels.vm import VM\n"
        "async def reach(*_):\n"
        "    return 'reached'\n"
        "VM._ready = reach\n"
        "VM._keep = lambda self, stack, guest, instance: guest\n"
        "vm = VM('lima-kernels', Limactl(), lambda step: print(step.phase.name, step.detail, flush=True))\n"
        "print(asyncio.run(vm.ensure(Wish(DEFAULT, False, Path(sys.argv[1])))))\n"
    )
    both = [processes(sys.executable, "-c", program, str(machine.notebooks)) for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in both]
    assert [out.splitlines()[-1:] for out, _ in outputs] == [["reached"]] * 2, outputs
    assert len(machine.calls("create")) == len(machine.calls("start")) == 1
    assert any("CREATE in another process, pid " in out for out, _ in outputs)


@pytest.mark.parametrize("verb", ["create", "list"])
def test_a_killed_holder_blocks_nobody(
    machine: Machine, image_files: Path, processes: Callable[..., subprocess.Popen[str]], verb: str
) -> None:
    machine.tell(hang=[verb])
    first = cli(processes, "start", "--directory", str(machine.notebooks))
    until(lambda: machine.calls(verb))
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    machine.tell(hang=[])
    began = time.monotonic()

    async def start() -> None:
        async with locks.locked(silent(), 20.0):
            found = await present(Limactl(), NAME, wish(machine), silent())
            assert found.created

    asyncio.run(start())
    assert time.monotonic() - began < 10.0
    assert machine.instances() == [NAME]


def test_a_holder_that_hangs_is_named(
    machine: Machine, image_files: Path, processes: Callable[..., subprocess.Popen[str]]
) -> None:
    make(machine, hang=["start"])
    first = cli(processes, "start", "--directory", str(machine.notebooks))
    until(lambda: shared_phase() is Phase.BOOT)

    async def wait() -> None:
        async with locks.locked(silent(), 0.5):
            pass

    with pytest.raises(PhaseTimeout) as caught:
        asyncio.run(wait())
    assert str(caught.value) == (
        f"The VM 'lima-kernels' is busy: 0 s were used up booting the VM in another process, pid {first.pid}. "
        "End that process if it hangs: that gives its lock back."
    )


def test_a_lock_that_cannot_be_had_is_one_line(machine: Machine) -> None:
    paths.lock_file(NAME).mkdir()

    async def wait() -> None:
        async with locks.locked(silent(), 1.0):
            pass

    with pytest.raises(LimactlError.__bases__[0], match="cannot be locked"):
        asyncio.run(wait())


def test_a_start_waits_for_a_stop(
    machine: Machine, image_files: Path, processes: Callable[..., subprocess.Popen[str]]
) -> None:
    make(machine, running=True, delay={"stop": 1.5})
    first = cli(processes, "stop")
    until(lambda: shared_phase() is Phase.STOPPING)
    seen: list[Step] = []

    async def wait() -> Status:
        told = Progress(NAME, seen.append)
        async with locks.locked(told, 20.0):
            return (await present(Limactl(), NAME, wish(machine), told)).instance.status

    assert asyncio.run(wait()) is Status.STOPPED
    assert (seen[0].phase, seen[0].detail) == (Phase.STOPPING, f"in another process, pid {first.pid}")
    assert seen[0].phase.value == "waiting for the VM to stop"
    assert first.communicate(timeout=20)[0] == "The VM lima-kernels is stopped.\n"


# A VM that stops under a start


@pytest.fixture
def agent(processes: Callable[..., subprocess.Popen[str]]) -> subprocess.Popen[str]:
    """A process that stands for the VM's host agent."""
    return processes("sleep", "600")


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


async def test_a_vm_that_stops_while_we_connect_is_booted_again(
    machine: Machine, guest: FakeGuest, agent: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostagent, "INTERVAL", 0.05)
    make(machine, running=True, host_agent_pid=agent.pid, driver_pid=agent.pid)
    steps: list[Step] = []
    vm = handle(steps)

    async def reach(*_: object) -> str:
        if not machine.calls("start"):
            vm.progress.enter(Phase.CONNECT)
            await asyncio.to_thread(end, agent)
            await asyncio.sleep(60)
        return "reached"

    monkeypatch.setattr(vm, "_ready", reach)
    monkeypatch.setattr(vm, "_keep", lambda _stack, found, _instance: found)

    async def revive() -> None:
        while not machine.calls("start"):
            await asyncio.sleep(0.01)
        machine.tell(host_agent_pid=os.getpid(), driver_pid=os.getpid())

    reviving = asyncio.ensure_future(revive())
    async with asyncio.timeout(20):
        assert await vm.ensure(wish(machine)) == "reached"  # type: ignore[comparison-overlap]
    await reviving
    assert [step.phase for step in steps] == [Phase.CHECK, Phase.CONNECT, Phase.CHECK, Phase.BOOT]


async def test_all_boots_of_one_start_share_its_limit(
    machine: Machine, guest: FakeGuest, agent: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostagent, "INTERVAL", 0.05)
    make(machine, running=True, host_agent_pid=agent.pid, driver_pid=agent.pid)
    vm = handle([])

    async def reach(*_: object) -> None:
        await asyncio.sleep(1.5)
        await asyncio.to_thread(end, agent)
        machine.tell(host_agent_pid=os.getpid(), driver_pid=os.getpid())
        await asyncio.sleep(60)

    monkeypatch.setattr(vm, "_ready", reach)
    began = time.monotonic()
    with pytest.raises(PhaseTimeout, match=r"boot_timeout \(2 s\) was used up"):
        await vm.ensure(wish(machine, boot_timeout=2.4))
    assert time.monotonic() - began < 6.0


async def test_a_running_vm_that_is_about_to_stop_is_waited_for(
    machine: Machine, agent: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`limactl stop` by hand: Lima calls the instance running until its guest has shut down."""
    monkeypatch.setattr(hostagent, "INTERVAL", 0.05)
    directory = make(machine, running=True, host_agent_pid=agent.pid, driver_pid=agent.pid)
    says(directory, "Received SIGINT, shutting down the host agent")
    steps: list[Step] = []
    looking = asyncio.ensure_future(present(Limactl(), NAME, wish(machine), Progress(NAME, steps.append)))
    while not steps:
        await asyncio.sleep(0.01)
    assert not looking.done()
    await asyncio.to_thread(end, agent)
    assert (await looking).instance.status is Status.STOPPED
    assert [step.phase for step in steps] == [Phase.STOPPING]


async def test_one_that_never_stops_is_named(
    machine: Machine, agent: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instances, "STOP", 0.2)
    directory = make(machine, running=True, host_agent_pid=agent.pid, driver_pid=agent.pid)
    says(directory, "Received SIGINT, shutting down the host agent")
    with pytest.raises(PhaseTimeout) as caught:
        await present(Limactl(), NAME, wish(machine), silent())
    assert str(caught.value) == (
        "The VM 'lima-kernels' did not stop within 0 s of waiting for the VM to stop. "
        "To end it as it is: lima-kernels stop --force lima-kernels"
    )


async def test_a_failure_of_a_guest_that_shuts_down_is_none(
    machine: Machine, guest: FakeGuest, agent: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostagent, "INTERVAL", 0.05)
    directory = make(machine, running=True, host_agent_pid=agent.pid, driver_pid=agent.pid)
    vm = handle([])

    async def reach(*_: object) -> str:
        if machine.calls("start"):
            return "reached"
        says(directory, "Received SIGINT, shutting down the host agent")
        asyncio.get_running_loop().call_later(0.3, end, agent)
        raise ConnectionFailed("The guest hung up.")

    monkeypatch.setattr(vm, "_ready", reach)
    monkeypatch.setattr(vm, "_keep", lambda _stack, found, _instance: found)

    async def revive() -> None:
        while not machine.calls("start"):
            await asyncio.sleep(0.01)
        machine.tell(host_agent_pid=os.getpid(), driver_pid=os.getpid())

    reviving = asyncio.ensure_future(revive())
    async with asyncio.timeout(20):
        assert await vm.ensure(wish(machine)) == "reached"  # type: ignore[comparison-overlap]
    await reviving


async def test_a_host_agent_that_only_limactl_sees_is_not_watched(
    machine: Machine, guest: FakeGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(machine, running=True)
    vm = handle([])
    monkeypatch.setattr(hostagent, "is_alive", lambda _pid: False)
    looks = 0

    async def reach(*_: object) -> str:
        nonlocal looks
        looks += 1
        await asyncio.sleep(0.3)
        return "reached"

    monkeypatch.setattr(vm, "_ready", reach)
    monkeypatch.setattr(vm, "_keep", lambda _stack, found, _instance: found)
    async with asyncio.timeout(20):
        assert await vm.ensure(wish(machine)) == "reached"  # type: ignore[comparison-overlap]
    assert looks == 2
    assert machine.calls("start") == []


# A VM without its host agent


async def test_a_vm_without_its_host_agent_is_used_with_one_warning(
    machine: Machine, guest: FakeGuest, caplog: pytest.LogCaptureFixture
) -> None:
    directory = make(machine, running=True, host_agent_pid=2**22 + 1, driver_pid=os.getpid())
    (directory / "ssh.config").write_text(f"Host x\n  Port {guest.port}\n")
    vm = handle([])
    for _ in range(2):
        await vm.ensure(wish(machine))
        await vm.disconnect()
    await vm.reconnect(wish(machine))
    await vm.disconnect()
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "lima_kernels.starting"]
    assert warning == (
        "The VM 'lima-kernels' runs, but Lima's host agent for it does not answer (qemu driver is running but host "
        "agent is not). Kernels work; Lima's own port forwards and reverse-sshfs mounts do not. To mend it, which "
        "ends its kernels: lima-kernels stop --force lima-kernels, then start."
    )
    assert machine.calls("start") == machine.calls("stop") == []


def test_it_cannot_be_stopped_in_good_order(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    make(machine, running=True, host_agent_pid=2**22 + 1, driver_pid=os.getpid())
    assert main(["stop"]) == 1
    assert capsys.readouterr().err.endswith(
        "lima-kernels: The VM 'lima-kernels' cannot be shut down in good order: it is Broken: qemu driver is running "
        "but host agent is not. To end it as it is: lima-kernels stop --force lima-kernels\n"
    )
    assert main(["stop", "--force"]) == 0


async def test_a_host_agent_without_a_vm_is_broken_after_a_moment(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instances, "SETTLE_TIMEOUT", 0.3)
    make(machine, running=True, driver_pid=2**22 + 1)
    with pytest.raises(InstanceError) as caught:
        await present(Limactl(), NAME, wish(machine), silent())
    assert str(caught.value) == (
        "The VM 'lima-kernels' is Broken: host agent is running but driver is not. "
        "Try: limactl stop --force lima-kernels"
    )


async def test_one_that_others_just_start_is_waited_for(machine: Machine) -> None:
    make(machine, running=True, driver_pid=2**22 + 1)
    looking = asyncio.ensure_future(present(Limactl(), NAME, wish(machine), silent()))
    await asyncio.sleep(0.5)
    machine.tell(driver_pid=os.getpid())
    assert (await looking).instance.status is Status.RUNNING


# What is said of a VM that has stopped


async def test_a_stopped_vm_is_told_with_its_reason(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    make(machine, running=True)
    assert await asyncio.to_thread(main, ["stop"]) == 0
    with pytest.raises(InstanceError, match=r"^The VM 'lima-kernels' is stopped: it was shut down by `lima-kernels"):
        await handle([]).reconnect(wish(machine))


async def test_a_vm_whose_state_is_unknown_is_not_gone(machine: Machine) -> None:
    make(machine, running=True, status="Hibernating")
    with pytest.raises(ConnectionFailed, match="limactl does not know whether the VM 'lima-kernels' runs"):
        await handle([]).reconnect(wish(machine))


async def test_a_list_that_fails_makes_no_vm_gone(machine: Machine, image_files: Path) -> None:
    make(machine, running=True, fail={"list": "cannot allocate memory"})
    with pytest.raises(LimactlError, match="cannot allocate memory"):
        await handle([]).reconnect(wish(machine))
    with pytest.raises(LimactlError, match="cannot allocate memory"):
        await present(Limactl(), NAME, wish(machine), silent())
    assert machine.calls("create") == []


def test_a_stop_that_fails_is_not_the_reason(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    make(machine, running=True, fail={"stop": "no"})
    assert main(["stop"]) == 1
    assert not paths.stopped_file(NAME).exists()


@pytest.mark.parametrize(("words", "reason"), [("", "exit status 1"), ("cannot set up guest memory", "cannot set up")])
async def test_a_boot_that_ends_at_once_is_told_with_its_reason(
    machine: Machine, image_files: Path, words: str, reason: str
) -> None:
    make(machine, driver_fails=[2, words])
    with pytest.raises(InstanceError, match=rf"exit code 1: its process ended .*at \d\d:\d\d with '{reason}"):
        await handle([]).ensure(wish(machine))
    assert len(machine.calls("start")) == 2


async def test_a_boot_that_ends_at_once_is_tried_again(
    machine: Machine, image_files: Path, guest: FakeGuest, caplog: pytest.LogCaptureFixture
) -> None:
    make(machine, driver_fails=[1, "Could not set up host forwarding rule"])
    vm = handle([])
    await vm.ensure(wish(machine))
    await vm.disconnect()
    assert len(machine.calls("start")) == 2
    assert "ended as it began to boot (Could not set up host forwarding rule)" in caplog.text


# Creating


async def test_half_an_instance_of_ours_goes(machine: Machine, image_files: Path, guest: FakeGuest) -> None:
    machine.tell(fail={"create": "no"})
    for left in ({}, {"lima.yaml": 0}, {"lima.yaml": 60, "disk": "x"}, {"lima.yaml": 10**6, "disk": "x"}):
        machine.tell(half_made=left)
        with pytest.raises(LimactlError, match="failed with exit code 1: no"):
            await present(Limactl(), NAME, wish(machine), silent())
        assert not (machine.lima_home / NAME).exists()


async def test_somebodys_vm_of_the_same_name_survives(
    machine: Machine, image_files: Path, processes: Callable[..., subprocess.Popen[str]]
) -> None:
    machine.tell(delay={"create": 1.0})
    looking = asyncio.ensure_future(present(Limactl(), NAME, wish(machine), silent()))
    while not machine.calls("create"):
        await asyncio.sleep(0.01)
    directory = make(machine, ours=False)
    before = (directory / "lima.yaml").read_text()
    with pytest.raises(LimactlError, match="already exists"):
        await looking
    assert (directory / "lima.yaml").read_text() == before
    assert machine.calls("delete") == []


async def test_a_directory_that_was_there_before_is_left(machine: Machine, image_files: Path) -> None:
    (machine.lima_home / NAME).mkdir()
    with pytest.raises(LimactlError, match="already exists"):
        await present(Limactl(), NAME, wish(machine), silent())
    assert (machine.lima_home / NAME).is_dir()


async def test_a_full_disk_is_one_line(machine: Machine, image_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "free_space", lambda _path: 12 * 1024**2)
    machine.tell(fail={"create": "write disk: no space left on device"})
    with pytest.raises(LimactlError) as caught:
        await present(Limactl(), NAME, wish(machine), silent())
    assert str(caught.value) == (
        "limactl create --name=lima-kernels - failed with exit code 1: write disk: no space left on device "
        f"(12 MiB are free in {machine.lima_home}.) "
        "Free some space there, or set LIMA_HOME to a directory on another disk."
    )


# Stopping what is in use


class Terminal:
    def __init__(self, answer: str) -> None:
        self._answer = answer

    def isatty(self) -> bool:
        return True

    def readline(self, *_: object) -> str:
        return self._answer


def test_a_vm_in_use_is_not_stopped(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make(machine, running=True)
    monkeypatch.setattr(usage, "users_of", lambda _name, _but: ["a.ipynb (jupyter-lab, process 7)"])
    assert main(["stop"]) == 1
    assert capsys.readouterr().err == (
        "  a.ipynb (jupyter-lab, process 7)\n"
        "lima-kernels: The VM 'lima-kernels' is in use. "
        "To end its kernels all the same: lima-kernels stop --force lima-kernels\n"
    )
    assert machine.calls("stop") == []
    assert main(["stop", "--force"]) == 0
    assert machine.calls("stop") == [["stop", "--force", NAME]]


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("yes\n", 0), ("n\n", 1), ("\n", 1), ("", 1)])
def test_a_person_is_asked(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: str,
    code: int,
) -> None:
    make(machine, running=True)
    monkeypatch.setattr(usage, "users_of", lambda _name, _but: ["a.ipynb \x1b[2J"])
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    assert main(["stop"]) == code
    assert "  a.ipynb \n" in capsys.readouterr().out
    assert len(machine.calls("stop")) == 1 - code


def test_an_unknown_vm_is_no_new_directory(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stop", "nobody"]) == main(["delete", "nobody"]) == 1
    assert "There is no Lima instance 'nobody'." in capsys.readouterr().err
    assert not (machine.lima_home / "_lima-kernels").exists()


def test_the_default_limits_stand_once() -> None:
    assert (Wish._field_defaults["create_timeout"], Wish._field_defaults["boot_timeout"]) == (
        instances.CREATE_TIMEOUT,
        instances.BOOT_TIMEOUT,
    )
