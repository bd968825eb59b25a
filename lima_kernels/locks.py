"""One process at a time makes, boots, stops or deletes an instance, or changes a directory of records of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from filelock import AsyncFileLock, FileLock, Timeout

from . import paths
from .errors import HostError, PhaseTimeout
from .lima.limactl import CREATE
from .progress import Holder, Phase, Progress, holder

# Seconds. The system tells nobody when a lock is given back, so it is tried again.
RETRY_INTERVAL = 0.2
_GUARD_INTERVAL = 0.005


@contextlib.contextmanager
def guarded(directory: Path, timeout: float, busy: HostError) -> Iterator[None]:
    """Let nobody else touch the records in a directory meanwhile; for moments, for it does not await.

    :param busy: what is raised when another process is at it for longer than the timeout, in seconds.
    """
    try:
        with FileLock(directory / ".guard", mode=0o600, timeout=timeout, poll_interval=_GUARD_INTERVAL):
            yield
    except Timeout as error:
        raise busy from error


@contextlib.asynccontextmanager
async def locked(progress: Progress, timeout: float) -> AsyncIterator[None]:
    """Hold the lock of the instance that a progress is about; the system gives a dead holder's lock back.

    Who waits shows the holder's phases as its own, and who holds it shares its own.

    :param timeout: seconds to wait, beside those in which the holder makes the instance: its image may have to be
        downloaded.
    :raises PhaseTimeout: when the lock is not given back in time; says who has it, and what for.
    """
    name = progress.instance
    lock = AsyncFileLock(paths.lock_file(name), run_in_executor=False)
    try:
        await _acquire(lock, progress, timeout)
    except OSError as error:
        raise HostError(f"The file {paths.lock_file(name)} cannot be locked: {error.strerror}.") from error
    try:
        with progress.shared(paths.progress_file(name)):
            yield
    finally:
        await lock.release()


async def _acquire(lock: AsyncFileLock, progress: Progress, timeout: float) -> None:
    clock = asyncio.get_running_loop().time
    began = clock()
    limit = began + timeout
    shown: Holder | None = None
    while True:
        try:
            await lock.acquire(blocking=False)
        except Timeout:
            pass
        else:
            if shown is not None:
                progress.enter(Phase.CHECK)
            return
        found = holder(paths.progress_file(progress.instance)) or Holder(0, None)
        if found != shown:
            shown = found
            progress.enter(found.phase or Phase.CHECK, _where(found))
        if found.phase is Phase.CREATE:
            limit = min(clock(), began + CREATE) + timeout
        if clock() > limit:
            raise PhaseTimeout(
                f"The VM {progress.instance!r} is busy: {timeout:.0f} s were used up {progress.phase.value} "
                f"{_where(found)}.",
                hint="End that process if it hangs: that gives its lock back.",
            )
        await asyncio.sleep(RETRY_INTERVAL)


def _where(found: Holder) -> str:
    return f"in another process, pid {found.pid}" if found.pid else "in another process"
