"""Bytes between the event loop and a thread, in one direction: blocks are handed on as they are."""

from __future__ import annotations

import asyncio
import enum
import threading
from collections import deque
from collections.abc import Callable

from .connection import CHUNK

# Bytes that may lie there; beyond them whoever gives has to wait.
_ROOM = 4 * CHUNK


class _State(enum.Enum):
    OPEN = "open"
    ENDED = "nothing more comes"
    CLOSED = "nobody takes it"


class Handover:
    """One stream of bytes; ``give`` and ``take`` are for a thread, ``given`` and ``taken`` for the loop."""

    def __init__(self) -> None:
        self._blocks: deque[bytes] = deque()
        self._size = 0
        self._state = _State.OPEN
        self._changed = threading.Condition()
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._loop_waits = False

    def give(self, data: bytes) -> None:
        """Hand on, once there is room.

        :raises BrokenPipeError: when nobody takes it any more.
        """
        with self._changed:
            self._changed.wait_for(self._has_room)
            self._add(data)
            self._tell_the_loop()

    def take(self) -> bytes:
        """Return what comes next, or nothing at the end.

        :raises BrokenPipeError: when it was closed before its end.
        """
        with self._changed:
            self._changed.wait_for(self._has_data)
            data = self._next()
            self._tell_the_loop()
        return data

    async def given(self, data: bytes) -> None:
        """Hand on, once there is room, as :meth:`give` does."""
        await self._wait_for(self._has_room)
        with self._changed:
            self._add(data)
            self._changed.notify()

    async def taken(self) -> bytes:
        """Return what comes next, as :meth:`take` does."""
        await self._wait_for(self._has_data)
        with self._changed:
            data = self._next()
            self._changed.notify()
        return data

    def end(self) -> None:
        """Say, from any thread, that nothing more comes."""
        self._leave(_State.ENDED)

    def close(self) -> None:
        """Let nobody wait any longer, from any thread; may be called twice."""
        self._leave(_State.CLOSED)

    def _leave(self, state: _State) -> None:
        with self._changed:
            self._state = state
            self._changed.notify()
            self._tell_the_loop()

    async def _wait_for(self, is_ready: Callable[[], bool]) -> None:
        while True:
            with self._changed:
                if is_ready():
                    return
                self._loop_waits = True
                self._news.clear()
            await self._news.wait()

    def _tell_the_loop(self) -> None:
        # Costs a wake-up: only where somebody waits for it.
        if self._loop_waits:
            self._loop_waits = False
            self._loop.call_soon_threadsafe(self._news.set)

    def _has_room(self) -> bool:
        return self._size < _ROOM or self._state is _State.CLOSED

    def _has_data(self) -> bool:
        return self._size > 0 or self._state is not _State.OPEN

    def _add(self, data: bytes) -> None:
        self._check()
        if data:
            self._blocks.append(data)
            self._size += len(data)

    def _next(self) -> bytes:
        """Return a block, with those that come after it while all of them are no more than one may be."""
        self._check()
        found: list[bytes] = []
        size = 0
        while self._blocks and (not found or size + len(self._blocks[0]) <= CHUNK):
            found.append(self._blocks.popleft())
            size += len(found[-1])
        self._size -= size
        return found[0] if len(found) == 1 else b"".join(found)

    def _check(self) -> None:
        if self._state is _State.CLOSED:
            raise BrokenPipeError
