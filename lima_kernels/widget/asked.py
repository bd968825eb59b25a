"""What a cell asked for through a panel, and waits for."""

from __future__ import annotations

import asyncio
import functools
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from ..magics.backend import LimaError
from ..magics.results import Note
from .news import is_running
from .pending import Message

Waiting = asyncio.Future[Note]


class Asked:
    """Futures of jobs, each with the reference that it was asked for by, and then with its job's name.

    :param cancel: is told of a job that nobody waits for any more, as of an interrupted cell.
    """

    def __init__(self, cancel: Callable[[str], None]) -> None:
        self._cancel = cancel
        self._unanswered: dict[str, Waiting] = {}
        self._jobs: dict[str, Waiting] = {}

    def begin(self, loop: asyncio.AbstractEventLoop) -> tuple[str, Waiting]:
        """Return a new reference, and what will have its job's result."""
        ref = secrets.token_hex(8)
        waiting: Waiting = loop.create_future()
        self._unanswered[ref] = waiting
        return ref, waiting

    def answered(self, message: Message) -> bool:
        """Take notice of an answer; tells whether somebody here asked."""
        waiting = self._unanswered.pop(message["ref"], None)
        if waiting is None:
            return False
        if message["type"] == "refused":
            _fail(waiting, LimaError(message["message"], message["hint"], message["context"]))
            return True
        job = message["job"]["id"]
        if waiting.cancelled():
            self._cancel(job)
            return True
        self._jobs[job] = waiting
        waiting.add_done_callback(functools.partial(self._ended, job))
        self.judge(message["job"])
        return True

    def _ended(self, job: str, waiting: Waiting) -> None:
        self._jobs.pop(job, None)
        if waiting.cancelled():
            self._cancel(job)

    def judge(self, job: Mapping[str, Any]) -> None:
        """Let whoever waits for a job know how it is."""
        waiting = self._jobs.get(job["id"])
        if waiting is None or waiting.done() or is_running(job):
            return
        if job["state"] == "done":
            waiting.set_result(Note(job["message"]))
        else:
            message = job["message"] or f"`{job['verb']}` of {job['vm']} was {job['state']}."
            waiting.set_exception(LimaError(message, job["hint"], job["context"]))

    def known(self, jobs: Mapping[str, Any]) -> None:
        """Take notice of all jobs that anybody knows: what became of others, nobody will ever say."""
        for job, waiting in tuple(self._jobs.items()):
            if job in jobs:
                self.judge(jobs[job])
            else:
                _fail(waiting, LimaError("The host no longer knows what became of it.", "See: %lima list"))

    def unanswered(self, error: LimaError) -> None:
        """Let those whose question was lost know that."""
        for waiting in self._unanswered.values():
            _fail(waiting, error)
        self._unanswered.clear()

    def close(self) -> None:
        """Wait for nothing more; the jobs go on."""
        error = LimaError("The panel was closed before that ended; it goes on without it.")
        self.unanswered(error)
        for waiting in tuple(self._jobs.values()):
            _fail(waiting, error)


def _fail(waiting: Waiting, error: LimaError) -> None:
    if not waiting.done():
        waiting.set_exception(error)
