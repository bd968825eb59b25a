"""How something is timed, alone or beside others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

from .samples import Row, Sample, Unit


def timed(work: Callable[[], object]) -> float:
    """Return how many seconds something takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def by_turns(
    part: str, figure: str, ways: Mapping[str, Callable[[], object]], rounds: int, of: float = 0.0
) -> Iterator[Sample]:
    """Measure the same of several contenders by turns: what else the machine does hits all of them.

    :param of: megabytes that are moved; then a speed is measured, else milliseconds.
    """
    for work in ways.values():
        # The first of all pays for what is made once.
        work()
    for _ in range(rounds):
        for contender, work in ways.items():
            seconds = timed(work)
            value, unit = (of / seconds, Unit.SPEED) if of else (seconds * 1000, Unit.MILLISECONDS)
            yield Sample(Row(part, figure, contender), value, unit)
