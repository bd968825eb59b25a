"""A VM sleeps and wakes, with a fake QEMU: whose memory it is, who is in the way, and what becomes of half a sleep."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from jupyter_client import AsyncKernelManager

from lima_kernels import paths
from lima_kernels.cli.main import main
from lima_kernels.hibernation import saving, state, waking
from lima_kernels.lima import monitor
from lima_kernels.lima.boot import Boot
from lima_kernels.lima.models import Instance
from lima_kernels.progress import Phase
from lima_kernels.runtime import runtime
from tests.child import child
from tests.fake_guest import FakeGuest
from tests.fake_qemu import IID, MEMORY, FakeQemu

from .conftest import Machine
from .test_faults import at_phase
from .test_idle import Power, guest_power  # noqa: F401
from .test_kernel import started, until

NAME = "lima-kernels"
SUDO = """#!/bin/sh
case $4 in
  *umount*) [ ! -e {held} ] || exit 3; echo leave >>{log} ;;
  *find*) cat {held} ;;
  *) read -r iid && read -r now || exit 0; echo "return $iid $now" >>{log} ;;
esac
"""


class Sleeper:
    """A VM with a kernel's guest and a fake QEMU."""

    def __init__(self, machine: Machine, guest: FakeGuest) -> None:
        self.machine = machine
        self.guest = guest
        self.directory = machine.lima_home / NAME
        self.log = machine.root / "sudo.log"
        self.held = machine.root / "held"
        sudo = machine.root / "guest-bin" / "sudo"
        sudo.write_text(SUDO.format(held=shlex.quote(str(self.held)), log=shlex.quote(str(self.log))))
        self.qemu = FakeQemu(self.directory, guest, machine.tell)

    @property
    def memory(self) -> Path:
        return paths.memory_file(self.directory)

    def said_to_guest(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def options(self) -> str:
        """Return what the VM's process was last started with."""
        return (self.directory / "qemu").read_text()

    def starts(self) -> int:
        return len(self.machine.calls("start"))


@pytest.fixture
def sleeper(machine: Machine, guest: FakeGuest, spec: str) -> Iterator[Sleeper]:
    machine.tell(user={"home": str(machine.guest_home)})
    # The VM runs before its QEMU is needed, and a kernel that sleeps is woken for its end.
    with contextlib.ExitStack() as stack, started(machine):
        made = Sleeper(machine, guest)
        stack.callback(made.qemu.close)
        yield made


def hibernate(*options: str) -> int:
    return main(["hibernate", *options])


def test_a_kernel_lives_on_and_its_client_wakes_it(sleeper: Sleeper, capsys: pytest.CaptureFixture[str]) -> None:
    with started(sleeper.machine) as notebook:
        notebook.run("x = 'kept'")
        assert hibernate() == 0
        assert "2 kernel(s) live on when it wakes" in capsys.readouterr().out
        assert sleeper.memory.read_bytes() == MEMORY
        assert sleeper.memory.stat().st_mode & 0o777 == 0o600
        assert paths.hibernated_file(NAME).stat().st_mode & 0o777 == 0o600
        assert notebook.manager.is_alive()
        assert sleeper.starts() == 1
        assert notebook.run("print(x)") == "kept"
        assert sleeper.starts() == 2
        assert "-incoming defer -S" in sleeper.options()
        assert sleeper.qemu.loaded == MEMORY
        # The guest may have seen before that who put it to sleep is gone.
        leaving, *_, coming_back = sleeper.said_to_guest()
        assert leaving == "leave"
        assert coming_back.startswith(f"return {IID} ")
        assert not sleeper.memory.exists()
        assert not state.is_asleep(NAME)
    # The next start is an ordinary one.
    assert main(["stop", "--force"]) == 0


def test_another_server_wakes_it_for_all(sleeper: Sleeper) -> None:
    with started(sleeper.machine) as notebook, child(hold_kernel, sleeper.machine) as server:
        assert server.line() == "ready"
        notebook.run("x = 'kept'")
        assert hibernate() == 0
        server.say("run")
        assert server.line() == "theirs"
        assert notebook.run("print(x)") == "kept"
        assert sleeper.starts() == 2


def hold_kernel(machine: Machine) -> None:
    with started(machine) as notebook:
        notebook.run("x = 'theirs'")
        print("ready", flush=True)
        sys.stdin.readline()
        print(notebook.run("print(x)"), flush=True)


def test_a_new_kernel_wakes_it_wherever_its_directory_is(sleeper: Sleeper) -> None:
    before = (sleeper.directory / "lima.yaml").read_text()
    assert hibernate() == 0
    elsewhere = sleeper.machine.notebooks / "below"
    elsewhere.mkdir()
    with started(sleeper.machine, cwd=elsewhere) as notebook:
        assert notebook.run("import os; print(os.getcwd())") == str(elsewhere)
    assert "-incoming" in sleeper.options()
    # Devices that were not there when it fell asleep would be in the way of its waking.
    assert (sleeper.directory / "lima.yaml").read_text() == before


def test_a_cell_that_runs_is_named_and_with_force_goes_on(sleeper: Sleeper, capsys: pytest.CaptureFixture[str]) -> None:
    with started(sleeper.machine) as notebook:
        notebook.begin("import time\nfor n in range(40): time.sleep(0.1)")
        assert hibernate() == 1
        said = capsys.readouterr().err
        assert "kernels work" in said
        assert "a cell runs" in said
        assert not sleeper.said_to_guest()
        assert not state.is_asleep(NAME)
        assert hibernate("--force") == 0
        assert main(["start"]) == 0
        assert notebook.reply()["status"] == "ok"


def test_what_is_held_in_the_guest_is_named_and_all_is_as_before(
    sleeper: Sleeper, capsys: pytest.CaptureFixture[str]
) -> None:
    with started(sleeper.machine) as notebook:
        pid = notebook.run("import os; print(os.getpid())")
        file = sleeper.machine.notebooks / "data.csv"
        sleeper.held.write_text(f"{pid}/fd/7\t{file}\0{pid}/fd/8\t/elsewhere\0{pid}/fd/9\t{file}x\0")
        assert hibernate() == 1
        said = capsys.readouterr().err.replace("\n", "")
        assert "is in use there" in said
        assert f"({pid}): {file}" in said
        assert "/elsewhere" not in said
        assert sleeper.said_to_guest() == ["return  "]
        assert notebook.run("print(os.getcwd())") == str(sleeper.machine.notebooks)
        assert "stop" not in sleeper.qemu.commands
        assert not state.is_asleep(NAME)


@pytest.mark.parametrize(
    ("break_it", "line"),
    [
        (lambda qemu: qemu.blocked.append("a 9p directory is mounted"), "a 9p directory is mounted"),
        (lambda qemu: qemu.fails.update(migrate="No space left on device"), "No space left on device"),
        (lambda qemu: qemu.refused.update(migrate="no such thing"), "no such thing"),
        (lambda qemu: qemu.refused.update(stop="not now"), "not now"),
    ],
    ids=["blocked", "disk full", "refused", "not stopped"],
)
def test_what_cannot_be_saved_goes_on(
    sleeper: Sleeper, break_it, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(saving, "SETTLE_TIMEOUT", 0.2)
    break_it(sleeper.qemu)
    with started(sleeper.machine) as notebook:
        notebook.run("x = 'kept'")
        assert hibernate() == 1
        assert line in capsys.readouterr().err.replace("\n", "")
        assert notebook.run("print(x)") == "kept"
        assert sleeper.starts() == 1
        assert sleeper.said_to_guest() == ["leave", "return  " + sleeper.said_to_guest()[-1].split()[-1]]
        assert not sleeper.memory.exists()
        assert not state.is_asleep(NAME)


def change_disk(sleeper: Sleeper) -> None:
    disk = sleeper.directory / "disk"
    disk.write_bytes(disk.read_bytes() + b"x")


def change_config(sleeper: Sleeper) -> None:
    with (sleeper.directory / "lima.yaml").open("a") as file:
        file.write("cpus: 1\n")


def damage_memory(sleeper: Sleeper) -> None:
    data = bytearray(sleeper.memory.read_bytes())
    data[1000] ^= 1
    sleeper.memory.write_bytes(data)


def truncate_memory(sleeper: Sleeper) -> None:
    os.truncate(sleeper.memory, 1000)


def upgrade(sleeper: Sleeper) -> None:
    sleeper.qemu.version = {"qemu": {"major": 8, "minor": 0, "micro": 0}, "package": ""}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (change_disk, "its disk has changed since"),
        (change_config, "its lima.yaml has changed since"),
        (damage_memory, "its memory file is damaged"),
        (truncate_memory, "its memory file is damaged"),
        (upgrade, "QEMU 7.2.22Debian saved it, and this is QEMU 8.0.0"),
        (lambda sleeper: sleeper.memory.unlink(), "cannot be looked at: No such file or directory"),
        (lambda sleeper: sleeper.qemu.fails.update({"migrate-incoming": "Unknown section"}), "Unknown section"),
    ],
)
def test_memory_that_is_not_this_disks_is_never_loaded(
    sleeper: Sleeper, change, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert hibernate() == 0
    change(sleeper)
    with caplog.at_level(logging.WARNING):
        sleeper.qemu.boot()
        assert main(["start"]) == 0
    assert reason in caplog.text
    assert "Its kernels are lost: lima." in caplog.text
    assert "cont" not in sleeper.qemu.commands[sleeper.qemu.commands.index("quit") :]
    assert "-incoming" not in sleeper.options()
    assert not sleeper.memory.exists()
    assert not state.is_asleep(NAME)


async def test_a_wake_that_is_cancelled_leaves_it_asleep(sleeper: Sleeper) -> None:
    assert await asyncio.to_thread(hibernate) == 0
    for phase in (Phase.WAKE, Phase.CHECK):
        manager = AsyncKernelManager(kernel_name="lima")
        begin = asyncio.ensure_future(manager.start_kernel(cwd=str(sleeper.machine.notebooks)))
        with at_phase(phase, begin.cancel), pytest.raises(asyncio.CancelledError):
            await begin
        assert sleeper.memory.read_bytes() == MEMORY
    assert await asyncio.to_thread(main, ["start"]) == 0
    assert sleeper.qemu.loaded == MEMORY


async def test_a_wake_that_is_cancelled_as_limactl_begins_the_vm_ends_it(
    sleeper: Sleeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await asyncio.to_thread(hibernate) == 0
    begun = sleeper.directory / "running"

    @contextlib.asynccontextmanager
    async def booting(*_arguments: object, **_options: object) -> AsyncIterator[Boot]:
        try:
            yield Boot("", ())
        finally:
            begun.touch()

    with monkeypatch.context() as patched:
        patched.setattr(waking, "booting", booting)
        manager = AsyncKernelManager(kernel_name="lima")
        begin = asyncio.ensure_future(manager.start_kernel(cwd=str(sleeper.machine.notebooks)))
        with at_phase(Phase.WAKE, begin.cancel), pytest.raises(asyncio.CancelledError):
            await begin
    assert not begun.exists()
    assert await asyncio.to_thread(main, ["start"]) == 0
    assert sleeper.qemu.loaded == MEMORY


def test_a_vm_that_does_not_wake_once_is_tried_again(sleeper: Sleeper) -> None:
    with started(sleeper.machine) as notebook:
        notebook.run("x = 'kept'")
        assert hibernate() == 0
        sleeper.qemu.once["migrate-incoming"] = "it was killed"
        assert notebook.run("print(x)") == "kept"
        assert sleeper.starts() == 3


def test_a_vm_that_was_started_by_hand_is_never_given_its_old_memory(sleeper: Sleeper) -> None:
    assert hibernate() == 0
    (sleeper.directory / "running").touch()
    sleeper.qemu.boot()
    assert main(["start"]) == 0
    assert not sleeper.memory.exists()
    assert not state.is_asleep(NAME)
    assert sleeper.starts() == 1


def test_one_who_is_killed_while_he_saves_is_cleaned_up_after(sleeper: Sleeper) -> None:
    with started(sleeper.machine) as notebook:
        notebook.run("x = 'kept'")
        with child(save_for_ever, sleeper.machine) as saver:
            until(lambda: state.is_asleep(NAME) and "migrate" in sleeper.qemu.commands)
            saver.kill()
        assert main(["start"]) == 0
        assert notebook.run("print(x)") == "kept"
    assert not sleeper.memory.exists()
    assert not state.is_asleep(NAME)


def save_for_ever(_machine: Machine) -> None:
    # Whatever QEMU answers, it is not enough.
    monitor.Monitor._migrated = lambda *_: asyncio.sleep(1000)  # type: ignore[method-assign]
    hibernate()


def test_one_who_is_killed_in_the_moment_of_waking_is_cleaned_up_after(sleeper: Sleeper) -> None:
    with started(sleeper.machine) as notebook:
        notebook.run("x = 'kept'")
        assert hibernate() == 0
        with child(wake_half, sleeper.machine) as waker:
            while waker.line() != "half":
                pass
            waker.kill()
        assert not sleeper.memory.exists()
        assert main(["start"]) == 0
        assert notebook.run("print(x)") == "kept"
        assert sleeper.starts() == 2
    assert not state.is_asleep(NAME)


def wake_half(_machine: Machine) -> None:
    execute = monitor.Monitor.execute

    async def never_let_go(talk: monitor.Monitor, command: str, **arguments: object) -> object:
        if command == "cont":
            print("half", flush=True)
            await asyncio.sleep(1000)
        return await execute(talk, command, **arguments)

    monitor.Monitor.execute = never_let_go  # type: ignore[assignment,method-assign]
    main(["start"])


async def test_who_gives_up_when_all_is_saved_has_to_wait(sleeper: Sleeper, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = runtime().vm(NAME)
    gone, given_up = saving._gone, threading.Event()

    async def gone_late(instance: Instance) -> None:
        await asyncio.to_thread(given_up.wait, 20)
        await gone(instance)

    monkeypatch.setattr(saving, "_gone", gone_late)
    put_to_sleep = asyncio.ensure_future(runtime().run(vm.hibernate()))
    while "quit" not in sleeper.qemu.commands:
        await asyncio.sleep(0.01)
    put_to_sleep.cancel()
    with pytest.raises(asyncio.CancelledError):
        await put_to_sleep
    given_up.set()
    limit = asyncio.get_running_loop().time() + 20
    while state.read(NAME) is None or state.read(NAME).stage is not state.Stage.ASLEEP:
        assert asyncio.get_running_loop().time() < limit
        await asyncio.sleep(0.05)
    assert sleeper.memory.read_bytes() == MEMORY


def test_a_vm_whose_kernels_do_nothing_falls_asleep(guest_power: Power, sleeper: Sleeper) -> None:  # noqa: F811
    with started(sleeper.machine, idle_timeout=1.0, on_idle="hibernate") as notebook:
        notebook.run("x = 'kept'")
        until(lambda: (record := state.read(NAME)) is not None and record.stage is state.Stage.ASLEEP)
        assert notebook.run("print(x)") == "kept"
        assert sleeper.qemu.loaded == MEMORY


def test_a_sleep_is_discarded_on_demand(sleeper: Sleeper, capsys: pytest.CaptureFixture[str]) -> None:
    assert hibernate("--discard") == 1
    assert "does not sleep" in capsys.readouterr().err
    assert hibernate() == 0
    assert hibernate("--discard") == 0
    assert "Its kernels are lost: " in capsys.readouterr().out
    assert not sleeper.memory.exists()
    assert not state.is_asleep(NAME)


@pytest.mark.parametrize(
    ("told", "line"),
    [
        ({"vm_type": "vz"}, "its vmType is vz, and only QEMU can save a VM's memory"),
        ({"mount_type": "virtiofs"}, "its mountType is virtiofs"),
    ],
)
def test_where_it_cannot_be_the_cause_is_named(
    sleeper: Sleeper, told: dict[str, str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "mount_type" in told:
        with (sleeper.directory / "lima.yaml").open("a") as file:
            file.write(f"mountType: {told['mount_type']}\n")
    else:
        sleeper.machine.tell(**told)
    assert hibernate() == 1
    assert line in capsys.readouterr().err.replace("\n", " ")
    assert not sleeper.qemu.commands


def test_a_disk_without_room_is_said_before(
    sleeper: Sleeper, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(paths, "free_space", lambda _path: 1 << 30)
    assert hibernate() == 1
    assert "and 1 GiB are free" in capsys.readouterr().err.replace("\n", " ")
    assert not sleeper.said_to_guest()


def test_a_guest_that_nobody_lets_sleep_takes_its_directories_up_again(sleeper: Sleeper) -> None:
    """Whoever asked for it may be killed before it sleeps, and others' connections know nothing of it."""
    with started(sleeper.machine) as notebook:
        assert notebook.run("import os; print(os.getcwd())") == str(sleeper.machine.notebooks)
        with child(leave_and_hang, sleeper.machine) as leaver:
            assert leaver.line() == "away"
            assert notebook.run("print(os.getcwd())") == "/"
            leaver.kill()
        until(lambda: notebook.run("print(os.getcwd())") == str(sleeper.machine.notebooks))
        assert sleeper.said_to_guest() == ["leave", "return  "]


def leave_and_hang(_machine: Machine) -> None:
    async def hang(*_: object) -> str:
        print("away", flush=True)
        await asyncio.sleep(1000)
        return ""

    saving.save = hang  # type: ignore[assignment]
    hibernate()


def test_the_name_of_a_start_is_found_where_lima_writes_it(tmp_path: Path) -> None:
    found = type("Instance", (), {"dir": tmp_path})()
    assert waking.instance_id(found) == ""
    (tmp_path / "cidata.iso").write_bytes(b"\0\0LIMA_CIDATA_IID=iid-17\nother")
    assert waking.instance_id(found) == "iid-17"
