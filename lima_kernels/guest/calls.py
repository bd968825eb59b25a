"""Programs of a guest call this host: a unix socket there, and somebody here who answers each caller."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from collections.abc import Awaitable, Callable

from ..errors import ConnectionFailed, GuestError
from .connection import Connection
from .ends import Sender

# Bytes that a caller may send before anybody has read them.
LIMIT = 64 * 1024
# Seconds.
TIMEOUT = 20.0
CLOSE_TIMEOUT = 2.0


class Line:
    """What an answer is written to, as to an ``asyncio.StreamWriter``."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._room = asyncio.Event()
        self._room.set()
        self._is_lost = False

    def write(self, data: bytes) -> None:
        """Send."""
        self._sender.write(data)

    async def drain(self) -> None:
        """Wait for as long as the caller takes no more.

        :raises ConnectionResetError: when it has hung up.
        """
        await self._room.wait()
        if self._is_lost:
            raise ConnectionResetError

    def close(self) -> None:
        """Send what is left, and hang up; may be called twice."""
        self._sender.close()

    def take(self, has_room: bool) -> None:
        """Learn whether the caller takes more."""
        (self._room.set if has_room else self._room.clear)()

    def lost(self) -> None:
        """Learn that the caller has hung up."""
        self._is_lost = True
        self._room.set()


Answer = Callable[[asyncio.StreamReader, Line], Awaitable[None]]


class _Caller:
    """One caller: what comes is fed to a reader, and an answer begins with the connection."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._reader = asyncio.StreamReader(limit=LIMIT)
        self._received = 0
        self._line: Line | None = None

    def connected(self, sender: Sender) -> None:
        self._line = Line(sender)
        self._calls.begin(self._reader, self._line)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > LIMIT and self._line is not None:
            # No request is that long.
            self._line.close()
        else:
            self._reader.feed_data(data)

    def eof_received(self) -> bool:
        self._reader.feed_eof()
        return False

    def connection_lost(self) -> None:
        if not self._reader.at_eof():
            self._reader.feed_eof()
        if self._line is not None:
            self._line.lost()

    def pause_writing(self) -> None:
        if self._line is not None:
            self._line.take(False)

    def resume_writing(self) -> None:
        if self._line is not None:
            self._line.take(True)


class Calls:
    """Answers whoever calls from a guest, over whatever connection there is to it just now."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._tasks: set[asyncio.Task[None]] = set()
        self._listening: asyncio.Task[Callable[[], None]] | None = None

    def begin(self, reader: asyncio.StreamReader, line: Line) -> None:
        """Answer one caller."""
        task = asyncio.ensure_future(self._answered(reader, line))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answered(self, reader: asyncio.StreamReader, line: Line) -> None:
        try:
            await self._answer(reader, line)
        finally:
            line.close()

    async def listen(self, connection: Connection, path: str) -> None:
        """Take calls that come to a socket in the guest, which only its user can use.

        :raises ConnectionFailed: when the guest does not let us.
        """
        # Not cancelled with whoever waits for it: then nobody would know how to end what the guest has begun.
        self._listening = asyncio.ensure_future(self._listen(connection, path))
        await asyncio.shield(self._listening)

    async def _listen(self, connection: Connection, path: str) -> Callable[[], None]:
        try:
            return await connection.listen_unix(path, lambda: _Caller(self))
        except ConnectionFailed:
            # What listened there over an earlier connection is gone, or soon will be, and its socket lies in the way.
            await connection.run(f"rm -f -- {shlex.quote(path)}", timeout=TIMEOUT)
            return await connection.listen_unix(path, lambda: _Caller(self))

    async def close(self) -> None:
        """Take no more calls, and hang up on those under way; may be called twice."""
        listening, self._listening = self._listening, None
        if listening is not None:
            await asyncio.wait((listening,), timeout=CLOSE_TIMEOUT)
            listening.cancel()
            with contextlib.suppress(ConnectionFailed, GuestError, asyncio.CancelledError):
                (await listening)()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
