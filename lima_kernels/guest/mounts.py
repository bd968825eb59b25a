"""Which host directory a notebook needs, and whether an instance shows it at the same path."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import MountError
from ..lima.models import Mount

# Mounting over these would take the guest's own away. Lima refuses some of them too, but only at `create`.
_NEVER_BELOW = ("/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/run", "/sbin", "/sys", "/usr")
_NEVER = ("/", "/Users", "/home", "/mnt", "/opt", "/opt/lima-kernels", "/root", "/srv", "/tmp", "/var")  # noqa: S108
_NEVER_IN_VAR = ("/var/cache", "/var/lib", "/var/log", "/var/tmp")  # noqa: S108


def _is_system(directory: Path) -> bool:
    return str(directory) in (*_NEVER, *_NEVER_IN_VAR) or any(directory.is_relative_to(top) for top in _NEVER_BELOW)


def check_directory(directory: Path) -> None:
    """Check that a directory can be shown to a guest at its own path.

    :raises MountError: when it does not exist, is none, cannot be read, or would hide the guest's own.
    """
    attempt = f"The directory {directory} cannot be shown to the VM"
    if not directory.exists():
        raise MountError(f"{attempt}: it does not exist.")
    if not directory.is_dir():
        raise MountError(f"{attempt}: it is not a directory.")
    if not os.access(directory, os.R_OK | os.X_OK):
        raise MountError(f"{attempt}: you may not read it.")
    if _is_system(directory):
        raise MountError(
            f"{attempt}: at the same path it would hide the guest's own.",
            hint="Move the notebook into a directory of your own.",
        )


def directory_to_share(cwd: Path, server_root: Path | None) -> Path:
    """Return the directory to mount for a kernel that starts in ``cwd``: the Jupyter server's root where that is no
    more than a person would show, else the notebook's own directory. All of home is shown only when asked for.

    :raises MountError: when the notebook lies directly in the home directory, or the directory cannot be mounted.
    """
    cwd = Path(os.path.abspath(cwd))
    check_directory(cwd)
    home = Path.home()
    if server_root is not None:
        root = Path(os.path.abspath(server_root))
        if cwd.is_relative_to(root) and not home.is_relative_to(root) and not _is_system(root):
            return root
    if home.is_relative_to(cwd):
        raise MountError(
            f"The notebook lies directly in {cwd}: showing that to the VM would show it all of your home directory.",
            hint="Move the notebook into a directory of its own, or list the directory under 'mounts' (writable: true) "
            "in an environment file.",
        )
    return cwd


def at_same_path(mounts: Sequence[Mount]) -> list[Mount]:
    """Return the writable mounts that show a host directory at its own path, with ``~`` resolved."""
    found = []
    for mount in mounts:
        location = os.path.abspath(os.path.expanduser(mount.location))
        if mount.writable and mount.guest_path in (location, mount.location):
            found.append(Mount(location, location, writable=True))
    return found


def covering(mounts: Sequence[Mount], directory: Path) -> Mount | None:
    """Return the mount that shows a host directory, writable and at its own path, or None."""
    return next((mount for mount in at_same_path(mounts) if directory.is_relative_to(mount.location)), None)
