"""What a fork does to become a kernel: its session, its files, its environment; then ipykernel, or another program."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import os
import signal
import socket
import string
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple, NoReturn

from . import advice, kit
from .kernels import CONNECTION_FILE, NOTES, OUTPUT_LOG

# What systemd or sshd tells us of ourselves is no kernel's business.
_OURS_ONLY = (
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "SYSTEMD_EXEC_PID",
    "MAINPID",
    "SSH_CLIENT",
    "SSH_CONNECTION",
    "SSH_TTY",
)
_NOT_FOUND = 127


class Start(NamedTuple):
    """What the child of a fork takes along.

    ``spec`` is a guest's kernel spec (argv, env, resource_dir), or None for ipykernel in this very process; ``python``
    is that of the environment it belongs to; ``ready`` is a pipe that says that its sockets are bound; ``link`` is its
    conversation with the forkserver.
    """

    request: dict[str, Any]
    directory: str
    spec: dict[str, Any] | None
    python: str
    ready: int
    link: socket.socket


class Spawned(BaseException):
    """Carries the child of a fork out of its parent's loop, so that a kernel runs on a clean stack."""

    def __init__(self, start: Start) -> None:
        self.start = start


def become(start: Start) -> None:
    """Become the kernel; returns when ipykernel ends, and never for another program."""
    os.setsid()
    log = os.open(os.path.join(start.directory, OUTPUT_LOG), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(log)
    os.close(null)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        # The forkserver is kept when memory runs out; a kernel is not.
        file.write("0")
    connection_file = os.path.join(start.directory, CONNECTION_FILE)
    with open(os.open(connection_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(start.request["connection"], file)
    _take_environment(start)
    os.chdir(start.request["cwd"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(signum, signal.SIG_DFL)
    if start.spec is not None:
        _execute(start, start.spec, connection_file)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    _run_ipykernel(start, connection_file)


def _take_environment(start: Start) -> None:
    for name in _OURS_ONLY:
        os.environ.pop(name, None)
    binaries = os.path.dirname(start.python)
    os.environ["PATH"] = binaries + os.pathsep + os.environ.get("PATH", os.defpath)
    if start.spec is not None:
        here = dict(os.environ)
        for name, value in start.spec["env"].items():
            os.environ[name] = string.Template(value).safe_substitute(here)
    os.environ.update(start.request["env"])


def _execute(start: Start, spec: dict[str, Any], connection_file: str) -> NoReturn:
    prefix = os.path.dirname(os.path.dirname(start.python))
    known = {"connection_file": connection_file, "resource_dir": spec["resource_dir"], "prefix": prefix}
    argv = [part.format_map(_Literal(known)) for part in spec["argv"]]
    try:
        os.execvp(argv[0], [*argv, *start.request.get("arguments", ())])
    except OSError as error:
        print("%s cannot be run: %s" % (argv[0], error.strerror), file=sys.stderr, flush=True)
        os._exit(_NOT_FOUND)


class _Literal(dict[str, str]):
    """Leaves names in braces that it does not know as they are."""

    def __missing__(self, name: str) -> str:
        return "{%s}" % name


def _run_ipykernel(start: Start, connection_file: str) -> None:
    import ipykernel_launcher
    from ipykernel.kernelapp import IPKernelApp

    # An interpreter of its own would have taken PYTHONPATH over at its start.
    sys.path[:0] = [entry for entry in start.request["env"].get("PYTHONPATH", "").split(os.pathsep) if entry]
    sys.argv = [ipykernel_launcher.__file__, "-f", connection_file, *start.request.get("arguments", ())]
    gc.unfreeze()
    # So that the log says where a kernel crashed; its stderr itself goes to the notebook from now on.
    crashes = os.fdopen(os.dup(2), "w")
    faulthandler.enable(crashes, all_threads=False)
    # As if systemd were the parent: nothing to watch, and no advice to press Ctrl-C.
    app: Any = IPKernelApp.instance(parent_handle=1)
    advice.keep_history_here(app)
    app.initialize(sys.argv[1:])
    advice.attend(app.shell)
    kit.load(app.shell)
    Link(start.link, os.path.join(start.directory, NOTES), start.request.get("notes", ())).attach(app.shell)
    os.write(start.ready, b"1")
    os.close(start.ready)
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
