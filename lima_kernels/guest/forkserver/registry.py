"""Every kernel of a forkserver, and what can be asked of them; :mod:`server` has the protocol."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from . import environments, specs
from .clients import Client, Refused
from .kernels import CONTROL, Kernel, seconds
from .mounts import Mounts
from .starts import Starts
from .streams import Stream, Streams
from .wire import connected


class Registry:
    """Knows every kernel; ``failure`` says why none can be forked here, or nothing.

    :param directory: has a directory for each kernel.
    :param tell: sends an event to every client.
    :param environments_directory: has one for each environment.
    :param others: the processes whose end somebody else waits for.
    """

    def __init__(
        self,
        directory: str,
        selector: selectors.BaseSelector,
        streams: Streams,
        tell: Callable[[dict[str, Any]], None],
        mounts: Mounts,
        *,
        environments_directory: str,
        others: Callable[[], Iterable[int]],
    ) -> None:
        self.failure = ""
        self.kernels: dict[str, Kernel] = {}
        self._directory = directory
        self._environments = environments_directory
        self._selector = selector
        self._streams = streams
        self._tell = tell
        self._mounts = mounts
        self._others = others
        self.starts = Starts(
            directory, selector, kernels=self.kernels, remove=self.remove, others=self._pids, reap=self.reap
        )
        self._take_over()

    def _take_over(self) -> None:
        """Know the kernels that an earlier forkserver left."""
        for name in os.listdir(self._directory):
            kernel = Kernel.take_over(name, os.path.join(self._directory, name))
            if kernel is not None:
                self.kernels[name] = kernel
                assert kernel.pidfd is not None
                self._selector.register(kernel.pidfd, selectors.EVENT_READ, lambda _: self.reap())

    def find(self, request: dict[str, Any]) -> Kernel:
        """Return the kernel that a request names."""
        kernel = self.kernels.get(request["kernel"])
        if kernel is None:
            raise Refused("there is no kernel %s in the guest" % request["kernel"])
        return kernel

    def spawn(self, client: Client, request: dict[str, Any]) -> None:
        """Fork a kernel; the client is answered when its sockets are bound."""
        name = request["kernel"]
        if not name.isalnum() or name in self.kernels or name in self.starts:
            raise Refused("a kernel's name must be new and alphanumeric")
        python = request.get("python")
        venv = environments.venv_of(self._environments, python) if python else ""
        spec = specs.find(request["spec"], venv) if request.get("spec") else None
        if spec is None and not venv and self.failure:
            raise Refused(self.failure)
        request["cwd"] = os.path.expanduser(request["cwd"])
        # Below a mount whose host is away the question would have to wait for it; the kernel itself may.
        if not self._mounts.is_mounted(request["cwd"]) and not os.path.isdir(request["cwd"]):
            raise Refused("there is no directory %s in the guest" % request["cwd"])
        kernel = Kernel(name, os.path.join(self._directory, name), request)
        kernel.holder = client
        shutil.rmtree(kernel.directory, ignore_errors=True)
        self.starts.begin(kernel, client, request, spec, venv)

    def signal(self, _client: Client, request: dict[str, Any]) -> dict[str, Any]:
        """Signal a kernel's process group."""
        self.find(request).signal(int(request["signum"]))
        return {"ok": {}}

    def list(self, _client: Client, _request: dict[str, Any]) -> dict[str, Any]:
        """Describe every kernel."""
        return {"ok": {name: kernel.describe() for name, kernel in self.kernels.items()}}

    def remove_asked(self, _client: Client, request: dict[str, Any]) -> dict[str, Any]:
        """End a kernel and leave nothing of it, nor of what was prepared for one that never came to be."""
        if kernel := self.kernels.get(request["kernel"]):
            self.remove(kernel)
        else:
            self.starts.give_up(request["kernel"])
            self._mounts.removed(request["kernel"])
        return {"ok": {}}

    def remove(self, kernel: Kernel) -> None:
        """End a kernel and leave nothing of it."""
        was_alive = kernel.code is None
        if kernel.pidfd is not None:
            self._selector.unregister(kernel.pidfd)
        kernel.end()
        self.starts.removed(kernel)
        if was_alive:
            self._tell_exit(kernel)
        self._streams.close(kernel.owner)
        del self.kernels[kernel.name]
        shutil.rmtree(kernel.directory, ignore_errors=True)
        self._mounts.removed(kernel.name)

    def hold(self, client: Client, request: dict[str, Any]) -> dict[str, Any]:
        """Give a kernel to an owner; the host sees to it that no other owner lives."""
        kernel = self.find(request)
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
        with contextlib.suppress(OSError):
            # An earlier connection's socket would be in the way of the new one's.
            os.unlink(os.path.join(kernel.directory, CONTROL))
        return {"ok": {"connection": kernel.connection(), "lost": lost}}

    def release(self, client: Client, request: dict[str, Any]) -> dict[str, Any]:
        """Let a kernel be without an owner."""
        kernel = self.find(request)
        kernel.release(client)
        self._streams.close(kernel.owner)
        return {"ok": {}}

    def note(self, _client: Client, request: dict[str, Any]) -> dict[str, Any]:
        """Show a line in a kernel."""
        self.find(request).note(request["text"])
        return {"ok": {}}

    def stream(self, request: dict[str, Any]) -> Stream:
        """Return a stream to one of a kernel's channels: one that is known, or a new one where that is asked for."""
        kernel = self.find(request)
        token, owner, channel = request["token"], request["owner"], int(request["channel"])
        if owner != kernel.owner:
            raise Refused("the kernel is somebody else's")
        stream = self._streams.find(token, owner)
        if stream is None:
            if not request.get("new"):
                raise Refused("there is no such stream")
            stream = self._streams.open(token, connected(kernel.channel(channel)), owner)
        return stream

    def forget(self, client: Client) -> None:
        """Begin to count the time without an owner for the kernels that a client held."""
        for kernel in self.kernels.values():
            kernel.release(client)
        self.starts.forget(client)

    def is_in_use(self) -> bool:
        """Tell whether there is a kernel, or will be."""
        return self.starts.is_any() or any(kernel.code is None for kernel in self.kernels.values())

    def works(self) -> bool:
        """Tell whether a cell runs, or may: not all kernels say."""
        alive = (kernel for kernel in self.kernels.values() if kernel.code is None)
        return self.starts.is_any() or any(kernel.busy is not False for kernel in alive)

    def deadlines(self) -> Iterator[float]:
        """Yield when a kernel has to be looked at, in monotonic seconds."""
        for kernel in self.kernels.values():
            if (expires := kernel.expires()) is not None:
                yield expires
        yield from self.starts.deadlines()

    def look(self) -> None:
        """Do what is due."""
        self.starts.look()
        now = time.monotonic()
        for kernel in list(self.kernels.values()):
            expires = kernel.expires()
            if expires is not None and now >= expires and not kernel.is_busy():
                self.remove(kernel)

    def reap(self) -> None:
        """Take notice of kernels that have ended."""
        for kernel in list(self.kernels.values()):
            pidfd = kernel.pidfd
            if kernel.ended_by_itself():
                if pidfd is not None:
                    self._selector.unregister(pidfd)
                self._tell_exit(kernel)
                self.starts.ended(kernel)
        self.starts.reap()

    def _pids(self) -> set[int]:
        """Return the processes whose end we wait for."""
        kernels = (kernel.pid for kernel in self.kernels.values() if kernel.code is None)
        return {*kernels, *self._others()}

    def _tell_exit(self, kernel: Kernel) -> None:
        event = {"event": "exit", "kernel": kernel.name, "code": kernel.code, "log": kernel.log_tail()}
        self._tell({**event, "reason": kernel.reason})

    def abandon(self) -> None:
        """Close our copies of what belongs to the parent, in a forked child."""
        self.starts.abandon()
        for kernel in self.kernels.values():
            if kernel.pidfd is not None:
                os.close(kernel.pidfd)
            if kernel.link is not None:
                kernel.link.abandon()
