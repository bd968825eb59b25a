"""The guest's Debian packages and virtual environments, asked for over its connection.

The program that does the work runs in the guest: :mod:`lima_kernels.guest.forkserver.layers`, whose requests these are.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, TypeVar

import msgspec

from .. import paths
from ..errors import ConnectionFailed, GuestError, PhaseTimeout, printable
from .connection import Connection, Process
from .readiness import Facts
from .startup import Layout

T = TypeVar("T")
# Bytes of an answer, and of one line of it; what is longer was not made by our program.
_LIMIT = 32 << 20
_LINE_LIMIT = 4 << 20
# Lines of output that are kept, to be shown when it fails, and characters of each.
_TAIL = 15
_WIDTH = 500
_PROGRAM = (
    "import sys; sys.path.insert(0, %r); from lima_kernels_forkserver.layers.main import main; raise SystemExit(main())"
)


class _Line(msgspec.Struct, frozen=True):
    phase: str = ""
    log: str = ""
    part: str = ""
    end: bool = False
    error: str = ""
    hint: str = ""
    context: tuple[str, ...] = ()


async def ask(
    connection: Connection,
    facts: Facts,
    request: Mapping[str, Any],
    answer: type[T],
    *,
    timeout: float,
    tell: Callable[[str], None],
) -> T:
    """Let the guest's program do something, and return what it answers.

    :param answer: the type of its result; whatever else comes is refused.
    :param timeout: seconds; the message of its end names the step that used them up.
    :param tell: called in the I/O thread with each step as it begins.
    :raises GuestError: when it cannot be done; what was there before is as it was.
    :raises PhaseTimeout: when the time is used up. What was begun goes on in the guest, and ends by itself.
    :raises ConnectionFailed: when the connection ends meanwhile.
    """
    step = ""

    def note(phase: str) -> None:
        nonlocal step
        step = phase
        tell(phase)

    try:
        async with asyncio.timeout(timeout):
            text = await _answered(connection, facts, request, note)
    except TimeoutError as error:
        raise PhaseTimeout(f"The guest was not done within {timeout:.0f} s: {step or 'nothing was begun'}.") from error
    try:
        return msgspec.json.decode(text, type=answer)
    except (msgspec.DecodeError, RecursionError) as error:
        raise GuestError(f"The guest gave an answer that cannot be: {_shown(str(error))}.") from error


async def _answered(
    connection: Connection, facts: Facts, request: Mapping[str, Any], tell: Callable[[str], None]
) -> str:
    argv = [facts.python, "-I", "-c", _PROGRAM % Layout(facts).root]
    parts: list[str] = []
    size = 0
    tail: list[str] = []
    # Left at once when nobody waits any more: what was begun in the guest does not end for that.
    async with connection.process(f"{shlex.join(argv)} 2>&1") as process:
        with contextlib.suppress(ConnectionFailed):
            # One that cannot even begin does not take it; what it says comes.
            await process.write(json.dumps({**request, "environments": paths.GUEST_ENVIRONMENTS}).encode())
            process.write_eof()
        async for text in _lines(process):
            try:
                line = msgspec.json.decode(text, type=_Line)
            except (msgspec.DecodeError, RecursionError):
                # The interpreter's own words.
                tail = [*tail[1 - _TAIL :], text.decode(errors="replace").rstrip()[:_WIDTH]]
                continue
            size += len(line.part)
            if size > _LIMIT:
                raise GuestError(f"The guest's answer is longer than {_LIMIT >> 20} MiB.")
            if line.error:
                context = [said[:_WIDTH] for said in line.context[-_TAIL:]]
                raise GuestError(_shown(line.error), hint=_shown(line.hint), context=context)
            if line.phase:
                tell(_shown(line.phase))
            parts.append(line.part)
            if line.end:
                return "".join(parts)
    if tail:
        raise GuestError("The guest's program for environments did not run.", context=tail)
    raise ConnectionFailed("The connection ended before the guest had answered.")


async def _lines(process: Process) -> AsyncIterator[bytes]:
    """Yield the lines that a program prints, but for empty ones.

    :raises GuestError: when one is longer than any of ours.
    """
    begun = b""
    while data := await process.stdout.read():
        *lines, begun = (begun + data).split(b"\n")
        if len(begun) > _LINE_LIMIT:
            raise GuestError(f"The guest said a line that is longer than {_LINE_LIMIT >> 20} MiB.")
        for line in lines:
            if line.strip():
                yield line


def _shown(text: str) -> str:
    """Return what a guest said as one line that can be shown."""
    return " ".join(printable(text).split())[:_WIDTH]
