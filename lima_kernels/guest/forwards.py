"""The five channels of a kernel as one resource: listeners on the host, and a stream for each client that comes."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

from ..errors import ConnectionFailed
from .connection import Connection
from .streams import Claim, Stream

# The sockets' numbers in `<prefix>-<number>`, which is how jupyter_client and ipykernel name ipc sockets.
CHANNELS = {"shell_port": 1, "iopub_port": 2, "stdin_port": 3, "control_port": 4, "hb_port": 5}


_CARRY_REQUESTS = (CHANNELS["shell_port"], CHANNELS["control_port"])
# Clients whose streams are no more come back on each channel by themselves, every 100 to 200 ms (ZMQ_RECONNECT_IVL). A
# request that arrives before they have subscribed to iopub again would have its output published to nobody.
SUBSCRIBING = 0.5
# Seconds. The forkserver has more clients at this moment than it can let in.
RETRY_INTERVAL = 0.2


class Transport(enum.Enum):
    """What a client on the host connects to; in the guest it is always a unix socket."""

    IPC = "ipc"
    TCP = "tcp"


class Address(NamedTuple):
    """The host's end of the channels, in the connection file's terms."""

    transport: Transport
    ip: str
    ports: dict[str, int]


class Forwards:
    """The host's end of a kernel's channels; an async context manager that listens while it is entered.

    Clients are let in, and what they send is kept, also while there is no connection to the guest; ``asked`` is set
    when that may be a request.

    :param prefix: of the unix sockets' paths on the host; only looked at for ``Transport.IPC``.
    """

    def __init__(self, transport: Transport, prefix: Path) -> None:
        self._transport = transport
        self._prefix = prefix
        self._route: tuple[Connection, Claim] | None = None
        self._streams: set[Stream] = set()
        self._tasks: set[asyncio.Task[bool]] = set()
        self._is_closed = False
        self.asked = asyncio.Event()
        self._requests_wait_until = 0.0
        self._stack = AsyncExitStack()

    async def listen(self) -> Address:
        """Listen for clients and return where.

        :raises ConnectionFailed: when the host gives no socket.
        """
        ports = {}
        try:
            for name, number in CHANNELS.items():
                ports[name] = await (self._listen_on_port(number) if self._is_tcp else self._listen_on_path(number))
        except OSError as error:
            raise ConnectionFailed(f"Listening for the kernel's clients failed: {error}.") from error
        ip = "127.0.0.1" if self._is_tcp else str(self._prefix)
        return Address(self._transport, ip, ports)

    @property
    def _is_tcp(self) -> bool:
        return self._transport is Transport.TCP

    async def _listen_on_port(self, number: int) -> int:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(self._factory(number), "127.0.0.1", 0, start_serving=False)
        port: int = server.sockets[0].getsockname()[1]
        await self._serve(server)
        return port

    async def _listen_on_path(self, number: int) -> int:
        path = Path(f"{self._prefix}-{number}")
        # The manager or an earlier kernel may have left the name behind.
        path.unlink(missing_ok=True)
        self._stack.callback(_unlink, path)
        loop = asyncio.get_running_loop()
        await self._serve(await loop.create_unix_server(self._factory(number), str(path), start_serving=False))
        return number

    async def _serve(self, server: asyncio.Server) -> None:
        # On the stack first: a cancelled start_serving() has begun to serve.
        self._stack.push_async_callback(_close, server)
        await server.start_serving()

    def _factory(self, channel: int) -> Callable[[], Stream]:
        return lambda: Stream(channel, self._made, self._ended, self._given)

    def _made(self, stream: Stream) -> None:
        if self._is_closed:
            # It was let in at the last moment; unanswered, it would wait for its handshake's time limit.
            stream.close()
            return
        self._streams.add(stream)
        if self._route is not None:
            self._begin(stream)

    def _ended(self, stream: Stream) -> None:
        self._streams.discard(stream)

    def _given(self, stream: Stream) -> None:
        if self._route is None and stream.channel in _CARRY_REQUESTS:
            self.asked.set()

    def _begin(self, stream: Stream) -> asyncio.Task[bool]:
        assert self._route is not None
        task = asyncio.ensure_future(self._carried(stream, *self._route))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def connect(self, connection: Connection, claim: Claim) -> bool:
        """Carry all clients over a connection, now and from now on.

        Returns whether the guest still knew the stream of each client; where not, the client comes again by itself,
        and what was under way is lost.
        """
        self._route = (connection, claim)
        self.asked.clear()
        if all(await asyncio.gather(*(self._begin(stream) for stream in tuple(self._streams)))):
            return True
        self._requests_wait_until = asyncio.get_running_loop().time() + SUBSCRIBING
        return False

    async def _carried(self, stream: Stream, connection: Connection, claim: Claim) -> bool:
        """Carry a stream; one whose connection does not hold waits for the next."""
        if stream.channel in _CARRY_REQUESTS:
            await asyncio.sleep(self._requests_wait_until - asyncio.get_running_loop().time())
        while True:
            try:
                return await stream.carry(connection, claim)
            except ConnectionFailed:
                if connection.closed.is_set():
                    return True
                if not stream.is_known:
                    # The client comes again by itself, at once.
                    stream.close()
                    return True
            await asyncio.sleep(RETRY_INTERVAL)

    def disconnect(self) -> None:
        """Let clients wait for the next connection."""
        self._route = None

    async def close(self) -> None:
        """Hang up on all clients and listen no more; may be called twice."""
        self._is_closed = True
        self._route = None
        await self._stack.aclose()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for stream in tuple(self._streams):
            stream.close()


async def _close(server: asyncio.Server) -> None:
    """Close a listener, with those whom it has let in but not yet handed out: unanswered they would wait for long."""
    loop = asyncio.get_running_loop()
    for sock in server.sockets:
        loop.remove_reader(sock.fileno())
    for _ in range(3):
        await asyncio.sleep(0)
    server.close()


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
