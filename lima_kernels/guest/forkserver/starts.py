"""Kernels on their way: forked, or made of a standby, until their sockets are bound and their client has been told."""

from __future__ import annotations

import os
import selectors
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from .child import Spawned, Start
from .clients import Client, Starting
from .deaths import disk_full, of_failed_call
from .kernels import Kernel
from .standby import order as standby_order
from .standby import serves
from .standbys import Standby, Standbys
from .wire import Wire
from .zygote import BEGIN
from .zygotes import CannotFork, Order, Zygotes, is_child, reap_orphans

# No event tells that another program has bound its sockets.
BOUND_CHECK = 0.05


class Starts:
    """Every kernel on its way.

    :param kernels: where it is found once there is a process.
    :param remove: ends a kernel and leaves nothing of it.
    :param others: returns the processes whose end somebody else waits for.
    :param reap: takes notice of kernels that have ended.
    """

    def __init__(
        self,
        directory: str,
        selector: selectors.BaseSelector,
        *,
        kernels: dict[str, Kernel],
        remove: Callable[[Kernel], None],
        others: Callable[[], set[int]],
        reap: Callable[[], None],
    ) -> None:
        self.standbys = Standbys(directory, selector, self._fork_standby)
        self._selector = selector
        self._kernels = kernels
        self._remove = remove
        self._others = others
        self._reap = reap
        self._zygotes = Zygotes(selector)
        self._starting: dict[str, Starting] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._starting

    def begin(
        self, kernel: Kernel, client: Client, request: dict[str, Any], spec: dict[str, Any] | None, venv: str
    ) -> None:
        """Start a kernel in a directory that is not there yet; the client is answered when its sockets are bound.

        :raises OSError: when that cannot be.
        """
        standby = self.standbys.take(request.get("python") or sys.executable, venv) if serves(request) else None
        if standby is None:
            self._begin(kernel, client, request, spec, venv)
        else:
            self._hand_out(standby, kernel, client, request, venv)

    def _begin(
        self, kernel: Kernel, client: Client, request: dict[str, Any], spec: dict[str, Any] | None, venv: str
    ) -> None:
        """Fork a kernel that is begun afresh."""
        os.makedirs(kernel.directory, mode=0o700)
        ready_r, ready_w = os.pipe()
        ours, theirs = socket.socketpair()
        kernel.link = Wire(self._selector, ours, kernel.hear)
        starting = self._starting[kernel.name] = Starting(kernel, client, request, venv, ready=ready_r)
        order = Order(
            Start(request, kernel.directory, spec, starting.python, ready_w, theirs),
            lambda answer: self._answered(starting, answer),
        )
        try:
            if venv and spec is None:
                self._zygotes.fork(order, venv)
            else:
                self._born(starting, self._fork_here(order))
        except Exception:
            if kernel.name in self._starting:
                order.close()
                self._unborn(starting)
            raise

    def _fork_here(self, order: Order) -> int:
        """Fork from ourselves a kernel, or what becomes another program, and return its process id."""
        pid = os.fork()
        if pid == 0:
            raise Spawned(order.start)
        order.close()
        return pid

    def _fork_standby(self, order: Order, venv: str) -> None:
        if venv:
            self._zygotes.fork(order, venv)
        else:
            order.born(self._fork_here(order))

    def _hand_out(self, standby: Standby, kernel: Kernel, client: Client, request: dict[str, Any], venv: str) -> None:
        """Let a standby become a kernel, as soon as it can."""
        starting = self._starting[kernel.name] = Starting(
            kernel, client, request, venv, ready=standby.ready, standby=standby
        )
        # Its end is ours to close from here on.
        standby.ready = -1
        kernel.link = standby.link
        settle = partial(self._handed_out, starting, request)
        self._selector.register(starting.ready, selectors.EVENT_READ, lambda _: settle())
        standby.on_prepared = partial(self._order, starting, request)
        if standby.is_prepared:
            standby.on_prepared()

    def _order(self, starting: Starting, request: dict[str, Any]) -> None:
        """Tell a standby which kernel it is, and have a record of it."""
        kernel, standby = starting.kernel, starting.standby
        assert standby is not None
        try:
            os.rename(standby.directory, kernel.directory)
            standby.directory = kernel.directory
            kernel.pid = standby.pid
            kernel.save()
        except OSError as error:
            self._drop(starting)
            self._unborn(starting, of_failed_call(error))
            return
        standby.link.on_data = kernel.hear
        standby.link.send(standby_order(kernel.directory, request))

    def _handed_out(self, starting: Starting, request: dict[str, Any]) -> None:
        """A standby has become a kernel; or it has ended, and a fresh one is begun."""
        kernel = starting.kernel
        bound = os.read(starting.ready, 1)
        self._close_ready(starting)
        if bound:
            self._kernels[kernel.name] = kernel
            self._started(starting)
            return
        self._drop(starting)
        del self._starting[kernel.name]
        self.reap_orphans()
        try:
            self._begin(kernel, starting.client, request, None, starting.venv)
        except OSError as error:
            starting.client.send({"id": starting.number, "error": of_failed_call(error)})

    def _drop(self, starting: Starting) -> None:
        """End the standby that was to become a kernel."""
        assert starting.standby is not None
        assert starting.kernel.link is not None
        self._close_ready(starting)
        starting.kernel.link.close()
        self.standbys.give_up(starting.standby)

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
                    self._reap()
                except OSError as error:
                    starting.client.send({"id": starting.number, "error": of_failed_call(error)})
        self.reap_orphans()

    def _born(self, starting: Starting, pid: int) -> None:
        """There is a process: it is a kernel from here on."""
        kernel = starting.kernel
        kernel.pid = pid
        self._kernels[kernel.name] = kernel
        self._selector.register(starting.ready, selectors.EVENT_READ, lambda _: self._settle(starting))
        try:
            kernel.save()
        except OSError:
            self._close_ready(self._starting.pop(kernel.name))
            self._remove(kernel)
            raise

    def _unborn(self, starting: Starting, error: str = "", log: Iterable[str] = ()) -> None:
        """There will be no process; its client hears why, if that is not for another to say."""
        kernel = starting.kernel
        del self._starting[kernel.name]
        if starting.ready >= 0:
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
        if not starting.is_program:
            self.standbys.renew(starting.python, starting.venv)
        starting.client.send({"id": starting.number, "ok": {"pid": starting.kernel.pid}})

    def _failed(self, starting: Starting) -> None:
        del self._starting[starting.kernel.name]
        self._close_ready(starting)
        log = starting.kernel.log_tail()
        error = disk_full() or "the kernel ended before it was ready"
        if starting.is_program and log:
            error += ": " + log[-1]
        starting.client.send({"id": starting.number, "error": error, "log": log})

    def give_up(self, name: str) -> None:
        """Take a start back that has no process yet, or none but a standby."""
        if starting := self._starting.get(name):
            if starting.standby is not None:
                self._drop(starting)
            self._zygotes.drop(starting.kernel.directory)
            self._unborn(starting, "the kernel ended before it was ready")

    def ended(self, kernel: Kernel) -> None:
        """A kernel's process has ended by itself: that of another program maybe before it was ready."""
        if (starting := self._starting.get(kernel.name)) and starting.is_program:
            self._failed(starting)

    def removed(self, kernel: Kernel) -> None:
        """A kernel's process was ended, maybe before it was ready."""
        if starting := self._starting.get(kernel.name):
            self._failed(starting)

    def forget(self, client: Client) -> None:
        """Begin to count the time without an owner for the kernels that a client starts."""
        for starting in self._starting.values():
            starting.kernel.release(client)

    def is_any(self) -> bool:
        """Tell whether a kernel is on its way."""
        return bool(self._starting)

    def deadlines(self) -> Iterator[float]:
        """Yield when there is something to look at, in monotonic seconds."""
        if any(starting.is_program for starting in self._starting.values()):
            yield time.monotonic() + BOUND_CHECK
        yield from self._zygotes.deadlines()
        yield from self.standbys.deadlines()

    def look(self) -> None:
        """Do what is due."""
        self._zygotes.look()
        self.standbys.look()
        for starting in list(self._starting.values()):
            if starting.is_program and starting.kernel.is_bound():
                self._started(starting)

    def reap(self) -> None:
        """Take notice of what has ended and is no kernel yet."""
        self._zygotes.reap()
        self.standbys.reap()

    def reap_orphans(self) -> None:
        """Reap what was left to us by kernels, when all who wait for processes of theirs have looked."""
        if not self._zygotes.are_forking:
            reap_orphans(self._known())

    def _known(self) -> set[int]:
        """Return the processes whose end somebody waits for."""
        taken = (starting.standby.pid for starting in self._starting.values() if starting.standby is not None)
        return {*self._others(), *taken, *self._zygotes.pids(), *self.standbys.pids()}

    def abandon(self) -> None:
        """Close our copies of what belongs to the parent, in a forked child."""
        self._zygotes.abandon()
        self.standbys.abandon()
        for starting in self._starting.values():
            if starting.ready >= 0:
                os.close(starting.ready)
            if starting.kernel.link is not None:
                starting.kernel.link.abandon()
