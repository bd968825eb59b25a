"""One talk with the watcher: of a kernel's panels on this host, or of a guest's kernel.

Of more than its VM nobody is told who may know of one only; and nobody cancels what others asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec

from ..errors import InstanceError, LimaKernelsError, nearest
from ..magics.backend import LimaError
from ..widget.source import Tell, refused
from . import cards
from .actions import Call, Create, action
from .watcher import Subscription, Watcher

logger = logging.getLogger(__name__)

# What one talk of a guest may have under way.
JOBS = 4
_Name = Annotated[str, msgspec.Meta(max_length=256)]


class Act(msgspec.Struct, frozen=True, tag_field="type", tag="act"):
    """Somebody asks for something.

    :param ref: what the answer says again.
    :param yes: also where the kernel that asks ends with it.
    """

    ref: Annotated[str, msgspec.Meta(max_length=64)]
    vm: _Name
    verb: _Name
    arguments: dict[_Name, Any]
    yes: bool = False


class Cancel(msgspec.Struct, frozen=True, tag_field="type", tag="cancel"):
    """Somebody no longer wants what he asked for."""

    job: _Name


class Visible(msgspec.Struct, frozen=True, tag_field="type", tag="visible"):
    """Somebody says whose usage he sees; None for all."""

    names: Annotated[Sequence[_Name], msgspec.Meta(max_length=1000)] | None


class Follow(msgspec.Struct, frozen=True, tag_field="type", tag="follow"):
    """Somebody says whose log he wants; None for none."""

    name: _Name | None


Said = Act | Cancel | Visible | Follow
# Says whether a verb with these arguments may be, by a LimaError when not.
Permit = Callable[[Call, bool], None]


def anything(_call: Call, _yes: bool) -> None:
    """Permit whatever a cell of this host may do."""


class Conversation:
    """What one side hears of VMs, and asks of them; lives in the I/O thread.

    :param only: the VM that it hears of; all when empty.
    :param tell: is called for each message of the wire, and does not block.
    :param asked_by: the guest's kernel that asks; none on the host.
    """

    def __init__(self, watcher: Watcher, only: str, tell: Tell, permit: Permit = anything, asked_by: str = "") -> None:
        self._watcher = watcher
        self._only = only
        self._tell = tell
        self._permit = permit
        self._asked_by = asked_by
        self._subscription: Subscription | None = None
        self._running: set[str] = set()
        # Those that there were at the beginning.
        self._names: Sequence[str] | None = None

    async def open(self) -> None:
        """Begin to hear; a snapshot is told at once.

        :raises InstanceError: when there is no such VM.
        :raises LimaKernelsError: when Lima does not say what there is.
        """
        self._subscription = await self._watcher.subscribe(self._hear)
        if self._only and self._names is not None and self._only not in self._names:
            await self.close()
            raise InstanceError(
                f"There is no Lima instance {self._only!r}.",
                hint=nearest(self._only, self._names) or "See them all: %lima list",
            )

    async def close(self) -> None:
        """Hear no more; what was asked for goes on. May be called twice."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.close()

    def _hear(self, message: cards.Message) -> None:
        if self._names is None and isinstance(message, cards.Snapshot):
            self._names = [vm.name for vm in message.vms]
        if isinstance(message, cards.JobChanged) and message.job.state is not cards.JobState.RUNNING:
            self._running.discard(message.job.id)
        seen = self._seen(message)
        if seen is not None:
            self._tell(msgspec.to_builtins(seen))

    def _seen(self, message: cards.Message) -> cards.Message | None:
        """Return what this side may know of a message."""
        if not self._only:
            return message
        match message:
            case cards.Snapshot(vms, jobs):
                return cards.Snapshot(
                    [vm for vm in vms if vm.name == self._only], [job for job in jobs if job.vm == self._only]
                )
            case cards.CardChanged(vm):
                name = vm.name
            case cards.UsageTaken(usage):
                name = usage.name
            case cards.JobChanged(job):
                name = job.vm
            case cards.CardGone(name) | cards.LogGrown(name):
                pass
            case _:
                return None
        return message if name == self._only else None

    def say(self, said: Said) -> None:
        """Take notice of what this side says."""
        if self._subscription is None:
            return
        match said:
            case Visible(names):
                self._subscription.show(names if not self._only else self._own(names))
            case Follow(name):
                self._subscription.follow(name if name in (self._only, None) or not self._only else None)
            case Cancel(job):
                self._cancel(job)
            case Act():
                self._act(said)

    def _own(self, names: Sequence[str] | None) -> Sequence[str]:
        return (self._only,) if names is None or self._only in names else ()

    def _act(self, act: Act) -> None:
        try:
            asked = action(act.verb, act.arguments)
            vm = asked.name if isinstance(asked, Create) else act.vm
            self._permit(asked.call(vm), act.yes)
            if self._asked_by and len(self._running) >= JOBS:
                raise LimaError(f"A kernel in a VM may have {JOBS} things under way at once.")
            # What this process works in is not for a guest to see because it asks.
            here = None if self._asked_by else Path.cwd()
            others = {job.id for job in self._watcher.jobs.all()}
            job = self._watcher.jobs.start(vm, asked, asked_by=self._asked_by, here=here)
        except LimaKernelsError as error:
            self._tell(refused(act.ref, LimaError(error.message, error.hint, error.context)))
        except LimaError as error:
            self._tell(refused(act.ref, error))
        else:
            if job.id not in others:
                self._running.add(job.id)
            self._tell({"type": "acted", "ref": act.ref, "job": msgspec.to_builtins(job)})

    def _cancel(self, job: str) -> None:
        if self._asked_by and job not in self._running:
            logger.warning("The kernel %s was refused to cancel what others asked for", self._asked_by)
            return
        try:
            self._watcher.jobs.cancel(job)
        except LimaKernelsError as error:
            # It has just ended.
            logger.info("%s", error)
