"""A kernel's start, restart and shutdown, ours in a VM that runs beside the local one; and the local one alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from .machine_room import Managed, Room, life
from .samples import LOCAL, OURS, Sample

TIMES = 5
# Seconds between a start and a restart: nobody restarts what has just begun.
REST = 5.0


def measure_local(room: Room) -> Iterator[Sample]:
    """Measure this Python's own ipykernel, while no VM of ours runs."""
    for _ in range(TIMES):
        yield from life("local", LOCAL, partial(Managed, "python3", room.notebooks))


def measure(room: Room) -> Iterator[Sample]:
    """Measure ours and the local one by turns, while the VM runs."""
    room.warm()
    for _ in range(TIMES):
        yield from life("warm", OURS, partial(Managed, room.spec(), room.notebooks), rest=REST)
        yield from life("warm", LOCAL, partial(Managed, "python3", room.notebooks), rest=REST)
