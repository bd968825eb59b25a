"""What somebody asked for and does not wait for: everybody is told how far it is, and what came of it."""

from __future__ import annotations

import argparse
import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from ..errors import Cancelled, ConfigurationError, LimaKernelsError, NotFound
from ..lima.limactl import Limactl
from ..magics.arguments import UsageError, parser_of
from ..magics.results import Result
from ..progress import Phase, Step
from ..verbs.context import Context
from ..verbs.table import FUNCTIONS
from ..vm import VM
from .actions import Action, Call, Create
from .cards import Job, JobState

logger = logging.getLogger(__name__)

# Seconds that a job which is over is told of.
KEPT = 60.0
# The verb of a start that a kernel of this process waits for.
KERNEL = "kernel"
# These boot a VM: to be cancelled is to undo that.
_STARTS = ("start", "restart")
# Who is told to end in their middle leaves half a VM, or one that goes on shutting down.
_FINAL = ("stop", "hibernate", "delete")


class _Run:
    """A job, and how it is cancelled; ``call`` is the verb that it does, None when a kernel's start is the job."""

    def __init__(self, job: Job, cancel: Callable[[], None], call: Call | None) -> None:
        self.job = job
        self.cancel = cancel
        self.call = call
        self.ended_at: float | None = None


class Jobs:
    """The jobs of this process; all of it is to be called in the I/O thread.

    :param vm: returns the handle of an instance.
    :param tell: told of each change of a job.
    """

    def __init__(self, limactl: Limactl, vm: Callable[[str], VM], tell: Callable[[Job], None]) -> None:
        self._limactl = limactl
        self._vm = vm
        self._tell = tell
        self._runs: dict[str, _Run] = {}
        # What is done with one VM is done in the order in which it was asked for.
        self._turns: dict[str, asyncio.Lock] = {}
        # asyncio itself keeps tasks no longer than somebody waits for them.
        self._tasks: set[asyncio.Future[Result]] = set()

    def all(self) -> Sequence[Job]:
        """Return the jobs, those that ended a while ago no longer."""
        limit = time.monotonic() - KEPT
        for id_ in [id_ for id_, run in self._runs.items() if run.ended_at is not None and run.ended_at < limit]:
            del self._runs[id_]
        return [run.job for run in self._runs.values()]

    def start(self, vm: str, action: Action, *, asked_by: str = "", here: Path | None = None) -> Job:
        """Begin to do something with a VM; what is being done already, with the same arguments, is that job.

        :param asked_by: the guest's kernel that asks, which knows that it may end with its VM; none on the host.
        :param here: the directory that a VM which is started shall show; None for no other than it shows already.
        :raises ConfigurationError: when that cannot be asked of it.
        """
        if isinstance(action, Create) and action.name != vm:
            raise ConfigurationError(f"The VM {action.name!r} cannot be made as {vm!r}.")
        call = action.call(vm)
        try:
            options = parser_of(call.verb).parse_args(list(call.arguments))
        except UsageError as error:
            raise ConfigurationError(f"%lima {call.verb}: {error}") from None
        for run in self._running(vm):
            if run.call == call:
                return run.job
        run = self._begin(vm, call.verb, lambda: self._cancel_verb(vm, call.verb, task), call)
        context = Context(self._limactl, self._vm, lambda text: self._change(run, step=text), vm, asked_by, here)
        task = asyncio.ensure_future(self._work(call, context, options))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda ended: self._end(run, ended))
        return run.job

    async def _work(self, call: Call, context: Context, options: argparse.Namespace) -> Result:
        async with self._turns.setdefault(context.default, asyncio.Lock()):
            return await FUNCTIONS[call.verb](context, options)

    def _cancel_verb(self, vm: str, verb: str, task: asyncio.Future[Result]) -> None:
        if verb in _STARTS and self._vm(vm).starting is not None:
            # Else the VM would go on booting, for nobody.
            self._vm(vm).cancel_start()
        else:
            task.cancel()

    def cancel(self, id_: str) -> None:
        """Cancel a job; nothing happens when it is over.

        :raises NotFound: when there is no such job.
        :raises ConfigurationError: when it cannot be cancelled.
        """
        run = self._runs.get(id_)
        if run is None:
            raise NotFound(f"There is no job {id_!r}; it may have ended a while ago.")
        if run.ended_at is not None:
            return
        if not run.job.cancellable:
            raise ConfigurationError(f"{run.job.verb!r} of the VM {run.job.vm!r} cannot be cancelled.")
        run.cancel()

    def on_step(self, step: Step) -> None:
        """Take notice of a step of a start or stop in this process: of a job, or of a start that a kernel waits for."""
        runs = self._running(step.instance)
        vm = self._vm(step.instance)
        if not runs and step.phase in (Phase.CREATE, Phase.BOOT) and vm.starting is not None:
            run = self._begin(step.instance, KERNEL, vm.cancel_start)
            vm.starting.ended.add_done_callback(lambda ended: self._end(run, ended))
            runs = [run]
        text = f"{step.phase.value} ({step.detail})" if step.detail else step.phase.value
        for run in runs[:1]:
            self._change(run, step=text, expected=step.expected)

    def _running(self, vm: str) -> list[_Run]:
        return [run for run in self._runs.values() if run.job.vm == vm and run.ended_at is None]

    def _begin(self, vm: str, verb: str, cancel: Callable[[], None], call: Call | None = None) -> _Run:
        self.all()
        job = Job(
            id=secrets.token_hex(8),
            vm=vm,
            verb=verb,
            state=JobState.RUNNING,
            began=time.time(),
            cancellable=verb not in _FINAL,
        )
        run = self._runs[job.id] = _Run(job, cancel, call)
        self._tell(job)
        return run

    def _change(self, run: _Run, **fields: object) -> None:
        job = msgspec.structs.replace(run.job, **fields)
        if job != run.job:
            run.job = job
            self._tell(job)

    def _end(self, run: _Run, ended: asyncio.Future[Result] | asyncio.Future[None]) -> None:
        """Say what came of a job."""
        run.ended_at = time.monotonic()
        error = None if ended.cancelled() else ended.exception()
        if ended.cancelled() or isinstance(error, Cancelled):
            self._change(run, state=JobState.CANCELLED, message=f"{run.job.verb} of the VM {run.job.vm} was cancelled.")
        elif isinstance(error, LimaKernelsError):
            said = {"message": error.message, "hint": error.hint, "context": error.context}
            self._change(run, state=JobState.FAILED, **said)
        elif error is not None:
            logger.error("%s of the VM %r failed.", run.job.verb, run.job.vm, exc_info=error)
            said = {"message": f"lima-kernels failed: {type(error).__name__}: {error}"}
            self._change(run, state=JobState.FAILED, **said)
        else:
            message = str(ended.result() or f"The VM {run.job.vm} is ready.")
            self._change(run, state=JobState.DONE, message=message)
