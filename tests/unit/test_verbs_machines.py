"""create, factory-reset, edit, clone, restart, info and logs, on a limactl that behaves and fails as the real one."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from lima_kernels import locks, paths
from lima_kernels.environment.spec import DEFAULT
from lima_kernels.errors import ConfigurationError, InstanceError, LimactlError, LimaKernelsError, PhaseTimeout
from lima_kernels.instances import Wish
from lima_kernels.lima import ending
from lima_kernels.lima.models import Status
from lima_kernels.progress import Phase, Progress
from lima_kernels.verbs import machines
from tests.fake_guest import FakeGuest

from .conftest import Machine
from .verbs import CONFIG, Asking, log_line, make, ours, used

GIB = 1024**3
NEW: dict[str, Any] = {
    "name": "one",
    "template": "debian-13",
    "cpus": None,
    "memory": None,
    "disk": None,
    "start": False,
}
NO: dict[str, Any] = {"name": None, "cpus": None, "memory": None, "disk": None}
WISH = Wish(environment=DEFAULT, attach=False, directory=None)


@pytest_asyncio.fixture
async def asking(machine: Machine) -> AsyncIterator[Asking]:
    made = Asking(machine)
    yield made
    await made.close()


@contextlib.contextmanager
def refused(kind: type[LimaKernelsError], text: str) -> Iterator[None]:
    """Expect one error, in these words, hint included."""
    with pytest.raises(kind) as caught:
        yield
    assert str(caught.value) == text


async def status(asking: Asking, name: str = "one") -> Status:
    return (await asking.limactl.get(name)).status


# create


async def test_a_vm_of_a_template(asking: Asking) -> None:
    note = await asking(machines.create, **NEW)
    assert note == "The VM one is made: 2 CPUs, 4 GiB of memory, a disk of 100 GiB. To start it: %lima start one"
    assert await status(asking) is Status.STOPPED
    assert asking.phases() == [Phase.CREATE]


async def test_a_vm_with_hardware_of_its_own(asking: Asking) -> None:
    asked = {**NEW, "cpus": 3, "memory": "1.5", "disk": "120GiB", "template": "template:debian-13"}
    note = await asking(machines.create, **asked, arch="aarch64", vm_type="vz")
    assert note.startswith("The VM one is made: 3 CPUs, 1.5 GiB of memory, a disk of 120 GiB.")
    text = (asking.machine.lima_home / "one" / "lima.yaml").read_text()
    assert text.endswith("cpus: 3\nmemory: 1536MiB\ndisk: 120GiB\narch: aarch64\nvmType: vz\n")


async def test_a_vm_is_started_when_that_is_asked_for(asking: Asking) -> None:
    note = await asking(machines.create, **{**NEW, "start": True})
    assert note == "The VM one is made, and runs: 2 CPUs, 4 GiB of memory, a disk of 100 GiB."
    assert await status(asking) is Status.RUNNING
    assert asking.phases() == [Phase.CREATE, Phase.BOOT, Phase.READY]


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"name": "a b"}, "'a b' cannot be a Lima instance's name. Use at most 76 letters and digits"),
        ({"name": "../x"}, "'../x' cannot be a Lima instance's name."),
        ({"cpus": 0}, "expected at least one CPU, got 0 at --cpus."),
        ({"memory": "lots"}, "expected a size such as 4GiB, got 'lots' at --memory."),
        ({"disk": "-1"}, "expected a size such as 4GiB, got '-1' at --disk."),
        ({"template": "debain-13"}, "There is no Lima template 'debain-13'. Did you mean 'debian-13'?"),
        ({"template": "$(id)"}, "There is no Lima template '$(id)'. See them: %lima template list"),
    ],
)
async def test_what_cannot_be_made(asking: Asking, asked: dict[str, Any], text: str) -> None:
    with pytest.raises(LimaKernelsError) as caught:
        await asking(machines.create, **{**NEW, **asked})
    assert str(caught.value).startswith(text)
    assert asking.machine.instances() == []
    assert not (asking.machine.lima_home / "_lima-kernels").exists()


async def test_a_name_that_is_taken(asking: Asking) -> None:
    await make(asking, "one", CONFIG + "cpus: 7\n")
    with refused(InstanceError, "The name 'one' is taken by another VM. See them all: %lima list"):
        await asking(machines.create, **NEW)
    assert (await asking.limactl.get("one")).cpus == 7
    assert len(asking.machine.calls("create")) == 1


@pytest.mark.parametrize("moment", ["create", "prepare"])
async def test_a_create_that_fails_leaves_nothing(asking: Asking, moment: str) -> None:
    """Lima itself leaves an instance whose image it cannot download."""
    asking.machine.tell(fail={moment: "failed to download the image"})
    with refused(LimactlError, "limactl create --name=one - failed with exit code 1: failed to download the image"):
        await asking(machines.create, **NEW)
    assert not (asking.machine.lima_home / "one").exists()


async def test_a_create_that_is_given_up_leaves_nothing(asking: Asking) -> None:
    asking.machine.tell(hang=["prepare"])
    file = asking.machine.lima_home / "one" / "lima.yaml"
    await asking.given_up(machines.create, file.exists, **NEW)
    assert not file.parent.exists()


async def test_somebody_elses_vm_that_was_faster_is_left(asking: Asking) -> None:
    asking.machine.tell(delay={"create": 1.0})
    asked = asyncio.ensure_future(asking(machines.create, **NEW))
    while len(asking.machine.calls("create")) < 2:
        # The first asks for the templates.
        await asyncio.sleep(0.02)
    directory = asking.machine.lima_home / "one"
    directory.mkdir()
    (directory / "lima.yaml").write_text(CONFIG)
    with pytest.raises(LimactlError, match="already exists"):
        await asked
    assert (directory / "lima.yaml").read_text() == CONFIG


async def test_a_vm_that_does_not_boot_is_there_to_be_looked_at(asking: Asking) -> None:
    asking.machine.tell(fail={"start": "the driver has no mood"})
    with pytest.raises(InstanceError, match=r"did not start: .*: the driver has no mood"):
        await asking(machines.create, **{**NEW, "start": True})
    assert await status(asking) is Status.STOPPED


async def test_a_boot_has_a_limit(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "BOOT_TIMEOUT", 1.0)
    monkeypatch.setattr(machines, "_MORE", 0.5)
    asking.machine.tell(hang=["ready"])
    with pytest.raises(PhaseTimeout) as caught:
        await asking(machines.create, **{**NEW, "start": True})
    assert caught.value.message == "The VM 'one' was not ready in time: 2 s were used up booting the VM."
    assert caught.value.context[-1] == "a last line on the serial console"


# factory-reset


async def test_a_factory_reset(asking: Asking) -> None:
    await make(asking, "one", ours())
    instance = await asking.limactl.get("one")
    key = paths.pinned_key_file(instance.dir)
    key.write_text("{}")
    ending.note_stop(instance.dir)
    note = await asking(machines.factory_reset, name=None, force=False)
    assert note == "The VM one is as it was made; its next start gives it a new disk."
    assert [file.name for file in instance.dir.iterdir()] == ["lima.yaml"]
    assert not paths.stopped_file("one").exists()
    assert asking.said == ["one: removing its disk"]


async def test_the_pinned_key_goes_even_where_limactl_leaves_it(asking: Asking) -> None:
    """The guest has another key then, and would be refused."""
    await make(asking, "one")
    instance = await asking.limactl.get("one")
    key = paths.pinned_key_file(instance.dir)
    key.write_text("{}")
    asking.machine.tell(cannot_remove=[key.name, "serial.log\x1b[2J"])
    (instance.dir / "serial.log\x1b[2J").touch()
    note = await asking(machines.factory_reset, name="one", force=False)
    assert not key.exists()
    assert "limactl could not remove all else: remove " in note
    assert "\x1b" not in note


async def test_a_disk_that_stays_is_an_error(asking: Asking) -> None:
    await make(asking, "one")
    asking.machine.tell(cannot_remove=["disk"])
    with pytest.raises(LimactlError, match=r"limactl factory-reset one left the disk there: remove .*disk"):
        await asking(machines.factory_reset, name="one", force=False)


async def test_a_running_vm_is_not_reset_by_mistake(asking: Asking) -> None:
    await make(asking, "one", running=True)
    with refused(
        InstanceError,
        "The VM 'one' runs: a VM's disk is removed when it is stopped, or with --force. "
        "Stop it, which ends its kernels: %lima stop one",
    ):
        await asking(machines.factory_reset, name="one", force=False)
    assert asking.machine.calls("factory-reset") == []
    await asking(machines.factory_reset, name="one", force=True)
    assert await status(asking) is Status.STOPPED


async def test_a_vm_in_use_is_not_reset(asking: Asking) -> None:
    await make(asking, "one")
    with used("one"):
        with pytest.raises(InstanceError) as caught:
            await asking(machines.factory_reset, name="one", force=False)
        assert str(caught.value).startswith("The VM 'one' is in use. To end its kernels all the same:")
        assert "%lima factory-reset one --force" in caught.value.hint
        assert caught.value.context[0].startswith("/nb/a.ipynb (")
        await asking(machines.factory_reset, name="one", force=True)
    assert len(asking.machine.calls("factory-reset")) == 1


async def test_a_protected_vm_is_not_reset(asking: Asking) -> None:
    await make(asking, "one")
    (asking.machine.lima_home / "one" / "protected").touch()
    with refused(InstanceError, "The VM 'one' is protected. limactl unprotect one"):
        await asking(machines.factory_reset, name="one", force=True)


async def test_a_reset_waits_for_whoever_is_at_it(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    await make(asking, "one")
    other = Progress("one", lambda _step: None)
    async with locks.locked(other, 1.0):
        other.enter(Phase.BOOT)
        asked = asyncio.ensure_future(asking(machines.factory_reset, name="one", force=False))
        while Phase.BOOT not in asking.phases():
            await asyncio.sleep(0.02)
        assert asking.machine.calls("factory-reset") == []
    await asked
    assert len(asking.machine.calls("factory-reset")) == 1


# edit


async def test_an_edit(asking: Asking) -> None:
    await make(asking, "one")
    note = await asking(machines.edit, **{**NO, "cpus": 4, "memory": "8GiB", "disk": "120"})
    assert note == "The VM one has, when it is next started: 4 CPUs, 8 GiB of memory, a disk of 120 GiB."
    found = await asking.limactl.get("one")
    assert (found.cpus, found.memory, found.disk) == (4, 8 * GIB, 120 * GIB)


async def test_an_edit_of_a_vm_of_ours_says_for_how_long_it_holds(asking: Asking) -> None:
    await make(asking, "one", ours())
    assert "until its environment file" in await asking(machines.edit, **{**NO, "memory": "8GiB"})
    # What a disk has it keeps.
    assert "until" not in await asking(machines.edit, **{**NO, "disk": "120GiB"})


async def test_an_edit_of_a_running_vm_is_refused(asking: Asking) -> None:
    await make(asking, "one", running=True)
    with refused(
        InstanceError,
        "The VM 'one' runs: its CPUs, memory and disk can be changed only while it is stopped. "
        "Stop it, which ends its kernels: %lima stop one",
    ):
        await asking(machines.edit, **{**NO, "cpus": 4})
    assert asking.machine.calls("edit") == []


async def test_a_broken_vm_is_not_edited(asking: Asking) -> None:
    await make(asking, "one")
    asking.machine.tell(status="Broken", errors=["it is no YAML"])
    with refused(
        InstanceError, "The VM 'one' is Broken: it is no YAML. To end what is left of it: %lima stop one --force"
    ):
        await asking(machines.edit, **{**NO, "cpus": 4})


async def test_a_disk_cannot_shrink(asking: Asking) -> None:
    await make(asking, "one")
    with refused(
        InstanceError, "The disk of the VM 'one' has 100 GiB and cannot shrink to 50 GiB. A disk can only grow."
    ):
        await asking(machines.edit, **{**NO, "disk": "50"})


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({}, "Nothing is said that could be changed. Give --cpus, --memory or --disk."),
        ({"cpus": -1}, "expected at least one CPU, got -1 at --cpus."),
        ({"memory": "8 apples"}, "expected a size such as 4GiB, got '8 apples' at --memory."),
    ],
)
async def test_what_cannot_be_edited(asking: Asking, asked: dict[str, Any], text: str) -> None:
    await make(asking, "one")
    with refused(ConfigurationError, text):
        await asking(machines.edit, **{**NO, **asked})


async def test_an_edit_that_lima_refuses_changes_nothing(asking: Asking) -> None:
    await make(asking, "one")
    asking.machine.tell(fail={"edit written": "field `cpus`: too many"})
    with pytest.raises(LimactlError, match="field `cpus`: too many"):
        await asking(machines.edit, **{**NO, "cpus": 4096})
    assert (asking.machine.lima_home / "one" / "lima.yaml").read_text() == CONFIG


# clone


async def test_a_clone(asking: Asking) -> None:
    await make(asking, "one", CONFIG + "cpus: 7\n")
    note = await asking(machines.clone, source="one", target="two")
    assert note == "The VM two is a copy of one: 7 CPUs, 4 GiB of memory, a disk of 100 GiB. It is stopped."
    assert asking.machine.instances() == ["one", "two"]
    assert asking.steps[-1][:2] == ("two", Phase.CREATE)


async def test_a_clone_of_ours_is_ours(asking: Asking) -> None:
    await make(asking, "one", ours())
    note = await asking(machines.clone, source="one", target="two")
    assert note.endswith("It is stopped. To run kernels in it: lima-kernels install --instance two")


async def test_a_running_vm_is_not_copied(asking: Asking) -> None:
    await make(asking, "one", running=True)
    with refused(
        InstanceError,
        "The VM 'one' runs: only a stopped VM can be copied. Stop it, which ends its kernels: %lima stop one",
    ):
        await asking(machines.clone, source="one", target="two")
    assert asking.machine.calls("clone") == []


@pytest.mark.parametrize("target", ["one", "two"])
async def test_a_clones_name_is_taken(asking: Asking, target: str) -> None:
    await make(asking, "one")
    await make(asking, "two")
    with refused(InstanceError, f"The name {target!r} is taken by another VM. See them all: %lima list"):
        await asking(machines.clone, source="one", target=target)


@pytest.mark.parametrize("stops_at", ["disk", "lima.yaml", "sock"])
@pytest.mark.parametrize("given_up", [False, True])
async def test_half_a_clone_is_removed(asking: Asking, stops_at: str, given_up: bool) -> None:
    """Lima leaves it; also directories that nobody may enter."""
    await make(asking, "one")
    for name in ("cidata", "sock"):
        (asking.machine.lima_home / "one" / name).mkdir()
    asking.machine.tell(clone_stops_at=stops_at)
    target = asking.machine.lima_home / "two"
    if given_up:
        asking.machine.tell(hang=["clone"])
        await asking.given_up(machines.clone, (target / "cidata").exists, source="one", target="two")
    else:
        asking.machine.tell(fail={"clone": "no space left on device"})
        with pytest.raises(LimactlError, match="no space left on device"):
            await asking(machines.clone, source="one", target="two")
    assert not target.exists()
    assert asking.machine.instances() == ["one"]


async def test_a_clone_of_a_vm_whose_template_copies_files_to_the_host(asking: Asking) -> None:
    """Lima's own clone fails at them; a start brings them again."""
    await make(asking, "one")
    copied = asking.machine.lima_home / "one" / "copied-from-guest"
    copied.mkdir()
    (copied / "kubeconfig.yaml").write_text("x")
    await asking(machines.clone, source="one", target="two")
    assert asking.machine.instances() == ["one", "two"]
    assert not (asking.machine.lima_home / "two" / copied.name).exists()
    asking.machine.tell(fail={"clone": "no space left on device"})
    with pytest.raises(LimactlError, match="no space left on device"):
        await asking(machines.clone, source="one", target="three")
    assert (copied / "kubeconfig.yaml").read_text() == "x"
    assert asking.machine.instances() == ["one", "two"]


