"""A stream between a socket of this host and one of the guest: neither side is read faster than the other takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .ends import Sender


class Side:
    """One end of a relay: what comes here goes to the other; a peer of the connection to the guest."""

    def __init__(self, relay: Relay) -> None:
        self.sender: Sender | None = None
        self.has_ended = False
        self._relay = relay
        self._early: list[bytes] = []

    @property
    def _other(self) -> Side:
        return self._relay.there if self is self._relay.here else self._relay.here

    def connected(self, sender: Sender) -> None:
        """Begin: what the other end has sent already comes first."""
        self.sender = sender
        if self._relay.is_closed:
            sender.close()
            return
        other = self._other
        for data in other._early:
            sender.write(data)
        other._early.clear()
        if other.has_ended:
            sender.write_eof()
        if other.sender is not None:
            other.sender.read(True)

    def data_received(self, data: bytes) -> None:
        if (there := self._other.sender) is not None:
            there.write(data)
        else:
            self._early.append(data)

    def eof_received(self) -> bool:
        """Pass on that nothing more comes; the other direction stays open."""
        self.has_ended = True
        if (there := self._other.sender) is not None:
            there.write_eof()
            if self._other.has_ended:
                self._relay.close()
        return True

    def connection_lost(self, _error: Exception | None = None) -> None:
        self._relay.close()

    def pause_writing(self) -> None:
        if (there := self._other.sender) is not None:
            there.read(False)

    def resume_writing(self) -> None:
        if (there := self._other.sender) is not None:
            there.read(True)


class _Transport:
    """A socket of this host as a sender."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def read(self, wanted: bool) -> None:
        if self._transport.is_closing():
            return
        if wanted:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def write_eof(self) -> None:
        if not self._transport.is_closing():
            self._transport.write_eof()

    def close(self) -> None:
        self._transport.close()


class _HostSide(Side, asyncio.Protocol):
    """The end on this host."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        sender = _Transport(transport)
        self.connected(sender)
        if self._other.sender is None:
            # Whoever sends much waits for the other end.
            sender.read(False)
        self._relay.on_host()


class Relay:
    """One stream with its two ends: ``here`` is a protocol for a socket of this host.

    :param on_host: called when the socket of this host is connected.
    :param on_end: called once, when both ends are closed.
    """

    def __init__(self, on_host: Callable[[Relay], None], on_end: Callable[[Relay], None]) -> None:
        self.is_closed = False
        self._on_host = on_host
        self._on_end = on_end
        self.here = _HostSide(self)
        self.there = Side(self)

    def on_host(self) -> None:
        self._on_host(self)

    def close(self) -> None:
        """Send on both sides what is left, and close them; may be called twice."""
        if self.is_closed:
            return
        self.is_closed = True
        for side in (self.here, self.there):
            if side.sender is not None:
                side.sender.close()
        self._on_end(self)
