"""Our guest image and one with cloud-init: both become what Lima asked for, in a first boot and in a second.

What becomes of the one with cloud-init is committed, for it boots long; a longer test finds it out again.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from lima_kernels.environment import instance
from lima_kernels.environment.image import find_image
from lima_kernels.lima import template
from lima_kernels.lima.limactl import Limactl
from tests.benchmarks.machine_room import ready
from tests.benchmarks.stock_image import stock_image

from .conftest import run

pytestmark = pytest.mark.timeout(1800)
NAME = "lk-boots"
STATE = (Path(__file__).parent / "guest_state.py").read_text()
COMMITTED = Path(__file__).parents[1] / "data" / "two-boots-cloud-init.json"
MEASURED = Path(__file__).parents[2] / "build" / COMMITTED.name
# Of each guest its own: what names it, and what is not Lima's wish.
OWN = ("kept", "failed", "knows its name")

Boots = list[dict[str, Any]]


@pytest.fixture
def certificate(tmp_path: Path) -> str:
    """An authority that no image knows."""
    key = asyncssh.generate_private_key("ssh-rsa", key_size=2048)
    key_file, found = tmp_path / "key.pem", tmp_path / "ca.pem"
    key.write_private_key(str(key_file), "pkcs8-pem")
    argv = ["openssl", "req", "-x509", "-key", str(key_file), "-subj", "/CN=of-the-test", "-days", "30"]
    subprocess.run([*argv, "-out", str(found)], check=True, capture_output=True, timeout=60)
    return found.read_text()


@pytest.fixture
def shown(directories: Path) -> Path:
    """The directories that the guests show."""
    made = directories / "shown"
    for name in ("read", "written"):
        (made / name).mkdir(parents=True, exist_ok=True)
    return made


def config(image: dict[str, Any], shown: Path, certificate: str) -> str:
    """Return a lima.yaml that asks for all that Lima can want of a guest."""
    scripts = [
        {"mode": "system", "script": "#!/bin/sh\necho booted >>/var/of-root"},
        {"mode": "user", "script": "#!/bin/sh\nid -un >>~/of-user"},
        {"mode": "dependency", "script": "#!/bin/sh\necho early >>/var/of-dependency"},
    ]
    mounts = [
        {"location": str(shown / "read"), "writable": False},
        {"location": str(shown / "written"), "mountPoint": "/data/written", "writable": True},
    ]
    file = template.GuestFile("/etc/of-the-test", "{{.Name}} and 'quotes'\n", permissions="640", owner="root:root")
    made = template.Config(
        images=[image],
        mounts=mounts,
        mount_type="9p",
        provision=scripts,
        files=[file],
        ca_certificates=[certificate],
        # Firmware would have nothing to do, for both, and does not know the kernel of ours.
        legacy_bios=True,
    )
    return template.render(made) + "env:\n  OF_THE_TEST: 'a b'\ndisk: 5GiB\n"


def state(certificate: str) -> dict[str, Any]:
    body = certificate.splitlines()[1]
    argv = ["limactl", "--tty=false", "shell", "--workdir=/", NAME, "sudo", "python3", "-"]
    done = subprocess.run(
        [*argv, getpass.getuser(), body], input=STATE, capture_output=True, text=True, timeout=300, check=True
    )
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def two_boots(image: dict[str, Any], shown: Path, certificate: str) -> Boots:
    """Make a VM, boot it twice, and return what it is each time; its disk is made larger in between."""
    limactl = Limactl()
    run(limactl.create(NAME, config(image, shown, certificate)))
    try:
        run(ready(NAME))
        first = state(certificate)
        run(limactl.stop(NAME))
        run(limactl.edit(run(limactl.get(NAME)), template.Hardware(disk=7 << 30)))
        run(ready(NAME))
        return [first, state(certificate)]
    finally:
        run(limactl.delete(NAME))


def asked_for(boots: Boots, shown: Path) -> Boots:
    """Return what Lima asked for, with names for what is this machine's."""
    user = getpass.getuser()

    def named(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: named(each) for key, each in value.items() if key not in OWN}
        if isinstance(value, list):
            return [named(each) for each in value]
        if isinstance(value, str):
            value = re.sub(rf"(?<![\w-]){re.escape(user)}(?![\w-])", "USER", value.replace(str(shown), "SHOWN"))
            return "KEY" if value.startswith("ssh-") else value
        return "UID" if value == os.getuid() and not isinstance(value, bool) else value

    made: Boots = named(boots)
    return made


def test_ours_becomes_what_one_with_cloud_init_becomes(shown: Path, certificate: str) -> None:
    local = find_image()
    assert local is not None
    boots = two_boots(run(instance._local_entry(local)), shown, certificate)
    assert asked_for(boots, shown) == json.loads(COMMITTED.read_text())
    # A guest stays who it is.
    assert boots[0]["kept"] == boots[1]["kept"]
    for number, boot in enumerate(boots, 1):
        assert boot["scripts"][0] == "booted\n" * number
        assert boot["fills its disk"]
        assert boot["knows its name"]
        assert boot["trusted"] == 1
        assert boot["failed"] == ""
        assert [point for point, *_ in boot["mounts"]][:1] == ["/data/written"]


@pytest.mark.long
def test_what_one_with_cloud_init_becomes_is_what_is_committed(shown: Path, certificate: str) -> None:
    boots = asked_for(two_boots(stock_image(print).entry, shown, certificate), shown)
    MEASURED.parent.mkdir(exist_ok=True)
    MEASURED.write_text(json.dumps(boots, indent=2) + "\n")
    assert boots == json.loads(COMMITTED.read_text())
