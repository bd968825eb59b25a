"""The forkserver's loop: one thread and one selector, so that a fork copies no lock in use.

It is reached through a unix socket in a 0700 directory and speaks JSON lines:

    {"id": 1, "op": "spawn", "kernel": ID, "cwd": DIR, "env": {...}, "connection": {...}, "arguments": [...],
     "owner": TOKEN, "keep": SECONDS, "facts": {...}, "spec": NAME or "", "notes": [TEXT], "python": PATH or ""}
    {"id": 2, "op": "signal", "kernel": ID, "signum": 2}
    {"id": 3, "op": "list"}
    {"id": 4, "op": "remove", "kernel": ID}
    {"id": 5, "op": "hold", "kernel": ID, "owner": TOKEN, "keep": SECONDS or null}
    {"id": 6, "op": "release", "kernel": ID}
    {"id": 7, "op": "note", "kernel": ID, "text": TEXT}
    {"id": 8, "op": "specs", "python": PATH or ""}
    {"id": 9, "op": "settings", "idle_timeout": SECONDS, "on_idle": "stop", "standby_kernels": N}
    {"id": 10, "op": "stream", "kernel": ID, "owner": TOKEN, "channel": 1, "token": T, "received": N, "new": true}
    {"id": 11, "op": "stream", "mount": ID, "owner": TOKEN, "token": T, "received": N, "new": true}
    {"id": 12, "op": "mount", "mount": ID, "user": KERNEL or "", "point": DIR, "read_only": false, "options": [TEXT]}
    {"id": 13, "op": "unmount", "mount": ID, "user": KERNEL or ""}
    {"id": 14, "op": "mounts"}
    {"id": 15, "op": "claim", "mount": ID, "owner": TOKEN}
    {"id": 16, "op": "usage"}
    {"id": 17, "op": "environment", "name": NAME}
    {"id": 18, "op": "ready", "mounted": [DIR], "holds": {FILE: TEXT}, "exists": [PATH]}
    {"id": 19, "op": "leave", "mounts": [DIR], "force": false}
    {"id": 20, "op": "return", "mounts": [DIR], "iid": TEXT or "", "now": SECONDS}
    {"id": 21, "op": "use"}

A python is that of an environment; without one it is the forkserver's own. Every request is answered by a line with
its id and either "ok" or "error". After the answer to "stream" the connection carries the frames of a resumable stream.
The end of a kernel is told to every client as {"event": "exit", "kernel": ID, "code": N, ...}, N negative for a signal,
as subprocess has it; {"event": "idle"} when the host may put the guest to sleep, {"event": "power off"} before its end;
{"event": "join", "mount": ID} when a mount's sshfs wants to be served, {"event": "unmounted", "mount": ID} at its end.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from . import environments, idle, memory, ready, settings, specs, use
from .clients import Client, Refused
from .deaths import of_failed_call
from .kernels import seconds
from .mounts import Mounts
from .registry import Registry
from .resumable import ProtocolError
from .sleep import Sleep
from .streams import Streams
from .wire import Wire

LINE_LIMIT = 1 << 20
LONGEST_WAIT = 86400.0
# Seconds that the host has to put us to sleep.
SLEEP_PATIENCE = 60.0


class Server:
    """Serves clients.

    :param environments_directory: where environments are.
    """

    def __init__(self, root: str, listener: socket.socket, environments_directory: str) -> None:
        self.root = root
        self._environments = environments_directory
        self._listener = listener
        self._clients: set[Client] = set()
        self._selector = selectors.DefaultSelector()
        self._streams = Streams(self._selector)
        self._powered_off = False
        self._wants_sleep = False
        # Who asks, while we sleep or are about to, whether all is there.
        self._asking: list[tuple[Client, dict[str, Any]]] = []
        self._settings = settings.load(root)
        # A guest that was booted by hand does not end because of an earlier boot.
        self._idle = idle.IdleTimer(self._settings.idle_timeout)
        self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        signal.set_wakeup_fd(self._wake[1], warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector.register(self._wake[0], selectors.EVENT_READ, self._woken)
        self._mounts = Mounts(os.path.join(root, "m"), self._selector, self._streams, self._tell)
        self.registry = Registry(
            os.path.join(root, "k"),
            self._selector,
            self._streams,
            self._tell,
            self._mounts,
            environments_directory=environments_directory,
            others=lambda: (*self._mounts.pids(), *self._sleep.pids()),
        )
        self._sleep = Sleep(root, self.registry.kernels, self._returned)
        self._mounts.know(self.registry.kernels)
        self.registry.starts.standbys.want(self._settings.standby_kernels)

    @property
    def _operations(self) -> dict[str, Callable[[Client, dict[str, Any]], dict[str, Any] | None]]:
        registry, mounts = self.registry, self._mounts
        return {
            "spawn": self._spawn,
            "signal": registry.signal,
            "list": registry.list,
            "remove": registry.remove_asked,
            "hold": registry.hold,
            "release": registry.release,
            "note": registry.note,
            "specs": self._specs,
            "environment": self._environment,
            "ready": self._ready,
            "usage": self._usage,
            "settings": self._set,
            "stream": self._stream,
            "mount": mounts.mount,
            "unmount": mounts.unmount,
            "mounts": mounts.describe,
            "claim": mounts.claim,
            "leave": self._sleep.leave,
            "return": self._sleep.come_back,
            "use": self._use,
        }

    # The loop

    def serve(self) -> None:
        """Serve for ever; a child leaves it by :class:`Spawned`."""
        while True:
            self._look_whether_used()
            deadline = self._deadline()
            while self._only_carried(deadline):
                pass
            self._tick()

    def _deadline(self) -> float:
        """Return when something needs to be looked at without an event, in monotonic seconds."""
        deadlines = [*self.registry.deadlines(), *self._mounts.deadlines(), *self._sleep.deadlines()]
        if (idle_end := self._idle.deadline()) is not None:
            deadlines.append(idle_end)
        # The system waits no longer than 24 days.
        return min(deadlines, default=time.monotonic() + LONGEST_WAIT)

    def _only_carried(self, deadline: float) -> bool:
        """Handle what happens next; tells whether that was data of streams only, after which all else is as it was."""
        only_carried = False
        events = self._selector.select(min(max(0.0, deadline - time.monotonic()), LONGEST_WAIT))
        for key, mask in events:
            # An earlier event of this round may have closed it, and its number may be another's now.
            present = key if len(events) == 1 else self._selector.get_map().get(key.fd)
            if present is not None and present.data == key.data:
                key.data(mask)
            wire = getattr(key.data, "__self__", None)
            only_carried = isinstance(wire, Wire) and wire.only_carries and wire.is_open
            if not only_carried:
                deadline = 0.0
        return only_carried and time.monotonic() < deadline

    def _tick(self) -> None:
        self.registry.look()
        self._mounts.look()
        self._sleep.look()
        if not self._powered_off and self._idle.has_run_out():
            self._ran_out()

    def _look_whether_used(self) -> None:
        hibernates = self._settings.on_idle == settings.HIBERNATE
        is_used = self.registry.works() if hibernates else self.registry.is_in_use()
        self._idle.look(is_used or self._settings.on_idle == settings.NOTHING)
        if is_used and self._wants_sleep:
            self._was_awake()

    def _ran_out(self) -> None:
        """Let the host put us to sleep, or stop when nobody does that and there is no kernel."""
        if self._settings.on_idle == settings.HIBERNATE and self._clients and not self._wants_sleep:
            self._wants_sleep = True
            self._tell({"event": "idle", "idle": self._idle.timeout})
            self._idle.wait(SLEEP_PATIENCE)
        elif self.registry.is_in_use():
            self._was_awake()
        else:
            self._tell({"event": "power off", "idle": self._idle.timeout})
            self._powered_off = self._idle.power_off()

    def _was_awake(self) -> None:
        """Count anew: somebody may want something now, or nobody could put us to sleep."""
        self._wants_sleep = False
        self._idle.begin_anew()

    def _returned(self) -> None:
        """Answer who asked meanwhile: what somebody else was just mounting again is there now, or never."""
        self._was_awake()
        asking, self._asking = self._asking, []
        for client, request in asking:
            if client in self._clients:
                self._answer(client, json.dumps(request).encode())

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
        self.registry.forget(client)
        self._mounts.forget(client, self.registry.kernels)
        self._sleep.forget(client)
        if self._wants_sleep and not self._clients:
            # Nobody is left who could put us to sleep.
            self._was_awake()

    def _tell(self, event: dict[str, Any]) -> None:
        """Send an event to every client."""
        for client in list(self._clients):
            client.send(event)

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
            reply = self._operations[request["op"]](client, request)
        except (Refused, specs.NoSuchSpec, environments.BadName) as error:
            reply = {"error": str(error)}
        except OSError as error:
            reply = {"error": of_failed_call(error)}
        except Exception as error:
            # Whatever a request says, it costs nobody else anything: JSON can be too deep, numbers too large.
            reply = {"error": "%s: %s" % (type(error).__name__, error)}
        if reply is not None:
            client.send({"id": number, **reply})

    # Operations

    def _spawn(self, client: Client, request: dict[str, Any]) -> None:
        if self._powered_off:
            raise Refused("the guest is shutting down")
        self.registry.spawn(client, request)

    def _ready(self, client: Client, request: dict[str, Any]) -> dict[str, Any] | None:
        if self._sleep.is_awake:
            return ready.answer(client, request)
        self._asking.append((client, request))
        return None

    def _specs(self, _client: Client, request: dict[str, Any]) -> dict[str, Any]:
        python = request.get("python")
        return {"ok": specs.all_specs(environments.venv_of(self._environments, python) if python else "")}

    def _environment(self, _client: Client, request: dict[str, Any]) -> dict[str, Any]:
        return {"ok": environments.find(self._environments, request["name"])}

    def _usage(self, _client: Client, _request: dict[str, Any]) -> dict[str, Any]:
        return {"ok": memory.usage()}

    def _use(self, _client: Client, _request: dict[str, Any]) -> dict[str, Any]:
        return {"ok": {"by": use.by_whom(self.registry.is_in_use(), self.registry.starts.standbys.pids())}}

    def _set(self, _client: Client, request: dict[str, Any]) -> dict[str, Any]:
        wanted = settings.Settings(
            seconds(request["idle_timeout"]),
            str(request.get("on_idle", self._settings.on_idle)),
            int(request.get("standby_kernels", self._settings.standby_kernels)),
        )
        if wanted != self._settings:
            settings.save(self.root, wanted)
            self._settings = wanted
            self._idle.timeout = wanted.idle_timeout
            self.registry.starts.standbys.want(wanted.standby_kernels)
        return {"ok": {}}

    def _stream(self, client: Client, request: dict[str, Any]) -> dict[str, Any] | None:
        """Turn a connection into the carrier of a stream: no more lines come from it."""
        received = int(request["received"])
        stream = self._mounts.stream(request) if "mount" in request else self.registry.stream(request)
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
        self.registry.reap()
        self._mounts.reap()
        self._sleep.reap()
        self.registry.starts.reap_orphans()

    def close_in_child(self) -> None:
        """Close what a kernel must not inherit; nothing is unregistered, for the selector is the parent's too."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._selector.close()
        self.registry.abandon()
        self._mounts.abandon()
        self._sleep.abandon()
        for client in self._clients:
            client.wire.abandon()
        self._streams.abandon()
        for fd in self._wake:
            os.close(fd)
        self._listener.close()
