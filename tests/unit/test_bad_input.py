"""What goes wrong before a kernel runs: one clear line each, and nothing left behind."""

from __future__ import annotations

import sys
from pathlib import Path

import asyncssh
import msgspec
import pytest
from jupyter_client import KernelManager

from lima_kernels import kernelspec, paths
from lima_kernels.environment.spec import DEFAULT
from lima_kernels.errors import (
    ConfigurationError,
    GuestError,
    HostError,
    HostKeyChanged,
    ImageError,
    InstanceError,
    LimactlError,
    LimaKernelsError,
    MountError,
    PhaseTimeout,
)
from lima_kernels.lima.template import MARK_VERSION, Config, GuestFile, OwnerMark, Source, render
from tests.fake_guest import FakeGuest

from .conftest import Machine


def start(machine: Machine, *, cwd: Path | None = None, **config: object) -> KernelManager:
    manager = KernelManager(kernel_name="lima")
    assert manager.kernel_spec is not None
    manager.kernel_spec.metadata["kernel_provisioner"]["config"].update(config)
    try:
        manager.start_kernel(cwd=str(cwd or machine.notebooks))
    except BaseException:
        manager.cleanup_connection_file()
        manager.context.destroy()
        raise
    return manager


def refused(machine: Machine, kind: type[LimaKernelsError], **config: object) -> str:
    """Start a kernel that cannot be started; returns the error's line, after a look at what is left."""
    with pytest.raises(kind) as caught:
        start(machine, **config)
    line = str(caught.value)
    assert "\n" not in line
    sockets = machine.root / "run" / "lima"
    assert not sockets.exists() or not list(sockets.iterdir())
    assert not list((machine.guest_home / ".lima-kernels").glob("*/k/*"))
    return line


@pytest.fixture(autouse=True)
def _ready(guest: FakeGuest, spec: str) -> None:
    """Every test here has a guest and the kernel spec."""


