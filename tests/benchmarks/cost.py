"""What kernels that do nothing cost: memory and CPU time of our process on this host, and of the guest."""

from __future__ import annotations

import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import psutil

from .machine_room import Room
from .others import guest_ssh
from .samples import GUEST, HOST, IDLE, MEMORY, NO_VM, Row, Sample, Unit

PART = "cost"
COUNTS = (0, 1, 10)
# Seconds that are watched; and before them, for what was begun to end.
WATCHED, SETTLING = 10.0, 3.0
LIMIT = 600.0
MEGABYTE = 1e6
_STAT = "head -n 1 /proc/stat"


class Cost(NamedTuple):
    """Memory in megabytes, and load in percent of a core."""

    memory: float
    load: float


class Holder:
    """A process of its own that has kernels; made by :func:`holder`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._seen = psutil.Process(process.pid)

    def have(self, spec: str, count: int) -> None:
        """Let it have so many kernels, those of an earlier spec none."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{spec} {count}\n".encode())
        readable, _, _ = select.select([self._process.stdout], [], [], LIMIT)
        if not readable or self._process.stdout.readline() != b"done\n":
            raise RuntimeError(f"The process that holds kernels has not {count} of them: {self._process.poll()}.")

    def _seconds(self) -> float:
        times = self._seen.cpu_times()
        return times.user + times.system

    def cost(self) -> Cost:
        """Watch it for a while."""
        before = self._seconds()
        time.sleep(WATCHED)
        load = 100 * (self._seconds() - before) / WATCHED
        memory = self._seen.memory_full_info()
        # A page that several processes share counts by its share; macOS tells only what is a process's own.
        return Cost(getattr(memory, "pss", memory.uss) / MEGABYTE, load)


@contextmanager
def holder(room: Room) -> Iterator[Holder]:
    """A process that holds kernels, for the time of the block."""
    argv = [sys.executable, "-m", f"{__package__}.holder"]
    # The end of its input ends it in good order, also where Ctrl-C ends us.
    process = subprocess.Popen(
        argv, cwd=room.notebooks, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
    )
    try:
        yield Holder(process)
    finally:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        process.stdout.close()


def guest_cost(said: str) -> Cost:
    """Return what the guest's own figures say: two lines of /proc/stat, and of /proc/meminfo.

    :raises ValueError: when they are not that.
    """
    stats = [list(map(int, line.split()[1:])) for line in said.splitlines() if line.startswith("cpu ")]
    found = dict(re.findall(r"^Mem(\w+): +(\d+) kB$", said, re.MULTILINE))
    if len(stats) != 2 or found.keys() != {"Total", "Available"}:
        raise ValueError(f"the guest said what is no cost: {said[:200]!r}")
    before, after = stats
    # user, nice, system, idle, iowait, ...: in hundredths of a second.
    spent = sum(after) - sum(before) - (after[3] - before[3]) - (after[4] - before[4])
    return Cost((int(found["Total"]) - int(found["Available"])) * 1024 / MEGABYTE, spent / WATCHED)


def _samples(count: int, of: str, cost: Cost) -> Iterator[Sample]:
    yield Sample(Row(PART, MEMORY.format(count), of), cost.memory, Unit.MEMORY)
    yield Sample(Row(PART, IDLE.format(count), of), cost.load, Unit.LOAD)


def measure(room: Room) -> Iterator[Sample]:
    """Measure a process with 0, 1 and 10 kernels in the VM, beside one that has had a local kernel only."""
    room.warm()
    with holder(room) as process:
        process.have("python3", 0)
        time.sleep(SETTLING)
        yield from _samples(0, NO_VM, process.cost())
        for count in COUNTS:
            process.have(room.spec(), count)
            time.sleep(SETTLING)
            argv = [*guest_ssh(), f"{_STAT}; sleep {WATCHED:g}; {_STAT}; grep -E '^Mem(Total|Available)' /proc/meminfo"]
            with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as guest:
                yield from _samples(count, HOST, process.cost())
                yield from _samples(count, GUEST, guest_cost(guest.communicate(timeout=LIMIT)[0]))
