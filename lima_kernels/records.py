"""Small 0600 JSON files that several processes read and write: replaced in one step, and never trusted when read."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar, TypeVar

import msgspec

from .errors import HostError
from .paths import replace_privately

logger = logging.getLogger(__name__)

# No record of ours comes near it.
SIZE_LIMIT = 1024 * 1024
_SET_ASIDE = ".set-aside-"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What one file holds.

    A subclass says ``VERSION: ClassVar[int] = 1`` and ``version: int = VERSION``. The version grows when an older
    program would misread the record; a field that is merely new has a default, and older programs ignore it.
    """

    VERSION: ClassVar[int]
    version: int


class _Head(msgspec.Struct, frozen=True):
    version: int


T = TypeVar("T", bound=Record)


def write(path: Path, record: Record) -> None:
    """Write a record in one step: whoever reads sees the older one or this one, whole.

    :raises HostError: when it cannot be written, because the disk is full for example; the older one is as it was.
    """
    try:
        replace_privately(path, msgspec.json.encode(record))
    except OSError as error:
        hint = "Free some space there." if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise HostError(f"The file {path} cannot be written: {error.strerror}.", hint=hint) from error


def read(path: Path, kind: type[T]) -> T | None:
    """Return the record in a file, or None when there is none that can be used.

    A file that is corrupt, truncated, unreadable or of another version is renamed, so that it is in nobody's way but
    can be looked at, and a warning says so. Bad content never raises.
    """
    inode = None
    try:
        with open(path, "rb", opener=_opener) as file:
            inode = os.fstat(file.fileno()).st_ino
            return _decoded(file.read(SIZE_LIMIT + 1) or b"", kind)
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = f"it cannot be read: {error.strerror}"
    except (ValueError, RecursionError) as error:
        # msgspec's own errors are ValueErrors, and so is text that is no UTF-8.
        reason = str(error)
    _set_aside(path, inode, reason)
    return None


def _opener(path: str, flags: int) -> int:
    # A pipe in the file's place would wait for a writer.
    return os.open(path, flags | os.O_NONBLOCK)


def _decoded(data: bytes, kind: type[T]) -> T:
    if len(data) > SIZE_LIMIT:
        raise ValueError(f"it has more than {SIZE_LIMIT} bytes")
    # First alone: a record of another version may have any other fields.
    found = msgspec.json.decode(data, type=_Head).version
    if found != kind.VERSION:
        raise ValueError(f"its version is {found}, and version {kind.VERSION} is understood")
    return msgspec.json.decode(data, type=kind)


def _set_aside(path: Path, inode: int | None, reason: str) -> None:
    target = path.with_name(f"{path.name}{_SET_ASIDE}{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
    try:
        if inode is not None and path.stat().st_ino != inode:
            # Somebody has written a new one since: that one is not meant.
            outcome = "It has been replaced meanwhile"
        else:
            path.rename(target)
            outcome = f"It was set aside as {target.name}"
    except OSError as error:
        outcome = f"It was left there ({error.strerror})"
    logger.warning("The file %s is not used: %s. %s.", path, reason, outcome)


def remove(path: Path) -> None:
    """Remove a record, if there is one; one that cannot be removed is left."""
    with contextlib.suppress(OSError):
        path.unlink()
