"""What is measured: the settings, boot by boot, and the figures."""

from __future__ import annotations

import enum
import sys
from collections.abc import Sequence
from typing import NamedTuple

from msgspec.structs import replace

from ..environment.mounts import (
    DEFAULT_OPTIONS,
    MountOptions,
    NinepCache,
    NinepOptions,
    ProtocolVersion,
    SecurityModel,
    SshfsOptions,
    overlaid,
)
from ..errors import ConfigurationError
from ..lima.mounting import MountType, default_mount_type, find_virtiofsd


class Origin(enum.Enum):
    """Where a directory of the guest comes from."""

    DISK = "the guest's own disk"
    DEFAULT = "what a notebook's directory gets"
    LIMA = "a mount of Lima's"
    ADDED = "added to the running VM"


class Setting(NamedTuple):
    """One way to have a directory in the guest; ``name`` is unique in a run.

    :param limas: it is one of the settings that Lima offers.
    :param limas_default: it is what Lima takes for the first mount type when nothing is said.
    """

    name: str
    origin: Origin
    options: MountOptions = MountOptions()
    limas: bool = False
    limas_default: bool = False


class Boot(NamedTuple):
    """A mount type, and the settings that are measured while the VM has it."""

    mount_type: MountType
    settings: Sequence[Setting]


class Size(NamedTuple):
    """How much is measured: how many small files, and the large file's size in MiB.

    :param limit: seconds that one setting may take; sshfs in an emulated guest needs most.
    """

    files: int
    mebibytes: int
    limit: float


class Figure(NamedTuple):
    """A figure's name in the results, what a person reads, its unit, and whether more of it is better."""

    name: str
    title: str
    unit: str
    more_is_better: bool = False


FULL = Size(files=10_000, mebibytes=256, limit=5400)
QUICK = Size(files=500, mebibytes=64, limit=600)
# After so many seconds a guest that does not see the host's change is said not to see it.
EDIT_LIMIT = 5.0

FIGURES = (
    Figure("large_write", "write large", "MiB/s", more_is_better=True),
    Figure("large_read", "read large", "MiB/s", more_is_better=True),
    Figure("random_read", "random reads", "MiB/s", more_is_better=True),
    Figure("create", "create files", "s"),
    Figure("stat", "stat files", "s"),
    Figure("git_status_first", "git status, first", "s"),
    Figure("git_status", "git status, later", "s"),
    Figure("import", "import", "s"),
    Figure("edit_seen", "host's edit seen", "s"),
)
UNITS = {figure.name: figure.unit for figure in FIGURES}

DISK = Setting("guest's disk", Origin.DISK)
ADDED = Setting("added (sshfs)", Origin.ADDED)
_OURS = "our default"
# What Lima takes where nothing is said comes first, all of it named: our own defaults may say something else.
_NINEP = NinepOptions(SecurityModel.NONE, ProtocolVersion.LINUX, "128KiB", NinepCache.MMAP)
_SSHFS = SshfsOptions(cache=True, follow_symlinks=False)
# Not 9p2000.u: there an fsync never ends (QEMU 7.2, Linux 6.1).
_VARIANTS = {
    MountType.NINEP: {
        "Lima's default": MountOptions(ninep=_NINEP),
        "msize 500KiB": MountOptions(ninep=replace(_NINEP, msize="500KiB")),
        "cache none": MountOptions(ninep=replace(_NINEP, cache=NinepCache.NONE)),
        "cache loose": MountOptions(ninep=replace(_NINEP, cache=NinepCache.LOOSE)),
        "cache fscache": MountOptions(ninep=replace(_NINEP, cache=NinepCache.FSCACHE)),
        "mapped-xattr": MountOptions(ninep=replace(_NINEP, security_model=SecurityModel.MAPPED_XATTR)),
    },
    MountType.REVERSE_SSHFS: {
        "Lima's default": MountOptions(sshfs=_SSHFS),
        "cache off": MountOptions(sshfs=replace(_SSHFS, cache=False)),
    },
    MountType.VIRTIOFS: {"Lima's default": MountOptions()},
}


def first_settings(mount_type: MountType) -> list[Setting]:
    """Return what is measured with the mount type that notebooks get; a setting of Lima's that is ours is so once."""
    variants = _VARIANTS[mount_type]
    plain = next(iter(variants.values()))
    ours = overlaid(plain, DEFAULT_OPTIONS)
    same = [name for name, options in variants.items() if options == ours]
    default = Setting(
        f"{mount_type.value}, {_OURS}",
        Origin.DEFAULT,
        ours,
        limas=True,
        limas_default=ours == plain,
    )
    others = [
        Setting(f"{mount_type.value}, {name}", Origin.LIMA, options, limas=True, limas_default=options is plain)
        for name, options in variants.items()
        if name not in same
    ]
    return [DISK, default, *others, ADDED]


def other_settings(mount_type: MountType) -> list[Setting]:
    """Return what is measured with another mount type."""
    return [
        Setting(f"{mount_type.value}, {name}", Origin.LIMA, options, limas=True)
        for name, options in _VARIANTS[mount_type].items()
    ]


def selected(boots: Sequence[Boot], words: Sequence[str]) -> list[Boot]:
    """Return of all boots those settings whose name has one of the words in it.

    :raises ConfigurationError: when a word is in no name.
    """
    names = [setting.name for boot in boots for setting in boot.settings]
    for word in words:
        if not any(word in name for name in names):
            raise ConfigurationError(f"No setting here has {word!r} in its name: there are {', '.join(names)}.")
    chosen = [
        Boot(boot.mount_type, [setting for setting in boot.settings if any(word in setting.name for word in words)])
        for boot in boots
    ]
    return [boot for boot in chosen if boot.settings]


async def boots() -> list[Boot]:
    """Return what can be measured on this host; the first boot has the mount type that notebooks get."""
    first = default_mount_type(())
    others = [MountType.REVERSE_SSHFS]
    if sys.platform != "darwin" and await find_virtiofsd() is not None:
        others.append(MountType.VIRTIOFS)
    return [Boot(first, first_settings(first)), *(Boot(other, other_settings(other)) for other in others)]
