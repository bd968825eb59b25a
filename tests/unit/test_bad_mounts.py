"""Mounts that this host or Lima cannot do: one clear line before a VM is made, changed or booted, and nothing left."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jupyter_client import KernelManager

from lima_kernels.cli.main import main
from lima_kernels.environment import directories
from lima_kernels.errors import ConfigurationError, HostError, LimaKernelsError, MountError
from lima_kernels.lima import mounting
from tests.fake_guest import FakeGuest

from .conftest import Machine


@pytest.fixture(autouse=True)
def _ready(guest: FakeGuest, spec: str) -> None:
    """Every test here has a guest and the kernel spec."""


class Bench:
    """A kernel spec with an environment file that tests write and write again."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.file = machine.root / "env.yaml"

    def write(self, text: str) -> None:
        self.file.write_text(text)

    def directory(self, name: str) -> Path:
        made = self.machine.root / name
        made.mkdir(parents=True)
        return made

    def start(self, cwd: Path | None = None) -> None:
        """Start a kernel and end it again; its VM is then stopped."""
        manager = KernelManager(kernel_name="lima")
        assert manager.kernel_spec is not None
        manager.kernel_spec.metadata["kernel_provisioner"]["config"].update(environment=str(self.file))
        try:
            manager.start_kernel(cwd=str(cwd or self.machine.notebooks))
            manager.shutdown_kernel(now=True)
        except BaseException:
            manager.cleanup_connection_file()
            manager.context.destroy()
            raise
        assert main(["stop", "--force", "lima-kernels"]) == 0

    def refusal(self, kind: type[LimaKernelsError], cwd: Path | None = None) -> str:
        """Return the line of a start that is refused, after a look that it did nothing."""
        config = self.config()
        calls = [self.machine.calls(verb) for verb in ("create", "start")]
        with pytest.raises(kind) as caught:
            self.start(cwd)
        line = str(caught.value)
        assert "\n" not in line
        assert self.config() == config
        assert [self.machine.calls(verb) for verb in ("create", "start")] == calls
        sockets = self.machine.root / "run" / "lima"
        assert not sockets.exists() or not list(sockets.iterdir())
        return re.sub(rf"^{re.escape(str(self.file))}(, line \d+)?: ", "", line)

    def config(self) -> dict[str, Any] | None:
        file = self.machine.lima_home / "lima-kernels" / "lima.yaml"
        return yaml.safe_load(file.read_text()) if file.exists() else None

    def mounts(self) -> list[dict[str, Any]]:
        config = self.config()
        assert config is not None
        return list(config["mounts"])


@pytest.fixture
def bench(machine: Machine) -> Bench:
    return Bench(machine)


def test_every_option_reaches_limas_yaml(bench: Bench, machine: Machine) -> None:
    inner, outer = bench.directory("inner"), bench.directory("outer")
    (outer / "in").mkdir()
    bench.write("""
    mountType: 9p
    mountInotify: true
    mountOptions: {9p: {msize: 512KiB, cache: none}, sshfs: {followSymlinks: true}}
    mounts:
      - {location: inner, mountPoint: /data/in, 9p: {securityModel: mapped-xattr, cache: loose}}
      - {location: outer, mountPoint: /data, writable: true}
    """)
    bench.start()
    config = bench.config()
    assert config is not None
    assert (config["mountType"], config["mountInotify"]) == ("9p", True)
    common = {"9p": {"msize": "512KiB", "cache": "none"}, "sshfs": {"followSymlinks": True}}
    own = {"9p": {"securityModel": "mapped-xattr", "msize": "512KiB", "cache": "loose"}}
    assert config["mounts"] == [
        {"location": str(outer), "writable": True, "mountPoint": "/data", **common},
        {"location": str(inner), "writable": False, "mountPoint": "/data/in", **common, **own},
        {"location": str(machine.notebooks), "writable": True, **common},
    ]


