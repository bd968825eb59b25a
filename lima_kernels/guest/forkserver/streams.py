"""The guest's side of what the host carries: a program's socket stays connected while the host cannot be reached."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Callable

from .resumable import ProtocolError, Resumable
from .wire import Wire


class Stream:
    """A connection of the host's to a program here, a kernel or sshfs, over a carrier that comes and goes.

    :param sock: connected to the program.
    :param owner: the token of the program's owner on the host, who alone may resume the stream.
    """

    def __init__(self, selector: selectors.BaseSelector, sock: socket.socket, owner: str) -> None:
        self.owner = owner
        self.has_ended = False
        # Output had to wait for longer than a kernel may have kept it.
        self.was_full = False
        self._state = Resumable()
        self._carrier: Wire | None = None
        # Called when the program has closed its end.
        self.on_hang_up: Callable[[], None] = lambda: None
        self._program = Wire(selector, sock, self._from_program)
        self._program.on_room = self._flow
        self._program.only_carries = True

    @property
    def received(self) -> int:
        return self._state.received

    def attach(self, carrier: Wire, peer_received: int) -> None:
        """Go on over a new carrier; an older one is given up.

        :raises ProtocolError: when the peer's count is impossible.
        """
        again = list(self._state.resume(peer_received))
        if self._carrier is not None:
            self._carrier.close()
        self._carrier = carrier
        carrier.on_data = self._from_host
        carrier.on_room = self._flow
        carrier.only_carries = True
        for frame in again:
            carrier.send(frame)
        self._flow()

    def _flow(self) -> None:
        """Read on each side no more than the other takes."""
        cut = self._carrier is None
        if cut and self._state.is_full:
            self.was_full = True
        # Not held up by a carrier that is slow: it may be one that is lost, and nobody knows yet.
        self._program.read(not self._state.is_full)
        if self._carrier is not None:
            self._carrier.read(not self._program.is_full)

    def _from_program(self, _wire: Wire, data: bytes) -> None:
        parts = self._state.give(data) if data else (self._state.finish(),)
        if not data:
            self._program.close()
            self.on_hang_up()
        if self._carrier is not None:
            self._carrier.send(*parts)
        self._flow()

    def _from_host(self, wire: Wire, data: bytes) -> None:
        if not data:
            wire.close()
            if self._carrier is wire:
                self._carrier = None
                self._flow()
            return
        try:
            for payload in self._state.take(data):
                self._program.send(payload)
        except ProtocolError:
            self.close()
            return
        if self._state.ended:
            # The host forgets the stream when it knows that we have, and hangs up: until then it may still send, and
            # sending to a closed socket would cost it what it has not read yet.
            wire.send(self._state.finish())
            wire.on_data = _ignore
            wire.on_room = lambda: None
            wire.read(True)
            self.has_ended = True
            self._program.finish()
            return
        if told := self._state.acknowledge():
            wire.send(told)
        self._flow()

    def close(self) -> None:
        """Close both sides, once they have what was sent to them; may be called twice."""
        self.has_ended = True
        self._program.finish()
        if self._carrier is not None:
            self._carrier.finish()

    @property
    def is_open(self) -> bool:
        """Tell whether there are sockets to be closed, be it of a stream that has ended."""
        return self._program.is_open or (self._carrier is not None and self._carrier.is_open)

    def abandon(self) -> None:
        """Close our copies of the sockets, in a forked child."""
        self._program.abandon()
        if self._carrier is not None:
            self._carrier.abandon()


def _ignore(wire: Wire, data: bytes) -> None:
    if not data:
        wire.close()


class Streams:
    """Every stream, by the token that its host chose."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self._streams: dict[str, Stream] = {}

    def open(self, token: str, sock: socket.socket, owner: str) -> Stream:
        """Make a stream of a socket that is connected to a program."""
        self._forget_ended()
        self._streams[token] = Stream(self._selector, sock, owner)
        return self._streams[token]

    def find(self, token: str, owner: str) -> Stream | None:
        """Return the owner's stream of that token, or None when it is not known (any more)."""
        stream = self._streams.get(token)
        return stream if stream is not None and stream.owner == owner and not stream.has_ended else None

    def had_to_wait(self, owner: str) -> bool:
        """Tell, once, whether a kernel's output had to wait while its host could not be reached."""
        full = [stream for stream in self._streams.values() if stream.owner == owner and stream.was_full]
        for stream in full:
            stream.was_full = False
        return bool(full)

    def close(self, owner: str) -> None:
        """Close the streams of an owner."""
        for stream in self._streams.values():
            if stream.owner == owner:
                stream.close()
        self._forget_ended()

    def abandon(self) -> None:
        """Close our copies of all sockets, in a forked child."""
        for stream in self._streams.values():
            stream.abandon()

    def _forget_ended(self) -> None:
        known = self._streams.items()
        self._streams = {token: stream for token, stream in known if stream.is_open or not stream.has_ended}