async def test_somebody_elses_directory_is_no_half_clone(asking: Asking) -> None:
    await make(asking, "one")
    asking.machine.tell(delay={"clone": 1.0})
    asked = asyncio.ensure_future(asking(machines.clone, source="one", target="two"))
    while not asking.machine.calls("clone"):
        await asyncio.sleep(0.02)
    directory = asking.machine.lima_home / "two"
    directory.mkdir()
    (directory / "thesis.txt").touch()
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert (directory / "thesis.txt").exists()


# restart


async def test_a_restart_of_others(asking: Asking) -> None:
    await make(asking, "one", running=True)
    assert await asking(machines.restart, name=None, force=False) == "The VM one is ready."
    assert asking.phases() == [Phase.STOPPING, Phase.BOOT, Phase.READY]
    assert len(asking.machine.calls("stop")) == len(asking.machine.calls("start")) == 1
    assert await status(asking) is Status.RUNNING


async def test_a_restart_of_a_stopped_vm_starts_it(asking: Asking) -> None:
    await make(asking, "one")
    await asking(machines.restart, name="one", force=False)
    assert asking.machine.calls("stop") == []
    assert await status(asking) is Status.RUNNING


async def test_a_forced_restart_stops_forcibly(asking: Asking) -> None:
    await make(asking, "one", running=True)
    await asking(machines.restart, name="one", force=True)
    assert asking.machine.calls("stop") == [["stop", "--force", "one"]]


