"""What Lima's mount types can take, what they need of this host, and which places in a guest are the guest's own.

Lima checks little of it: what it does not escape ends up in QEMU's command line, in cloud-init's YAML or in the
guest's shell, and the VM boots without the mount.
"""

from __future__ import annotations

import enum
import os
import platform
import re
import shlex
import shutil
import sys
import unicodedata
from collections.abc import Collection
from pathlib import Path, PurePosixPath

import msgspec

from .. import paths
from ..errors import HostError
from . import process

# Mounting over these would take the guest's own away. Lima refuses some of them too, but only at `create`.
_NEVER_BELOW = (
    *("/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/run", "/sbin", "/sys", "/usr"),
    *("/mnt/lima-cidata", paths.GUEST_PREFIX),
)
_NEVER = ("/", "/Users", "/home", "/mnt", "/opt", "/root", "/srv", "/tmp", "/var")  # noqa: S108
_NEVER_IN_VAR = ("/var/cache", "/var/lib", "/var/log", "/var/tmp")  # noqa: S108
# Lima's key for us, and our own state; neither may be hidden, nor the home directory that they are in.
_NEVER_IN_HOME = (".ssh", paths.GUEST_STATE)
# What Lima replaces in a mount point (lima `limayaml.executeGuestTemplate`).
_TEMPLATE = re.compile(r"\{\{\s*\.(Home|Name|Hostname|UID|User)\s*\}\}")
_HOME = "{{.Home}}"
_GUEST_HOME = PurePosixPath("/home/{{.User}}.guest")

_VIRTIOFSD_TIMEOUT = 10.0
_SFTP_SERVERS = (
    "/usr/libexec/sftp-server",
    "/usr/libexec/openssh/sftp-server",
    "/usr/lib/sftp-server",
    "/usr/lib/openssh/sftp-server",
    "/usr/lib/ssh/sftp-server",
)


class MountType(enum.Enum):
    """How Lima shows host directories to the guest, in Lima's words."""

    NINEP = "9p"
    VIRTIOFS = "virtiofs"
    REVERSE_SSHFS = "reverse-sshfs"


def default_mount_type(unsupported: Collection[str]) -> MountType:
    """Return the mount type that Lima takes when none is named.

    :param unsupported: what the template's kernel cannot do.
    """
    if sys.platform == "darwin":
        return MountType.VIRTIOFS
    return MountType.REVERSE_SSHFS if MountType.NINEP.value in unsupported else MountType.NINEP


def plain_path(path: str) -> str:
    """Return a path without what Lima and the guest read in another way than its text: ``..``, ``//``, a last ``/``."""
    normal = os.path.normpath(path)
    # POSIX lets two slashes at the beginning mean something else; Linux and macOS do not.
    return normal[1:] if normal.startswith("//") else normal


def plain_point(point: str) -> str:
    """Return a mount point like :func:`plain_path`, its templates written in one way."""
    return plain_path(_TEMPLATE.sub(r"{{.\1}}", point))


def hides_guest(path: str) -> bool:
    """Tell whether a mount at this place in the guest would hide what the guest needs."""
    place = PurePosixPath(plain_point(path).replace(_HOME, str(_GUEST_HOME)))
    if place == _GUEST_HOME or str(place) in (*_NEVER, *_NEVER_IN_VAR):
        return True
    tops = [*map(PurePosixPath, _NEVER_BELOW), *(_GUEST_HOME / name for name in _NEVER_IN_HOME)]
    return any(place.is_relative_to(top) for top in tops)


def mount_point_fault(point: str) -> str:
    """Return why a mount point cannot be one in any guest, or an empty string."""
    if point.startswith("~"):
        return "'~' is not known there; write {{.Home}} for the guest's home directory"
    if "{{" in _TEMPLATE.sub("", point):
        return "of templates it may have {{.Home}}, {{.Name}}, {{.Hostname}}, {{.UID}} and {{.User}}"
    if not point.startswith(("/", _HOME)):
        return "it is no absolute path"
    return _text_fault(point)


