"""Who does what `%lima` is asked for: this process where it runs on the host, or the host for a guest's kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from .results import Result


class LimaError(Exception):
    """What went wrong, for a person; a notebook shows these lines and no traceback.

    :param message: what was attempted and what happened.
    :param hint: what to do about it.
    :param context: what else may help, such as the end of a log.
    """

    def __init__(self, message: str, hint: str = "", context: Sequence[str] = ()) -> None:
        super().__init__(message, hint, tuple(context))
        self.message = message
        self.hint = hint
        self.context = tuple(context)

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()

    def _render_traceback_(self) -> list[str]:
        """What IPython shows instead of a traceback."""
        return [f"{type(self).__name__}: {self}", *self.context]


class Call(NamedTuple):
    """One verb.

    :param arguments: as they stand behind the verb, split into words.
    :param default: the instance that is meant when none is named.
    """

    verb: str
    arguments: Sequence[str]
    default: str


class Script(NamedTuple):
    """A cell that runs in a guest.

    :param shell: what runs it, with its options.
    :param user: as whom; the guest's own user when empty.
    :param cwd: where; when empty, ``here`` if the guest has it, else its user's home.
    :param timeout: seconds; None for as long as it likes.
    """

    instance: str
    text: str
    shell: Sequence[str]
    user: str
    cwd: str
    here: str
    env: Mapping[str, str]
    timeout: float | None


class Transfer(NamedTuple):
    """Variables that go to a kernel in a VM, or come from it.

    :param kernel: the beginning of its name, or its notebook's name.
    :param pickle: what only pickle keeps goes, too.
    :param timeout: seconds for the kernel to answer.
    """

    instance: str
    kernel: str
    variables: Sequence[str]
    pickle: bool
    timeout: float


class Watcher(Protocol):
    """Whoever shows what is going on; called in the thread that waits."""

    def step(self, text: str) -> None:
        """Take notice of what begins."""

    def tick(self) -> None:
        """Take notice that time passes."""


class Sink(Protocol):
    """Where a script's output goes; called in the thread that waits."""

    def stdout(self, data: bytes) -> None:
        """Take what it printed."""

    def stderr(self, data: bytes) -> None:
        """Take what it complained of."""


class Ended(NamedTuple):
    """How a script ended: an exit code, or minus the number of the signal that ended it."""

    code: int


class Started(NamedTuple):
    """A script that runs in the background.

    :param log: the guest's file that has what it prints.
    """

    pid: int
    log: str


class Backend(Protocol):
    """What both sides can do; each call blocks, and an interrupt ends what it was about."""

    #: The instance that is meant when nothing else says so.
    default: str

    def run(self, call: Call, watcher: Watcher) -> Result:
        """Do what a verb says.

        :raises LimaError: when it cannot be done.
        :raises UsageError: when the arguments cannot be understood.
        """

    def instances(self) -> Sequence[str]:
        """Return the names that can be used, quickly: for completion."""

    def execute(self, script: Script, sink: Sink) -> Ended:
        """Run a cell to its end.

        :raises LimaError: when it cannot be run, or not to its end.
        """

    def push(self, transfer: Transfer, namespace: Mapping[str, Any], watcher: Watcher) -> None:
        """Copy variables into a kernel.

        :raises LimaError: when they cannot be, or the kernel does not take them.
        """

    def pull(self, transfer: Transfer, watcher: Watcher) -> Mapping[str, Any]:
        """Return variables of a kernel.

        :raises LimaError: when they cannot be had.
        """

    def start(self, script: Script) -> Started:
        """Run a cell in the background.

        :raises LimaError: when it cannot be run.
        """
