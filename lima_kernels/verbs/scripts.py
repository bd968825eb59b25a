"""Cells that run in a guest, from this host."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from signal import Signals

from .. import added_mounts
from ..guest import background, execution
from ..guest.mounts import holds
from ..magics.backend import Ended, Script, Sink, Started
from ..vm import VM
from .reach import reached

# Bytes of output that a cell has not shown yet; beyond them the guest has to wait.
HIGH_WATER = 1024 * 1024


class _Gate:
    """Lets output through to the thread that shows it, no faster than that shows it."""

    def __init__(self, say: Callable[[Callable[[], None]], None]) -> None:
        self._say = say
        self._waiting = 0
        self._room = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def into(self, show: Callable[[bytes], None]) -> Callable[[bytes], Awaitable[None]]:
        """Return what takes output for one stream."""

        async def take(data: bytes) -> None:
            def done() -> None:
                try:
                    show(data)
                finally:
                    self._loop.call_soon_threadsafe(self._shown, len(data))

            self._waiting += len(data)
            self._room.clear()
            self._say(done)
            if self._waiting > HIGH_WATER:
                await self._room.wait()

        return take

    def _shown(self, size: int) -> None:
        self._waiting -= size
        if self._waiting <= HIGH_WATER // 2:
            self._room.set()


def _place(vm: VM, script: Script) -> str:
    """Return where a script runs: this notebook's directory where the guest shows it, else the user's home."""
    if script.cwd:
        return script.cwd
    here = Path(script.here)
    added = [Path(record.directory) for record in added_mounts.served(vm.name).values()]
    return script.here if vm.shows(here) or any(holds(place, here) for place in added) else ""


def _for_guest(vm: VM, script: Script) -> execution.Script:
    return execution.Script(
        text=script.text,
        shell=script.shell,
        cwd=_place(vm, script),
        env=script.env,
        user=script.user,
        timeout=script.timeout,
    )


async def execute(vm: VM, script: Script, sink: Sink, say: Callable[[Callable[[], None]], None]) -> Ended:
    """Run a cell in a guest to its end.

    :param say: has something done in the thread that shows the output.
    :raises LimaKernelsError: when it cannot be run, or how it ended cannot be known.
    """
    guest = await reached(vm)
    gate = _Gate(say)
    ended = await execution.execute(
        guest.connection, _for_guest(vm, script), gate.into(sink.stdout), gate.into(sink.stderr)
    )
    return Ended(-_number(ended.signal) if ended.code is None else ended.code)


def _number(name: str | None) -> int:
    """Return the number of a signal that SSH names, of SIGKILL where this host has none of that name."""
    return Signals.__members__.get(f"SIG{name}", Signals.SIGKILL).value


async def start(vm: VM, script: Script) -> Started:
    """Run a cell in a guest in the background.

    :raises LimaKernelsError: when it cannot be run.
    """
    guest = await reached(vm)
    began = await background.start_in_background(guest.connection, _for_guest(vm, script))
    return Started(began.pid, began.log)
