"""The five channels of a kernel as one resource."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

from .connection import Connection

# The sockets' numbers in `<prefix>-<number>`, which is how jupyter_client and ipykernel name ipc sockets.
# In the order in which they are forwarded: what carries answers first.
CHANNELS = {"iopub_port": 2, "stdin_port": 3, "hb_port": 5, "control_port": 4, "shell_port": 1}
_FIRST_REQUEST_CHANNEL = "control_port"


class Transport(enum.Enum):
    """What a client on the host connects to; in the guest it is always a unix socket."""

    IPC = "ipc"
    TCP = "tcp"


class Address(NamedTuple):
    """The host's end of the channels, in the connection file's terms."""

    transport: Transport
    ip: str
    ports: dict[str, int]


class Pause(enum.Enum):
    """Seconds to wait before the channels that carry requests are forwarded."""

    NONE = 0.0
    # Clients that were cut off come back on each channel by themselves, every 100 to 200 ms (ZMQ_RECONNECT_IVL). A
    # request that arrives before they have subscribed to iopub again would have its output published to nobody.
    FOR_SUBSCRIBERS = 0.5


async def forward_channels(
    stack: AsyncExitStack, connection: Connection, guest_prefix: str, host_prefix: Path, *, like: Address, pause: Pause
) -> Address:
    """Forward the channels and return the host's end; listeners are closed with the stack.

    :param like: the address to take; its ports are chosen freely where they are 0. A forward that is made anew takes
        the address of the old one, so that clients find the kernel again by themselves.
    :raises ConnectionFailed: when a channel cannot be forwarded.
    """
    ports = {}
    for name, number in CHANNELS.items():
        if name == _FIRST_REQUEST_CHANNEL:
            await asyncio.sleep(pause.value)
        guest_path = f"{guest_prefix}-{number}"
        if like.transport is Transport.TCP:
            listener = await connection.forward_port(like.ports[name], guest_path)
            ports[name] = listener.get_port()
        else:
            path = Path(f"{host_prefix}-{number}")
            # The manager or an earlier forward may have left the name behind.
            path.unlink(missing_ok=True)
            listener = await connection.forward_path(path, guest_path)
            stack.callback(_unlink, path)
            ports[name] = number
        stack.callback(listener.close)
    return Address(like.transport, like.ip, ports)


def new_address(transport: Transport, host_prefix: Path) -> Address:
    """Return an address to be chosen when the channels are forwarded."""
    if transport is Transport.TCP:
        return Address(transport, "127.0.0.1", dict.fromkeys(CHANNELS, 0))
    return Address(transport, str(host_prefix), dict(CHANNELS))


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