def location_fault(location: str) -> str:
    """Return why Lima could not read a host directory's path as it is written, or an empty string."""
    if "{{" in location:
        # Lima would execute it as a template: at every load of the lima.yaml, and once more in QEMU's arguments.
        return "Lima would take the '{{' in it for a template"
    return _text_fault(location)


def _text_fault(path: str) -> str:
    for character in path:
        category = unicodedata.category(character)
        if category == "Cs":
            return "it is not UTF-8"
        if category in ("Cc", "Zl", "Zp"):
            return f"it contains the control character {character!r}"
    return ""


def transport_fault(mount_type: MountType, location: str, point: str) -> str:
    """Return why a mount type cannot carry a mount, though its paths are good ones, or an empty string."""
    plain = _TEMPLATE.sub("x", point)
    if mount_type is MountType.REVERSE_SSHFS:
        # sshocker puts both into double quotes for the guest's shell, as Go writes them.
        odd = next((c for c in location + plain if c in "$`" or not c.isprintable()), "")
        return f"its {odd!r} would not come through the guest's shell" if odd else ""
    if mount_type is MountType.NINEP and "," in location:
        return "QEMU would take the ',' in it for the end of the path"
    # Lima writes the mount point into the YAML of cloud-init, which writes it into /etc/fstab, both without quotes.
    odd = next((c for c in plain if c in ",?[]{}\\"), "")
    odd = odd or next((pair for pair in (": ", " #") if pair in plain), "") or (plain[-1] if plain[-1] in ": " else "")
    return f"cloud-init would stumble over the {odd!r} in it" if odd else ""


async def check_helpers(mount_type: MountType) -> None:
    """See that this host has what a mount type needs beside QEMU or vz.

    :raises HostError: when virtiofs is asked for on Linux, and there is no virtiofsd that Lima would take.
    """
    if mount_type is MountType.VIRTIOFS and sys.platform != "darwin" and await find_virtiofsd() is None:
        raise HostError(
            "mountType virtiofs needs the virtiofsd that is written in Rust, and Lima would find none here.",
            hint="Install the package virtiofsd (QEMU's own one serves root only), or use mountType: 9p.",
        )


async def find_virtiofsd() -> Path | None:
    """Return the virtiofsd that Lima would take for QEMU (lima ``qemu.FindVirtiofsd``), or None."""
    for directory in _vhost_user_directories():
        for file in sorted(directory.glob("*.json")):
            try:
                backend = msgspec.json.decode(file.read_bytes(), type=_Backend)
                if backend.type != "fs":
                    continue
                # QEMU's older one, in C, refuses even this to all but root.
                answer = await process.run([backend.binary, "--version"], timeout=_VIRTIOFSD_TIMEOUT)
            except (OSError, msgspec.DecodeError, TimeoutError):
                continue
            if answer.returncode == 0:
                return Path(backend.binary)
    return None


class _Backend(msgspec.Struct, frozen=True):
    """A vhost-user back end as QEMU's JSON files describe it."""

    type: str = ""
    binary: str = ""


def _vhost_user_directories() -> list[Path]:
    machine = platform.machine()
    command = os.environ.get(f"QEMU_SYSTEM_{machine.upper()}", f"qemu-system-{machine}")
    qemu = shutil.which(next(iter(shlex.split(command)), ""))
    prefixes = [Path.home() / ".local", *([Path(qemu).parent.parent] if qemu else []), Path("/usr")]
    return [prefix / "share/qemu/vhost-user" for prefix in dict.fromkeys(prefixes)]


def find_sftp_server() -> str | None:
    """Return OpenSSH's SFTP server as Lima would find it, or None."""
    return shutil.which("sftp-server") or next(filter(shutil.which, _SFTP_SERVERS), None)
