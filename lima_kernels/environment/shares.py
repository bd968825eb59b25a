"""What of the host an instance shows: put together, looked at on this host, and put into Lima's words."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import msgspec

from ..errors import ConfigurationError, HostError, MountError
from ..lima.mounting import (
    MountType,
    check_helpers,
    default_mount_type,
    find_sftp_server,
    transport_fault,
)
from . import directories
from .mounts import DEFAULT_OPTIONS, MountOptions, MountSpec, SftpDriver, overlaid, point_field
from .spec import Environment

logger = logging.getLogger(__name__)


class Share(NamedTuple):
    """One mount as it is to be, with its options resolved.

    :param field: where the environment file asks for it, such as ``mounts[0].location``; empty for a notebook's.
    """

    field: str
    mount: MountSpec
    options: MountOptions

    @property
    def place(self) -> PurePosixPath:
        return PurePosixPath(self.mount.guest_path)

    @property
    def name(self) -> str:
        asked = f" ({self.field} in the environment file)" if self.field else ""
        return f"The directory {self.mount.location}{asked}"


def workplace(environment: Environment, directory: Path) -> MountSpec | None:
    """Return the environment's own mount that shows a directory, writable and at its own path, or None."""
    return next(
        (
            mount
            for mount in environment.mounts
            if mount.is_workplace and PurePosixPath(directory).is_relative_to(mount.location)
        ),
        None,
    )


def put_together(environment: Environment, notebooks: Sequence[Path]) -> list[Share]:
    """Return an instance's mounts, each before those that lie in it: mounted later, it would hide them.

    :param notebooks: host directories to show, writable, at their own paths; the environment may show them already.
    :raises MountError: when a notebook's directory is to be where the environment mounts something else.
    """
    asked = [
        Share(point_field(number, mount), mount, overlaid(environment.mount_options, mount))
        for number, mount in enumerate(environment.mounts)
    ]
    taken = {share.place: share for share in asked}
    options = overlaid(DEFAULT_OPTIONS, environment.mount_options)
    found = []
    for directory in dict.fromkeys(notebooks):
        if workplace(environment, directory):
            continue
        share = Share("", MountSpec(str(directory), writable=True), options)
        if share.place in taken:
            raise _clash(share, taken[share.place])
        found.append(share)
    return sorted((*found, *asked), key=lambda share: len(share.place.parts))


def _clash(notebook: Share, other: Share) -> MountError:
    if other.mount.location == notebook.mount.location:
        return MountError(
            f"{other.name} is mounted read-only, and a notebook lies in it.",
            hint="Add writable: true to it, or keep the notebook elsewhere.",
        )
    return MountError(
        f"{other.name} is mounted at {other.mount.guest_path}, where the notebook's directory has to be.",
        hint="Give it another mountPoint.",
    )


async def check(shares: Sequence[Share], mount_type: MountType) -> None:
    """See that this host can show all of it: Lima itself would make missing directories, and tell of nothing else.

    :raises MountError: when a directory cannot be shown.
    :raises HostError: when the mount type needs what is not here.
    """
    await asyncio.to_thread(_check_directories, shares, mount_type)
    await check_helpers(mount_type)
    if mount_type is MountType.REVERSE_SSHFS and find_sftp_server() is None:
        for share in shares:
            if share.options.sshfs.sftp_driver is SftpDriver.OPENSSH:
                raise HostError(
                    f"{share.name} is to be served by openssh-sftp-server, which was not found.",
                    hint="Install it (openssh-sftp-server on Debian), or leave sshfs.sftpDriver out.",
                )


def _check_directories(shares: Sequence[Share], mount_type: MountType) -> None:
    places = {share.place: share for share in shares}
    for share in shares:
        attempt = f"{share.name} cannot be shown to the VM"
        if why := transport_fault(mount_type, share.mount.location, share.mount.guest_path):
            raise MountError(f"{attempt} by {mount_type.value}: {why}.", hint=_other_type(mount_type))
        # A notebook may lie in a directory that one may only read; it is no worse in the guest.
        if why := directories.fault(Path(share.mount.location), writable=share.mount.writable and bool(share.field)):
            raise MountError(f"{attempt}: {why}.")
        outer = next((places[parent] for parent in share.place.parents if parent in places), None)
        if outer is not None:
            _check_inner(share, outer)


def _other_type(mount_type: MountType) -> str:
    if mount_type is MountType.REVERSE_SSHFS:
        return "Rename the directory, or use another mountType in the environment file."
    return "Rename the directory, or use mountType: reverse-sshfs in the environment file."


def _check_inner(share: Share, outer: Share) -> None:
    """A mount in another needs a directory to be mounted on, and nobody makes one in a directory of the host."""
    beneath = Path(outer.mount.location) / share.place.relative_to(outer.place)
    if why := directories.fault(beneath, writable=False):
        raise MountError(
            f"{share.name} cannot be mounted at {share.place}, which lies in {outer.mount.location}: "
            f"the directory {beneath} is needed for that, but {why}.",
            hint="Make it, or choose another mountPoint.",
        )
    if not Path(os.path.realpath(beneath)).is_relative_to(os.path.realpath(outer.mount.location)):
        raise MountError(
            f"{share.name} cannot be mounted at {share.place}: the link {beneath} leads out of {outer.mount.location}, "
            "which the VM shows, and so to nowhere in the guest.",
            hint=f"List {os.path.realpath(beneath)} under 'mounts' (writable: true) in an environment file.",
        )


async def still_there(notebooks: Sequence[Path], environment: Environment) -> list[Path]:
    """Return those directories of earlier notebooks that an instance can go on showing.

    One that is gone is dropped, for Lima would make it anew, empty; so is one whose place the environment takes.
    """
    taken = {mount.guest_path for mount in environment.mounts}
    left = [path for path in notebooks if str(path) not in taken]
    faults = await asyncio.to_thread(lambda: [directories.fault(path, writable=False) for path in left])
    for path, why in zip(left, faults, strict=True):
        if why:
            logger.warning("The VM does not show %s any longer: %s.", path, why)
    return [path for path, why in zip(left, faults, strict=True) if not why]


def mount_type_of(environment: Environment, unsupported: Sequence[str]) -> MountType:
    """Return the mount type that an instance of this environment will have.

    :param unsupported: what its template says that its kernel cannot do.
    :raises ConfigurationError: when that is what the environment asks for.
    """
    wanted = environment.mount_type
    if wanted is not None and wanted.value in unsupported:
        able = [member.value for member in MountType if member.value not in unsupported]
        raise ConfigurationError(
            f"Lima's template {environment.image!r} cannot mount by {wanted.value}.",
            hint=f"Its kernel does not know it; use mountType: {' or '.join(able)}, or another image.",
        )
    return wanted or default_mount_type(unsupported)


def mount_entry(share: Share) -> dict[str, Any]:
    """Return a mount as Lima writes it."""
    mount: dict[str, Any] = {"location": share.mount.location, "writable": share.mount.writable}
    if share.mount.mount_point:
        mount["mountPoint"] = share.mount.mount_point
    options = msgspec.to_builtins(share.options)
    return mount | {part: said for part, said in options.items() if said}
