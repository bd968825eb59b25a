"""From a VM that is stopped, or does not exist, to the first cell; and a stock-style VM to Lima's READY."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from lima_kernels.environment.shares import mount_entry, put_together
from lima_kernels.environment.spec import DEFAULT
from lima_kernels.lima import template
from lima_kernels.lima.limactl import Limactl

from .machine_room import INSTANCE, Managed, Room, delete_all, first_cell, ready, stop
from .samples import COLD_BOOT, FIRST_BOOT, OURS, READY, STOCK, STOP_AND_START, Row, Sample, Unit
from .stock_image import stock_image
from .timing import timed

STOCK_INSTANCE = "lk-stock"
COLD_TIMES = 2
# What a reader of the figures has to know.
STOCK_NOTE = (
    "The stock-style VM boots its kernel directly, without a boot loader, and its first boot has no Python to install: "
    "its figures are smaller than a stock image's, which is unfavourable to us."
)


def _boot(room: Room) -> None:
    with first_cell(Managed(room.spec(), room.notebooks)):
        pass


def measure(room: Room) -> Iterator[Sample]:
    """Measure ours: a new VM, then the same VM stopped, each to the first cell; and by `limactl start`."""
    if room.has_vm:
        delete_all()

    def sample(figure: str, seconds: float) -> Sample:
        return Sample(Row("boots", figure, OURS), seconds, Unit.SECONDS)

    yield sample(FIRST_BOOT, timed(lambda: _boot(room)))
    for _ in range(COLD_TIMES):
        stop(INSTANCE)
        yield sample(COLD_BOOT, timed(lambda: _boot(room)))
    stop(INSTANCE)
    yield sample(READY, timed(lambda: asyncio.run(ready(INSTANCE))))


def measure_stock(room: Room) -> Iterator[Sample]:
    """Measure the stock-style VM, with the same mount as ours: made and started, stopped and started."""
    image = stock_image(room.say)
    mounts = [mount_entry(share) for share in put_together(DEFAULT, [room.notebooks])]
    config = template.render(template.Config(images=[image.entry], mounts=mounts, provision=[], files=[]))
    room.stack.callback(delete_all)
    limactl = Limactl()

    async def make() -> None:
        await limactl.create(STOCK_INSTANCE, config)
        await ready(STOCK_INSTANCE)

    def sample(figure: str, seconds: float) -> Sample:
        return Sample(Row("stock", figure, STOCK), seconds, Unit.SECONDS)

    yield sample(FIRST_BOOT, timed(lambda: asyncio.run(make())))
    stopping = timed(lambda: asyncio.run(limactl.stop(STOCK_INSTANCE)))
    starting = timed(lambda: asyncio.run(ready(STOCK_INSTANCE)))
    yield sample(READY, starting)
    yield sample(STOP_AND_START, stopping + starting)
    asyncio.run(limactl.delete(STOCK_INSTANCE))
