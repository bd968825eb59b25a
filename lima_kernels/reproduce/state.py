"""What a guest's environment is at this moment, as the guest tells it: decoded with suspicion, and its digest."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

import msgspec

from ..errors import GuestError, printable

# Bytes of all that a guest may tell of itself, and entries of each list: a Debian desktop has 3,000 packages.
LIMIT = 8 * 1024 * 1024
_ENTRIES = 20_000

# Printable ASCII without spaces: what a guest says is shown in tables and written into notebooks.
Word = Annotated[str, msgspec.Meta(max_length=200, pattern=r"\A[!-~]*\Z")]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"\A(?:[0-9a-f]{64})?\Z")]
_DebName = Annotated[str, msgspec.Meta(max_length=200, pattern=r"\A[a-z0-9][a-z0-9.+-]*(?::[a-z0-9-]+)?\Z")]
PackageName = Annotated[str, msgspec.Meta(max_length=200, pattern=r"\A[a-z0-9]+(?:-[a-z0-9]+)*\Z")]


class Package(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A Python package that is installed: its version, and the SHA-256 of its RECORD (of what its files are)."""

    version: Word
    record: Sha256


Packages = Annotated[dict[PackageName, Package], msgspec.Meta(max_length=_ENTRIES)]


class GuestState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an environment in a guest is.

    ``python`` is empty where the environment has not been made. ``image_sha256`` is not the guest's word but this
    host's, and empty where it is not known. ``built`` are the packages as they were when the environment was built,
    from the lock of ``python_digest``.
    """

    arch: Word
    kernel: Word
    python: Word
    apt: Annotated[dict[_DebName, Word], msgspec.Meta(max_length=_ENTRIES)]
    packages: Packages
    built: Packages = {}
    python_digest: Sha256 = ""
    image_sha256: Sha256 = ""

    @property
    def digest(self) -> str:
        """SHA-256 in hexadecimal, equal on two machines when the environment is; how it came to be does not count."""
        content = msgspec.structs.asdict(self)
        del content["built"], content["python_digest"]
        return digest_of(content)


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON, in hexadecimal."""
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()


def decoded(data: bytes, image_sha256: str) -> GuestState:
    """Return what a guest told of itself as JSON, with the image that this host made it from.

    :raises GuestError: when it is something else, or too much.
    """
    if len(data) > LIMIT:
        raise _unusable(f"more than {LIMIT // 1024**2} MiB came")
    try:
        state = msgspec.json.decode(data, type=GuestState)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _unusable(str(error)) from error
    return msgspec.structs.replace(state, image_sha256=image_sha256)


def _unusable(reason: str) -> GuestError:
    # The reason may quote the guest.
    said = " ".join(printable(reason).split())[:200]
    return GuestError(f"What the guest told of its environment cannot be used: {said}.")
