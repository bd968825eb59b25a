"""Cells, outputs and comm messages of a kernel in the VM: one kernel, by our forwards and by OpenSSH's at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from tests.client import Notebook

from .conversation import conversation
from .loopback import MEGABYTE, cells, heartbeats, outputs
from .machine_room import Managed, Room
from .openssh import forwarded
from .others import guest_ssh
from .samples import OURS, SSH, Sample
from .timing import timed

PART = "cells"
ROUNDS, BULK_ROUNDS = 75, 3
# Megabytes, and seconds that the largest may take once.
SMALL, MIDDLE, LARGE = 1, 10, 100
LIMIT = 60.0


def _in_guest(kernel: Managed) -> dict[str, Any]:
    """Return the content of the guest's connection file."""
    notebook = Notebook(kernel.manager)
    try:
        found: dict[str, Any] = json.loads(notebook.run("import ipykernel; print(ipykernel.get_connection_info())"))
        return found
    finally:
        notebook.client.stop_channels()


def measure(room: Room) -> Iterator[Sample]:
    """Measure one kernel in the VM by both ways."""
    kernel = Managed(room.spec(), room.notebooks)
    with ExitStack() as stack:
        stack.callback(kernel.end)
        guest = _in_guest(kernel)
        prefix = str(room.root / "s")
        stack.enter_context(forwarded(guest_ssh(), {prefix: guest["ip"]}))
        theirs = {**guest, **{name: kernel.connection[name] for name in ("shell_port", "iopub_port", "hb_port")}}
        connections = {OURS: kernel.connection, SSH: {**theirs, "ip": prefix}}
        yield from heartbeats(PART, connections, ROUNDS)
        yield from cells(PART, connections, ROUNDS)
        for megabytes in (SMALL, MIDDLE):
            yield from outputs(PART, connections, megabytes, BULK_ROUNDS)
        # What an emulated guest would need more than a minute for is left out: the smaller output says the same.
        with conversation(kernel.connection) as client:
            expected = LARGE / MIDDLE * timed(lambda: client.cell(f"print('x' * {MIDDLE * MEGABYTE})"))
        if expected < LIMIT:
            yield from outputs(PART, connections, LARGE, 1)