async def test_a_vm_in_use_is_not_restarted(asking: Asking) -> None:
    await make(asking, "one", running=True)
    with used("one"), pytest.raises(InstanceError) as caught:
        await asking(machines.restart, name="one", force=False)
    assert caught.value.message == "The VM 'one' is in use."
    assert "%lima restart one --force" in caught.value.hint
    assert asking.machine.calls("stop") == []


async def test_a_restart_whose_stop_fails_starts_nothing(asking: Asking) -> None:
    await make(asking, "one", running=True)
    asking.machine.tell(fail={"stop": "it will not"})
    with pytest.raises(LimactlError, match="it will not"):
        await asking(machines.restart, name="one", force=False)
    assert asking.machine.calls("start") == []


async def test_a_restart_of_ours_ends_with_a_guest_and_the_same_config(asking: Asking, guest: FakeGuest) -> None:
    vm = asking.vm("one")
    await vm.ensure(WISH)
    config = (asking.machine.lima_home / "one" / "lima.yaml").read_text()
    assert await asking(machines.restart, name="one", force=False) == "The VM one is ready."
    assert len(asking.machine.calls("start")) == 2
    assert vm.live() is not None
    assert (asking.machine.lima_home / "one" / "lima.yaml").read_text() == config


# info


async def test_what_is_known_of_a_vm(asking: Asking) -> None:
    mounts = "mounts:\n- {location: /a, writable: true}\n- {location: /b, mountPoint: /c}\n"
    await make(asking, "one", CONFIG + mounts + "additionalDisks: [data]\n", running=True)
    asking.machine.tell(ssh_port=1234)
    rows = {row["what"]: row["value"] for row in await asking(machines.info, name="one")}
    assert rows["status"] == "Running"
    assert (rows["cpus"], rows["memory"], rows["disk"]) == (2, "4 GiB", "100 GiB")
    assert rows["mounts"] == "/a (writable), /b at /c (read-only)"
    assert str(rows["ssh"]).endswith("@127.0.0.1:1234")
    assert (rows["disks_of_lima"], rows["made_by"], rows["made_with_lima"]) == ("data", "others", "2.2.0")


