"""ipykernel in this process, in two steps: what every kernel has alike, and what depends on where and for whom it runs.

A kernel that is started takes both at once. A standby (:mod:`standby`) has the first behind it when it is asked for.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from . import advice, kit
from .away import Away
from .kernels import CONNECTION_FILE, NOTES

# What jupyter_client's connection file says, and an application keeps.
SCHEME = "hmac-sha256"
# A variable that ipykernel reads when it makes its shell.
_SESSION_NAME = "JPY_SESSION_NAME"


def arguments_of(directory: str, arguments: Iterable[str]) -> list[str]:
    """Return the command line of a kernel, as an interpreter of its own would have it."""
    import ipykernel_launcher

    return [ipykernel_launcher.__file__, "-f", os.path.join(directory, CONNECTION_FILE), *arguments]


def prepare(argv: list[str]) -> Any:
    """Return ipykernel's application with its sockets bound and its shell made, before anything of the user's is run.

    :param argv: the command line; the connection file that it names is there.
    """
    from ipykernel.kernelapp import IPKernelApp
    from IPython.core.interactiveshell import InteractiveShell

    sys.argv = argv
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    # So that the log says where a kernel crashed; its stderr itself goes to the notebook from now on.
    crashes = os.fdopen(os.dup(2), "w")
    faulthandler.enable(crashes, all_threads=False)
    # As if systemd were the parent: nothing to watch, and no advice to press Ctrl-C.
    app: Any = IPKernelApp.instance(parent_handle=1)
    advice.keep_history_here(app)
    with (
        _left_out(InteractiveShell, "init_history"),
        _left_out(IPKernelApp, "init_gui_pylab", "init_extensions", "init_code"),
    ):
        app.initialize(argv[1:])
    return app


@contextlib.contextmanager
def _left_out(owner: type, *names: str) -> Iterator[None]:
    """Let methods of a class do nothing for a while."""
    kept = {name: owner.__dict__.get(name) for name in names}
    for name in names:
        setattr(owner, name, lambda _self: None)
    try:
        yield
    finally:
        for name, method in kept.items():
            if method is None:
                delattr(owner, name)
            else:
                setattr(owner, name, method)


def config_files(app: Any) -> Iterator[str]:
    """Yield the files that an application's configuration would be read from."""
    for directory in app.config_file_paths:
        for name in ("ipython_config", *(name.removesuffix(".py") for name in app.config_files)):
            for suffix in (".py", ".json"):
                yield os.path.join(directory, name + suffix)


def suits(connection: dict[str, Any]) -> bool:
    """Tell whether :func:`give` can give an application such a connection."""
    return connection.get("signature_scheme") == SCHEME and not connection.get("curve_publickey")


def give(app: Any, argv: list[str], connection: dict[str, Any]) -> None:
    """Let a prepared application be the kernel of another connection, to which its sockets have been renamed."""
    sys.argv = argv
    app.connection_file = app.config.IPKernelApp.connection_file = argv[2]
    app.ip = connection["ip"]
    app.session.key = connection["key"].encode()
    shell = app.shell
    shell.starting_dir = os.getcwd()
    # The shell's own variables win over the notebook's, as when it is made after them.
    shell.init_environment()
    if session_name := os.environ.get(_SESSION_NAME):
        shell.user_ns["__session__"] = session_name


def run(app: Any, start: Any, directory: str, notes: Iterable[str]) -> None:
    """Say that the kernel's sockets are bound, run the user's own startup, and serve the kernel to its end.

    :param start: has the pipe that says so, and the conversation with the forkserver.
    """
    link = Link(start.link, os.path.join(directory, NOTES), notes)
    # What still comes is not waited for: clients find the sockets meanwhile.
    os.write(start.ready, b"1")
    os.close(start.ready)
    # Variables of the notebook came after the interpreter had looked at them.
    time.tzset()
    shell = app.shell
    if shell.history_manager is None:
        shell.init_history()
        shell.init_user_ns()
    app.init_gui_pylab()
    app.init_extensions()
    app.init_code()
    sys.stdout.flush()
    sys.stderr.flush()
    advice.attend(shell)
    kit.load(shell)
    Away(directory).attend()
    link.attach(shell)
    app.start()


class Link:
    """Tells the forkserver when cells run, and shows its notes on the stderr of the cell that runs, or of the next.

    :param path: where notes come: by a name, so that a forkserver that was started anew finds it too.
    :param notes: those for the first cell.
    """

    def __init__(self, sock: socket.socket, path: str, notes: Iterable[str]) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._running = 0
        self._notes = list(notes)
        self._incoming = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._incoming.setblocking(False)
        self._incoming.bind(path)

    def attach(self, shell: Any) -> None:
        """Take notice of a shell's cells."""
        shell.events.register("pre_execute", self._begin)
        shell.events.register("post_execute", self._end)
        self._tell(b"I")

    def _begin(self) -> None:
        self._running += 1
        self._tell(b"B")
        self._show_notes()

    def _end(self) -> None:
        self._show_notes()
        self._running = max(0, self._running - 1)
        if not self._running:
            self._tell(b"I")

    def _tell(self, state: bytes) -> None:
        # A forkserver that was started anew does not listen here any more.
        with contextlib.suppress(OSError):
            self._sock.send(state)

    def _show_notes(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self._notes.append(self._incoming.recv(65536).decode(errors="replace"))
        while self._notes:
            print("[lima-kernels] " + self._notes.pop(0).replace("\n", " "), file=sys.stderr, flush=True)
