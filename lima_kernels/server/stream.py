"""The WebSocket that tells one client of all VMs, and is told what the client shows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import cast

import msgspec
from jupyter_core.utils import ensure_async
from jupyter_server.auth.decorator import ws_authenticated
from jupyter_server.base.handlers import JupyterHandler
from jupyter_server.base.websocket import WS_PING_INTERVAL, WebSocketMixin
from tornado import web
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from ..errors import ConfigurationError, LimaKernelsError
from ..lima.limactl import check_name
from ..runtime import runtime
from ..watch.cards import Follow, Visible, decode_request, encode
from ..watch.shared import watcher
from ..watch.watcher import Subscription
from .base import AUTH_RESOURCE, LONGEST
from .mailbox import Mailbox

logger = logging.getLogger(__name__)

# What all streams of a server are found by, in its settings.
SETTING = "lima_kernels_streams"
# Seconds that a client may let one message wait; then it is dropped, and comes again if it lives.
STALL_TIMEOUT = 30.0
_GOING_AWAY = 1001
_FAILED = 1011
# Bytes of the reason that a WebSocket can close with.
_REASON = 120


async def _subscribed(mailbox: Mailbox) -> Subscription:
    return await watcher().subscribe(mailbox.put)


async def _obeyed(subscription: Subscription, request: Visible | Follow) -> None:
    if isinstance(request, Visible):
        subscription.show(request.names)
    else:
        subscription.follow(request.name)


class Stream(WebSocketMixin, WebSocketHandler, JupyterHandler):
    """One client's events: a snapshot first, then what changes."""

    auth_resource = AUTH_RESOURCE

    def initialize(self) -> None:
        self._mailbox: Mailbox | None = None
        self._work: asyncio.Task[None] | None = None
        self._subscription: asyncio.Future[Subscription] = asyncio.get_running_loop().create_future()
        self._has_warned = False

    @property
    def max_message_size(self) -> int:
        return LONGEST

    @property
    def ping_interval(self) -> float:
        # Tornado pings by itself, and counts seconds. Jupyter's mixin counts milliseconds, which Tornado takes for its
        # own; so its `open` is passed over.
        return float(self.settings.get("ws_ping_interval", WS_PING_INTERVAL)) / 1000

    @property
    def ping_timeout(self) -> float:
        return self.ping_interval

    def set_default_headers(self) -> None:
        """Leave out what JupyterHandler sets: a WebSocket has no page."""

    @ws_authenticated
    async def get(self, *args: object, **kwargs: object) -> None:
        allowed = self.authorizer.is_authorized(self, self.current_user, "execute", AUTH_RESOURCE)
        if not await ensure_async(allowed):
            raise web.HTTPError(403)
        await cast("Awaitable[None]", super().get(*args, **kwargs))

    def open(self, *args: str, **kwargs: str) -> None:
        self._mailbox = Mailbox()
        self.settings[SETTING].add(self)
        self._work = asyncio.ensure_future(self._tell(self._mailbox))

    async def _tell(self, mailbox: Mailbox) -> None:
        """Send what there is until either side ends it; the last who does so ends the watching as well."""
        try:
            self._subscription.set_result(await runtime().run(_subscribed(mailbox)))
            await self._send(mailbox)
        except LimaKernelsError as error:
            self.close(_FAILED, error.message.encode()[:_REASON].decode(errors="ignore"))
        except TimeoutError:
            logger.warning("A client of the VMs' events takes none, and is dropped.")
            self.close(_GOING_AWAY)
        except WebSocketClosedError:
            # Its page was closed.
            pass
        finally:
            self.close(_FAILED)
            mailbox.close()
            if not self._subscription.cancel():
                await runtime().run(self._subscription.result().close())
            self.settings[SETTING].discard(self)

    async def _send(self, mailbox: Mailbox) -> None:
        while messages := await mailbox.take():
            for message in messages:
                async with asyncio.timeout(STALL_TIMEOUT):
                    await self.write_message(encode(message))

    async def on_message(self, message: str | bytes) -> None:
        try:
            request = decode_request(message)
            for name in request.names or () if isinstance(request, Visible) else filter(None, (request.name,)):
                check_name(name)
        except (msgspec.DecodeError, ConfigurationError, RecursionError) as error:
            # A client that is newer than we may say what we do not know.
            if not self._has_warned:
                logger.warning("A client of the VMs' events says what is not understood: %s", str(error)[:200])
            self._has_warned = True
            return
        # The next message waits for this one, as it should.
        await asyncio.wait([self._subscription])
        if not self._subscription.cancelled() and self._work is not None and not self._work.done():
            await runtime().run(_obeyed(self._subscription.result(), request))

    def on_close(self) -> None:
        if self._mailbox is not None:
            self._mailbox.close()

    async def end(self) -> None:
        """Say farewell and stop watching, as the server ends."""
        self.close(_GOING_AWAY, "The server ends.")
        self.on_close()
        if self._work is not None:
            await asyncio.wait([self._work])
