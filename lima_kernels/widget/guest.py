"""Panels in a kernel of a guest: their news come from its host, over the socket on which it asks for verbs."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator

from IPython.core.getipython import get_ipython

from ..magics import protocol
from ..magics.backend import LimaError
from . import panel
from .feeds import Feeds
from .pending import Message
from .source import Tell, lost, refused

# Seconds between two tries to reach the host: the first, and at most.
_RETRY = 0.5
_RETRY_MOST = 10.0
_CHUNK = 65536


class GuestLink:
    """A watch over the host's socket, which is come back to whenever the host hangs up."""

    def __init__(self, address: protocol.Address, name: str, tell: Tell) -> None:
        self._address = address
        self._request = address.request(protocol.WATCH, [name] if name else [])
        self._tell = tell
        self._is_closed = threading.Event()
        # Guards which socket is spoken into, and that one who speaks is not interrupted by another.
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        threading.Thread(target=self._run, name="lima-panel", daemon=True).start()

    def say(self, message: Message) -> None:
        """Say something to the host; never wait for it."""
        data = protocol.line(message)
        with self._lock:
            is_said = self._socket is not None and _sent(self._socket, data)
        if not is_said and message["type"] == "act":
            error = LimaError(f"This VM's host cannot be asked just now to {message['verb']} {message['vm']}.")
            self._tell(refused(message["ref"], error))

    def close(self) -> None:
        """Hang up; the thread ends by itself."""
        self._is_closed.set()
        with self._lock:
            if self._socket is not None:
                _hang_up(self._socket)

    def _run(self) -> None:
        delay = _RETRY
        while not self._is_closed.is_set():
            error = LimaError("This VM's host hung up.", "It is asked again.")
            try:
                if self._converse():
                    delay = _RETRY
            except LimaError as refusal:
                self._tell(lost(refusal, is_final=True))
                return
            except (OSError, ValueError, KeyError, TypeError) as failure:
                error = protocol.unreachable(failure)
            if not self._is_closed.is_set():
                self._tell(lost(error, is_final=False))
                self._is_closed.wait(delay)
                delay = min(2 * delay, _RETRY_MOST)

    def _converse(self) -> bool:
        """Tell what the host says until it hangs up; returns whether it said anything.

        :raises LimaError: when it wants no such talk.
        """
        has_heard = False
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(self._address.path)
            sock.sendall(self._request)
            with self._open_to_say(sock):
                for message in protocol.messages(_received(sock)):
                    if "error" in message:
                        raise LimaError(**message["error"])
                    has_heard = True
                    self._tell(message)
        return has_heard

    @contextlib.contextmanager
    def _open_to_say(self, sock: socket.socket) -> Iterator[None]:
        with self._lock:
            self._socket = sock
            if self._is_closed.is_set():
                _hang_up(sock)
        try:
            yield
        finally:
            with self._lock:
                self._socket = None


def _received(sock: socket.socket) -> Iterator[bytes]:
    while data := sock.recv(_CHUNK):
        yield data


def _sent(sock: socket.socket, data: bytes) -> bool:
    """Send all of it, or hang up: a cell does not wait for a host that takes no more."""
    try:
        if sock.send(data, socket.MSG_DONTWAIT) == len(data):
            return True
    except OSError:
        pass
    _hang_up(sock)
    return False


def _hang_up(sock: socket.socket) -> None:
    """Have whoever waits for what comes learn that nothing does."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


class GuestSource:
    """News of this guest, and of as many other VMs as its host lets it know of."""

    @property
    def own(self) -> str:
        """The name that this VM has on its host."""
        return os.environ.get(protocol.NAME_VARIABLE, "")

    @property
    def default(self) -> str:
        """This VM."""
        return self.own

    def open(self, name: str, tell: Tell) -> GuestLink:
        """Begin to watch; a host that does not listen yet is waited for."""
        address = protocol.Address.of(get_ipython())
        if not address.path:
            raise protocol.unreachable("this kernel was told of no socket")
        return GuestLink(address, name, tell)


_FEEDS = Feeds(GuestSource())


class VMPanel(panel.VMPanel):
    __doc__ = panel.VMPanel.__doc__
    feeds = _FEEDS


class VMList(panel.VMList):
    __doc__ = panel.VMList.__doc__
    feeds = _FEEDS
