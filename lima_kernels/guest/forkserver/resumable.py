"""One end of a byte stream that outlives what carries it: nothing is lost and nothing comes twice.

Both ends count the bytes that they have received. What was sent is kept until the other end has told that it has it;
when a new carrier is there, both ends tell their counts and send again what is missing. No I/O is done here.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator

# What is kept for a peer that cannot be reached; beyond it the source is no longer read, and has to wait.
WINDOW = 16 * 1024 * 1024
# Telling what was received for every so many bytes costs next to nothing, and leaves little in the peer's memory.
ACKNOWLEDGE_EVERY = 256 * 1024
FRAME_LIMIT = 1024 * 1024
HEADER = struct.Struct(">BI")
_COUNT = struct.Struct(">Q")
_DATA, _RECEIVED, _END = 0, 1, 2


class ProtocolError(Exception):
    """The peer sent what cannot be."""


class Resumable:
    """One end of a resumable stream.

    ``received`` counts the payload bytes taken; ``ended`` is set once the peer said that no more will come.
    """

    def __init__(self) -> None:
        self.received = 0
        self.ended = False
        self._told = 0
        # What has come of a frame's header, or of a frame without payload.
        self._head = bytearray()
        # How much payload is still to come of the frame that has begun.
        self._awaited = 0
        self._kept: deque[bytes] = deque()
        self._kept_bytes = 0
        # The number of the first byte that is kept.
        self._first = 0
        self._finished = False

    # Sending

    @property
    def is_full(self) -> bool:
        """Tell whether the source must wait."""
        return self._kept_bytes >= WINDOW

    def give(self, data: bytes) -> tuple[bytes, bytes]:
        """Keep payload until the peer has it, and return the parts of what to send for it now."""
        self._kept.append(data)
        self._kept_bytes += len(data)
        return HEADER.pack(_DATA, len(data)), data

    def finish(self) -> bytes:
        """Say that no more will come, and return what to send for it now."""
        self._finished = True
        return HEADER.pack(_END, 0)

    def acknowledge(self) -> bytes:
        """Return what tells the peer how much has arrived; empty while that is not worth a message."""
        if self.received - self._told < ACKNOWLEDGE_EVERY:
            return b""
        self._told = self.received
        return HEADER.pack(_RECEIVED, _COUNT.size) + _COUNT.pack(self.received)

    # A new carrier

    def resume(self, peer_received: int) -> Iterator[bytes]:
        """Begin anew with a carrier, given what the peer has received, and yield what to send again.

        :raises ProtocolError: when the peer claims what was never sent, or misses what is no longer kept.
        """
        self._head.clear()
        self._awaited = 0
        self._told = self.received
        self._forget(peer_received)
        for data in self._kept:
            yield HEADER.pack(_DATA, len(data)) + data
        if self._finished:
            yield HEADER.pack(_END, 0)

    def _forget(self, peer_received: int) -> None:
        if not self._first <= peer_received <= self._first + self._kept_bytes:
            raise ProtocolError("the peer's count of bytes is impossible")
        left = peer_received - self._first
        self._first = peer_received
        self._kept_bytes -= left
        while left:
            data = self._kept.popleft()
            if len(data) > left:
                self._kept.appendleft(data[left:])
                break
            left -= len(data)

    # Receiving

    def take(self, data: bytes) -> Iterator[memoryview]:
        """Take what the carrier brought, and yield the payload in it, as far as it has come: nothing is copied.

        :raises ProtocolError: when it is no frame of ours.
        """
        rest = memoryview(data)
        while rest:
            if self._awaited:
                payload, rest = rest[: self._awaited], rest[self._awaited :]
                self._awaited -= len(payload)
                self.received += len(payload)
                yield payload
            else:
                wanted = self._wanted()
                self._head += rest[:wanted]
                rest = rest[wanted:]
                self._understand()

    def _wanted(self) -> int:
        """Return how many bytes are missing before the frame that has begun can be understood."""
        if len(self._head) < HEADER.size:
            return HEADER.size - len(self._head)
        length: int = HEADER.unpack_from(self._head)[1]
        return HEADER.size + length - len(self._head)

    def _understand(self) -> None:
        """Obey a frame whose header has come: that of payload at once, another when it is whole."""
        if len(self._head) < HEADER.size:
            return
        kind, length = HEADER.unpack_from(self._head)
        if length > FRAME_LIMIT or (kind == _RECEIVED and length != _COUNT.size) or (kind == _END and length):
            raise ProtocolError("the peer sent what is no frame")
        if kind == _DATA:
            self._awaited = length
        elif kind == _END:
            self.ended = True
        elif kind == _RECEIVED:
            if len(self._head) < HEADER.size + length:
                return
            self._forget(_COUNT.unpack_from(self._head, HEADER.size)[0])
        else:
            raise ProtocolError("the peer sent what is no frame")
        self._head.clear()
