"""The build of the guest image is reproducible: what one host makes twice is one image."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lima_kernels.environment import image, qcow2
from lima_kernels.environment.building import build_image

from .conftest import Machine


@pytest.mark.long
@pytest.mark.timeout(1800)
async def test_two_builds_have_the_same_bytes(machine: Machine, tmp_path: Path) -> None:
    said: list[str] = []
    first = await build_image("first", said.append)
    second = await build_image("second", said.append)
    one, two = image.read_manifest("first"), image.read_manifest("second")
    assert one == two
    assert one is not None
    assert first.disk.read_bytes() == second.disk.read_bytes()
    assert first.initrd.read_bytes() == second.initrd.read_bytes()
    assert image.damaged("first") == image.damaged("second") == []
    assert {"python3", "systemd", "openssh-server"} <= one.apt.keys()
    assert {"ipykernel", "numpy", "pandas"} <= one.python.keys()
    assert "uv" not in one.python
    qcow2.check_foreign(first.disk)
    raw = tmp_path / "disk.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", first.disk, raw], check=True, timeout=300)
    subprocess.run(["/sbin/e2fsck", "-f", "-n", raw], check=True, timeout=300)
