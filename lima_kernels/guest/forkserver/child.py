"""What a fork does to become a kernel: its session, its files, its environment; then ipykernel, or another program."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import string
import sys
from typing import Any, NamedTuple, NoReturn

from . import application
from .kernels import CONNECTION_FILE, OUTPUT_LOG
from .preload import forget_debugger

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
    begin_session(start.directory)
    adjust_oom_score(0)
    connection_file = write_connection(start.directory, start.request["connection"])
    take_environment(start.request["env"], start.python, start.spec["env"] if start.spec is not None else {})
    os.chdir(start.request["cwd"])
    if start.spec is not None:
        _execute(start, start.spec, connection_file)
    # An interpreter of its own would have taken PYTHONPATH over at its start.
    sys.path[:0] = [entry for entry in start.request["env"].get("PYTHONPATH", "").split(os.pathsep) if entry]
    forget_debugger()
    app = application.prepare(application.arguments_of(start.directory, start.request.get("arguments", ())))
    application.run(app, start, start.directory, start.request.get("notes", ()))


def begin_session(directory: str) -> None:
    """Have a session, an output and signals of our own."""
    os.setsid()
    log = os.open(os.path.join(directory, OUTPUT_LOG), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(log)
    os.close(null)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(signum, signal.SIG_DFL)


def adjust_oom_score(score: int) -> None:
    """Say who ends first when memory runs out: the forkserver is kept, a kernel is not, a standby goes before it."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write(str(score))


def write_connection(directory: str, connection: dict[str, Any]) -> str:
    """Write a kernel's connection file and return its path."""
    path = os.path.join(directory, CONNECTION_FILE)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump(connection, file)
    return path


def take_environment(env: dict[str, str], python: str, of_spec: dict[str, str]) -> None:
    """Have the environment of a kernel, from that of the forkserver.

    :param env: what the notebook wants.
    :param python: the kernel's Python, whose programs are found first.
    :param of_spec: what a guest's kernel spec wants, in which other variables are replaced.
    """
    for name in _OURS_ONLY:
        os.environ.pop(name, None)
    os.environ["PATH"] = os.path.dirname(python) + os.pathsep + os.environ.get("PATH", os.defpath)
    here = dict(os.environ)
    for name, value in of_spec.items():
        os.environ[name] = string.Template(value).safe_substitute(here)
    os.environ.update(env)


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
