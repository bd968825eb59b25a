"""The parts of a run, and how they are run: one that fails is told of, and the others still run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lima_kernels.errors import LimaKernelsError

from . import boots, cost, golden, guest_cells, loopback, many, others, sleep, warm
from .document import Outcome
from .machine_room import Room
from .samples import Sample

Measure = Callable[[Room], Iterator[Sample]]
INTERRUPTED = "it was interrupted"


class Part(NamedTuple):
    """One part: what it measures, in words, and what a reader of its figures has to know."""

    name: str
    title: str
    measure: Measure
    note: str = ""


# In this order: what needs no VM comes before any runs; the stock VM is gone before ours is made, which then stays.
PARTS = (
    Part("loopback", "one kernel on this host, by our forwards and OpenSSH's", lambda _room: loopback.measure()),
    Part("many", "1, 10, 50 and 100 kernels over ten connections", lambda _room: many.measure()),
    Part("local", "this Python's own kernel, without a VM", warm.measure_local),
    Part("stock", "the boots of a stock-style VM", boots.measure_stock, boots.STOCK_NOTE),
    Part("boots", "our VM's boots, to the first cell", boots.measure),
    Part("warm", "our kernels in the VM that runs, beside the local one", warm.measure),
    Part("sshpyk", "sshpyk's kernels in the same VM", others.measure_sshpyk),
    Part("openssh", "ipykernel_launcher over ssh -L in the same VM", others.measure_openssh),
    Part("cells", "cells of one kernel in the VM, by our forwards and OpenSSH's", guest_cells.measure),
    Part("cost", "memory and load of 0, 1 and 10 kernels", cost.measure),
    Part("sleep", "our VM put to sleep, and woken", sleep.measure),
    Part("golden", "an environment from its base and from the golden VM", golden.measure),
)
NAMES = tuple(part.name for part in PARTS)


def chosen(words: str) -> list[Part]:
    """Return the parts that are named, separated by commas, in the order of a run; all when none is.

    :raises ValueError: when there is none such.
    """
    wanted = [word for word in words.split(",") if word]
    if unknown := [word for word in wanted if word not in NAMES]:
        raise ValueError(f"there is no part {unknown[0]!r}: there are {', '.join(NAMES)}")
    return [part for part in PARTS if not wanted or part.name in wanted]


def reason(error: Exception) -> str:
    """Return why a part failed, in a line that names nobody."""
    said = error.message if isinstance(error, LimaKernelsError) else str(error)
    line = next(iter(said.strip().splitlines()), "")
    return f"{type(error).__name__}: {line}"[:500].replace(str(Path.home()), "~")


class Results:
    """What a run has so far; complete also when it is interrupted."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.outcomes: list[Outcome] = []

    def run(self, parts: Sequence[Part], room: Room) -> None:
        """Run the parts one after the other."""
        for part in parts:
            room.say(f"{part.name}: {part.title}")
            began = time.monotonic()
            failed = INTERRUPTED
            try:
                for sample in part.measure(room):
                    self.samples.append(sample)
                failed = ""
            except Exception as error:
                failed = reason(error)
                room.say(f"  failed: {failed}")
            finally:
                self.outcomes.append(Outcome(part.name, round(time.monotonic() - began, 1), failed, part.note))