@pytest.mark.parametrize(
    ("text", "kind", "line"),
    [
        (
            "mounts: [{location: gone}]",
            MountError,
            (
                "The directory ROOT/gone (mounts[0].location in the environment file) cannot be shown to the VM: "
                "it does not exist."
            ),
        ),
        (
            "mounts: [{location: nb, mountPoint: /x}, {location: env.yaml, mountPoint: /data}]",
            MountError,
            (
                "The directory ROOT/env.yaml (mounts[1].mountPoint in the environment file) cannot be shown to the VM: "
                "it is not a directory."
            ),
        ),
        (
            "mounts: [{location: locked, writable: true}]",
            MountError,
            (
                "The directory ROOT/locked (mounts[0].location in the environment file) cannot be shown to the VM: "
                "you may not write to it, and it is to be writable."
            ),
        ),
        (
            "mounts: [{location: nb}]",
            MountError,
            (
                "The directory ROOT/nb (mounts[0].location in the environment file) is mounted read-only, and a "
                "notebook lies in it. Add writable: true to it, or keep the notebook elsewhere."
            ),
        ),
        (
            "mounts: [{location: locked, mountPoint: ROOT/nb}]",
            MountError,
            (
                "The directory ROOT/locked (mounts[0].mountPoint in the environment file) is mounted at ROOT/nb, where "
                "the notebook's directory has to be. Give it another mountPoint."
            ),
        ),
        (
            "mounts: [{location: locked, mountPoint: /etc}]",
            ConfigurationError,
            "'/etc' at mounts[0].mountPoint would hide the guest's own.",
        ),
        (
            "mounts: [{location: locked, mountPoint: /m}, {location: nb, mountPoint: /m}]",
            ConfigurationError,
            "'/m' at mounts[1].mountPoint is taken by mounts[0].mountPoint. Change its mountPoint.",
        ),
        (
            "mounts: [{location: $LK_NOT_SET/a}]",
            ConfigurationError,
            "the variable LK_NOT_SET in '$LK_NOT_SET/a' at mounts[0].location is not set, or empty.",
        ),
        (
            "mountOptions: {9p: {msize: 1KiB}}",
            ConfigurationError,
            "expected a size from 4KiB to 4MiB, got '1KiB' at mountOptions.9p.msize.",
        ),
        (
            "mountType: 9p\nmounts: [{location: nb, sshfs: {cache: true}}]",
            ConfigurationError,
            (
                "mounts[0].sshfs says nothing to mountType 9p. "
                "Take it out; under mountOptions it may stand for hosts with another mountType."
            ),
        ),
    ],
)
def test_mounts_that_cannot_be(bench: Bench, text: str, kind: type[LimaKernelsError], line: str) -> None:
    locked = bench.directory("locked")
    locked.chmod(0o500)
    root = str(bench.machine.root)
    bench.write(text.replace("ROOT", root))
    assert bench.refusal(kind) == line.replace("ROOT", root)


def test_a_template_whose_kernel_lacks_the_mount_type(bench: Bench, machine: Machine) -> None:
    machine.tell(unsupported=["9p"])
    bench.write("image: debian-13\nmountType: 9p\n")
    assert bench.refusal(ConfigurationError) == (
        "Lima's template 'debian-13' cannot mount by 9p. "
        "Its kernel does not know it; use mountType: virtiofs or reverse-sshfs, or another image."
    )


def test_a_notebook_in_a_directory_with_a_comma(bench: Bench, machine: Machine) -> None:
    odd = bench.directory("a,b")
    bench.write("")
    assert bench.refusal(MountError, odd) == (
        f"The directory {odd} cannot be shown to the VM by 9p: QEMU would take the ',' in it for the end of the path. "
        "Rename the directory, or use mountType: reverse-sshfs in the environment file."
    )
    bench.write("mountType: reverse-sshfs\n")
    bench.start(odd)
    assert [(entry["location"], entry["writable"]) for entry in bench.mounts()] == [(str(odd), True)]


