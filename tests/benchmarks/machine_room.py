"""What all parts that need a VM share: the run's own directories, its one VM, and how kernels are started and timed."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from jupyter_client import KernelManager

from lima_kernels import runtime
from lima_kernels.kernelspec import make_request, write
from lima_kernels.lima.limactl import Limactl
from tests.own_directories import own_directories

from .conversation import Conversation, conversation
from .samples import RESTART, RESTART_AT_ONCE, SHUTDOWN, START, Row, Sample, Unit
from .timing import timed

INSTANCE = "lk-bench"
SPEC = "lima"
FIRST_CELL = "print(6 * 7)"
# Seconds: a VM may be booted for it.
FIRST_LIMIT = 900.0


class Room:
    """The surroundings of one run; made by :func:`room`, and nothing is left of them after it.

    :param root: the run's own directory.
    :param stack: what is to be undone at its end.
    """

    def __init__(self, root: Path, stack: ExitStack, say: Callable[[str], None]) -> None:
        self.root = root
        self.stack = stack
        self.say = say
        self.notebooks = self.root / "notebooks"
        self.notebooks.mkdir()
        self._has_spec = False

    @property
    def has_vm(self) -> bool:
        """Tell whether the run's VM may have been made already."""
        return self._has_spec

    def spec(self) -> str:
        """Return the kernel spec of the run's VM, whose first kernel makes it."""
        if not self._has_spec:
            write(
                make_request(SPEC, "Linux (Lima)", environment=None, instance=INSTANCE, attach=False),
                user=True,
                prefix=None,
            )
            self.stack.callback(delete_all)
            self._has_spec = True
        return SPEC

    def warm(self) -> None:
        """See that the VM runs, and that we are connected to it."""
        with first_cell(Managed(self.spec(), self.notebooks)):
            pass


@contextmanager
def room(say: Callable[[str], None]) -> Iterator[Room]:
    """The surroundings of a run for the time of the block."""
    with ExitStack() as stack:
        yield Room(stack.enter_context(own_directories()), stack, say)


def delete_all() -> None:
    """Hang up everywhere, and delete the run's VMs."""
    if runtime._runtime is not None:
        runtime._runtime.close()
        runtime._runtime = None

    async def delete() -> None:
        limactl = Limactl()
        for instance in await limactl.list():
            await limactl.delete(instance.name)

    asyncio.run(delete())


def stop(name: str) -> None:
    """Stop a VM of ours."""
    io = runtime.runtime()

    async def stopped() -> None:
        await io.vm(name).stop()

    io.run_blocking(stopped())


async def ready(name: str) -> None:
    """Start a VM by `limactl start`, which ends when Lima calls it ready.

    :raises RuntimeError: when it fails.
    """
    async with Limactl().start(name, timeout=FIRST_LIMIT) as running:
        last = ""
        async for line in running.lines():
            last = line
        if code := await running.wait():
            raise RuntimeError(f"limactl start {name} ended with exit code {code}: {last}")


class Alive(Protocol):
    """A kernel that was started, whoever did."""

    @property
    def connection(self) -> Mapping[str, Any]:
        """The content of its connection file."""

    def restart(self) -> None:
        """Start another in its place."""

    def end(self) -> None:
        """Shut it down."""


class Managed:
    """A kernel of Jupyter's own manager, by its kernel spec."""

    def __init__(self, spec: str, cwd: Path) -> None:
        self.manager = KernelManager(kernel_name=spec)
        # Each local kernel would warn of its ports.
        self.manager.start_kernel(cwd=str(cwd), stderr=subprocess.DEVNULL)

    @property
    def connection(self) -> Mapping[str, Any]:
        return dict(self.manager.get_connection_info())

    def restart(self) -> None:
        self.manager.restart_kernel()

    def end(self) -> None:
        self.manager.shutdown_kernel()


@contextmanager
def first_cell(kernel: Alive) -> Iterator[Conversation]:
    """A client of a kernel that has run its first cell; the kernel is shut down after the block."""
    try:
        with conversation(kernel.connection, FIRST_LIMIT) as client:
            client.cell(FIRST_CELL)
            yield client
    finally:
        kernel.end()


def life(part: str, contender: str, start: Callable[[], Alive], *, rest: float = 0.0) -> Iterator[Sample]:
    """Measure one kernel: from the first call to the end of the first cell, the same again, and its shutdown.

    :param rest: seconds before a restart, as people have them; what a restart at once takes is measured then as well.

    What a client waits for is the kernel's answer and the first thing that it publishes, as in Jupyter's server:
    `wait_for_ready` of jupyter_client then waits for another 0.2 s, whoever the kernel is of.
    """

    def sample(figure: str, seconds: float) -> Sample:
        return Sample(Row(part, figure, contender), seconds, Unit.SECONDS)

    began = time.perf_counter()
    kernel = start()
    with contextlib.ExitStack() as stack:
        stack.callback(kernel.end)
        yield sample(START, _end_of_first_cell(kernel) - began)
        for figure in (RESTART, RESTART_AT_ONCE) if rest else (RESTART,):
            time.sleep(rest if figure == RESTART else 0.0)
            began = time.perf_counter()
            kernel.restart()
            yield sample(figure, _end_of_first_cell(kernel) - began)
        stack.pop_all()
    yield sample(SHUTDOWN, timed(kernel.end))


def _end_of_first_cell(kernel: Alive) -> float:
    with conversation(kernel.connection) as client:
        client.cell(FIRST_CELL)
        return time.perf_counter()
