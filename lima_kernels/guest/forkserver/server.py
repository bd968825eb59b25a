"""The forkserver's loop: one thread and one selector, so that a fork copies no lock in use.

It is reached through a unix socket in a 0700 directory and speaks JSON lines:

    {"id": 1, "op": "spawn", "kernel": ID, "cwd": DIR, "env": {...}, "connection": {...}, "arguments": [...],
     "owner": TOKEN, "keep": SECONDS, "facts": {...}, "spec": NAME or "", "notes": [TEXT]}
    {"id": 2, "op": "signal", "kernel": ID, "signum": 2}
    {"id": 3, "op": "list"}
    {"id": 4, "op": "remove", "kernel": ID}
    {"id": 5, "op": "hold", "kernel": ID, "owner": TOKEN, "keep": SECONDS or null}
    {"id": 6, "op": "release", "kernel": ID}
    {"id": 7, "op": "note", "kernel": ID, "text": TEXT}
    {"id": 8, "op": "specs"}
    {"id": 9, "op": "settings", "idle_timeout": SECONDS}
    {"id": 10, "op": "stream", "kernel": ID, "owner": TOKEN, "channel": 1, "token": T, "received": N, "new": true}

Every request is answered by a line with its id and either "ok" or "error". After the answer to "stream" the connection
carries the frames of a resumable stream. The end of a kernel is told to every client as {"event": "exit", "kernel": ID,
"code": N, ...}, N negative for a signal, as subprocess has it; {"event": "power off"} comes before the guest's end.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from . import idle, specs
from .child import Start
from .clients import Client, Starting
from .deaths import disk_full
from .kernels import Kernel, seconds, write_private
from .resumable import ProtocolError
from .streams import Streams
from .wire import Wire

LINE_LIMIT = 1 << 20
SETTINGS = "settings.json"
# No event tells that another program has bound its sockets.
BOUND_CHECK = 0.05
LONGEST_WAIT = 86400.0


class Refused(Exception):
    """A request that cannot be obeyed; its text goes back to the client."""


class Spawned(BaseException):
    """Carries the child of a fork out of the server's loop, so that a kernel runs on a clean stack."""

    def __init__(self, start: Start) -> None:
        self.start = start


