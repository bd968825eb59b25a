"""The guest's idle timer: a VM that nobody uses shuts itself down, and one that somebody uses does not."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from lima_kernels import paths
from lima_kernels.guest.forkserver import idle
from tests.child import child
from tests.fake_guest import FakeGuest

from .conftest import Machine
from .test_forkserver import DAY, QUICK, Place, gone, place, spawned  # noqa: F401
from .test_kernel import lives, started, until


class Power:
    """The guest's `sudo`: it only takes down what it was asked."""

    def __init__(self, directory: Path, machine: Machine) -> None:
        self.file = machine.root / "asked"
        self._sudo = directory / "sudo"
        self.allow(True)

    def allow(self, allowed: bool) -> None:
        incoming = self._sudo.with_suffix(".new")
        incoming.write_text(f'#!/bin/sh\necho "$*" >>{self.file}\nexit {0 if allowed else 1}\n')
        incoming.chmod(0o755)
        incoming.replace(self._sudo)

    def asked(self) -> list[str]:
        return self.file.read_text().splitlines() if self.file.exists() else []


@pytest.fixture
def power(place: Place, machine: Machine) -> Power:  # noqa: F811
    return Power(machine.bin, machine)


POWER_OFF = "-n systemctl poweroff"
# This machine may have terminals of its own.
NOBODY = f"{QUICK}\nidle.has_terminals = lambda: False"


def somebody(flag: Path) -> str:
    """Statements for the launcher: there is a terminal while a file is there, which is looked at often."""
    return f"idle._TERMINAL_CHECK = 0.05\nidle.has_terminals = lambda: os.path.exists({str(flag)!r})"


def test_powers_off_without_kernels_and_says_so(place: Place, power: Power) -> None:  # noqa: F811
    talk = place.serve(NOBODY)
    talk.ask("settings", idle_timeout=0.2)
    assert talk.event() == {"event": "power off", "idle": 0.2}
    until(lambda: power.asked() == [POWER_OFF])
    # Nobody gets a kernel that would be gone at once.
    until(lambda: "shutting down" in talk.ask("spawn", **place.birth("a")).get("error", ""))
    assert power.asked() == [POWER_OFF]


def test_a_guest_that_is_going_does_not_spin(place: Place, power: Power) -> None:  # noqa: F811
    talk = place.serve(NOBODY)
    talk.ask("settings", idle_timeout=0.01)
    until(lambda: power.asked() == [POWER_OFF])
    talk.ask("settings", idle_timeout=60.0)
    used = sum(psutil.Process(place.pid).cpu_times()[:2])
    for _ in range(20):
        talk.kernels()
    assert sum(psutil.Process(place.pid).cpu_times()[:2]) - used < 0.1
    assert power.asked() == [POWER_OFF]


def test_a_guest_that_may_not_be_powered_off_goes_on(place: Place, power: Power) -> None:  # noqa: F811
    power.allow(False)
    talk = place.serve(NOBODY)
    talk.ask("settings", idle_timeout=0.1)
    # It is tried again, after the same time.
    until(lambda: len(power.asked()) >= 2)
    spawned(talk, place.birth("a"))
    power.allow(True)
    asked = len(power.asked())
    talk.ask("remove", kernel="a")
    until(lambda: len(power.asked()) == asked + 1)
    assert "shutting down" in talk.ask("spawn", **place.birth("a"))["error"]


@pytest.mark.parametrize("path", ["/nonexistent", ""])
def test_a_guest_without_sudo_goes_on(place: Place, path: str) -> None:  # noqa: F811
    place.env["PATH"] = path
    talk = place.serve(NOBODY)
    talk.ask("settings", idle_timeout=0.1)
    assert [talk.event()["event"] for _ in range(2)] == ["power off"] * 2
    spawned(talk, place.birth("a"))