async def test_a_stopped_vm_has_no_port(asking: Asking) -> None:
    await make(asking, "one")
    rows = {row["what"]: row["value"] for row in await asking(machines.info, name="one")}
    assert (rows["status"], rows["ssh"]) == ("Stopped", "")


async def test_what_is_known_of_lima(asking: Asking) -> None:
    rows = {row["what"]: row["value"] for row in await asking(machines.info, name=None)}
    assert (rows["version"], rows["vm_types"], rows["templates"], rows["instances"]) == ("2.2.0", "qemu", 3, 0)
    assert rows["lima_home"] == str(asking.machine.lima_home)


# logs


async def test_the_end_of_the_host_agents_log(asking: Asking) -> None:
    await make(asking, "one")
    lines = [log_line("info", f"line {number}") for number in range(9)]
    lines += ["panic: \x1b[2Jwhat\n", log_line("warning", "a \x1b]0;title\x07 that steers")]
    paths.host_agent_log(asking.machine.lima_home / "one").write_text("".join(lines))
    table = await asking(machines.logs, name=None, source="hostagent", lines=3)
    time = "2026-11-21T21:33:49Z"
    assert [tuple(row.values()) for row in table] == [
        (time, "info", "line 8"),
        ("", "info", "panic: what"),
        (time, "warning", "a ]0;title that steers"),
    ]


