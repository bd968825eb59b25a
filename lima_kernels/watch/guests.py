"""The panels of a guest's kernel: what it says is hostile, and what it is told waits when it does not listen."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import msgspec

from ..guest.calls import Line
from ..magics import protocol
from ..widget.pending import Message, Pending
from .conversation import Conversation, Permit, Said
from .watcher import Watcher

# What a guest may say within so many seconds: no person is quicker.
SAID = 100
SECONDS = 10.0

_said = msgspec.json.Decoder(Said)


class Panels:
    """All that one conversation is about; lives in the I/O thread.

    :param permit: says whether a verb may be.
    :param kernel: the name of the kernel that asks.
    :param log: is told of what should not be.
    """

    def __init__(self, permit: Permit, kernel: str, log: Callable[[str], None]) -> None:
        self._permit = permit
        self._kernel = kernel
        self._log = log
        self._pending = Pending()
        self._is_pending = asyncio.Event()

    async def talk(
        self, watcher: Watcher, only: str, reader: asyncio.StreamReader, line: Line | asyncio.StreamWriter
    ) -> None:
        """Tell and be told until the guest hangs up, or says what cannot be.

        :raises LimaKernelsError: when nothing can be told.
        """
        conversation = Conversation(watcher, only, self._tell, self._permit, self._kernel)
        await conversation.open()
        sides = [asyncio.ensure_future(self._listen(reader, conversation)), asyncio.ensure_future(self._speak(line))]
        try:
            done, _ = await asyncio.wait(sides, return_when=asyncio.FIRST_COMPLETED)
            for side in done:
                side.result()
        finally:
            for side in sides:
                side.cancel()
            await asyncio.gather(*sides, return_exceptions=True)
            await conversation.close()

    def _tell(self, message: Message) -> None:
        if self._pending.add(message):
            self._is_pending.set()

    async def _speak(self, line: Line | asyncio.StreamWriter) -> None:
        while True:
            await self._is_pending.wait()
            self._is_pending.clear()
            for message in self._pending.take():
                line.write(protocol.line(message))
            # Meanwhile the newest of each thing waits, and no more.
            await line.drain()

    async def _listen(self, reader: asyncio.StreamReader, conversation: Conversation) -> None:
        now = asyncio.get_running_loop().time
        recent: deque[float] = deque(maxlen=SAID)
        try:
            while said := await reader.readline():
                if len(recent) == SAID and now() - recent[0] < SECONDS:
                    self._log("talks without end")
                    return
                recent.append(now())
                conversation.say(_said.decode(said))
        except (ValueError, msgspec.DecodeError, RecursionError):
            # Also a line that is longer than the reader's limit.
            self._log("said what is nothing known")
