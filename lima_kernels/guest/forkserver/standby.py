"""A standby: a kernel that is forked, bound and made ready, and waits for a notebook that wants one.

The forkserver renames its directory to that of the kernel, and sends an order; a standby that is not what a fresh
kernel would be ends instead, and the forkserver forks a fresh one.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import struct
from typing import Any

from . import application
from .child import Start, adjust_oom_score, become, begin_session, take_environment, write_connection
from .leaving import leave
from .preload import DEBUGGER_VARIABLES

# The exit code of one whose Python has a configuration, which is the notebook's to read.
UNSUITED = 3
# What one says when its directory may be renamed.
PREPARED = b"P"
# Variables that ipykernel and what it imports look at before a notebook has been asked for.
_EARLY = (
    *DEBUGGER_VARIABLES,
    "HOME",
    "IPYKERNEL",
    "IPYTHON",
    "JUPYTER",
    "LD_",
    "PYTHON",
    "TRAITLETS",
    "VIRTUAL_ENV",
    "XDG_",
)
_SIZE = struct.Struct(">I")
_OOM_SCORE = 500


def serves(request: dict[str, Any]) -> bool:
    """Tell whether a standby of its Python can be the kernel that is asked for."""
    return (
        not request.get("spec")
        and not request.get("arguments")
        and application.suits(request["connection"])
        and not any(name.startswith(_EARLY) for name in request["env"])
    )


def order(directory: str, request: dict[str, Any]) -> bytes:
    """Return what makes a standby the kernel that is asked for, in the directory that is its own now."""
    text = json.dumps({"directory": directory, "request": request}).encode()
    return _SIZE.pack(len(text)) + text


def begin(start: Start) -> None:
    """Become a kernel, or stand by to become one; returns when it has ended, if it does not end the process itself."""
    if start.request:
        become(start)
    else:
        _stand_by(start)
    leave()


def _stand_by(start: Start) -> None:
    begin_session(start.directory)
    adjust_oom_score(_OOM_SCORE)
    write_connection(start.directory, _connection(start.directory))
    take_environment({}, start.python, {})
    app = application.prepare(application.arguments_of(start.directory, ()))
    if app.loaded_config_files:
        os._exit(UNSUITED)
    start.link.send(PREPARED)
    said = _wait(start.link)
    if any(os.path.exists(path) for path in application.config_files(app)):
        os._exit(UNSUITED)
    directory, request = said["directory"], said["request"]
    adjust_oom_score(0)
    write_connection(directory, request["connection"])
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    application.give(app, application.arguments_of(directory, ()), request["connection"])
    application.run(app, start, directory, request.get("notes", ()))


def _connection(directory: str) -> dict[str, Any]:
    """Return a connection that nobody else knows."""
    ports = {"shell_port": 1, "iopub_port": 2, "stdin_port": 3, "control_port": 4, "hb_port": 5}
    prefix = os.path.join(directory, "c")
    return {
        "transport": "ipc",
        "ip": prefix,
        **ports,
        "key": secrets.token_hex(32),
        "signature_scheme": application.SCHEME,
    }


def _wait(link: socket.socket) -> Any:
    """Return what a notebook wants; ends with the forkserver, which a standby is nothing without."""
    header = link.recv(_SIZE.size, socket.MSG_WAITALL)
    if len(header) < _SIZE.size:
        os._exit(0)
    (size,) = _SIZE.unpack(header)
    return json.loads(link.recv(size, socket.MSG_WAITALL))