def test_no_power_off_with_a_kernel_nor_with_one_whose_owner_is_gone(place: Place, power: Power) -> None:  # noqa: F811
    talk = place.serve(NOBODY)
    owner, other = place.talk(), place.talk()
    spawned(owner, place.birth("held"))
    spawned(owner, place.birth("orphan"))
    spawned(other, place.birth("short", keep=1.0))
    talk.ask("settings", idle_timeout=0.1)
    until(lambda: all(state["held"] for state in talk.kernels().values()))
    owner.hang_up()
    other.hang_up()
    # What would have run out has, many times over.
    until(gone(talk, "short"))
    talk.ask("hold", kernel="held", owner="again", keep=DAY)
    assert set(talk.kernels()) == {"held", "orphan"}
    assert power.asked() == []
    talk.ask("remove", kernel="held")
    talk.ask("remove", kernel="orphan")
    until(lambda: power.asked() == [POWER_OFF])


def test_a_guest_whose_kernels_do_nothing_may_be_put_to_sleep(place: Place, power: Power) -> None:  # noqa: F811
    talk = place.serve(f"{NOBODY}\nserver.SLEEP_PATIENCE = 0.2")
    spawned(talk, place.birth("a"))
    until(lambda: talk.kernels()["a"]["busy"] is False)
    talk.ask("settings", idle_timeout=0.2, on_idle="hibernate")
    assert talk.event() == {"event": "idle", "idle": 0.2}
    # Nobody does it; it is asked for again, and the kernel lives on.
    assert talk.event() == {"event": "idle", "idle": 0.2}
    assert power.asked() == []
    # Without a kernel there is nothing that could be lost.
    talk.ask("remove", kernel="a")
    until(lambda: power.asked() == [POWER_OFF])


def test_whether_all_is_there_is_told_when_it_is_back(place: Place, power: Power) -> None:  # noqa: F811
    """Of two who wake a guest, one has its directories mounted again, and the other waits for that."""
    waker = place.serve(NOBODY)
    assert waker.ask("leave", mounts=[], force=False)["ok"]["is_away"]
    other = place.talk()
    number = other.send("ready", mounted=[], holds={}, exists=["/proc"])
    broken = other.send("ready")
    assert not select.select([other.sock], [], [], 0.3)[0]
    assert waker.ask("return", mounts=[], iid="", now=0.0) == {"id": 2, "ok": {}}
    answers = {line["id"]: line for line in (other.line(), other.line())}
    assert answers[number]["ok"]["is_ready"]
    assert "error" in answers[broken]


def test_a_guest_that_is_to_do_nothing_does_nothing(place: Place, power: Power) -> None:  # noqa: F811
    talk = place.serve(NOBODY)
    talk.ask("settings", idle_timeout=0.05, on_idle="nothing")
    time.sleep(0.5)
    assert talk.kernels() == {}
    assert power.asked() == []


def test_a_kernel_that_has_died_uses_nothing(place: Place, power: Power) -> None:  # noqa: F811
    talk = place.serve(NOBODY)
    pid = spawned(talk, place.birth("a"))
    talk.ask("settings", idle_timeout=0.1)
    os.kill(pid, signal.SIGKILL)
    assert talk.event()["event"] == "exit"
    until(lambda: power.asked() == [POWER_OFF])
    assert talk.kernels()["a"]["code"] == -signal.SIGKILL


def test_no_power_off_while_somebody_has_a_terminal(place: Place, power: Power) -> None:  # noqa: F811
    flag = place.machine.root / "terminal"
    looks = place.machine.root / "looks"
    flag.touch()
    # Each look is taken down: so many looks are so many times that it would have powered off.
    launcher = (
        somebody(flag)
        + f"""
look = idle.has_terminals
def has_terminals():
    with open({str(looks)!r}, "a") as file:
        file.write("x")
    return look()
idle.has_terminals = has_terminals"""
    )
    talk = place.serve(launcher)
    talk.ask("settings", idle_timeout=0.1)
    until(lambda: looks.exists() and looks.stat().st_size >= 3)
    assert power.asked() == []
    assert talk.kernels() == {}
    assert talk.events == []
    flag.unlink()
    until(lambda: power.asked() == [POWER_OFF])


def test_what_was_said_in_another_boot_counts_no_longer(place: Place, power: Power) -> None:  # noqa: F811
    place.serve(NOBODY).ask("settings", idle_timeout=60.0)
    place.kill()
    file = place.root / "settings.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps({**said, "idle_timeout": 0.05}))
    place.serve(NOBODY)
    until(lambda: power.asked() == [POWER_OFF])
    place.kill()
    file.write_text(json.dumps({"idle_timeout": 0.05, "boot": "another"}))
    talk = place.serve(NOBODY)
    time.sleep(0.3)
    assert talk.kernels() == {}
    assert power.asked() == [POWER_OFF]


