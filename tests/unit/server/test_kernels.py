"""A kernel of the server itself, in a VM, and what is told of both."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fake_guest import FakeGuest
from tests.unit.conftest import Machine

from .conftest import Ask, Open


@pytest.fixture(autouse=True)
def _ready(guest: FakeGuest, spec: str) -> None:
    """Every test here has a guest and the kernel spec."""


async def test_a_kernel_and_its_vm(ask: Ask, page: Open, jp_fetch: Any, machine: Machine) -> None:
    async with page() as here:
        await here.told("snapshot")
        answer = await jp_fetch("api", "kernels", method="POST", body=json.dumps({"name": "lima"}), request_timeout=60)
        kernel = json.loads(answer.body)["id"]
        # Its VM was made and booted for it, which is a job.
        job = await here.until(lambda said: said["type"] == "job" and said["job"]["state"] != "running")
        assert (job["job"]["vm"], job["job"]["verb"], job["job"]["state"]) == ("lima-kernels", "kernel", "done")
    assert await ask("GET", "kernels", kernel, "vm") == (200, {"name": "lima-kernels"})
    code, said = await ask("GET", "vms", "lima-kernels", "kernels")
    (living,) = said["kernels"]
    assert (code, living["title"], living["busy"] is True) == (200, "lima", False)
    refused = await ask("POST", "vms", "lima-kernels", "stop", body={})
    assert (refused.code, refused.said["message"]) == (409, "The VM 'lima-kernels' is in use.")
    await jp_fetch("api", "kernels", kernel, method="DELETE", request_timeout=60)
    assert (await ask("GET", "kernels", kernel, "vm")).code == 404
    assert (await ask("GET", "vms", "lima-kernels", "kernels")).said == {"kernels": []}


async def test_a_vm_is_made_and_started_as_its_kernel_spec_says(ask: Ask, page: Open, machine: Machine) -> None:
    async with page() as here:
        await here.told("snapshot")
        answer = await ask("POST", "vms", "lima-kernels", "start")
        assert answer.code == 202
        job = await here.until(lambda said: said["type"] == "job" and said["job"]["state"] != "running")
    assert (job["job"]["id"], job["job"]["state"]) == (answer.said["id"], "done")
    assert machine.instances() == ["lima-kernels"]
    # Nothing of this server's directories is shown to it for that.
    assert str(machine.notebooks) not in (machine.lima_home / "lima-kernels" / "lima.yaml").read_text()
    assert (await ask("GET", "vms", "lima-kernels", "kernels")).said == {"kernels": []}


async def test_the_kernels_of_a_vm_that_does_not_run(ask: Ask, page: Open, machine: Machine) -> None:
    async with page() as here:
        await here.told("snapshot")
        await ask("POST", "vms", "lima-kernels", "start")
        await here.until(lambda said: said["type"] == "job" and said["job"]["state"] == "done")
    (machine.lima_home / "lima-kernels" / "running").unlink()
    assert (await ask("GET", "vms", "lima-kernels", "kernels")).said == {"kernels": None}
