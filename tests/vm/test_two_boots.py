"""Our guest image and one with cloud-init: both become what Lima asked for, in a first boot and in a second."""

from __future__ import annotations

import asyncio
import getpass
import json
import subprocess
from collections.abc import Iterator
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

# Two VMs, one after the other, two boots each.
pytestmark = [pytest.mark.timeout(1800), pytest.mark.long]
NAME = "lk-boots"
STATE = (Path(__file__).parent / "guest_state.py").read_text()


@pytest.fixture
def certificate(tmp_path: Path) -> str:
    """An authority that no image knows."""
    key = asyncssh.generate_private_key("ssh-rsa", key_size=2048)
    key_file, found = tmp_path / "key.pem", tmp_path / "ca.pem"
    key.write_private_key(str(key_file), "pkcs8-pem")
    argv = ["openssl", "req", "-x509", "-key", str(key_file), "-subj", "/CN=of-the-test", "-days", "30"]
    subprocess.run([*argv, "-out", str(found)], check=True, capture_output=True, timeout=60)
    return found.read_text()


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
    return template.render(made) + "env:\n  OF_THE_TEST: 'a b'\n"


def state(certificate: str) -> dict[str, Any]:
    body = certificate.splitlines()[1]
    argv = ["limactl", "--tty=false", "shell", "--workdir=/", NAME, "sudo", "python3", "-"]
    done = subprocess.run(
        [*argv, getpass.getuser(), body], input=STATE, capture_output=True, text=True, timeout=300, check=True
    )
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def two_boots(image: dict[str, Any], shown: Path, certificate: str) -> Iterator[dict[str, Any]]:
    """Make a VM, boot it twice, and yield what it is each time."""
    limactl = Limactl()
    run(limactl.create(NAME, config(image, shown, certificate)))
    try:
        run(ready(NAME))
        yield state(certificate)
        run(limactl.stop(NAME))
        run(ready(NAME))
        yield state(certificate)
    finally:
        run(limactl.delete(NAME))


def test_both_become_what_lima_asks_for(directories: Path, certificate: str) -> None:
    shown = directories / "shown"
    for name in ("read", "written"):
        (shown / name).mkdir(parents=True)
    local = find_image()
    assert local is not None
    ours = list(two_boots(run(instance._local_entry(local)), shown, certificate))
    stock = list(two_boots(stock_image(print).entry, shown, certificate))
    kept = [[boot.pop("kept") for boot in boots] for boots in (ours, stock)]
    assert ours == stock
    # A guest stays who it is, and is no other.
    assert kept[0][0] == kept[0][1]
    assert kept[0][0] != kept[1][0]
    for number, boot in enumerate(ours, 1):
        assert boot["scripts"][0] == "booted\n" * number
        assert boot["fills its disk"]
        assert boot["trusted"] == 1
        assert boot["failed"] == ""
        assert [point for point, *_ in boot["mounts"]][:1] == ["/data/written"]


def test_a_disk_that_was_made_larger_is_filled(directories: Path, certificate: str) -> None:
    shown = directories / "shown more"
    for name in ("read", "written"):
        (shown / name).mkdir(parents=True)
    local = find_image()
    assert local is not None
    limactl = Limactl()
    run(limactl.create(NAME, config(run(instance._local_entry(local)), shown, certificate) + "disk: 5GiB\n"))
    try:
        run(ready(NAME))
        run(limactl.stop(NAME))
        argv = ["limactl", "--tty=false", "edit", NAME, "--set", '.disk = "7GiB"']
        subprocess.run(argv, check=True, capture_output=True, timeout=60)
        run(ready(NAME))
        assert state(certificate)["fills its disk"]
    finally:
        asyncio.run(limactl.delete(NAME))
