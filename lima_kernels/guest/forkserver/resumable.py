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
        self._incoming = bytearray()
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

    def give(self, data: bytes) -> bytes:
        """Keep payload until the peer has it, and return what to send for it now."""
        self._kept.append(data)
        self._kept_bytes += len(data)
        return HEADER.pack(_DATA, len(data)) + data

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
        self._incoming.clear()
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

    def take(self, data: bytes) -> Iterator[bytes]:
        """Take what the carrier brought, and yield the payload in it.

        :raises ProtocolError: when it is no frame of ours.
        """
        self._incoming += data
        while len(self._incoming) >= HEADER.size:
            kind, length = HEADER.unpack_from(self._incoming)
            if kind > _END or length > FRAME_LIMIT:
                raise ProtocolError("the peer sent what is no frame")
            end = HEADER.size + length
            if len(self._incoming) < end:
                return
            payload = bytes(self._incoming[HEADER.size : end])
            del self._incoming[:end]
            if kind == _DATA:
                self.received += length
                yield payload
            elif kind == _END:
                self.ended = True
            elif length == _COUNT.size:
                self._forget(_COUNT.unpack(payload)[0])
            else:
                raise ProtocolError("the peer sent a count that is none")
