"""Every file and directory of ours, on the host and in the guest, named once."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

from jupyter_core.paths import jupyter_data_dir, jupyter_runtime_dir

from .errors import ConfigurationError, HostError

# A unix socket's path, without the closing NUL: sun_path is 104 bytes on macOS and the BSDs, 108 on Linux.
UNIX_PATH_MAX_HOST = 103 if sys.platform == "darwin" else 107
UNIX_PATH_MAX_GUEST = 107

# The guest's side. The environment is ours to make and the guest user's to change (`%pip install` works).
GUEST_PREFIX = "/opt/lima-kernels"
GUEST_VENV = f"{GUEST_PREFIX}/venv"
GUEST_PYTHON = f"{GUEST_VENV}/bin/python"
# A directory for each environment that has a lock.
GUEST_ENVIRONMENTS = f"{GUEST_PREFIX}/environments"
# What makes environments in the guest; outside of them, so that none of them changes it.
GUEST_UV = f"{GUEST_PREFIX}/bin/uv"
# Holds the digest of what was provisioned last; what a fresh image of ours holds is named instead.
GUEST_PROVISIONED = f"{GUEST_PREFIX}/provisioned"
GUEST_PROVISIONED_BY_IMAGE = "image"
# Why this boot's provisioning failed, in words; /run forgets it at the next boot.
GUEST_PROVISION_FAILED = "/run/lima-kernels-failed"
GUEST_INSTANCE_FILE = "/etc/lima-kernels/instance.json"
GUEST_CLOUD_CONFIG = "/etc/cloud/cloud.cfg.d/90-lima-kernels.cfg"
# Below the guest user's own home, not /tmp or /run/user: nobody else can squat on it, it needs no root, and it
# outlives the login session that an SSH connection is.
GUEST_STATE = ".lima-kernels"

_STARTS = "starts.json"

# Lima's own names.
LIMA_SSH_READY = "/run/lima-ssh-ready"
LIMA_BOOT_DONE = "/run/lima-boot-done"
# Our image's, when users may come in.
GUEST_READY = "/run/lima-kernels/ready"


def private_directory(path: Path) -> Path:
    """Make a directory, and its missing parents, that only this user can enter.

    :raises HostError: when it cannot be made.
    """
    missing = [parent for parent in path.parents if not parent.exists()]
    try:
        # `parents=True` would give the parents the default mode.
        for parent in reversed(missing):
            parent.mkdir(mode=0o700, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        path.chmod(0o700)
    except OSError as error:
        raise HostError(f"The directory {path} cannot be made and kept private: {error.strerror}.") from error
    return path


def free_space(path: Path) -> int:
    """Return how many bytes an ordinary user can still write below a path, which need not exist yet."""
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def replace_privately(path: Path, data: bytes) -> None:
    """Write a file in one step, for this user's eyes only: whoever reads sees the older content or this one, whole.

    :raises OSError: when it cannot be written; the older content is as it was, and nothing else is left.
    """
    # Its name begins with a dot and does not end like the file's, so that nobody lists it.
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def data_directory() -> Path:
    """Images that were built here: ``<jupyter data dir>/lima-kernels``."""
    return private_directory(Path(jupyter_data_dir()) / "lima-kernels")


def images_directory() -> Path:
    return data_directory() / "images"


def lima_home() -> Path:
    """Where Lima keeps its instances: ``$LIMA_HOME`` or ``~/.lima``."""
    return Path(os.environ.get("LIMA_HOME") or Path.home() / ".lima")


def shared_state() -> Path:
    """Make the directory of what all processes of this user share about instances, with one directory for each."""
    return private_directory(lima_home() / "_lima-kernels")


def has_instance_state(instance: str) -> bool:
    """Tell whether :func:`instance_state` has been made, and is still there."""
    return (lima_home() / "_lima-kernels" / instance).is_dir()


def instance_state(instance: str) -> Path:
    """Make the directory of what all processes of this user share about an instance, whether or not it exists yet.

    It lies beside Lima's instances, for it belongs to them and not to one of several Jupyter data directories; Lima
    takes no name that begins with ``_`` for an instance.

    :raises ConfigurationError: when the name is no name but a path.
    """
    if instance in ("", ".", "..") or "/" in instance:
        raise ConfigurationError(f"{instance!r} cannot be a Lima instance's name.")
    return private_directory(shared_state() / instance)


def leases_directory(instance: str) -> Path:
    """Make the directory of an instance's leases, one record for each kernel."""
    return private_directory(instance_state(instance) / "kernels")


def mounts_directory(instance: str) -> Path:
    """Make the directory of what is served to an instance that runs, one record for each directory of this host."""
    return private_directory(instance_state(instance) / "mounts")


def mount_server_lock(instance: str, version: str) -> Path:
    """What the process holds that serves this host's directories to an instance, to its forkserver of one version."""
    return instance_state(instance) / f"mount-server-{version}.lock"


def mount_server_log(instance: str) -> Path:
    """What that process said."""
    return instance_state(instance) / "mount-server.log"


