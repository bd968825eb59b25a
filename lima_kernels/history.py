"""How long starts of a VM took on this machine: what a person may expect of the next one."""

from __future__ import annotations

import contextlib
import enum
import statistics
from collections.abc import Mapping
from typing import ClassVar

from . import paths, records
from .errors import HostError

# So many starts are remembered: the machine, the image and what else it does change.
REMEMBERED = 5


class Kind(enum.Enum):
    """What has to be done for a start."""

    CREATE = "create"
    BOOT = "boot"


class _Starts(records.Record, frozen=True, kw_only=True):
    """Seconds of the latest starts, the oldest first, by the kind's value."""

    VERSION: ClassVar[int] = 1
    version: int = VERSION
    seconds: Mapping[str, tuple[float, ...]] = {}


def _known(instance: str) -> _Starts:
    return records.read(paths.starts_file(instance), _Starts) or _Starts()


def expected(instance: str, kind: Kind) -> float | None:
    """Return how many seconds a start probably takes, or None when there was none."""
    seconds = _known(instance).seconds.get(kind.value, ())
    return statistics.median(seconds) if seconds else None


def note(instance: str, kind: Kind, seconds: float) -> None:
    """Remember how long a start took; what cannot be written is not worth a failure."""
    known = _known(instance).seconds
    latest = (*known.get(kind.value, ()), round(seconds, 1))[-REMEMBERED:]
    with contextlib.suppress(HostError):
        records.write(paths.starts_file(instance), _Starts(seconds={**known, kind.value: latest}))
