"""A kernel's client that measures: from the first byte that is sent to the last that comes, and nothing beyond.

Messages are not verified and not decoded beyond their headers: that costs every client the same, and more than the way.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import zmq
from jupyter_client import BlockingKernelClient
from jupyter_client.session import DELIM

# Seconds, against hanging only.
LIMIT = 120.0
# After so many seconds a kernel that is silent is asked again, as Jupyter's server does it: what was asked of a kernel
# that was just being replaced is lost.
ASK_AGAIN = 1.0
# And so many when it answers but does not publish: whoever subscribes a moment too late misses it.
LISTEN_AGAIN = 0.02
ECHO = """
from comm import get_comm_manager as _manager
def _opened(comm, _message):
    comm.on_msg(lambda message: comm.send(message["content"]["data"], buffers=message["buffers"]))
_manager().register_target("benchmark", _opened)
"""


class NoAnswerError(Exception):
    """A kernel did not answer in time, or a cell failed."""


class Heard(NamedTuple):
    """A message as it came: its type, whose answer it is, its content undecoded, and the bytes of all of it."""

    channel: str
    kind: str
    parent: str
    content: bytes
    size: int


def heard_on(channel: str, socket: zmq.Socket[bytes]) -> Heard:
    """Take a message from a socket that has one."""
    frames = socket.recv_multipart(copy=False)
    start = next(number for number, frame in enumerate(frames) if bytes(frame) == DELIM)
    header, parent = (json.loads(bytes(frame)) for frame in frames[start + 2 : start + 4])
    content = frames[start + 5]
    size = sum(len(frame) for frame in frames)
    short = bytes(content) if len(content) < 65536 else b""
    return Heard(channel, header["msg_type"], parent.get("msg_id", ""), short, size)


class Conversation:
    """A client of a kernel, by the content of its connection file; to be closed.

    :param context: of several clients together, when there are very many.
    """

    def __init__(self, connection: Mapping[str, Any], context: zmq.Context[zmq.Socket[bytes]] | None = None) -> None:
        self._own_context = None if context else zmq.Context()
        self._client = BlockingKernelClient(context=context or self._own_context)
        self._client.load_connection_info(dict(connection))
        self._client.start_channels(stdin=False, hb=False)
        self.sockets: dict[str, zmq.Socket[bytes]] = {
            "shell": self._client.shell_channel.socket,
            "iopub": self._client.iopub_channel.socket,
        }
        self._poller = zmq.Poller()
        for socket in self.sockets.values():
            self._poller.register(socket, zmq.POLLIN)

    def close(self) -> None:
        """Hang up; to be called once."""
        self._client.stop_channels()
        if self._own_context is not None:
            self._own_context.term()

    def send(self, kind: str, content: Mapping[str, Any], buffers: Sequence[bytes] = ()) -> str:
        """Send a message on shell, and return its id."""
        session = self._client.session
        message = session.msg(kind, dict(content))
        session.send(self.sockets["shell"], message, buffers=list(buffers))
        return str(message["header"]["msg_id"])

    def hear(self, limit: float) -> Iterator[Heard]:
        """Yield what comes within so many seconds."""
        until = time.monotonic() + limit
        while (left := until - time.monotonic()) > 0:
            ready = dict(self._poller.poll(left * 1000))
            for channel, socket in self.sockets.items():
                if socket in ready:
                    yield heard_on(channel, socket)

    def wait_until_ready(self, limit: float = LIMIT) -> None:
        """Wait until the kernel answers, and what it publishes is heard.

        :raises NoAnswerError: when it does not in time.
        """
        until = time.monotonic() + limit
        asked: set[str] = set()
        channels: set[str] = set()
        while time.monotonic() < until:
            asked.add(self.send("kernel_info_request", {}))
            if "shell" not in channels:
                channels |= self._answers(asked, "shell", ASK_AGAIN)
            if "shell" in channels and "iopub" not in channels:
                channels |= self._answers(asked, "iopub", LISTEN_AGAIN)
            if len(channels) == 2:
                return
        raise NoAnswerError(f"The kernel was not ready within {limit:.0f} s.")

    def _answers(self, asked: set[str], wanted: str, limit: float) -> set[str]:
        """Return the channels on which an answer came, up to that on the wanted one."""
        channels = set()
        for heard in self.hear(limit):
            if heard.parent in asked:
                channels.add(heard.channel)
            if wanted in channels:
                break
        return channels

    def ask(self, code: str) -> str:
        """Send a cell, and return its id."""
        return self.send(
            "execute_request",
            {"code": code, "silent": False, "store_history": False, "allow_stdin": False, "stop_on_error": False},
        )

    def cell(self, code: str, limit: float = LIMIT) -> int:
        """Run a cell, until its reply and its end have come, and return the bytes of its output.

        :raises NoAnswerError: when it fails, or takes longer.
        """
        request = self.ask(code)
        size, waits_for = 0, {"execute_reply", "idle"}
        for heard in self.hear(limit):
            if heard.parent != request:
                continue
            if heard.kind == "stream":
                size += heard.size
            elif heard.kind == "error":
                raise NoAnswerError(f"A cell failed: {json.loads(heard.content)['evalue']}")
            waits_for -= {heard.kind, ended(heard)}
            if not waits_for:
                return size
        raise NoAnswerError(f"A cell did not end within {limit:.0f} s.")

    @contextmanager
    def echo(self) -> Iterator[str]:
        """Have the kernel send back what a comm gets, for the time of the block; yields the comm's id."""
        self.cell(ECHO)
        comm = secrets.token_hex(8)
        self.send("comm_open", {"comm_id": comm, "target_name": "benchmark", "data": {}})
        yield comm
        self.send("comm_close", {"comm_id": comm, "data": {}})

    def there_and_back(self, comm: str, payload: bytes, limit: float = LIMIT) -> None:
        """Send a payload to a comm of :meth:`echo`, and wait for the answer.

        :raises NoAnswerError: when none comes in time.
        """
        request = self.send("comm_msg", {"comm_id": comm, "data": {}}, [payload] if payload else [])
        if not any(heard.kind == "comm_msg" and heard.parent == request for heard in self.hear(limit)):
            raise NoAnswerError(f"A comm did not answer within {limit:.0f} s.")


def ended(heard: Heard) -> str:
    """Return "idle" of the message that ends a cell, of others nothing."""
    return "idle" if heard.kind == "status" and b'"idle"' in heard.content else ""


@contextmanager
def conversation(connection: Mapping[str, Any], limit: float = LIMIT) -> Iterator[Conversation]:
    """A client that is ready, for the time of the block.

    :param limit: seconds that it may take to be ready.
    """
    made = Conversation(connection)
    try:
        made.wait_until_ready(limit)
        yield made
    finally:
        made.close()