async def test_the_end_of_the_serial_console(asking: Asking) -> None:
    await make(asking, "one")
    directory = asking.machine.lima_home / "one"
    (directory / "serial.log").write_bytes(b"")
    (directory / "serialv.log").write_bytes(b"\x1b[1mone\r\n\r\n two\xff\r\nthree\r\n")
    table = await asking(machines.logs, name="one", source=machines.LogSource.SERIAL, lines=2)
    assert [row["message"] for row in table] == [" two\N{REPLACEMENT CHARACTER}", "three"]


async def test_the_steps_of_a_boot(asking: Asking) -> None:
    await make(asking, "one")
    events = (
        '{"time":"T1","status":{"sshLocalPort":42937}}\n'
        '{"time":"T2","status":{"sshLocalPort":42937,"portForward":{"type":"forwarding"}}}\n'
        "not an event\n"
        '{"time":"T3","status":{"running":true,"degraded":true,"errors":["no \\u001b[2Jmount"],"sshLocalPort":42937}}\n'
        '{"time":"T4","status":{"running":true,"sshLocalPort":42937}}\n'
        '{"time":"T5","status":{"exiting":true}}\n'
    )
    (asking.machine.lima_home / "one" / "ha.stdout.log").write_text(events)
    table = await asking(machines.logs, name="one", source="boot", lines=50)
    assert [tuple(row.values()) for row in table] == [
        ("T1", "info", "SSH is on port 42937 of this host"),
        ("T3", "error", "no mount"),
        ("T3", "warning", "the VM runs, though not all is as it should be"),
        ("T4", "info", "the VM runs as it should"),
        ("T5", "info", "the VM ended"),
    ]


