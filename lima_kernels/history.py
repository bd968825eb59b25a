"""How long starts of a VM took on this machine: what a person may expect of the next one."""

from __future__ import annotations

import contextlib
import enum
import statistics
from collections.abc import Iterator, Mapping
from typing import ClassVar

from . import paths, records
from .errors import HostError

# So many starts are remembered: the machine, the image and what else it does change.
REMEMBERED = 5


class Kind(enum.Enum):
    """What has to be done for a start."""

    CREATE = "create"
    BOOT = "boot"
    WAKE = "wake"


class _Starts(records.Record, frozen=True, kw_only=True):
    """Seconds of the latest starts, the oldest first, by the kind's value.

    ``environment`` is the digest of what the VM was made of then; empty when that is not known, or not of ours.
    """

    VERSION: ClassVar[int] = 1
    version: int = VERSION
    seconds: Mapping[str, tuple[float, ...]] = {}
    environment: str = ""


def _known(instance: str) -> _Starts:
    return records.read(paths.starts_file(instance), _Starts) or _Starts()


def _of_environment(environment: str, kind: Kind) -> Iterator[float]:
    for file in paths.starts_files() if environment else ():
        known = records.read(file, _Starts)
        if known is not None and known.environment == environment:
            yield from known.seconds.get(kind.value, ())


def expected(instance: str, kind: Kind, environment: str = "") -> float | None:
    """Return how many seconds a start probably takes, or None when there was none like it.

    :param environment: the digest of what the VM is made of: one that has not been started so is taken for what other
        VMs of the same were.
    """
    seconds = _known(instance).seconds.get(kind.value, ()) or tuple(_of_environment(environment, kind))
    return statistics.median(seconds) if seconds else None


def note(instance: str, kind: Kind, seconds: float, environment: str = "") -> None:
    """Remember how long a start took; what cannot be written is not worth a failure."""
    before = _known(instance)
    # What it took when it was made of something else tells nothing of this.
    known = before.seconds if before.environment in ("", environment) else {}
    latest = (*known.get(kind.value, ()), round(seconds, 1))[-REMEMBERED:]
    made = _Starts(seconds={**known, kind.value: latest}, environment=environment)
    with contextlib.suppress(HostError):
        records.write(paths.starts_file(instance), made)
