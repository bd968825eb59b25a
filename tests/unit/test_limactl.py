"""limactl's verbs against an executable that behaves, fails and lies."""

from __future__ import annotations

import asyncio
import json
import os

import pytest
import yaml

from lima_kernels.errors import ConfigurationError, InstanceError, LimactlError
from lima_kernels.lima import boot, storage
from lima_kernels.lima.limactl import Limactl, check_name, parse_version
from lima_kernels.lima.models import LogLine, Status, decode_log_line
from lima_kernels.lima.template import Config, Hardware, render, with_hardware

from .conftest import Machine

GIB = 1024**3
CONFIG = "images:\n- location: x\n"


@pytest.fixture
def limactl(machine: Machine) -> Limactl:
    return Limactl()


async def test_an_instance_from_its_making_to_its_end(machine: Machine, limactl: Limactl) -> None:
    assert await limactl.list() == ()
    assert await limactl.find("one") is None
    await limactl.create("one", CONFIG)
    assert (await limactl.get("one")).status is Status.STOPPED
    async with boot.booting(limactl, "one", timeout=60) as booting:
        assert await booting.ssh_port == 1
        await booting.finished
    found = await limactl.get("one")
    assert (found.status, found.ssh_local_port, found.dir) == (Status.RUNNING, 1, machine.lima_home / "one")
    await limactl.stop("one")
    assert (await limactl.get("one")).status is Status.STOPPED
    await limactl.delete("one")
    assert machine.instances() == []


async def test_an_unknown_instance_names_the_nearest(machine: Machine, limactl: Limactl) -> None:
    await limactl.create("lima-kernels", CONFIG)
    with pytest.raises(InstanceError) as caught:
        await limactl.get("lima-kernel")
    assert str(caught.value) == "There is no Lima instance 'lima-kernel'. Did you mean 'lima-kernels'?"


async def test_a_failure_tells_what_limactl_said(machine: Machine, limactl: Limactl) -> None:
    machine.tell(fail={"stop": "expected status `Running`, got `Stopped`"})
    with pytest.raises(LimactlError) as caught:
        await limactl.stop("one")
    assert str(caught.value) == ("limactl stop one failed with exit code 1: expected status `Running`, got `Stopped`")


async def test_every_call_is_free_of_questions(machine: Machine, limactl: Limactl) -> None:
    machine.script("limactl-echo", 'printf "%s\\n" "$@"')
    echo = Limactl(machine.bin / "limactl-echo")
    done = await echo.run("stop", "one")
    assert done.stdout.splitlines()[:2] == ["--tty=false", "--log-format=json"]


async def test_a_call_that_hangs_is_ended(machine: Machine, limactl: Limactl) -> None:
    machine.tell(hang=["list"])
    with pytest.raises(LimactlError, match=r"limactl list --format=json did not end within 1 s\."):
        await limactl.run("list", "--format=json", timeout=1.0)


async def test_a_template_with_what_it_is_based_on(limactl: Limactl) -> None:
    assert "debian-13.qcow2" in await limactl.template("debian-13")


@pytest.mark.parametrize("name", ["$(id)", "a b", "-x;"])
async def test_no_template_has_such_a_name(limactl: Limactl, name: str) -> None:
    with pytest.raises(InstanceError):
        await limactl.template(name)


async def test_a_config_that_lima_refuses_changes_nothing(machine: Machine, limactl: Limactl) -> None:
    await limactl.create("one", CONFIG)
    instance = await limactl.get("one")
    with pytest.raises(LimactlError, match="no images"):
        await limactl.replace_config(instance, "cpus: 2\n")
    assert (instance.dir / "lima.yaml").read_text() == CONFIG
    assert sorted(path.name for path in instance.dir.iterdir()) == ["disk", "lima.yaml"]
    await limactl.replace_config(instance, CONFIG + "cpus: 3\n")
    assert (instance.dir / "lima.yaml").read_text() == CONFIG + "cpus: 3\n"


async def test_a_config_never_makes_a_disk_smaller(machine: Machine, limactl: Limactl) -> None:
    """Lima would refuse to start such an instance: "disk shrinking is not supported"."""
    await limactl.create("one", CONFIG)
    await limactl.edit(await limactl.get("one"), Hardware(disk=200 * GIB))
    for wanted, then in (("", 200), ("disk: 150GiB\n", 200), ("disk: 250GiB\n", 250), ("disk: 1.5TB\n", 1536)):
        await limactl.replace_config(await limactl.get("one"), CONFIG + wanted)
        assert (await limactl.get("one")).disk == then * GIB


