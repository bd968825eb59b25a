"""The mounts of an environment file, with every option that Lima has for them, by Lima's names."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from ..lima.mounting import MountType, hides_guest, location_fault, mount_point_fault, plain_path, plain_point
from ..lima.sizes import in_bytes

# The protocol's least; Linux takes no more than 500 KiB of what it is given, so anything far above is a typo.
_MSIZE = (4 * 1024, 4 * 1024**2)
_QUEUE_SIZES = tuple(2**exponent for exponent in range(1, 11))


class Fault(NamedTuple):
    """What cannot be obeyed of an environment file: the path of its key, a sentence, and what to do."""

    path: str
    what: str
    hint: str = ""


class SecurityModel(enum.Enum):
    """How QEMU's 9p keeps owners and modes of what the guest writes."""

    PASSTHROUGH = "passthrough"
    MAPPED_XATTR = "mapped-xattr"
    MAPPED_FILE = "mapped-file"
    NONE = "none"


class ProtocolVersion(enum.Enum):
    """The dialect of 9p."""

    LEGACY = "9p2000"
    UNIX = "9p2000.u"
    LINUX = "9p2000.L"


class NinepCache(enum.Enum):
    """What the guest keeps of a 9p mount."""

    NONE = "none"
    LOOSE = "loose"
    FSCACHE = "fscache"
    MMAP = "mmap"


class SftpDriver(enum.Enum):
    """Who serves the files of a reverse-sshfs mount."""

    BUILTIN = "builtin"
    OPENSSH = "openssh-sftp-server"


class _Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, rename="camel"):
    pass


class NinepOptions(_Options, frozen=True):
    """Options of 9p mounts; ``msize`` is a size such as ``128KiB``."""

    security_model: Annotated[SecurityModel | None, Meta(description="How owners and modes are kept.")] = None
    protocol_version: Annotated[ProtocolVersion | None, Meta(description="The dialect of 9p.")] = None
    msize: Annotated[str | None, Meta(description="The largest message, such as 128KiB.")] = None
    cache: Annotated[NinepCache | None, Meta(description="What the guest keeps of it.")] = None


class SshfsOptions(_Options, frozen=True):
    """Options of reverse-sshfs mounts."""

    cache: Annotated[bool | None, Meta(description="Whether the guest keeps some of it.")] = None
    follow_symlinks: Annotated[bool | None, Meta(description="Follow links on this host.")] = None
    sftp_driver: Annotated[SftpDriver | None, Meta(description="Who serves the files.")] = None


class VirtiofsOptions(_Options, frozen=True):
    """Options of virtiofs mounts with QEMU."""

    queue_size: Annotated[int | None, Meta(description="Entries of the queue, a power of two.")] = None


class MountOptions(_Options, frozen=True, kw_only=True):
    """Options for each mount type; what is None is left to Lima."""

    ninep: Annotated[NinepOptions, Meta(description="Options of 9p.")] = msgspec.field(
        default=NinepOptions(), name="9p"
    )
    sshfs: Annotated[SshfsOptions, Meta(description="Options of reverse-sshfs.")] = SshfsOptions()
    virtiofs: Annotated[VirtiofsOptions, Meta(description="Options of virtiofs.")] = VirtiofsOptions()


class MountSpec(MountOptions, frozen=True):
    """One more host directory for the guest, beside the notebook's."""

    location: Annotated[str, Meta(description="The directory on this host.")]
    mount_point: Annotated[str, Meta(description="Where the guest has it; at the same path when it is not said.")] = ""
    writable: Annotated[bool, Meta(description="Whether the guest may change it.")] = False

    @property
    def guest_path(self) -> str:
        return self.mount_point or self.location

    @property
    def is_workplace(self) -> bool:
        """Whether a notebook below it finds itself in the guest, and can write."""
        return self.writable and self.guest_path == self.location


