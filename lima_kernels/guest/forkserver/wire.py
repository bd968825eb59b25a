"""Non-blocking sockets on the forkserver's selector: what cannot be sent at once is kept until it can."""

from __future__ import annotations

import itertools
import selectors
import socket
from collections import deque
from collections.abc import Callable

CHUNK = 256 * 1024
# A peer that does not read has no more than about this many bytes waiting for it before its source is held up.
HIGH_WATER = 1024 * 1024
# So many pieces are sent by one call; a system takes no more than 1024 (IOV_MAX).
PARTS = 64


def connected(path: str) -> socket.socket:
    """Return a socket that is connected to the unix socket at a path.

    :raises OSError: when nobody listens there.
    """
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return sock


class Wire:
    """One connected socket.

    :param on_data: called with what was received; with nothing when the peer has closed.
    """

    def __init__(
        self, selector: selectors.BaseSelector, sock: socket.socket, on_data: Callable[[Wire, bytes], None]
    ) -> None:
        sock.setblocking(False)
        self._selector = selector
        self._sock = sock
        # What could not be sent yet, as it was given: moving it about would cost more than sending it.
        self._outgoing: deque[memoryview] = deque()
        self._waiting = 0
        self._reading = True
        self._registered = 0
        self.on_data = on_data
        # Called when a full wire has room again.
        self.on_room: Callable[[], None] = lambda: None
        # What comes changes nothing but where it goes to.
        self.only_carries = False
        self.is_open = True
        self._is_finishing = False
        self._watch()

    @property
    def is_full(self) -> bool:
        return self._waiting > HIGH_WATER

    def _watch(self) -> None:
        wanted = (selectors.EVENT_READ if self._reading else 0) | (selectors.EVENT_WRITE if self._outgoing else 0)
        if wanted == self._registered:
            return
        if not self._registered:
            self._selector.register(self._sock, wanted, self._exchange)
        elif not wanted:
            self._selector.unregister(self._sock)
        else:
            self._selector.modify(self._sock, wanted, self._exchange)
        self._registered = wanted

    def read(self, wanted: bool) -> None:
        """Read from the socket, or let the peer wait."""
        if self.is_open and wanted != self._reading:
            self._reading = wanted
            self._watch()

    def send(self, *parts: bytes | memoryview) -> None:
        """Send, or keep what cannot be sent now; nothing happens on a closed wire."""
        if not self.is_open:
            return
        was_empty = not self._outgoing
        self._outgoing.extend(memoryview(part) for part in parts if part)
        self._waiting += sum(map(len, parts))
        if was_empty:
            try:
                self._send_some()
            except BlockingIOError:
                pass
            except OSError:
                self._broken()
                return
        if self._outgoing:
            self._watch()

    def _send_some(self) -> None:
        """Send as much as the socket takes at once.

        :raises OSError: when it takes nothing.
        """
        if not self._outgoing:
            return
        sent = self._sock.sendmsg(itertools.islice(self._outgoing, PARTS))
        self._waiting -= sent
        while sent:
            first = self._outgoing.popleft()
            if len(first) > sent:
                self._outgoing.appendleft(first[sent:])
                break
            sent -= len(first)

    def _exchange(self, mask: int) -> None:
        try:
            if mask & selectors.EVENT_WRITE:
                was_full = self.is_full
                self._send_some()
                if self._is_finishing and not self._outgoing:
                    self.close()
                    return
                self._watch()
                if was_full and not self.is_full:
                    self.on_room()
            if mask & selectors.EVENT_READ and self.is_open and self._reading:
                self.on_data(self, self._sock.recv(CHUNK))
        except BlockingIOError:
            pass
        except OSError:
            self._broken()

    def _broken(self) -> None:
        if self.is_open:
            self.close()
            self.on_data(self, b"")

    def close(self) -> None:
        """Close the socket; may be called twice."""
        if self.is_open:
            self.is_open = False
            if self._registered:
                self._selector.unregister(self._sock)
            self._sock.close()

    def abandon(self) -> None:
        """Close our copy of the socket, in a forked child: the selector is the parent's too."""
        self.is_open = False
        self._sock.close()

    def finish(self) -> None:
        """Close once what is still kept has been sent; until then the wire is open, and nobody is called any more."""
        self.on_data = lambda _wire, _data: None
        self.on_room = lambda: None
        self._is_finishing = True
        if self._outgoing:
            self.read(False)
        else:
            self.close()
