"""A VM of ours falls asleep with a kernel that has pandas, and wakes: for that kernel, and for a new one."""

from __future__ import annotations

from collections.abc import Iterator

from lima_kernels import runtime

from .conversation import conversation
from .machine_room import FIRST_CELL, FIRST_LIMIT, INSTANCE, Managed, Room, first_cell
from .samples import HIBERNATE, OURS, WAKE_ALIVE, WAKE_NEW, Row, Sample, Unit
from .timing import timed

TIMES = 3


def _hibernate() -> None:
    io = runtime.runtime()

    async def hibernate() -> None:
        await io.vm(INSTANCE).hibernate()

    io.run_blocking(hibernate())


def measure(room: Room) -> Iterator[Sample]:
    """Measure ours, by turns for a kernel that was alive and for a new one."""

    def sample(figure: str, seconds: float) -> Sample:
        return Sample(Row("sleep", figure, OURS), seconds, Unit.SECONDS)

    def new() -> None:
        with first_cell(Managed(room.spec(), room.notebooks)):
            pass

    kernel = Managed(room.spec(), room.notebooks)
    try:
        with conversation(kernel.connection, FIRST_LIMIT) as client:
            client.cell("import pandas")
            for _ in range(TIMES):
                yield sample(HIBERNATE, timed(_hibernate))
                yield sample(WAKE_ALIVE, timed(lambda: client.cell(FIRST_CELL)))
                _hibernate()
                yield sample(WAKE_NEW, timed(new))
    finally:
        kernel.end()
