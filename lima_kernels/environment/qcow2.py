"""What a disk image in qcow2 says of itself: QEMU obeys it, so one that came from elsewhere is looked at before."""

from __future__ import annotations

import struct
from pathlib import Path

from ..errors import ImageError

MAGIC = b"QFI\xfb"
# magic, version, backing file's offset and length, cluster bits, virtual size, encryption; number of snapshots;
# incompatible features, and header length.
_HEADER = struct.Struct(">4sIQIIQI")
_SNAPSHOTS, _FEATURES = struct.Struct(">I"), struct.Struct(">Q")
_SNAPSHOTS_AT, _FEATURES_AT, _LENGTH = 60, 72, 104
# Of the incompatible features: how clusters are compressed. Others are a file beside it, and damage.
_COMPRESSION = 1 << 3
# What Lima makes a disk of that nothing is said of; a larger one would not fit in.
MAX_SIZE = 100 << 30


def check_foreign(file: Path) -> None:
    """See that a disk image is all in its own file: another one that it names would be read by QEMU as this user.

    :raises ImageError: when it is no qcow2 of the kind that we make.
    """
    with file.open("rb") as opened:
        head = opened.read(_LENGTH)
    if len(head) < _LENGTH or not head.startswith(MAGIC):
        raise ImageError("Its disk is no qcow2 image.")
    _, version, backing, _, _, size, encryption = _HEADER.unpack_from(head)
    snapshots, features = _SNAPSHOTS.unpack_from(head, _SNAPSHOTS_AT)[0], _FEATURES.unpack_from(head, _FEATURES_AT)[0]
    if version != 3:
        raise ImageError(f"Its disk is a qcow2 image of version {version}, and not 3.")
    if backing:
        raise ImageError("Its disk is based on another file, which could be any of this host's.")
    if features & ~_COMPRESSION:
        raise ImageError("Its disk is not all in one file, or damaged, or of a kind that we do not make.")
    if encryption or snapshots:
        raise ImageError("Its disk is encrypted or has snapshots.")
    if size > MAX_SIZE:
        raise ImageError(f"Its disk would be {size >> 30} GiB large.")
