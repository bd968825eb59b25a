"""What a part of the benchmark measures, one sample at a time, and what comes of all of them."""

from __future__ import annotations

import enum
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple


class Unit(enum.Enum):
    """What a figure is measured in; of a speed more is better, of all others less."""

    SECONDS = "s"
    MILLISECONDS = "ms"
    SPEED = "MB/s"
    RATE = "cells/s"
    MEMORY = "MB"
    LOAD = "% of a core"

    @property
    def more_is_better(self) -> bool:
        return self in (Unit.SPEED, Unit.RATE)


class Row(NamedTuple):
    """What is measured of whom: the part of the benchmark, the figure, and the contender."""

    part: str
    figure: str
    contender: str


class Sample(NamedTuple):
    """One measurement."""

    row: Row
    value: float
    unit: Unit


class Series(NamedTuple):
    """All measurements of one row, in the order in which they were made."""

    row: Row
    unit: Unit
    values: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)


def collected(samples: Iterable[Sample]) -> list[Series]:
    """Return the samples by their rows, in the order in which each row first came."""
    units: dict[Row, Unit] = {}
    values: dict[Row, list[float]] = {}
    for sample in samples:
        units.setdefault(sample.row, sample.unit)
        values.setdefault(sample.row, []).append(sample.value)
    return [Series(row, units[row], values[row]) for row in values]


def medians(series: Iterable[Series]) -> dict[Row, float]:
    """Return the median of each row."""
    return {found.row: found.median for found in series}


class Comparison(NamedTuple):
    """A figure that is made of two rows: their ratio, or how much the first has more than the second.

    :param goal: what it is to be, at most; at least when more of it is better; None where there is no goal.
    """

    name: str
    ours: Row
    theirs: Row
    goal: float | None
    is_difference: bool = False
    per: float = 1.0
    more_is_better: bool = False

    def of(self, found: Mapping[Row, float]) -> float | None:
        """Return its value, or None where one of both rows was not measured."""
        ours, theirs = found.get(self.ours), found.get(self.theirs)
        if ours is None or theirs is None or not (self.is_difference or theirs):
            return None
        return (ours - theirs) / self.per if self.is_difference else ours / theirs

    def is_met(self, value: float) -> bool | None:
        """Tell whether a value is as good as the goal; None where there is no goal."""
        if self.goal is None:
            return None
        return value >= self.goal if self.more_is_better else value <= self.goal


OURS, LOCAL, SSH, SSHPYK, STOCK, DIRECT = "ours", "python3 here", "OpenSSH", "sshpyk", "stock", "direct"
# Without a terminal OpenSSH keeps small packets back for a while.
SSH_LATE = "OpenSSH, ssh -N"
START, RESTART, RESTART_AT_ONCE, SHUTDOWN, ROUND_TRIP = (
    "start to first cell",
    "restart to first cell",
    "restart again, at once",
    "shutdown",
    "round trip of a cell",
)
FIRST_BOOT, COLD_BOOT, READY = "new VM", "stopped VM", "stopped VM, limactl start to READY"
STOP_AND_START = "running VM, stopped and started to READY"
HIBERNATE, WAKE_ALIVE, WAKE_NEW = (
    "running VM, put to sleep",
    "sleeping VM, to a cell of its kernel",
    "sleeping VM, to the first cell of a new kernel",
)
MEMORY, IDLE = "memory with {} kernels", "load by {} idle kernels"
HOST, GUEST, NO_VM = "host, our process", "guest", "host, our process without a VM"
PROVISIONED, COPIED = "provisioned from its base", "copy of the golden VM"


def output_of(megabytes: int) -> str:
    """Return the name of the figure of an output's speed."""
    return f"output of {megabytes} MB"


BULK = output_of(100)
RATIOS = (
    Comparison("warm_start_vs_local", Row("warm", START, OURS), Row("warm", START, LOCAL), 0.5),
    Comparison("restart_vs_local", Row("warm", RESTART, OURS), Row("warm", RESTART, LOCAL), 0.5),
    Comparison("roundtrip_vs_ssh", Row("cells", ROUND_TRIP, OURS), Row("cells", ROUND_TRIP, SSH), 1.05),
    Comparison("bulk_vs_openssh", Row("loopback", BULK, OURS), Row("loopback", BULK, SSH), 0.9, more_is_better=True),
    Comparison("cold_vs_stock", Row("boots", COLD_BOOT, OURS), Row("stock", READY, STOCK), 0.35),
    Comparison("first_boot_vs_stock", Row("boots", FIRST_BOOT, OURS), Row("stock", FIRST_BOOT, STOCK), 0.35),
    Comparison("golden_vs_provision", Row("golden", COPIED, OURS), Row("golden", PROVISIONED, OURS), 0.25),
    Comparison("wake_alive_vs_stock", Row("sleep", WAKE_ALIVE, OURS), Row("stock", READY, STOCK), 0.08),
    Comparison("wake_new_vs_stock", Row("sleep", WAKE_NEW, OURS), Row("stock", READY, STOCK), 0.1),
    Comparison("hibernate_vs_stock", Row("sleep", HIBERNATE, OURS), Row("stock", STOP_AND_START, STOCK), 0.1),
    Comparison("warm_start_vs_sshpyk", Row("warm", START, OURS), Row("sshpyk", START, SSHPYK), None),
)


def _per_kernel(figure: str) -> tuple[Row, Row]:
    return Row("cost", figure.format(10), HOST), Row("cost", figure.format(1), HOST)


COSTS = (
    Comparison(
        "loopback_roundtrip_added_ms",
        Row("loopback", ROUND_TRIP, OURS),
        Row("loopback", ROUND_TRIP, SSH),
        0.15,
        is_difference=True,
    ),
    Comparison(
        "host_mb_first_vm",
        Row("cost", MEMORY.format(0), HOST),
        Row("cost", MEMORY.format(0), NO_VM),
        40.0,
        is_difference=True,
    ),
    Comparison("host_mb_per_kernel", *_per_kernel(MEMORY), 1.0, is_difference=True, per=9),
    # None is meant; a tick of the clock in ten seconds is the least that can be seen.
    Comparison("host_load_per_kernel", *_per_kernel(IDLE), 0.1, is_difference=True, per=9),
)


def compared(comparisons: Iterable[Comparison], series: Iterable[Series]) -> Iterator[tuple[Comparison, float | None]]:
    """Yield each comparison with its value."""
    found = medians(series)
    for comparison in comparisons:
        yield comparison, comparison.of(found)
