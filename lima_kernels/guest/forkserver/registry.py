"""Every kernel of a forkserver, and what can be asked of them; :mod:`server` has the protocol."""

from __future__ import annotations

import os
import selectors
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from . import environments, specs
from .child import Spawned, Start
from .clients import Client, Refused, Starting
from .deaths import disk_full
from .kernels import Kernel, seconds
from .mounts import Mounts
from .streams import Stream, Streams
from .wire import Wire, connected
from .zygote import BEGIN
from .zygotes import CannotFork, Order, Zygotes, is_child, reap_orphans

# No event tells that another program has bound its sockets.
BOUND_CHECK = 0.05


class Registry:
    """Knows every kernel; ``failure`` says why none can be forked here, or nothing.

    :param directory: has a directory for each kernel.
    :param tell: sends an event to every client.
    :param environments_directory: has one for each environment.
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
    ) -> None:
        self.failure = ""
        self.kernels: dict[str, Kernel] = {}
        self._directory = directory
        self._environments = environments_directory
        self._selector = selector
        self._streams = streams
        self._tell = tell
        self._mounts = mounts
        self._zygotes = Zygotes(selector)
        self._starting: dict[str, Starting] = {}
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
        if not name.isalnum() or name in self.kernels or name in self._starting:
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
        shutil.rmtree(kernel.directory, ignore_errors=True)
        os.makedirs(kernel.directory, mode=0o700)
        kernel.holder = client
        ready_r, ready_w = os.pipe()
        ours, theirs = socket.socketpair()
        kernel.link = Wire(self._selector, ours, kernel.hear)
        starting = self._starting[name] = Starting(kernel, client, request.get("id"), ready_r, spec is not None)
        order = Order(
            Start(request, kernel.directory, spec, python or sys.executable, ready_w, theirs),
            lambda answer: self._answered(starting, answer),
        )
        try:
            if venv and spec is None:
                self._zygotes.fork(order, venv)
            else:
                self._fork(starting, order)
        except Exception:
            if name in self._starting:
                order.close()
                self._unborn(starting)
            raise

    def _fork(self, starting: Starting, order: Order) -> None:
        """Fork a kernel from ourselves, or what becomes another program."""
        pid = os.fork()
        if pid == 0:
            raise Spawned(order.start)
        order.close()
        self._born(starting, pid)

    def _answered(self, starting: Starting, answer: int | CannotFork) -> None:
        """A zygote has forked a kernel, or cannot."""
        kernel = starting.kernel
        # A child whose start was taken back meanwhile sees that its link is closed, and ends.
        if self._starting.get(kernel.name) is starting:
            if isinstance(answer, CannotFork):
                self._unborn(starting, str(answer), answer.log)
            elif not is_child(answer) or answer in self._known():
                self._unborn(starting, "the kernel ended before it was ready")
            else:
                try:
                    self._born(starting, answer)
                    assert kernel.link is not None
                    kernel.link.send(BEGIN)
                    # Its end may have been told before we knew whose it is.
                    self.reap()
                except OSError as error:
                    text = disk_full() or "%s: %s" % (type(error).__name__, error)
                    starting.client.send({"id": starting.number, "error": text})
        self.reap_orphans()

    def _born(self, starting: Starting, pid: int) -> None:
        """There is a process: it is a kernel from here on."""
        kernel = starting.kernel
        kernel.pid = pid
        self.kernels[kernel.name] = kernel
        self._selector.register(starting.ready, selectors.EVENT_READ, lambda _: self._settle(starting))
        try:
            kernel.save()
        except OSError:
            self._close_ready(self._starting.pop(kernel.name))
            self.remove(kernel)
            raise

    def _unborn(self, starting: Starting, error: str = "", log: Iterable[str] = ()) -> None:
        """There will be no process; its client hears why, if that is not for another to say."""
        kernel = starting.kernel
        del self._starting[kernel.name]
        os.close(starting.ready)
        assert kernel.link is not None
        kernel.link.close()
        shutil.rmtree(kernel.directory, ignore_errors=True)
        if error:
            starting.client.send({"id": starting.number, "error": error, "log": list(log)})

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
            if starting := self._starting.get(request["kernel"]):
                self._zygotes.drop(starting.kernel.directory)
                self._unborn(starting, "the kernel ended before it was ready")
            self._mounts.removed(request["kernel"])
        return {"ok": {}}

    def remove(self, kernel: Kernel) -> None:
        """End a kernel and leave nothing of it."""
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
        for kernel in [*self.kernels.values(), *(starting.kernel for starting in self._starting.values())]:
            kernel.release(client)

    def is_in_use(self) -> bool:
        """Tell whether there is a kernel, or will be."""
        return bool(self._starting) or any(kernel.code is None for kernel in self.kernels.values())

    def deadlines(self) -> Iterator[float]:
        """Yield when a kernel has to be looked at, in monotonic seconds."""
        if any(starting.is_program for starting in self._starting.values()):
            yield time.monotonic() + BOUND_CHECK
        for kernel in self.kernels.values():
            if (expires := kernel.expires()) is not None:
                yield expires
        yield from self._zygotes.deadlines()

    def look(self) -> None:
        """Do what is due."""
        self._zygotes.look()
        for starting in list(self._starting.values()):
            if starting.is_program and starting.kernel.is_bound():
                self._started(starting)
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
                if kernel.name in self._starting and self._starting[kernel.name].is_program:
                    self._failed(self._starting[kernel.name])
        self._zygotes.reap()

    def reap_orphans(self) -> None:
        """Reap what was left to us by kernels, when all who wait for processes of theirs have looked."""
        if not self._zygotes.are_forking:
            reap_orphans(self._known())

    def _known(self) -> set[int]:
        """Return the processes whose end somebody waits for."""
        kernels = (kernel.pid for kernel in self.kernels.values() if kernel.code is None)
        return {*kernels, *self._zygotes.pids(), *self._mounts.pids()}

    def _tell_exit(self, kernel: Kernel) -> None:
        event = {"event": "exit", "kernel": kernel.name, "code": kernel.code, "log": kernel.log_tail()}
        self._tell({**event, "reason": kernel.reason})

    def abandon(self) -> None:
        """Close our copies of what belongs to the parent, in a forked child."""
        self._zygotes.abandon()
        kernels = set(self.kernels.values())
        for starting in self._starting.values():
            kernels.add(starting.kernel)
            if starting.ready >= 0:
                os.close(starting.ready)
        for kernel in kernels:
            if kernel.pidfd is not None:
                os.close(kernel.pidfd)
            if kernel.link is not None:
                kernel.link.abandon()