class Server:
    """Serves clients, and knows every kernel; ``failure`` says why none can be forked here, or nothing."""

    def __init__(self, root: str, listener: socket.socket) -> None:
        self.root = root
        self.failure = ""
        self.kernels: dict[str, Kernel] = {}
        self._listener = listener
        self._clients: set[Client] = set()
        self._starting: dict[str, Starting] = {}
        self._selector = selectors.DefaultSelector()
        self._streams = Streams(self._selector)
        self._powered_off = False
        self._idle = idle.IdleTimer(self._load_settings())
        self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        signal.set_wakeup_fd(self._wake[1], warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector.register(self._wake[0], selectors.EVENT_READ, self._woken)
        self._take_over()

    def _load_settings(self) -> float:
        try:
            with open(os.path.join(self.root, SETTINGS), encoding="utf-8") as file:
                return seconds(json.load(file)["idle_timeout"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0.0

    def _take_over(self) -> None:
        """Know the kernels that an earlier forkserver left."""
        for name in os.listdir(os.path.join(self.root, "k")):
            kernel = Kernel.take_over(name, os.path.join(self.root, "k", name))
            if kernel is not None:
                self.kernels[name] = kernel
                assert kernel.pidfd is not None
                self._selector.register(kernel.pidfd, selectors.EVENT_READ, lambda _: self._reap())

    # The loop

    def serve(self) -> None:
        """Serve for ever; a child leaves it by :class:`Spawned`."""
        while True:
            self._idle.look(any(kernel.code is None for kernel in self.kernels.values()))
            for key, mask in self._selector.select(self._patience()):
                # An earlier event of this round may have closed it, and its number may be another's now.
                present = self._selector.get_map().get(key.fd)
                if present is not None and present.data == key.data:
                    key.data(mask)
            self._tick()

    def _patience(self) -> float | None:
        """Return for how many seconds nothing needs to be looked at without an event."""
        if any(starting.is_program for starting in self._starting.values()):
            return BOUND_CHECK
        deadlines = [self._idle.deadline(), *(kernel.expires() for kernel in self.kernels.values())]
        known = [deadline for deadline in deadlines if deadline is not None]
        # The system takes no more than 24 days.
        return min(max(0.0, min(known) - time.monotonic()), LONGEST_WAIT) if known else None

    def _tick(self) -> None:
        for starting in list(self._starting.values()):
            if starting.is_program and starting.kernel.is_bound():
                self._started(starting)
        now = time.monotonic()
        for kernel in list(self.kernels.values()):
            expires = kernel.expires()
            if expires is not None and now >= expires and not kernel.is_busy():
                self._remove(kernel)
        if not self._powered_off and self._idle.has_run_out():
            for client in list(self._clients):
                client.send({"event": "power off", "idle": self._idle.timeout})
            self._powered_off = self._idle.power_off()

    # Clients

    def _accept(self, _mask: int) -> None:
        with contextlib.suppress(OSError):
            sock, _ = self._listener.accept()
            client = Client(Wire(self._selector, sock, lambda _wire, data: self._receive(client, data)))
            client.wire.on_room = lambda: self._answer_all(client)
            self._clients.add(client)

    def _drop(self, client: Client) -> None:
        client.wire.close()
        self._clients.discard(client)
        for kernel in self.kernels.values():
            kernel.release(client)

    def _receive(self, client: Client, data: bytes) -> None:
        client.incoming += data
        if data:
            self._answer_all(client)
        if not data or len(client.incoming) > LINE_LIMIT:
            self._drop(client)

    def _answer_all(self, client: Client) -> None:
        """Answer what was asked, as far as the client takes the answers; one that does not read is not read from."""
        while client in self._clients and not client.wire.is_full and b"\n" in client.incoming:
            line, _, client.incoming = client.incoming.partition(b"\n")
            self._answer(client, line)
        if client in self._clients:
            client.wire.read(not client.wire.is_full)

    def _answer(self, client: Client, line: bytes) -> None:
        number = None
        try:
            request = json.loads(line)
            number = request.get("id")
            operation: Callable[[Client, dict[str, Any]], dict[str, Any] | None] = {
                "spawn": self._spawn,
                "signal": self._signal,
                "list": self._list,
                "remove": self._remove_asked,
                "hold": self._hold,
                "release": self._release,
                "note": self._note,
                "specs": self._specs,
                "settings": self._settings,
                "stream": self._stream,
            }[request["op"]]
            reply = operation(client, request)
        except (Refused, specs.NoSuchSpec) as error:
            reply = {"error": str(error)}
        except OSError as error:
            reply = {"error": disk_full() or "%s: %s" % (type(error).__name__, error)}
        except Exception as error:
            # Whatever a request says, it costs nobody else anything: JSON can be too deep, numbers too large.
            reply = {"error": "%s: %s" % (type(error).__name__, error)}
        if reply is not None:
            client.send({"id": number, **reply})

    # Operations

    def _kernel(self, request: dict[str, Any]) -> Kernel:
        kernel = self.kernels.get(request["kernel"])
        if kernel is None:
            raise Refused("there is no kernel %s in the guest" % request["kernel"])
        return kernel

    def _spawn(self, client: Client, request: dict[str, Any]) -> None:
        name = request["kernel"]
        if not name.isalnum() or name in self.kernels:
            raise Refused("a kernel's name must be new and alphanumeric")
        if self._powered_off:
            raise Refused("the guest is shutting down")
        spec = specs.find(request["spec"]) if request.get("spec") else None
        if spec is None and self.failure:
            raise Refused(self.failure)
        request["cwd"] = os.path.expanduser(request["cwd"])
        if not os.path.isdir(request["cwd"]):
            raise Refused("there is no directory %s in the guest" % request["cwd"])
        kernel = Kernel(name, os.path.join(self.root, "k", name), request)
        shutil.rmtree(kernel.directory, ignore_errors=True)
        os.makedirs(kernel.directory, mode=0o700)
        ready_r, ready_w = os.pipe()
        ours, theirs = socket.socketpair()
        kernel.pid = os.fork()
        if kernel.pid == 0:
            os.close(ready_r)
            ours.close()
            raise Spawned(Start(request, kernel.directory, spec, ready_w, theirs))
        os.close(ready_w)
        theirs.close()
        self.kernels[name] = kernel
        kernel.holder = client
        kernel.link = Wire(self._selector, ours, kernel.hear)
        starting = Starting(kernel, client, request.get("id"), ready_r, spec is not None)
        self._starting[name] = starting
        self._selector.register(ready_r, selectors.EVENT_READ, lambda _: self._settle(starting))
        try:
            kernel.save()
        except OSError:
            self._close_ready(self._starting.pop(name))
            self._remove(kernel)
            raise

    def _settle(self, starting: Starting) -> None:
        """The child said that its sockets are bound, or ended before, or has become another program."""
        bound = os.read(starting.ready, 1)
        self._close_ready(starting)
        if bound:
            self._started(starting)
        elif not starting.is_program:
            self._failed(starting)

    def _close_ready(self, starting: Starting) -> None:
        if starting.ready >= 0:
            self._selector.unregister(starting.ready)
            os.close(starting.ready)
            starting.ready = -1

    def _started(self, starting: Starting) -> None:
        del self._starting[starting.kernel.name]
        self._close_ready(starting)
        starting.client.send({"id": starting.number, "ok": {"pid": starting.kernel.pid}})

    def _failed(self, starting: Starting) -> None:
        del self._starting[starting.kernel.name]
        self._close_ready(starting)
        log = starting.kernel.log_tail()
        error = disk_full() or "the kernel ended before it was ready"
        if starting.is_program and log:
            error += ": " + log[-1]
        starting.client.send({"id": starting.number, "error": error, "log": log})

    def _signal(self, _client: Client, request: dict[str, Any]) -> dict[str, Any]:
        self._kernel(request).signal(int(request["signum"]))
        return {"ok": {}}

    def _list(self, _client: Client, _request: dict[str, Any]) -> dict[str, Any]:
        return {"ok": {name: kernel.describe() for name, kernel in self.kernels.items()}}

    def _remove_asked(self, _client: Client, request: dict[str, Any]) -> dict[str, Any]:
        if kernel := self.kernels.get(request["kernel"]):
            self._remove(kernel)
        return {"ok": {}}

    def _remove(self, kernel: Kernel) -> None:
        was_alive = kernel.code is None
        starting = self._starting.get(kernel.name)
        if kernel.pidfd is not None:
            self._selector.unregister(kernel.pidfd)
        kernel.end()
        if starting is not None:
            self._failed(starting)
        if was_alive:
            self._tell_exit(kernel)
        self._streams.close(kernel.owner)
        del self.kernels[kernel.name]
        shutil.rmtree(kernel.directory, ignore_errors=True)

    def _hold(self, client: Client, request: dict[str, Any]) -> dict[str, Any]:
        """Give a kernel to an owner; the host sees to it that no other owner lives."""
        kernel = self._kernel(request)
        if kernel.code is not None:
            raise Refused("the kernel has ended")
        lost = False
        if request["owner"] != kernel.owner:
            self._streams.close(kernel.owner)
        else:
            lost = self._streams.had_to_wait(kernel.owner)
        kernel.owner = request["owner"]
        if request.get("keep") is not None:
            kernel.keep = seconds(request["keep"])
        kernel.holder = client
        kernel.save()
        return {"ok": {"connection": kernel.connection(), "lost": lost}}

    def _release(self, client: Client, request: dict[str, Any]) -> dict[str, Any]:
        kernel = self._kernel(request)
        kernel.release(client)
        self._streams.close(kernel.owner)
        return {"ok": {}}

    def _note(self, _client: Client, request: dict[str, Any]) -> dict[str, Any]:
        self._kernel(request).note(request["text"])
        return {"ok": {}}

    def _specs(self, _client: Client, _request: dict[str, Any]) -> dict[str, Any]:
        return {"ok": specs.all_specs()}

    def _settings(self, _client: Client, request: dict[str, Any]) -> dict[str, Any]:
        timeout = seconds(request["idle_timeout"])
        if timeout != self._idle.timeout:
            write_private(os.path.join(self.root, SETTINGS), {"idle_timeout": timeout})
            self._idle.timeout = timeout
        return {"ok": {}}

    def _stream(self, client: Client, request: dict[str, Any]) -> dict[str, Any] | None:
        """Turn a connection into the carrier of a stream: no more lines come from it."""
        kernel = self._kernel(request)
        token, owner = request["token"], request["owner"]
        channel, received = int(request["channel"]), int(request["received"])
        if owner != kernel.owner:
            raise Refused("the kernel is somebody else's")
        stream = self._streams.find(token, owner)
        if stream is None:
            if not request.get("new"):
                raise Refused("there is no such stream")
            stream = self._streams.open(token, kernel.channel(channel), owner)
        self._clients.discard(client)
        client.send({"id": request["id"], "ok": {"received": stream.received}})
        try:
            stream.attach(client.wire, received)
        except ProtocolError:
            client.wire.close()
            stream.close()
        return None

    # Children

    def _woken(self, _mask: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake[0], 4096):
                pass
        self._reap()

    def _reap(self) -> None:
        for kernel in list(self.kernels.values()):
            pidfd = kernel.pidfd
            if kernel.ended_by_itself():
                if pidfd is not None:
                    self._selector.unregister(pidfd)
                self._tell_exit(kernel)
                if kernel.name in self._starting and self._starting[kernel.name].is_program:
                    self._failed(self._starting[kernel.name])

    def _tell_exit(self, kernel: Kernel) -> None:
        event = {"event": "exit", "kernel": kernel.name, "code": kernel.code, "log": kernel.log_tail()}
        for client in list(self._clients):
            client.send({**event, "reason": kernel.reason})

    def close_in_child(self) -> None:
        """Close what a kernel must not inherit; nothing is unregistered, for the selector is the parent's too."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._selector.close()
        for starting in self._starting.values():
            if starting.ready >= 0:
                os.close(starting.ready)
        for kernel in self.kernels.values():
            if kernel.pidfd is not None:
                os.close(kernel.pidfd)
            if kernel.link is not None:
                kernel.link.abandon()
        for client in self._clients:
            client.wire.abandon()
        self._streams.abandon()
        for fd in self._wake:
            os.close(fd)
        self._listener.close()
