"""limactl's verbs against an executable that behaves, fails and lies."""

from __future__ import annotations

import asyncio
import os

import pytest

from lima_kernels.errors import InstanceError, LimactlError
from lima_kernels.lima import boot
from lima_kernels.lima.limactl import Limactl, parse_version
from lima_kernels.lima.models import Status

from .conftest import Machine

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
    done = await echo._run("stop", "one")
    assert done.stdout.splitlines()[:2] == ["--tty=false", "--log-format=json"]


async def test_a_call_that_hangs_is_ended(machine: Machine, limactl: Limactl) -> None:
    machine.tell(hang=["list"])
    with pytest.raises(LimactlError, match=r"limactl list --format=json did not end within 1 s\."):
        await limactl._run("list", "--format=json", timeout=1.0)


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
    assert [path.name for path in instance.dir.iterdir()] == ["lima.yaml"]
    await limactl.replace_config(instance, CONFIG + "cpus: 3\n")
    assert (instance.dir / "lima.yaml").read_text() == CONFIG + "cpus: 3\n"


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
