"""What copies to and from a guest have in common: a tar stream over the connection.

A copy is made beside its target and takes its place when it is whole; what is interrupted leaves nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ..errors import ConfigurationError, ConnectionFailed, GuestError, HostError
from ..paths import free_space
from .connection import CHUNK, Connection, Process
from .handover import Handover
from .shell import command, encoded, undisturbed

T = TypeVar("T")
# Seconds. The guest looks at its files, or puts the copy in its place: an emulated one with many files takes its time.
ANSWER_TIMEOUT = 120.0
# For what is left to clean up.
UNDO_TIMEOUT = 10.0
# Between two words on how far it is: whoever hears them is another thread, which then holds up this one.
_NEWS_INTERVAL = 0.1
# Of what the guest's tools say.
_LINES = 10
# What a copy is called until it is whole.
PREFIX = ".lima-kernels-copy-"

_SAY = r"""
say() { printf '\n%%s %%s\n' %(token)s "$*" >&2; }
fail() { say "$@"; exit 1; }
"""


class CopyProgress(NamedTuple):
    """How far the copy of one source is, in bytes of files; the total is None when it is not known."""

    source: str
    done: int
    total: int | None


class Copied(NamedTuple):
    """What was copied: bytes of files, and what was left out, being neither file, directory nor link."""

    size: int
    left_out: tuple[str, ...] = ()


Listener = Callable[[CopyProgress], None]


class Counter:
    """Counts in the thread that reads or writes files, and tells in the loop's."""

    def __init__(self, source: str, total: int | None, on_progress: Listener) -> None:
        self.done = 0
        self._told = 0.0
        self._source, self._total, self._on_progress = source, total, on_progress

    def add(self, count: int) -> None:
        self.done += count

    def tell(self) -> None:
        """Tell how far it is, if that was not told just now."""
        if (now := time.monotonic()) - self._told > _NEWS_INTERVAL:
            self._told = now
            self._tell()

    def _tell(self) -> None:
        # What the guest counts beforehand holds its directories too.
        total = None if self._total is None else max(self._total, self.done)
        self._on_progress(CopyProgress(self._source, self.done, total))

    def finish(self) -> None:
        self._total = self.done
        self._tell()


class Talk:
    """What the program in the guest says on stderr: its words to us, and the last lines of its tools."""

    def __init__(self, process: Process, token: str) -> None:
        self.lines: list[str] = []
        self._token = token
        self._words: asyncio.Queue[list[str]] = asyncio.Queue()
        self._process = process
        self.task = asyncio.ensure_future(self._listen())

    async def _listen(self) -> None:
        held = b""
        try:
            while data := await self._process.stderr.read():
                *lines, held = (held + data).split(b"\n")
                held = held[-CHUNK:]
                for line in lines:
                    self._take(line.decode(errors="replace"))
        except ConnectionFailed:
            # That no word comes says it all.
            pass
        finally:
            self._words.put_nowait([])

    def _take(self, line: str) -> None:
        token, _, rest = line.partition(" ")
        if token == self._token:
            self._words.put_nowait(rest.split())
        elif line:
            self.lines = [*self.lines, line][-_LINES:]

    async def word(self) -> list[str]:
        """Return what it says next, or nothing when it has ended.

        :raises GuestError: when it says nothing for too long.
        """
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                return await self._words.get()
        except TimeoutError as error:
            raise GuestError(f"The guest did not answer within {ANSWER_TIMEOUT:.0f} s.") from error


@contextlib.asynccontextmanager
async def program(connection: Connection, text: str, values: dict[str, str]) -> AsyncIterator[tuple[Process, Talk]]:
    """Run a program in the guest; when the block is left by an error it has cleaned up, or has had the time for it."""
    token = f"lk-{secrets.token_hex(12)}"
    async with connection.process(command()) as process:
        talk = Talk(process, token)
        try:
            await process.write(encoded((_SAY + text) % {**values, "token": token}))
            yield process, talk
        except BaseException:
            await undisturbed(_hang_up(process))
            raise
        finally:
            talk.task.cancel()
            await asyncio.wait((talk.task,))


async def _hang_up(process: Process) -> None:
    """End the program's input, and wait until it has removed what it had made."""
    process.write_eof()
    with contextlib.suppress(TimeoutError, ConnectionFailed):
        async with asyncio.timeout(UNDO_TIMEOUT):
            while await process.stdout.read():
                pass
            await process.exited.wait()


def lost(what: str) -> ConnectionFailed:
    return ConnectionFailed(
        f"The connection to the guest was lost while {what} was copied: the target is as it was before.",
        hint="Does the VM still run?",
    )


def full(where: str, free: int, total: int | None) -> str:
    needed = "" if total is None else f", {total / 1e6:,.1f} MB are to be copied"
    return f"{where}: {free / 1e6:,.1f} MB are free there{needed}."


async def in_thread(work: Callable[[Handover], T], pump: Callable[[Handover], Coroutine[Any, Any, None]]) -> T:
    """Run work in a thread at one end of a handover while the loop serves the other; neither is left behind."""
    handover = Handover()
    thread = asyncio.get_running_loop().run_in_executor(None, work, handover)
    pumping = asyncio.ensure_future(pump(handover))
    try:
        await asyncio.wait((pumping, thread), return_when=asyncio.FIRST_EXCEPTION)
    finally:
        pumping.cancel()
        await undisturbed(_ended(pumping))
        handover.close()
        await undisturbed(_ended(thread))
    # The thread that is hung up on fails too, and that is no news of its own.
    if not pumping.cancelled() and (failure := pumping.exception()):
        raise failure
    return await thread


async def _ended(work: asyncio.Future[T]) -> None:
    """Wait for what was cancelled, or for a thread whose handover is closed: it ends at its next block."""
    await asyncio.wait((work,), timeout=UNDO_TIMEOUT)
    if work.done() and not work.cancelled():
        # Whoever wants to know asks; nobody else is to be told that nobody did.
        work.exception()


def host_error(what: str, error: OSError, total: int | None, target: Path | None = None) -> HostError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT) and target is not None:
        return HostError(full(f"{what}: this host's disk is full", free_space(target), total))
    where = f" ({error.filename})" if error.filename else ""
    return HostError(f"{what}: {error.strerror or error}{where}.")


def number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


def place_of_all(sources: Sequence[object], target: str) -> str:
    """Return the target of each of several sources: more than one can only go into a directory."""
    return f"{target.rstrip('/')}/" if len(sources) > 1 else target


def name_of(path: str) -> str:
    """Return a path's last part.

    :raises ConfigurationError: when it has none.
    """
    name = path.rstrip("/").rpartition("/")[2]
    if name in ("", ".", "..", "~"):
        raise ConfigurationError(f"{path!r} cannot be copied as a whole.", hint="Name what is in it, or its own name.")
    return name