def test_no_limactl(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert refused(machine, HostError).startswith("limactl was not found on PATH. Install Lima: brew install lima")


def test_limactl_too_old(machine: Machine) -> None:
    machine.tell(version="1.2.1")
    assert refused(machine, HostError).startswith("limactl 1.2.1 is too old: 2.0.0 is needed. Install Lima:")


def test_root(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    line = refused(machine, HostError)
    assert line == "limactl refuses to run as root. Start Jupyter and lima-kernels as an ordinary user."


def test_limactl_prints_garbage(machine: Machine) -> None:
    machine.tell(garbage=["list"])
    assert "limactl list printed what is no list of instances" in refused(machine, LimactlError)


def test_limactl_hangs(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.tell(hang=["list"])
    line = refused(machine, PhaseTimeout, create_timeout=1.0)
    assert line.startswith("The VM 'lima-kernels' was not ready in time: create_timeout (1 s) was used up")


def test_a_failed_create_leaves_no_instance(machine: Machine) -> None:
    machine.tell(fail={"create": "no space left on device"})
    assert "no space left on device" in refused(machine, LimactlError)
    assert machine.instances() == []
    assert not (machine.lima_home / "lima-kernels").exists()


def test_a_boot_that_fails_shows_why_and_removes_the_new_vm(machine: Machine) -> None:
    machine.tell(fail={"start": "exiting, status={Running:false}"}, start_log=["[hostagent] qemu: no such machine"])
    with pytest.raises(InstanceError) as caught:
        start(machine)
    assert str(caught.value).startswith("The VM 'lima-kernels' did not start: limactl start ended with exit code 1:")
    assert "[hostagent] qemu: no such machine" in caught.value.context
    assert machine.instances() == []


def test_a_vm_that_does_not_boot_shows_its_serial_log_and_is_stopped(machine: Machine, guest: FakeGuest) -> None:
    guest.stop_listening()
    start_made(machine)
    with pytest.raises(PhaseTimeout) as caught:
        start(machine, boot_timeout=2.0)
    assert str(caught.value) == (
        "The VM 'lima-kernels' was not ready in time: boot_timeout (2 s) was used up waiting for SSH. "
        "Give it more with boot_timeout in the kernel spec's config."
    )
    assert "a last line on the serial console" in caught.value.context
    assert ["stop", "--force", "lima-kernels"] in machine.calls("stop")
    assert machine.instances() == ["lima-kernels"]
    guest.listen()


def start_made(machine: Machine) -> None:
    """Make an instance of ours that is stopped."""
    mark = OwnerMark(
        version=MARK_VERSION,
        environment=DEFAULT.digest,
        image=DEFAULT.image_digest,
        source=Source.LOCAL,
        provisioned="image",
    )
    write_vm(
        machine,
        [{"location": str(machine.notebooks), "writable": True}],
        [GuestFile(paths.GUEST_INSTANCE_FILE, msgspec.json.encode(mark).decode())],
    )


def write_vm(machine: Machine, mounts: list[dict[str, object]], files: list[GuestFile]) -> None:
    directory = machine.lima_home / "lima-kernels"
    directory.mkdir(exist_ok=True)
    config = Config(images=[{"location": "x"}], mounts=mounts, provision=[], files=files)
    (directory / "lima.yaml").write_text(render(config))


def test_a_broken_vm_is_told_with_its_reasons(machine: Machine) -> None:
    start_made(machine)
    machine.tell(status="Broken", errors=["host agent is running but driver is not"])
    assert refused(machine, InstanceError) == (
        "The VM 'lima-kernels' is Broken: host agent is running but driver is not. "
        "Try: limactl stop --force lima-kernels"
    )


def foreign_vm(machine: Machine, mounts: list[dict[str, object]]) -> None:
    write_vm(machine, mounts, [])


def test_a_name_taken_by_others_is_left_alone(machine: Machine) -> None:
    foreign_vm(machine, [{"location": str(machine.notebooks), "writable": True}])
    before = (machine.lima_home / "lima-kernels" / "lima.yaml").read_text()
    assert refused(machine, InstanceError).startswith(
        "The name 'lima-kernels' is taken by a VM that lima-kernels did not make."
    )
    assert (machine.lima_home / "lima-kernels" / "lima.yaml").read_text() == before
    assert machine.calls("start") == []


def test_attaching_works_when_the_spec_says_so(machine: Machine) -> None:
    foreign_vm(machine, [{"location": str(machine.notebooks), "writable": True}])
    manager = start(machine, attach=True)
    assert manager.is_alive()
    manager.shutdown_kernel(now=True)
    assert machine.calls("create") == []


def test_attaching_never_creates(machine: Machine) -> None:
    line = refused(machine, InstanceError, attach=True, instance="nobody")
    assert line == "There is no Lima instance 'nobody'."
    assert machine.calls("create") == []


def test_a_changed_host_key_is_refused(machine: Machine, guest: FakeGuest) -> None:
    manager = start(machine)
    manager.shutdown_kernel(now=True)
    guest.change_host_key()
    guest.drop_connections()
    assert refused(machine, HostKeyChanged).startswith(
        "The VM shows another SSH host key than at first contact; the connection was refused."
    )


def test_ssh_that_refuses_us(machine: Machine, guest: FakeGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lima_kernels.guest.connection.REFUSAL_LIMIT", 0.5)
    another = asyncssh.generate_private_key("ssh-ed25519")
    another.write_public_key(str(machine.root / "authorized_keys"))
    guest.stop_listening()
    guest.listen()
    line = refused(machine, LimaKernelsError)
    assert "Permission denied" in line
    assert "Does the VM's user accept the key" in line


def test_a_guest_without_ipykernel(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = machine.root / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    monkeypatch.setattr(paths, "GUEST_PYTHON", str(bare))
    assert "ipykernel cannot be imported by" in refused(machine, GuestError)


def test_a_guest_without_python(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "GUEST_PYTHON", str(machine.root / "no-python"))
    assert refused(machine, GuestError).startswith("The guest has no Python.")


def test_provisioning_that_failed_shows_its_log(machine: Machine) -> None:
    Path(paths.GUEST_PROVISIONED).write_text("something else\n")
    Path(paths.GUEST_PROVISION_FAILED).write_text("E: Unable to locate package nonesuch\n")
    with pytest.raises(GuestError) as caught:
        start(machine)
    assert caught.value.context == ("E: Unable to locate package nonesuch",)
    assert str(caught.value).startswith("Installing the environment's packages in the guest failed.")


def test_a_directory_that_the_guest_did_not_mount(machine: Machine, guest: FakeGuest) -> None:
    (machine.root / "guest-bin" / "mountpoint").write_text("#!/bin/sh\nexit 1\n")
    assert refused(machine, MountError).startswith(f"The guest did not mount {machine.notebooks}.")


def test_a_directory_whose_mount_failed_at_boot_is_mounted_once_more(machine: Machine, guest: FakeGuest) -> None:
    is_mounted = machine.root / "mounted"
    (machine.root / "guest-bin" / "mountpoint").write_text(f"#!/bin/sh\n[ -e '{is_mounted}' ]\n")
    (machine.root / "guest-bin" / "sudo").write_text(f"#!/bin/sh\nprintf '%s\\n' \"$*\" >'{is_mounted}'\n")
    start(machine).shutdown_kernel(now=True)
    assert is_mounted.read_text() == f"-n mount -- {machine.notebooks}\n"


@pytest.mark.parametrize(
    ("path", "words"),
    [("/nonexistent", "it does not exist."), ("/etc", "at the same path it would hide the guest's own.")],
)
def test_a_notebook_directory_that_cannot_be_shown(machine: Machine, path: str, words: str) -> None:
    with pytest.raises(MountError) as caught:
        start(machine, cwd=Path(path))
    assert str(caught.value).startswith(f"The directory {path} cannot be shown to the VM: {words}")
    assert machine.calls("create") == []


def test_all_of_home_is_shown_only_when_asked_for(machine: Machine) -> None:
    with pytest.raises(MountError, match="would show it all of your home directory"):
        start(machine, cwd=machine.home)
    environment = machine.root / "env.yaml"
    environment.write_text("mounts:\n- location: '~'\n  writable: true\n")
    manager = start(machine, cwd=machine.home, environment=str(environment))
    manager.shutdown_kernel(now=True)


def test_a_typo_in_the_specs_config(machine: Machine) -> None:
    line = refused(machine, ConfigurationError, instanse="x")
    assert line == "The kernel spec's config has an unknown key 'instanse'. Did you mean 'instance'?"


def test_a_wrong_type_in_the_specs_config(machine: Machine) -> None:
    assert "boot_timeout" in refused(machine, ConfigurationError, boot_timeout="soon")


def test_an_environment_file_that_is_missing(machine: Machine) -> None:
    line = refused(machine, ConfigurationError, environment="/nonexistent.yaml")
    assert line == "The environment file /nonexistent.yaml cannot be read: No such file or directory."


def environment(machine: Machine, text: str) -> str:
    file = machine.root / "env.yaml"
    file.write_text(text)
    return str(file)


def test_an_unknown_image(machine: Machine) -> None:
    line = refused(machine, InstanceError, environment=environment(machine, "image: ubuntu-2404\n"))
    assert line == ("There is neither a guest image nor a Lima template 'ubuntu-2404'. Did you mean 'ubuntu-24.04'?")


def test_an_image_file_that_is_missing(machine: Machine) -> None:
    line = refused(machine, ImageError, environment=environment(machine, "image: {location: /nonexistent.qcow2}\n"))
    assert line == "The image file /nonexistent.qcow2 does not exist. Correct it in the environment file."


def test_an_image_file_that_is_none(machine: Machine) -> None:
    (machine.root / "image.qcow2").write_text("<html>404</html>" * 100)
    line = refused(machine, ImageError, environment=environment(machine, "image: {location: image.qcow2}\n"))
    assert line.startswith(f"The file {machine.root}/image.qcow2 is not a disk image.")


def test_a_stopped_vm_is_given_another_directory_and_keeps_the_first(machine: Machine) -> None:
    start_made(machine)
    other = machine.root / "other"
    other.mkdir()
    start(machine, cwd=other).shutdown_kernel(now=True)
    text = (machine.lima_home / "lima-kernels" / "lima.yaml").read_text()
    assert f"location: {other}" in text
    assert f"location: {machine.notebooks}" in text


def test_another_image_for_an_existing_vm_is_refused(machine: Machine) -> None:
    start_made(machine)
    line = refused(machine, InstanceError, environment=environment(machine, "image: debian-13\n"))
    assert line == (
        "The VM 'lima-kernels' was made from another image than its environment now names. "
        "To make it anew, which deletes its disk: lima-kernels delete lima-kernels"
    )


def test_a_runtime_directory_too_long_for_sockets(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = machine.root / ("d" * 90)
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(deep))
    monkeypatch.setenv("TMPDIR", str(deep))
    monkeypatch.setattr("tempfile.tempdir", None)
    deep.mkdir()
    assert "is too long for a unix socket" in refused(machine, HostError)


def test_a_spec_that_starts_something_else_is_refused(machine: Machine) -> None:
    manager = KernelManager(kernel_name="lima")
    assert manager.kernel_spec is not None
    manager.kernel_spec.argv = ["julia", "{connection_file}"]
    with pytest.raises(ConfigurationError, match="does not start ipykernel"):
        manager.start_kernel(cwd=str(machine.notebooks))
    manager.cleanup_connection_file()
    manager.context.destroy()


def test_install_refuses_bad_names(machine: Machine) -> None:
    with pytest.raises(ConfigurationError, match="cannot be a kernel spec's name"):
        kernelspec.make_request("a/b", "x", environment=None, instance=None, attach=False)
    with pytest.raises(ConfigurationError, match="cannot be a Lima instance's name"):
        kernelspec.make_request("lima", "x", environment=None, instance="-x", attach=False)