def test_a_template_that_is_not_changed_keeps_its_comments() -> None:
    text = "# why\ncpus: 2\n"
    assert with_hardware(text, Hardware()) == text
    assert with_hardware(text, Hardware(cpus=3, arch="aarch64")) == "cpus: 3\narch: aarch64\n"


async def test_an_edit_says_it_as_lima_reads_it(machine: Machine, limactl: Limactl) -> None:
    await limactl.create("one", CONFIG)
    hardware = Hardware(cpus=3, memory=1536 * 1024**2, disk=120 * GIB)
    await limactl.edit(await limactl.get("one"), hardware)
    assert machine.calls("edit") == [["edit", '--set=.cpus = 3 | .memory = "1536MiB" | .disk = "120GiB"', "one"]]
    found = await limactl.get("one")
    assert Hardware(found.cpus, found.memory, found.disk) == hardware


async def test_an_edit_tears_no_script_apart(machine: Machine, limactl: Limactl) -> None:
    """limactl's formatter does so with strings in single quotes; instances that we once made have such."""
    scripts = "provision:\n- mode: system\n  script: '#!/bin/sh\n\n    true'\n"
    await limactl.create("one", CONFIG + scripts)
    await limactl.edit(await limactl.get("one"), Hardware(cpus=3))
    file = machine.lima_home / "one" / "lima.yaml"
    assert yaml.safe_load(file.read_text()) == {**yaml.safe_load(CONFIG + scripts), "cpus": 3}


def test_what_we_write_is_kept_by_an_edit() -> None:
    script = "#!/bin/sh\n\n# one\ntrue 'a' \"b\"\n" + "word " * 1000 + "\n"
    text = render(Config([], [], [{"mode": "system", "script": script}], [], ca_certificates=["a\nb\n"]))
    assert f"script: {json.dumps(script)}" in text
    assert yaml.safe_load(text)["caCerts"]["certs"] == ["a\nb\n"]