# What the notebook's directory is mounted with where the environment says nothing. Lima's own 128 KiB halve the speed
# of large files; Linux takes no more than this over virtio (docs/mounts.md has the measurements).
DEFAULT_OPTIONS = MountOptions(ninep=NinepOptions(msize="500KiB"))
# The options that each mount type reads: Lima's key, and our field.
_PARTS = {
    MountType.NINEP: ("9p", "ninep"),
    MountType.REVERSE_SSHFS: ("sshfs", "sshfs"),
    MountType.VIRTIOFS: ("virtiofs", "virtiofs"),
}


def overlaid(below: MountOptions, above: MountOptions) -> MountOptions:
    """Return the options of ``above`` where it says something, and else those of ``below``."""
    parts = {}
    for _key, part in _PARTS.values():
        said = msgspec.structs.asdict(getattr(above, part))
        parts[part] = msgspec.structs.replace(
            getattr(below, part), **{name: value for name, value in said.items() if value is not None}
        )
    return MountOptions(**parts)


def point_field(number: int, mount: MountSpec) -> str:
    """The path of the field that says where a mount is in the guest."""
    return f"mounts[{number}].{'mountPoint' if mount.mount_point else 'location'}"


def tidied(mount: MountSpec, location: str) -> MountSpec:
    """Return a mount with its host directory made absolute, and both its paths without ``..`` and ``//``."""
    point = mount.mount_point and plain_point(mount.mount_point)
    return msgspec.structs.replace(mount, location=plain_path(location), mount_point=point)


def faults(mounts: Sequence[MountSpec], options: MountOptions, mount_type: MountType | None) -> Iterator[Fault]:
    """Yield what cannot be obeyed of an environment's mounts.

    :param options: those for all mounts.
    """
    yield from _option_faults("mountOptions", options)
    taken: dict[str, str] = {}
    for number, mount in enumerate(mounts):
        where = f"mounts[{number}]"
        yield from _option_faults(where, mount)
        yield from _idle_options(where, mount, mount_type)
        yield from _path_faults(where, mount)
        field = point_field(number, mount)
        if mount.guest_path in taken:
            # Lima would merge the two, and show one directory as the other.
            what = f"{mount.guest_path!r} at {field} is taken by {taken[mount.guest_path]}."
            yield Fault(field, what, "Change its mountPoint.")
        taken[mount.guest_path] = field


def _option_faults(where: str, options: MountOptions) -> Iterator[Fault]:
    msize, queue_size = options.ninep.msize, options.virtiofs.queue_size
    if msize is not None and not _MSIZE[0] <= (in_bytes(msize) or 0) <= _MSIZE[1]:
        path = f"{where}.9p.msize"
        yield Fault(path, f"expected a size from 4KiB to 4MiB, got {msize!r} at {path}.")
    if queue_size is not None and queue_size not in _QUEUE_SIZES:
        path = f"{where}.virtiofs.queueSize"
        yield Fault(path, f"expected a power of two from 2 to 1024, got {queue_size} at {path}.")


def _idle_options(where: str, mount: MountSpec, mount_type: MountType | None) -> Iterator[Fault]:
    """One mount's own options for another type than its own are a mistake; those for all may serve other hosts."""
    for reader, (key, part) in _PARTS.items():
        if mount_type not in (None, reader) and getattr(mount, part) != getattr(MountOptions(), part):
            hint = "Take it out; under mountOptions it may stand for hosts with another mountType."
            yield Fault(f"{where}.{key}", f"{where}.{key} says nothing to mountType {mount_type.value}.", hint)


def _path_faults(where: str, mount: MountSpec) -> Iterator[Fault]:
    location, point = f"{where}.location", f"{where}.mountPoint"
    if why := location_fault(mount.location):
        yield Fault(location, f"{mount.location!r} at {location} cannot be mounted: {why}.", "Rename the directory.")
    elif mount.mount_point and (why := mount_point_fault(mount.mount_point)):
        yield Fault(point, f"{mount.mount_point!r} at {point} cannot be one: {why}.")
    elif mount.mount_point and hides_guest(mount.mount_point):
        yield Fault(point, f"{mount.mount_point!r} at {point} would hide the guest's own.")
    elif hides_guest(mount.guest_path):
        hint = "Give it a mountPoint, such as /data."
        what = f"{mount.location!r} at {location} would hide the guest's own at the same path."
        yield Fault(location, what, hint)
