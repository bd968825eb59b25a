"""`%lima` in a kernel of this host: verbs and cells run in this process's I/O thread, and the cell waits for them."""

from __future__ import annotations

import contextlib
import queue
import tempfile
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from .. import paths
from ..errors import LimaKernelsError
from ..lima.limactl import Limactl
from ..magics import values
from ..magics.arguments import parser_of
from ..magics.backend import Call, Ended, LimaError, Script, Sink, Started, Transfer, Watcher
from ..magics.results import Result
from ..progress import Phase
from ..runtime import runtime
from ..settings import DEFAULT_INSTANCE
from . import scripts
from . import values as transfers
from .context import Context
from .table import FUNCTIONS

T = TypeVar("T")
# Seconds between two looks at the clock, for whoever shows how long it takes.
TICK = 0.5


class _Conversation:
    """What the I/O thread has to say to the thread that waits for it."""

    def __init__(self) -> None:
        self._said: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def say(self, action: Callable[[], None]) -> None:
        """Have something done in the thread that waits."""
        self._said.put(action)

    def wait(self, future: Future[T], tick: Callable[[], None]) -> T:
        """Wait for a future, and do meanwhile what is said; an interrupt cancels it, and waits for that."""
        future.add_done_callback(lambda _future: self._said.put(None))
        while True:
            try:
                action = self._said.get(timeout=TICK)
            except queue.Empty:
                tick()
                continue
            if action is None:
                return future.result()
            action()


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except LimaKernelsError as error:
        raise LimaError(error.message, error.hint, error.context) from None


class HostBackend:
    """Does what a cell of this process asks for."""

    default = DEFAULT_INSTANCE

    def instances(self) -> Sequence[str]:
        """Return the names of all instances, from Lima's own directory: limactl would take a tenth of a second."""
        with contextlib.suppress(OSError):
            return sorted(file.parent.name for file in paths.lima_home().glob("[!_.]*/lima.yaml"))
        return []

    def run(self, call: Call, watcher: Watcher) -> Result:
        """Do what a verb says."""
        options = parser_of(call.verb).parse_args(list(call.arguments))
        return self._done(lambda context: FUNCTIONS[call.verb](context, options), call.default, watcher)

    def _done(self, work: Callable[[Context], Awaitable[T]], default: str, watcher: Watcher) -> T:
        """Do something in the I/O thread, and show meanwhile what it says."""
        conversation = _Conversation()

        def say(text: str) -> None:
            conversation.say(lambda: watcher.step(text))

        async def begun() -> T:
            return await work(Context(Limactl(), runtime().vm, say, default, here=Path.cwd()))

        with _translated(), runtime().listening(lambda step: say(step.text if step.phase is not Phase.READY else "")):
            return self._waited(begun(), conversation, watcher.tick)

    def push(self, transfer: Transfer, namespace: Mapping[str, Any], watcher: Watcher) -> None:
        """Copy variables into a kernel."""

        def done(work: Callable[[Context], Awaitable[T]]) -> T:
            return self._done(work, transfer.instance, watcher)

        known = done(lambda context: transfers.formats(context, transfer))
        with tempfile.TemporaryDirectory(prefix="lima-values-") as work:
            directory = Path(work) / "values"
            directory.mkdir()
            # In this thread: they are this kernel's, and its cell's.
            values.export(namespace, transfer.variables, directory, known)
            done(lambda context: transfers.push(context, transfer, directory, known))

    def pull(self, transfer: Transfer, watcher: Watcher) -> Mapping[str, Any]:
        """Return variables of a kernel."""
        known = [*values.formats(), values.PICKLE] if transfer.pickle else values.formats()
        with tempfile.TemporaryDirectory(prefix="lima-values-") as work:
            into = Path(work) / "values"
            self._done(lambda context: transfers.pull(context, transfer, into, known), transfer.instance, watcher)
            return values.take(into, transfer.variables, known)

    @staticmethod
    def _waited(work: Coroutine[Any, Any, T], conversation: _Conversation, tick: Callable[[], None]) -> T:
        with runtime().started(work) as future:
            return conversation.wait(future, tick)

    def execute(self, script: Script, sink: Sink) -> Ended:
        """Run a cell to its end."""
        conversation = _Conversation()
        with _translated():
            return self._waited(
                scripts.execute(runtime().vm(script.instance), script, sink, conversation.say), conversation, _nothing
            )

    def start(self, script: Script) -> Started:
        """Run a cell in the background."""
        with _translated():
            return self._waited(scripts.start(runtime().vm(script.instance), script), _Conversation(), _nothing)


def _nothing() -> None:
    """Do nothing while time passes: what a script prints says enough."""
