"""The byte stream to the peer: packets are taken from it, and replies go out together."""

from __future__ import annotations

import os
import stat

from .wire import MAX_PACKET, Malformed, length_at

_LENGTH = 4
_CAPACITY = 2 * (MAX_PACKET + _LENGTH)
# Replies wait for others that are ready about now, but no more of them than this: the peer can begin with them.
_HIGH_WATER = 128 * 1024


class Link:
    """Packets on two file descriptors, which may be the two directions of one socket.

    Its memory is one buffer each way, whatever the peer asks for or leaves unread.
    """

    def __init__(self, incoming: int, outgoing: int) -> None:
        os.set_blocking(incoming, True)
        os.set_blocking(outgoing, True)
        self._incoming = incoming
        self._outgoing = outgoing
        self._buffer = bytearray(_CAPACITY)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        self._replies = memoryview(bytearray(_CAPACITY))
        self._waiting = 0

    def receive(self) -> memoryview | None:
        """Return the next packet without its length, or None when the peer has ended; valid until the next call.

        :raises Malformed: when its length is none, or the stream ends within it.
        """
        needed = _LENGTH
        while True:
            have = self._end - self._start
            if needed == _LENGTH and have >= _LENGTH:
                needed += length_at(self._buffer, self._start)
            if have >= needed > _LENGTH:
                packet = self._view[self._start + _LENGTH : self._start + needed]
                self._start += needed
                return packet
            # Whoever waits for a reply sends nothing more: let it have all before we wait.
            self.flush()
            self._make_room(needed)
            received = os.readv(self._incoming, [self._view[self._end :]])
            if not received:
                if have:
                    raise Malformed("the stream ended within a packet")
                return None
            self._end += received

    def _make_room(self, needed: int) -> None:
        have = self._end - self._start
        if not have or self._start + needed > _CAPACITY:
            self._view[:have] = self._view[self._start : self._end]
            self._start, self._end = 0, have

    def send(self, *parts: bytes | memoryview) -> None:
        """Take a reply in parts, no longer together than a packet may be, and send it with others or alone."""
        for part in parts:
            end = self._waiting + len(part)
            self._replies[self._waiting : end] = part
            self._waiting = end
        if self._waiting > _HIGH_WATER:
            self.flush()

    def flush(self) -> None:
        """Send what waits."""
        sent = 0
        while sent < self._waiting:
            sent += os.write(self._outgoing, self._replies[sent : self._waiting])
        self._waiting = 0


def connect() -> Link:
    """Return the link on standard input; if that is no socket, which takes both ways, replies go to standard output."""
    is_socket = stat.S_ISSOCK(os.fstat(0).st_mode)
    return Link(0, 0 if is_socket else 1)
