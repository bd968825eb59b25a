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

    Clients are let in, and what they send is kept, also while there is no connection to the guest.

    :param prefix: of the unix sockets' paths on the host; only looked at for ``Transport.IPC``.
    """

    def __init__(self, transport: Transport, prefix: Path) -> None:
        self._transport = transport
        self._prefix = prefix
        self._route: tuple[Connection, Claim] | None = None
        self._streams: set[Stream] = set()
        self._tasks: set[asyncio.Task[bool]] = set()
        self._is_closed = False
        self._stack = AsyncExitStack()

    async def listen(self) -> Address:
        """Listen for clients and return where.

        :raises ConnectionFailed: when the host gives no socket.
        """
        loop = asyncio.get_running_loop()
        ports = {}
        try:
            for name, number in CHANNELS.items():
                if self._transport is Transport.TCP:
                    server = await loop.create_server(self._factory(number), "127.0.0.1", 0)
                    ports[name] = server.sockets[0].getsockname()[1]
                else:
                    path = Path(f"{self._prefix}-{number}")
                    # The manager or an earlier kernel may have left the name behind.
                    path.unlink(missing_ok=True)
                    server = await loop.create_unix_server(self._factory(number), str(path))
                    self._stack.callback(_unlink, path)
                    ports[name] = number
                self._stack.callback(server.close)
        except OSError as error:
            raise ConnectionFailed(f"Listening for the kernel's clients failed: {error}.") from error
        ip = "127.0.0.1" if self._transport is Transport.TCP else str(self._prefix)
        return Address(self._transport, ip, ports)

    def _factory(self, channel: int) -> Callable[[], Stream]:
        return lambda: Stream(channel, self._made, self._ended)

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

    def _begin(self, stream: Stream) -> asyncio.Task[bool]:
        assert self._route is not None
        task = asyncio.ensure_future(_carried(stream, *self._route))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def connect(self, connection: Connection, claim: Claim) -> bool:
        """Carry all clients over a connection, now and from now on.

        Returns whether the guest still knew the stream of each client; where not, the client comes again by itself,
        and what was under way is lost.
        """
        self._route = (connection, claim)
        return all(await asyncio.gather(*(self._begin(stream) for stream in tuple(self._streams))))

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


async def _carried(stream: Stream, connection: Connection, claim: Claim) -> bool:
    """Carry a stream; one whose connection does not hold waits for the next."""
    try:
        return await stream.carry(connection, claim)
    except ConnectionFailed:
        return True


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
