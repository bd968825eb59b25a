"""Which host directory a notebook needs, and whether an instance shows it at the same path."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..environment import directories
from ..environment.mounts import MountSpec
from ..errors import MountError
from ..lima.models import Mount
from ..lima.mounting import hides_guest, location_fault, plain_path


def check_directory(directory: Path) -> None:
    """Check that a directory can be shown to a guest at its own path.

    :raises MountError: when it does not exist, is none, cannot be read, or would hide the guest's own.
    """
    if why := location_fault(str(directory)):
        # Not as it is: a line break in it would make two lines of this.
        raise MountError(f"The directory {str(directory)!r} cannot be shown to the VM: {why}.", hint="Rename it.")
    attempt = f"The directory {directory} cannot be shown to the VM"
    if why := directories.fault(directory, writable=False):
        raise MountError(f"{attempt}: {why}.")
    if hides_guest(str(directory)):
        raise MountError(
            f"{attempt}: at the same path it would hide the guest's own.",
            hint="Move the notebook into a directory of your own.",
        )


def directory_to_share(cwd: Path, server_root: Path | None, asked: Sequence[MountSpec] = ()) -> Path:
    """Return the directory to mount for a kernel that starts in ``cwd``: what the environment shows where that holds
    it, else the Jupyter server's root where that is no more than a person would show, else the notebook's own
    directory. All of home is shown only when asked for.

    :param asked: the mounts of the environment.
    :raises MountError: when the notebook lies directly in the home directory, or the directory cannot be mounted.
    """
    cwd = _absolute(cwd)
    check_directory(cwd)
    workplaces = [Path(mount.location) for mount in asked if mount.is_workplace]
    for place in workplaces:
        if holds(place, cwd):
            return place
    if server_root is not None:
        root = _absolute(server_root)
        # A link that leads out of the root leads nowhere in the guest, unless its end is mounted there too.
        end = Path(os.path.realpath(cwd))
        is_seen = holds(root, cwd) or (cwd.is_relative_to(root) and any(map(end.is_relative_to, workplaces)))
        if is_seen and not _shows_home(root) and not hides_guest(str(root)):
            return root
    if _shows_home(cwd):
        raise MountError(
            f"The notebook lies directly in {cwd}: showing that to the VM would show it all of your home directory.",
            hint="Move the notebook into a directory of its own, or list the directory under 'mounts' (writable: true) "
            "in an environment file.",
        )
    return cwd


def _absolute(path: Path) -> Path:
    return Path(plain_path(os.path.abspath(path)))


def holds(place: Path, directory: Path) -> bool:
    """Tell whether a directory lies in a place by its name, and really: not by a link that leads out of it."""
    # A place that it is not in by its name is not looked at: it may be on a drive that is gone.
    return directory.is_relative_to(place) and Path(os.path.realpath(directory)).is_relative_to(os.path.realpath(place))


def _shows_home(directory: Path) -> bool:
    """Tell whether a directory is the home directory or above it, by whatever name: links, mounts, letter case."""
    home = Path(os.path.realpath(Path.home()))
    if Path.home().is_relative_to(directory) or home.is_relative_to(directory):
        return True
    return any(part.exists() and part.samefile(directory) for part in (home, *home.parents))


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
    return next((mount for mount in at_same_path(mounts) if holds(Path(mount.location), directory)), None)