def parting_log(instance: str) -> Path:
    """What the process said that parts with an instance after its server's end."""
    return instance_state(instance) / "parting.log"


def starts_file(instance: str) -> Path:
    """How long starts of an instance took."""
    return instance_state(instance) / _STARTS


def starts_files() -> list[Path]:
    """How long starts of all instances took that there are or were; those of them that were ever started."""
    return sorted(shared_state().glob(f"*/{_STARTS}"))


def lock_file(instance: str) -> Path:
    """What a process holds while it makes, boots, stops or deletes an instance."""
    return instance_state(instance) / "lock"


def progress_file(instance: str) -> Path:
    """The present phase of whoever holds the instance's lock."""
    return instance_state(instance) / "progress.json"


def environments_file(instance: str) -> Path:
    """Which locked environments an instance has."""
    return instance_state(instance) / "environments.json"


def golden_mark(instance: str) -> Path:
    """What says that an instance is complete, and may be copied."""
    return instance_state(instance) / "golden"


def golden_lock(instance: str) -> Path:
    """What a process holds while it makes an instance complete."""
    return instance_state(instance) / "golden.lock"


def has_golden_mark(instance: str) -> bool:
    """Tell whether an instance is complete, and may be copied."""
    return has_instance_state(instance) and golden_mark(instance).exists()


def stopped_file(instance: str) -> Path:
    """Who last stopped the instance, and when."""
    return instance_state(instance) / "stopped.json"


def host_agent_log(instance_directory: Path) -> Path:
    """What Lima's host agent logged in the instance's last boot, as JSON lines; Lima makes it anew at every start."""
    return instance_directory / "ha.stderr.log"


def host_agent_events(instance_directory: Path) -> Path:
    """What Lima's host agent told limactl of the instance's last boot, as JSON lines; made anew at every start."""
    return instance_directory / "ha.stdout.log"


def ssh_config(instance_directory: Path) -> Path:
    """Lima's ssh configuration of the instance's last boot; it stays when the instance is stopped."""
    return instance_directory / "ssh.config"


def identity_file() -> Path:
    """The private key that Lima puts into every guest."""
    return lima_home() / "_config" / "user"


def pinned_key_file(instance_directory: Path) -> Path:
    """The guest's host key as first seen; it lies in the instance's directory so that it dies with the instance."""
    return instance_directory / "lima-kernels-host-key.json"


def monitor_socket(instance_directory: Path) -> Path:
    """Where Lima has QEMU listen for its monitor's commands."""
    return instance_directory / "qmp.sock"


def cidata_file(instance_directory: Path) -> Path:
    """The disk by which Lima tells the guest what it is to be; made anew at every start."""
    return instance_directory / "cidata.iso"


def memory_file(instance_directory: Path) -> Path:
    """What was in the memory of an instance that sleeps; it goes with the instance."""
    return instance_directory / "lima-kernels.memory"


def hibernated_file(instance: str) -> Path:
    """The record of an instance that sleeps, or is about to; its directory need not be there."""
    return lima_home() / "_lima-kernels" / instance / "hibernated.json"


def serial_logs(instance_directory: Path) -> list[Path]:
    return [instance_directory / name for name in ("serial.log", "serialp.log", "serialv.log")]


def _socket_parents() -> list[Path]:
    return [Path(jupyter_runtime_dir()) / "lima", Path(tempfile.gettempdir()) / f"lima-kernels-{os.getuid()}"]


def is_socket_directory(path: Path) -> bool:
    """Tell whether a path is that of a kernel's sockets, as :func:`socket_directory` makes it."""
    return path.parent in _socket_parents()


def attached_connection_file(kernel: str) -> Path:
    """The connection file of a kernel that `lima-kernels kernels attach` serves, where Jupyter's consoles look."""
    return Path(jupyter_runtime_dir()) / f"kernel-lima-{kernel}.json"


def socket_path(kernel_id: str) -> Path:
    """Return the directory of one kernel's sockets on the host; short enough for a unix socket in it.

    :raises HostError: when even the temporary directory's path is too long.
    """
    name = hashlib.sha256(kernel_id.encode()).hexdigest()[:12]
    candidates = [parent / name for parent in _socket_parents()]
    for path in candidates:
        if len(os.fsencode(path)) + len("/c-5") <= UNIX_PATH_MAX_HOST:
            return path
    raise HostError(
        f"The path {candidates[0]} is too long for a unix socket: at most {UNIX_PATH_MAX_HOST - 4} bytes.",
        hint="Set JUPYTER_RUNTIME_DIR to a shorter path, or use the transport 'tcp'.",
    )


def socket_directory(kernel_id: str) -> Path:
    """Make the 0700 directory of one kernel's sockets on the host.

    :raises HostError: when it cannot be had.
    """
    path = socket_path(kernel_id)
    if path.parent.exists() and path.parent.stat().st_uid != os.getuid():
        raise HostError(
            f"The directory {path.parent} belongs to another user.", hint="Set TMPDIR to a directory of your own."
        )
    private_directory(path.parent)
    return private_directory(path)