async def test_a_refused_edit_leaves_no_file_where_we_work(
    machine: Machine, limactl: Limactl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(machine.notebooks)
    await limactl.create("one", CONFIG)
    with pytest.raises(LimactlError) as caught:
        await limactl.edit(await limactl.get("one"), Hardware(disk=GIB))
    assert caught.value.message.endswith(
        "exit code 1: field `disk`: shrinking the disk (None --> 1GiB) is not supported"
    )
    assert list(machine.notebooks.iterdir()) == []
    assert (machine.lima_home / "one" / "lima.yaml").read_text() == CONFIG


async def test_an_edit_that_is_given_up_changes_nothing(machine: Machine, limactl: Limactl) -> None:
    await limactl.create("one", CONFIG)
    machine.tell(hang=["edit written"])
    instance = await limactl.get("one")
    editing = asyncio.ensure_future(limactl.edit(instance, Hardware(cpus=3)))
    file = instance.dir / "lima.yaml"
    while file.read_text() == CONFIG:
        await asyncio.sleep(0.02)
    editing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await editing
    assert file.read_text() == CONFIG


async def test_a_factory_reset_tells_what_it_left(machine: Machine, limactl: Limactl) -> None:
    await limactl.create("one", CONFIG)
    (machine.lima_home / "one" / "sock").mkdir()
    (left,) = await limactl.factory_reset("one")
    assert left.endswith("sock: directory not empty")
    assert sorted(path.name for path in (machine.lima_home / "one").iterdir()) == ["lima.yaml", "sock"]


async def test_a_clone_can_be_entered(machine: Machine, limactl: Limactl) -> None:
    """Lima copies directories without their mode."""
    await limactl.create("one", CONFIG)
    (machine.lima_home / "one" / "sock").mkdir()
    await limactl.clone("one", "two")
    assert (machine.lima_home / "two" / "sock").stat().st_mode & 0o777 == 0o700


async def test_what_lima_tells_of_itself(machine: Machine, limactl: Limactl) -> None:
    found = await limactl.info()
    assert (found.version, found.lima_home, found.vm_types) == ("2.2.0", str(machine.lima_home), ("qemu",))
    machine.tell(garbage=["info"])
    with pytest.raises(LimactlError, match="limactl info printed what it should not"):
        await limactl.info()


async def test_an_error_of_several_lines_is_told_in_one(machine: Machine, limactl: Limactl) -> None:
    machine.tell(fail={"prune": "failed to remove a\nfailed to remove b"})
    with pytest.raises(LimactlError) as caught:
        await storage.prune(limactl)
    assert caught.value.message == "limactl prune failed with exit code 1: failed to remove a"


async def test_what_qemu_img_says_is_lost(machine: Machine, limactl: Limactl) -> None:
    await limactl.create("one", CONFIG)
    with pytest.raises(LimactlError) as caught:
        await storage.delete_snapshot(limactl, "one", "nosuch")
    assert caught.value.message == (
        "limactl snapshot delete one --tag=nosuch failed, and keeps to itself what qemu-img said."
    )
    machine.tell(fail={"snapshot delete": "expected tag"})
    with pytest.raises(LimactlError, match="failed with exit code 1: expected tag"):
        await storage.delete_snapshot(limactl, "one", "nosuch")


@pytest.mark.parametrize(
    ("said", "message"),
    [("unimplemented", "unimplemented"), (r'"a \"b\" c"', 'a "b" c'), (r'"\x1b[2J"', r"\x1b[2J"), ('"" more=1', "")],
)
def test_logruss_own_form(said: str, message: str) -> None:
    line = f'time="2026-11-21T21:58:08Z" level=fatal msg={said}'
    assert decode_log_line(line) == LogLine(message, "fatal")


async def test_what_the_monitor_says_is_an_error(machine: Machine, limactl: Limactl) -> None:
    """QEMU's monitor has no exit code, and limactl ends with 0."""
    await limactl.create("one", CONFIG)
    (machine.lima_home / "one" / "running").touch()
    machine.tell(monitor='Error: Device "x" is writable but does not support snapshots')
    with pytest.raises(LimactlError) as caught:
        await storage.create_snapshot(limactl, "one", "tag")
    assert caught.value.message == (
        'limactl snapshot create one --tag=tag failed: Error: Device "x" is writable but does not support snapshots'
    )


async def test_a_disk_that_limactl_passes_over_is_an_error(machine: Machine, limactl: Limactl) -> None:
    with pytest.raises(LimactlError, match="did nothing: Ignoring non-existent disk `data`"):
        await storage.delete_disk(limactl, "data")
    machine.tell(garbage=["disk"])
    with pytest.raises(LimactlError, match="limactl disk list printed what is no list of disks"):
        await storage.disks(limactl)


@pytest.mark.parametrize("name", ["a", "A9", "a.b_c-d", "x" * 76])
def test_names_that_lima_takes(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["", "a b", "-a", "a-", "a..b", "../a", "ä", "a\n", "x" * 77, "a.yaml", "a.YML"])
def test_names_that_lima_does_not_take(name: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be a Lima disk's name"):
        check_name(name, "Lima disk")


async def test_a_boot_that_is_given_up_leaves_no_limactl(machine: Machine, limactl: Limactl) -> None:
    await limactl.create("one", CONFIG)
    machine.tell(hang=["ready"])
    async with boot.booting(limactl, "one", timeout=60) as booting:
        await booting.ssh_port
        assert not booting.finished.done()
    with pytest.raises(InstanceError, match="was given up"):
        await booting.finished
    assert (await limactl.get("one")).status is Status.RUNNING


async def test_cancelling_a_verb_ends_its_process(machine: Machine, limactl: Limactl) -> None:
    machine.script("limactl-slow", f"echo $$ > {machine.root}/pid; exec sleep 60")
    slow = asyncio.ensure_future(Limactl(machine.bin / "limactl-slow").list())
    while not (machine.root / "pid").exists() or not (machine.root / "pid").read_text():
        await asyncio.sleep(0.02)
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow
    await asyncio.sleep(0.1)
    with pytest.raises(ProcessLookupError):
        os.kill(int((machine.root / "pid").read_text()), 0)


def test_versions() -> None:
    assert parse_version("limactl version 2.2.0") == (2, 2, 0)
    assert parse_version("limactl version v2.0.0-beta.1-34-gabc") == (2, 0, 0)
    assert parse_version("limactl version 2.3") == (2, 3, 0)
    with pytest.raises(LimactlError, match="printed no version"):
        parse_version("hello")
