"""A connection of this host's to a program in the guest: it stays open while the guest cannot be reached.

Between the socket here, of a kernel's client or of an SFTP server, and the program's there lies a resumable stream
(``forkserver.resumable``), so neither end notices when the SSH connection below it is lost and made anew.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from ..errors import ConnectionFailed
from .connection import Connection, Pipe
from .forkserver.resumable import ProtocolError, Resumable

# A guest is hostile input: the one line before the frames is short.
_LINE_LIMIT = 4096
# Seconds.
OPEN_TIMEOUT = 30.0
# Bytes. Less is a message that somebody waits for; more is written as it is.
SMALL = 16 * 1024
ENOUGH = 256 * 1024


class Claim(NamedTuple):
    """Who may use a program in the guest, and where the forkserver listens.

    :param program: the program by its kind: ``{"kernel": ID}`` or ``{"mount": ID}``.
    """

    program: dict[str, str]
    owner: str
    socket: str


class _Ok(msgspec.Struct, frozen=True):
    received: int


class _Reply(msgspec.Struct, frozen=True):
    ok: _Ok | None = None
    error: str = ""


class _Carrier:
    """What carries a stream for as long as an SSH connection lasts: first a line, then frames."""

    def __init__(self, stream: Stream) -> None:
        self.pipe: Pipe | None = None
        self.agreed: asyncio.Future[_Reply] = asyncio.get_running_loop().create_future()
        self.is_full = False
        self._stream = stream
        self._line = b""
        self._early = b""
        self._has_started = False

    def data_received(self, data: bytes) -> None:
        if self._has_started:
            self._stream.carried(self, data)
            return
        if self.agreed.done():
            self._early += data
            return
        line, newline, rest = (self._line + data).partition(b"\n")
        if not newline:
            self._line = line
            if len(line) > _LINE_LIMIT:
                self._refuse("the guest's answer is too long")
            return
        try:
            self.agreed.set_result(msgspec.json.decode(line, type=_Reply))
        except msgspec.DecodeError as error:
            self._refuse(str(error))
        else:
            self._early = rest

    def start(self) -> None:
        """Hand the frames on, those first that came before anybody was ready for them."""
        self._has_started = True
        if self._early:
            self._stream.carried(self, self._early)

    def _refuse(self, reason: str) -> None:
        self.agreed.set_exception(ConnectionFailed(f"The guest's forkserver gave no stream: {reason}."))

    def connection_lost(self) -> None:
        if not self.agreed.done():
            self._refuse("it hung up")
            self.agreed.exception()
        self._stream.cut(self)

    def pause_writing(self) -> None:
        self.is_full = True
        self._stream.flow()

    def resume_writing(self) -> None:
        self.is_full = False
        self._stream.flow()

    def close(self) -> None:
        if self.pipe is not None:
            self.pipe.close()


class Stream(asyncio.Protocol):
    """One client's connection; ``is_known`` is set once the guest has its other end.

    :param on_made: called when the client is there; the stream then waits to be carried.
    :param on_end: called when it is over.
    :param on_given: called when the client sends something while nothing carries it.
    """

    def __init__(
        self,
        channel: int,
        on_made: Callable[[Stream], None],
        on_end: Callable[[Stream], None],
        on_given: Callable[[Stream], None] = lambda _stream: None,
    ) -> None:
        self.channel = channel
        self._on_given = on_given
        self._on_made = on_made
        self._on_end = on_end
        self._token = secrets.token_hex(16)
        self._state = Resumable()
        self.is_known = False
        # It may be known in the guest although no answer said so.
        self._was_asked = False
        self._has_ended = False
        self._client_is_full = False
        self._client: asyncio.Transport | None = None
        # Much that comes at once goes to the client at once: each time it is woken costs more than what it is given.
        self._pieces: list[memoryview] = []
        self._gathered = 0
        self._carrier: _Carrier | None = None

    # The client's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._client = transport
        self._on_made(self)

    def data_received(self, data: bytes) -> None:
        self._send(b"".join(self._state.give(data)))
        if self._carrier is None:
            self._on_given(self)
        self.flow()

    def connection_lost(self, _error: Exception | None) -> None:
        self._client = None
        # What it has not taken is nobody's any more, and must not be waited for.
        self._client_is_full = False
        self._send(self._state.finish())
        if self._state.ended or not self._was_asked:
            self.close()
        else:
            self.flow()

    def pause_writing(self) -> None:
        self._client_is_full = True
        self.flow()

    def resume_writing(self) -> None:
        self._client_is_full = False
        self.flow()

    # The guest's side

    def _send(self, data: bytes) -> None:
        if self._carrier is not None and self._carrier.pipe is not None:
            self._carrier.pipe.write(data)

    async def carry(self, connection: Connection, claim: Claim) -> bool:
        """Go on over a connection; returns whether all is well: a client whose stream the guest no longer knows has to
        come again.

        :raises ConnectionFailed: when this connection does not hold either; the stream waits for the next.
        """
        carrier = _Carrier(self)
        carrier.pipe = await connection.open_pipe(claim.socket, carrier)
        if self._has_ended:
            carrier.close()
            return True
        self._was_asked = True
        request = {
            "id": 0,
            "op": "stream",
            **claim.program,
            "owner": claim.owner,
            "channel": self.channel,
            "token": self._token,
            "received": self._state.received,
            "new": not self.is_known,
        }
        try:
            carrier.pipe.write(msgspec.json.encode(request) + b"\n")
            async with asyncio.timeout(OPEN_TIMEOUT):
                reply = await carrier.agreed
            if reply.ok is None:
                client_waits = self._client is not None and self.is_known
                self.close()
                return not client_waits
            self._attach(carrier, reply.ok.received)
        except (TimeoutError, ProtocolError) as error:
            raise ConnectionFailed(f"The guest's forkserver gave no stream: {error or 'no answer'}.") from error
        finally:
            if self._carrier is not carrier:
                carrier.close()
        return True

    def _attach(self, carrier: _Carrier, peer_received: int) -> None:
        again = list(self._state.resume(peer_received))
        if self._carrier is not None:
            self._carrier.close()
        self.is_known = True
        self._carrier = carrier
        for frame in again:
            self._send(frame)
        carrier.start()
        self.flow()

    def carried(self, carrier: _Carrier, data: bytes) -> None:
        """Take what a carrier brought."""
        if carrier is not self._carrier:
            return
        try:
            for payload in self._state.take(data):
                self._gather(payload)
        except ProtocolError:
            self.close()
            return
        if self._state.ended:
            self._hand_on()
            if self._client is None:
                self.close()
                return
            self._client.close()
        self._send(self._state.acknowledge())
        self.flow()

    def _gather(self, payload: memoryview) -> None:
        """Give the client payload, now or with what else comes in the same moment."""
        self._pieces.append(payload)
        self._gathered += len(payload)
        if self._gathered < SMALL or self._gathered >= ENOUGH:
            self._hand_on()
        elif len(self._pieces) == 1:
            asyncio.get_running_loop().call_soon(self._hand_on)

    def _hand_on(self) -> None:
        """Give the client what has come for it; may be called twice."""
        pieces, self._pieces, self._gathered = self._pieces, [], 0
        # One that has hung up in the middle of much is told of a moment later.
        if pieces and self._client is not None and not self._client.is_closing():
            self._client.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def cut(self, carrier: _Carrier) -> None:
        """A carrier is gone; the stream waits for the next."""
        if carrier is self._carrier:
            self._carrier = None

    def flow(self) -> None:
        """Read on each side no more than the other takes."""
        carrier = self._carrier
        if self._client is not None and not self._client.is_closing():
            if self._state.is_full or (carrier is not None and carrier.is_full):
                self._client.pause_reading()
            else:
                self._client.resume_reading()
        if carrier is not None and carrier.pipe is not None:
            carrier.pipe.read(not self._client_is_full)

    def close(self) -> None:
        """End both sides; may be called twice."""
        self._has_ended = True
        carrier, self._carrier = self._carrier, None
        if carrier is not None:
            carrier.close()
        client, self._client = self._client, None
        if client is not None:
            client.abort()
        self._on_end(self)