@pytest.mark.parametrize("never", [0, -5])
def test_zero_means_never(place: Place, power: Power, never: int) -> None:  # noqa: F811
    talk = place.serve(NOBODY)
    spawned(talk, place.birth("a"))
    talk.ask("settings", idle_timeout=0.2)
    talk.ask("settings", idle_timeout=never)
    talk.ask("remove", kernel="a")
    # Another's time has run out meanwhile, and longer than that.
    other = place.talk()
    spawned(other, place.birth("short", keep=0.5))
    other.hang_up()
    until(gone(talk, "short"))
    assert power.asked() == []
    assert talk.events == [event for event in talk.events if event["event"] == "exit"]


def test_settings_outlive_the_forkserver(place: Place, power: Power) -> None:  # noqa: F811
    talk = place.serve(NOBODY)
    pid = spawned(talk, place.birth("a"))
    talk.ask("settings", idle_timeout=0.3)
    place.kill()
    talk = place.serve(NOBODY)
    assert set(talk.kernels()) == {"a"}
    assert power.asked() == []
    os.kill(pid, signal.SIGKILL)
    until(lambda: power.asked() == [POWER_OFF])


def test_terminals_are_those_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[str] = ["ptmx"]
    monkeypatch.setattr(idle.os, "listdir", lambda path: {"/dev/pts": listed}[path])
    assert not idle.has_terminals()
    listed.append("0")
    assert idle.has_terminals()
    monkeypatch.setattr(idle.os, "listdir", lambda path: os.scandir("/nonexistent"))
    assert not idle.has_terminals()


# Through the provisioner


@pytest.fixture
def guest_power(guest: FakeGuest, spec: str, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Power:
    """The fake guest's `sudo`, and a forkserver that sees no terminals of this machine."""
    launcher = machine.root / "launch-in-guest.py"
    launcher.write_text(
        "import importlib, os, sys\n"
        "sys.argv = sys.argv[1:]\n"
        "sys.path[0], name = os.path.split(sys.argv[0])\n"
        "importlib.import_module(name + '.idle').has_terminals = lambda: False\n"
        "main = importlib.import_module(name + '.main').main\n"
        "del sys.path[0]\nsys.exit(main())\n"
    )
    python = machine.root / "guest-bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {launcher} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(paths, "GUEST_PYTHON", str(python))
    return Power(machine.root / "guest-bin", machine)


def poweroffs(power: Power) -> list[str]:
    # The start of the forkserver asks whether there is sudo, too.
    return [line for line in power.asked() if "poweroff" in line]


def test_a_kernel_specs_idle_timeout_reaches_the_guest(machine: Machine, guest_power: Power) -> None:
    with started(machine, idle_timeout=0.2, on_idle="stop") as notebook:
        assert notebook.run("print(1)") == "1"
        settings = list((machine.guest_home / ".lima-kernels").glob("*/settings.json"))
        assert [json.loads(file.read_text())["idle_timeout"] for file in settings] == [0.2]
        notebook.manager.restart_kernel()
        notebook.client.wait_for_ready(timeout=60)
        assert poweroffs(guest_power) == []
    until(lambda: poweroffs(guest_power) == [POWER_OFF])


def begin_and_wait(machine: Machine, idle_timeout: str) -> None:
    with started(machine, idle_timeout=float(idle_timeout), on_idle="hibernate") as notebook:
        print(notebook.run("import os; print(os.getpid())"), flush=True)
        sys.stdin.readline()


def test_a_server_that_was_killed_leaves_a_vm_that_stops_itself(machine: Machine, guest_power: Power) -> None:
    with child(begin_and_wait, machine, "0.2") as server:
        pid = int(server.line())
        server.kill()
    assert lives(pid)
    assert poweroffs(guest_power) == []
    os.kill(pid, signal.SIGKILL)
    until(lambda: poweroffs(guest_power) == [POWER_OFF])
