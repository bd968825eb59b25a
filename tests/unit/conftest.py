"""A machine of one's own for each test: home, LIMA_HOME and Jupyter's directories, a fake limactl, a fake guest."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncssh
import psutil
import pytest

from lima_kernels import paths, runtime
from lima_kernels.environment import image
from lima_kernels.kernelspec import make_request, write
from tests.fake_guest import FakeGuest
from tests.locked_guest import Workshop, prepared
from tests.sshd import Sshd, running

FAKE_LIMACTL = Path(__file__).parents[1] / "fake_limactl.py"


class Machine:
    """The directories of a test, and what its fake limactl is told."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "home"
        self.lima_home = root / "lima"
        self.guest_home = root / "guest"
        self.notebooks = root / "nb"
        self.bin = root / "bin"
        for directory in (self.home, self.lima_home / "_config", self.guest_home, self.notebooks, self.bin):
            directory.mkdir(parents=True)

    def tell(self, **behaviour: Any) -> None:
        """Say how the fake limactl behaves from now on, beside what it was told before."""
        file = self.lima_home / "_fake.json"
        before = json.loads(file.read_text()) if file.exists() else {}
        # In one step: a limactl that runs at this moment reads it too.
        new = file.with_suffix(".new")
        new.write_text(json.dumps({**before, **behaviour}))
        new.replace(file)

    def calls(self, verb: str) -> list[list[str]]:
        """Return the calls of one verb that limactl got."""
        file = self.lima_home / "_calls"
        lines = file.read_text().splitlines() if file.exists() else []
        return [call for line in lines if (call := json.loads(line))[0] == verb]

    def instances(self) -> list[str]:
        return sorted(path.parent.name for path in self.lima_home.glob("*/lima.yaml"))

    def script(self, name: str, text: str) -> None:
        file = self.bin / name
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    # Short: sockets lie below it.
    root = Path(tempfile.mkdtemp(prefix="lk"))
    made = Machine(root)
    monkeypatch.setenv("HOME", str(made.home))
    monkeypatch.setenv("LIMA_HOME", str(made.lima_home))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(root / "jupyter"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(root / "run"))
    # A kernel spec of the virtual environment would come before the test's own.
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(root / "config"))
    monkeypatch.setenv("PATH", f"{made.bin}:{os.environ['PATH']}")
    made.script("limactl", f'exec {sys.executable} {FAKE_LIMACTL} "$@"')
    yield made
    if runtime._runtime is not None:
        runtime._runtime.close()
        runtime._runtime = None
    shutil.rmtree(root)


@pytest.fixture
def image_files(machine: Machine) -> Path:
    """A guest image as far as anybody looks into it before a VM boots."""
    directory = paths.images_directory() / image.DEFAULT_IMAGE
    directory.mkdir(parents=True)
    manifest = image.Manifest(
        version=image.MANIFEST_VERSION,
        recipe=image.recipe_digest(),
        arch="x86_64",
        disk="disk.qcow2",
        kernel="vmlinuz",
        initrd="initrd",
        cmdline="ro",
    )
    (directory / "image.json").write_bytes(image.msgspec.json.encode(manifest))
    for name in (manifest.disk, manifest.kernel, manifest.initrd):
        (directory / name).write_bytes(b"QFI\xfb")
    return directory


@pytest.fixture
def guest(machine: Machine, image_files: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGuest]:
    """A guest that is ready for kernels, behind the fake limactl's VMs."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    identity = machine.lima_home / "_config" / "user"
    key.write_private_key(str(identity))
    # As Lima has it: OpenSSH takes no other.
    identity.chmod(0o600)
    key.write_public_key(f"{identity}.pub")
    key.write_public_key(str(machine.root / "authorized_keys"))
    state = machine.root / "state"
    state.mkdir()
    provisioned = state / "provisioned"
    provisioned.write_text("image\n")
    (state / "ssh-ready").touch()
    (state / "boot-done").touch()
    monkeypatch.setattr(paths, "GUEST_PYTHON", sys.executable)
    monkeypatch.setattr(paths, "GUEST_PROVISIONED", str(provisioned))
    monkeypatch.setattr(paths, "GUEST_PROVISION_FAILED", str(state / "failed"))
    monkeypatch.setattr(paths, "LIMA_SSH_READY", str(state / "ssh-ready"))
    monkeypatch.setattr(paths, "LIMA_BOOT_DONE", str(state / "boot-done"))
    guest_bin = machine.root / "guest-bin"
    guest_bin.mkdir()
    for name, text in (("sudo", "exit 1"), ("mountpoint", "exit 0")):
        (guest_bin / name).write_text(f"#!/bin/sh\n{text}\n")
        (guest_bin / name).chmod(0o755)
    made = FakeGuest(machine.guest_home, f"{guest_bin}:/usr/bin:/bin", machine.root / "authorized_keys")
    made.listen()
    machine.tell(ssh_port=made.port)
    yield made
    made.close()
    _end_the_guest(machine)


def _end_the_guest(machine: Machine) -> None:
    """End what the guest's forkservers and kernels left, who outlive each other; a VM's end would do it."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(str(machine.guest_home) in part for part in process.cmdline()):
                process.kill()


@pytest.fixture
def workshop(machine: Machine, guest: FakeGuest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workshop]:
    """Where the guest has its locked environments, and what they are made from."""
    with prepared(machine.root, machine.root / "guest-bin", monkeypatch) as made:
        yield made


@pytest.fixture
def sshd() -> Iterator[Sshd]:
    """OpenSSH's own sshd on loopback."""
    # Short: sockets lie below it.
    root = Path(tempfile.mkdtemp(prefix="lk"))
    with running(root) as made:
        yield made
    # Directories that a test left there may be closed even to us.
    subprocess.run(["chmod", "-R", "u+rwX", root], check=True)
    shutil.rmtree(root)


def configure(machine: Machine, **config: object) -> None:
    """Write settings into the kernel spec "lima"."""
    file = machine.root / "jupyter" / "kernels" / "lima" / "kernel.json"
    document = json.loads(file.read_text())
    document["metadata"]["kernel_provisioner"]["config"].update(config)
    file.write_text(json.dumps(document))


@pytest.fixture
def spec(machine: Machine) -> str:
    """The kernel spec "lima" as `lima-kernels install` writes it."""
    write(make_request("lima", "Linux (Lima)", environment=None, instance=None, attach=False), user=True, prefix=None)
    # What starts beside all tests is a load for all, and what outlives them; who tests that says so.
    configure(machine, standby_kernels=0, on_idle="nothing")
    return "lima"