async def test_our_provisioning_is_a_part_of_a_boot(
    asking: Asking, guest: FakeGuest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asking.vm("one").ensure(WISH)
    monkeypatch.setattr(paths, "GUEST_PREFIX", str(tmp_path))
    (tmp_path / "provision.log").write_text("one\ntwo\n\x1b[2Jthree\n")
    table = await asking(machines.logs, name="one", source="boot", lines=2)
    assert [row["message"] for row in table] == ["two", "three"]


async def test_logs_that_are_not_there(asking: Asking) -> None:
    await make(asking, "one")
    for source in ("hostagent", "serial", "boot"):
        assert await asking(machines.logs, name="one", source=source, lines=5) == []
    with refused(ConfigurationError, "expected at least one line, got 0 at --lines."):
        await asking(machines.logs, name="one", source="serial", lines=0)


# all


ASKED: dict[str, tuple[Any, dict[str, Any]]] = {
    "factory_reset": (machines.factory_reset, {"name": "onee", "force": True}),
    "edit": (machines.edit, {**NO, "name": "onee", "cpus": 2}),
    "clone": (machines.clone, {"source": "onee", "target": "two"}),
    "restart": (machines.restart, {"name": "onee", "force": True}),
    "info": (machines.info, {"name": "onee"}),
    "logs": (machines.logs, {"name": "onee", "source": "serial", "lines": 5}),
}


@pytest.mark.parametrize("name", ASKED)
async def test_an_unknown_vm(asking: Asking, name: str) -> None:
    verb, options = ASKED[name]
    await make(asking, "one")
    with refused(InstanceError, "There is no Lima instance 'onee'. Did you mean 'one'?"):
        await verb(asking.context, argparse.Namespace(**options))
    assert not (asking.machine.lima_home / "_lima-kernels" / "onee").exists()
