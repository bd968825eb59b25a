"""Notebooks executed, each in a kernel of its own and several at once; each result is written when it is there."""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from ..environment.lock import Lock
from ..errors import LimaKernelsError
from . import notebooks, provenance
from .provenance import Outcome
from .state import GuestState

# Seconds that a kernel has to answer once it has been started.
READY = 120


class Kernel(NamedTuple):
    """A kernel spec that exists, where it is found, and its language."""

    name: str
    specs: KernelSpecManager
    language: str


class Proof(NamedTuple):
    """What a locked run is held to: its lock, the environment as it was found, and how to look again."""

    lock: Lock
    state: GuestState
    inspect: Callable[[], Awaitable[GuestState]]


class Job(NamedTuple):
    """A notebook to execute; ``proof`` is None where no lock is asked for."""

    path: Path
    notebook: NotebookNode
    output: Path
    kernel: Kernel
    proof: Proof | None = None

    @property
    def directory(self) -> Path:
        return self.path.resolve().parent

    @property
    def code_cells(self) -> int:
        return sum(cell.cell_type == "code" for cell in self.notebook.cells)


class Limits(NamedTuple):
    """Seconds for each cell, None for no limit; and whether to go on after a cell that fails."""

    timeout: float | None
    allow_errors: bool


class CellEnd(enum.Enum):
    """How a cell ended."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_RUN = "not run"


class CellRun(NamedTuple):
    """A code cell's run: its place in the notebook from 1, seconds, and why it failed."""

    number: int
    end: CellEnd
    seconds: float = 0.0
    failure: str = ""


class Result(NamedTuple):
    """What came of a notebook; ``error`` is why it could not be executed, or not be proved, for other reasons than its
    code. ``is_changed`` tells that the environment which had been checked was changed while the notebook ran."""

    job: Job
    cells: Sequence[CellRun]
    error: LimaKernelsError | None = None
    is_changed: bool = False

    @property
    def failure(self) -> str:
        """Why a cell failed, or nothing."""
        return next((cell.failure for cell in self.cells if cell.end is CellEnd.FAILED), "")


async def run_all(jobs: Sequence[Job], limits: Limits, parallel: int, advance: Callable[[Job], None]) -> list[Result]:
    """Execute notebooks, so many of them at once; one that fails does not end the others.

    :param advance: called for each code cell that has been run.
    """
    gate = asyncio.Semaphore(parallel)

    async def one(job: Job) -> Result:
        async with gate:
            return await _run(job, limits, lambda: advance(job))

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(job)) for job in jobs]
    return [task.result() for task in tasks]


async def _run(job: Job, limits: Limits, advance: Callable[[], None]) -> Result:
    cells: list[CellRun] = []
    error: LimaKernelsError | None = None
    is_changed = False
    try:
        async with _kernel(job, limits) as client:
            _forget_results(job.notebook)
            try:
                with _deaths_told():
                    await _execute(client, cells, advance)
            except LimaKernelsError as died:
                error = died
            finally:
                # Also what there is when somebody gave up.
                notebooks.write(job.notebook, job.output)
            if error is None and job.proof is not None:
                is_changed = await _prove(job, job.proof, cells) is Outcome.CHANGED
    except LimaKernelsError as failed:
        error = failed
    numbers = [number for number, cell in enumerate(job.notebook.cells, 1) if cell.cell_type == "code"]
    cells += [CellRun(number, CellEnd.NOT_RUN) for number in numbers[len(cells) :]]
    return Result(job, cells, error, is_changed)


def _forget_results(notebook: NotebookNode) -> None:
    """Remove what an earlier run left: behind a cell that fails it would look like this run's."""
    provenance.forget(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None


async def _prove(job: Job, proof: Proof, cells: Sequence[CellRun]) -> Outcome:
    """Look at the environment again, and keep in the notebook what it was run in."""
    after = await proof.inspect()
    failed = any(cell.end is CellEnd.FAILED for cell in cells)
    outcome = Outcome.FAILED if failed else Outcome.PASSED
    if after.digest != proof.state.digest:
        outcome = Outcome.CHANGED
    provenance.keep(job.notebook, provenance.of_run(job.notebook, job.directory, proof.lock, proof.state, outcome))
    notebooks.write(job.notebook, job.output)
    return outcome


@contextmanager
def _deaths_told() -> Iterator[None]:
    try:
        yield
    except DeadKernelError as died:
        # nbclient says the same of a task that was cancelled.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError from died
        raise LimaKernelsError("The kernel died while the notebook was executed.") from died


async def _execute(client: NotebookClient, cells: list[CellRun], advance: Callable[[], None]) -> None:
    """Execute the cells until one fails, and note how each ended.

    :raises LimaKernelsError: when the kernel no longer answers.
    """
    for index, cell in enumerate(client.nb.cells):
        if cell.cell_type != "code":
            continue
        begun = time.monotonic()
        try:
            await client.async_execute_cell(cell, index)
        except (CellExecutionError, CellTimeoutError) as failed:
            cells.append(CellRun(index + 1, CellEnd.FAILED, time.monotonic() - begun, str(failed)))
            return
        cells.append(CellRun(index + 1, CellEnd.PASSED, time.monotonic() - begun))
        advance()
    assert client.kc is not None
    try:
        async with asyncio.timeout(READY):
            info = await client.async_wait_for_reply(client.kc.kernel_info())
    except TimeoutError as error:
        raise LimaKernelsError("The kernel no longer answers.") from error
    if info:
        client.nb.metadata["language_info"] = info["content"]["language_info"]


@asynccontextmanager
async def _kernel(job: Job, limits: Limits) -> AsyncIterator[NotebookClient]:
    """Yield a client of a new kernel, which ends with the block.

    nbclient's own block sets signal handlers for the whole process, which two at once take from each other.
    """
    manager = AsyncKernelManager(kernel_name=job.kernel.name, kernel_spec_manager=job.kernel.specs)
    client = NotebookClient(
        job.notebook,
        km=manager,
        timeout_func=lambda _cell: limits.timeout,
        allow_errors=limits.allow_errors,
        resources={"metadata": {"path": str(job.directory)}},
    )
    try:
        await client.async_start_new_kernel(cwd=str(job.directory))
        client.kc = manager.client()
        client.kc.start_channels()
        try:
            await client.kc.wait_for_ready(timeout=READY)
        except RuntimeError as error:
            raise LimaKernelsError(f"The kernel does not answer: {error}.") from error
        client.kc.allow_stdin = False
        yield client
    finally:
        try:
            if await manager.is_alive():
                await manager.shutdown_kernel()
        finally:
            await manager.cleanup_resources()
            if client.kc is not None:
                client.kc.stop_channels()
