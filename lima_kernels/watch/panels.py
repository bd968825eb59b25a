"""Panels in a kernel of this host: their news come from this process's watcher, in its I/O thread."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import msgspec

from ..errors import LimaKernelsError
from ..magics.backend import LimaError
from ..runtime import runtime
from ..settings import DEFAULT_INSTANCE
from ..widget import panel
from ..widget.feeds import Feeds
from ..widget.pending import Message
from ..widget.source import Tell
from .conversation import Conversation, Said
from .shared import watcher

logger = logging.getLogger(__name__)

# Seconds for limactl to say which VMs there are.
OPEN_TIMEOUT = 30.0


class HostLink:
    """A watch in this process."""

    def __init__(self, conversation: Conversation, loop: asyncio.AbstractEventLoop) -> None:
        self._conversation = conversation
        self._loop = loop

    def say(self, message: Message) -> None:
        """Say something in the I/O thread."""
        # A runtime that was closed has nobody left who listens.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._say, message)

    def _say(self, message: Message) -> None:
        try:
            said = msgspec.convert(message, Said)
        except msgspec.ValidationError as error:
            logger.warning("A panel said what cannot be understood: %s", error)
        else:
            self._conversation.say(said)

    def close(self) -> None:
        """Watch no longer, without a wait for that."""
        if not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(self._conversation.close(), self._loop)


async def _opened(only: str, tell: Tell) -> HostLink:
    conversation = Conversation(watcher(), only, tell)
    await conversation.open()
    return HostLink(conversation, asyncio.get_running_loop())


class HostSource:
    """News of the VMs of this host."""

    default = DEFAULT_INSTANCE
    own = ""

    def open(self, name: str, tell: Tell) -> HostLink:
        """Begin to watch."""
        try:
            with runtime().started(_opened(name, tell)) as future:
                return future.result(OPEN_TIMEOUT)
        except LimaKernelsError as error:
            raise LimaError(error.message, error.hint, error.context) from None
        except TimeoutError:
            raise LimaError(f"Lima did not say within {OPEN_TIMEOUT:.0f} s which VMs there are.") from None


_FEEDS = Feeds(HostSource())


class VMPanel(panel.VMPanel):
    __doc__ = panel.VMPanel.__doc__
    feeds = _FEEDS


class VMList(panel.VMList):
    __doc__ = panel.VMList.__doc__
    feeds = _FEEDS
