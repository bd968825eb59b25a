"""The I/O thread and its event loop: all connections, forwards and subprocesses live there, whatever loop a caller has.

KernelManager's sync twin runs provisioner coroutines on loops that live only during a call; the Jupyter server has
another one. So nothing of ours is bound to a caller's loop.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

from .lima.limactl import Limactl
from .progress import Listener, Step
from .vm import VM

T = TypeVar("T")
# Seconds that an ending process gives its connections to be closed in good order.
CLOSE_TIMEOUT = 5.0
# Seconds for what is cancelled to clean up behind itself: limactl is given some to end.
CANCEL_TIMEOUT = 30.0


class Runtime:
    """The process's I/O thread, with one VM handle for each instance."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="lima-kernels-io", daemon=True)
        self._thread.start()
        self._vms: dict[str, VM] = {}
        self._listeners: list[Listener] = []

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the I/O thread and await it here; cancelling here cancels it there."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def run_blocking(self, work: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run a coroutine in the I/O thread and wait for it, from a thread without an event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)

    @contextmanager
    def started(self, work: Coroutine[Any, Any, T]) -> Iterator[Future[T]]:
        """Run a coroutine in the I/O thread while the block waits for it; a block that is left cancels it, and is left
        only when it has cleaned up behind itself."""
        has_begun, is_over = threading.Event(), threading.Event()

        async def worked() -> T:
            has_begun.set()
            try:
                return await work
            finally:
                is_over.set()

        future = asyncio.run_coroutine_threadsafe(worked(), self._loop)
        try:
            has_begun.wait()
            yield future
        finally:
            if not future.done() and future.cancel() and has_begun.is_set():
                is_over.wait(CANCEL_TIMEOUT)

    def vm(self, name: str) -> VM:
        """Return the handle of an instance, whether or not it exists; to be called in the I/O thread.

        :raises HostError: when there is no limactl.
        """
        if name not in self._vms:
            self._vms[name] = VM(name, Limactl(), self._tell)
        return self._vms[name]

    @property
    def vms(self) -> tuple[VM, ...]:
        """The VMs that were asked for so far."""
        return tuple(self._vms.values())

    def listen(self, listener: Listener) -> None:
        """Call the listener for every step of every start from now on, in the I/O thread."""
        self._listeners.append(listener)

    @contextmanager
    def listening(self, listener: Listener) -> Iterator[None]:
        """Call the listener for every step of every start while the block runs, in the I/O thread."""
        self.listen(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    def _tell(self, step: Step) -> None:
        for listener in tuple(self._listeners):
            listener(step)

    async def _disconnect_all(self) -> None:
        for vm in self._vms.values():
            await vm.abandon()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def close(self) -> None:
        """Hang up everywhere and end the thread; VMs and kernels live on."""
        if self._loop.is_running():
            try:
                self.run_blocking(self._disconnect_all(), CLOSE_TIMEOUT)
            except TimeoutError:
                pass
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(CLOSE_TIMEOUT)
            self._loop.close()


_lock = threading.Lock()
_runtime: Runtime | None = None


def runtime() -> Runtime:
    """Return the process's runtime, started at first use and closed when the process ends."""
    global _runtime
    with _lock:
        if _runtime is None:
            _runtime = Runtime()
            atexit.register(_runtime.close)
        return _runtime


def vms() -> tuple[VM, ...]:
    """Return the VMs that were asked for in this process, without a runtime being made for that."""
    with _lock:
        return _runtime.vms if _runtime is not None else ()