def test_the_command_line_says_it_too(bench: Bench, machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    bench.write("mounts: [{location: gone}]\n")
    assert (
        main(["install", "--name", "lima", "--environment", str(bench.file), "--instance", "lima-kernels", "--user"])
        == 0
    )
    assert main(["start", "--directory", str(machine.notebooks), "lima-kernels"]) == 1
    assert (
        f"The directory {machine.root}/gone (mounts[0].location in the environment file) cannot be shown to the VM: "
        "it does not exist." in " ".join(capsys.readouterr().err.split())
    )
    assert machine.calls("create") == []


def test_virtiofs_without_a_virtiofsd(bench: Bench, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = bench.directory("vhost-user")
    virtiofsd = directory / "virtiofsd"
    virtiofsd.write_text('#!/bin/sh\n[ "$1" = --version ]\n')
    (directory / "50.json").write_text(f'{{"type": "fs", "binary": "{virtiofsd}"}}')
    monkeypatch.setattr(mounting, "_vhost_user_directories", lambda: [directory])
    monkeypatch.setattr("sys.platform", "linux")
    bench.write("mountType: virtiofs\n")
    wanted = (
        "mountType virtiofs needs the virtiofsd that is written in Rust, and Lima would find none here. "
        "Install the package virtiofsd (QEMU's own one serves root only), or use mountType: 9p."
    )
    assert bench.refusal(HostError) == wanted
    virtiofsd.chmod(0o755)
    bench.start()
    # It may go again while the VM is stopped.
    virtiofsd.unlink()
    assert bench.refusal(HostError) == wanted


def test_a_directory_that_went_while_the_vm_was_stopped_is_not_made_anew(bench: Bench) -> None:
    data = bench.directory("data")
    bench.write("mounts: [{location: data, mountPoint: /data}]\n")
    bench.start()
    data.rmdir()
    assert bench.refusal(MountError) == (
        f"The directory {data} (mounts[0].mountPoint in the environment file) cannot be shown to the VM: "
        "it does not exist."
    )
    assert not data.exists()
    data.mkdir()
    bench.start()


def test_a_notebooks_directory_that_went_is_dropped_and_the_others_stay(bench: Bench, machine: Machine) -> None:
    first, second = bench.directory("first"), bench.directory("second")
    bench.write("")
    for directory in (first, second, machine.notebooks):
        bench.start(directory)
    shown = [entry["location"] for entry in bench.mounts()]
    assert shown == [str(first), str(second), str(machine.notebooks)]
    first.rmdir()
    bench.start()
    assert [entry["location"] for entry in bench.mounts()] == [str(second), str(machine.notebooks)]
    assert not first.exists()


def test_what_the_environment_lists_no_longer_is_not_shown_any_longer(bench: Bench, machine: Machine) -> None:
    data = bench.directory("data")
    bench.write("mounts: [{location: data, writable: true}]\n")
    bench.start()
    assert [entry["location"] for entry in bench.mounts()] == [str(machine.notebooks), str(data)]
    bench.write("")
    bench.start()
    assert [entry["location"] for entry in bench.mounts()] == [str(machine.notebooks)]


def test_what_was_a_notebooks_directory_may_become_a_mount(bench: Bench, machine: Machine) -> None:
    other = bench.directory("other")
    bench.write("")
    bench.start(other)
    bench.write("mounts: [{location: other}]\n")
    bench.start()
    assert [(entry["location"], entry["writable"]) for entry in bench.mounts()] == [
        (str(machine.notebooks), True),
        (str(other), False),
    ]


def test_a_drive_that_is_gone_holds_nobody_up(bench: Bench, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bench.directory("data")
    bench.write("mounts: [{location: data}]\n")
    bench.start()
    shell = machine.bin / "shell"
    machine.script("shell", f'case "$4" in {data}) exec sleep 60 ;; esac\nexec /bin/sh "$@"')
    monkeypatch.setattr(directories, "SHELL", str(shell))
    monkeypatch.setattr(directories, "LIMIT", 1.0)
    assert bench.refusal(MountError) == (
        f"The directory {data} (mounts[0].location in the environment file) cannot be shown to the VM: "
        "it did not answer within 1 s (is it on a network drive that is gone?)."
    )
