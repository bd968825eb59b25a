"""Run or stream one subprocess; a cancelled caller leaves no process behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# How long a process that was asked to end may take before it is killed, in seconds.
GRACE = 5.0
# One line of limactl's JSON holds a whole instance with its config: asyncio's 64 KiB would not do.
LINE_LIMIT = 16 * 1024 * 1024


class Completed(NamedTuple):
    """What a finished process said."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str


async def _end(process: asyncio.subprocess.Process) -> None:
    """TERM, a grace period, KILL for the whole group; nothing of it is left when this returns or raises."""
    try:
        if process.returncode is None:
            _signal_group(process, signal.SIGTERM)
            async with asyncio.timeout(GRACE):
                await process.wait()
    except TimeoutError:
        pass
    finally:
        # Also when the leader has ended: what it left in the background belongs to it.
        _signal_group(process, signal.SIGKILL)
        await asyncio.shield(process.wait())


async def _begun(argv: Sequence[str], **settings: Any) -> asyncio.subprocess.Process:
    """Start a process in a session of its own; one whose caller is cancelled meanwhile is ended."""
    # Cancelled within, asyncio would leave pipes open that it had not got to yet.
    starting = asyncio.ensure_future(asyncio.create_subprocess_exec(*argv, start_new_session=True, **settings))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        with contextlib.suppress(OSError):
            await _end(await starting)
        raise


def _signal_group(process: asyncio.subprocess.Process, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signum)


async def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    stdin: str = "",
    cwd: Path | None = None,
    timeout: float | None = None,
) -> Completed:
    """Run a process to its end and return what it printed.

    :param timeout: seconds; the process is ended when they have passed.
    :raises TimeoutError: when the time limit is reached.
    :raises OSError: when the program cannot be started.
    """
    process = await _begun(
        argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=env,
        cwd=cwd,
    )
    try:
        async with asyncio.timeout(timeout):
            out, err = await process.communicate(stdin.encode())
    finally:
        await _end(process)
    assert process.returncode is not None
    return Completed(tuple(argv), process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))


class Stream:
    """A running process whose merged output is read line by line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def lines(self) -> AsyncIterator[str]:
        """Yield each line of the merged stdout and stderr, without its newline, until the output ends."""
        assert self._process.stdout is not None
        async for raw in self._process.stdout:
            yield raw.decode(errors="replace").rstrip("\r\n")

    async def wait(self) -> int:
        """Wait for the process's end and return its exit code."""
        return await self._process.wait()


@contextlib.asynccontextmanager
async def stream(argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> AsyncIterator[Stream]:
    """Start a process, hand out its output as it comes, and end it when the block is left.

    :raises OSError: when the program cannot be started.
    """
    process = await _begun(
        argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=env,
        limit=LINE_LIMIT,
    )
    try:
        yield Stream(process)
    finally:
        await _end(process)
