"""A process of an environment's own Python that has ipykernel imported, and forks kernels for the forkserver.

What a kernel is to be comes with its two descriptors, as a file in memory, and is answered by its process id. It
becomes a child of the forkserver, which takes orphans in, and begins when that says that it knows of it.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import Any

from . import environments
from .child import Spawned, Start
from .preload import preload
from .standby import begin

# Where a zygote has its conversation with the forkserver.
CONTROL = 3
# What the forkserver sends: an order to fork; and, to the kernel itself, that it may begin.
FORK = b"F"
BEGIN = b"G"
_DESCRIPTORS = 3
# A process id, or the reason why there is none.
_ANSWER = 4096
_COMM = "/proc/self/comm"


def _call_itself(name: str) -> None:
    with open(_COMM, "w", encoding="utf-8") as file:
        file.write(name)


def _tell(control: socket.socket, **said: object) -> None:
    control.send(json.dumps(said).encode())


def _fork(control: socket.socket, order: int, ready: int, link: int) -> dict[str, Any]:
    """Fork a kernel that is no child of ours, and return what to answer; the kernel leaves by :class:`Spawned`."""
    told, tell = os.pipe()
    middle = os.fork()
    if middle == 0:
        try:
            pid = os.fork()
            text = b"%d" % pid
        except OSError as error:
            pid, text = -1, str(error.strerror).encode()
        if pid:
            os.write(tell, text)
            # The forkserver is the kernel's parent from here on.
            os._exit(0)
        os.close(told)
        os.close(tell)
        control.close()
        raise Spawned(_start(order, ready, link))
    os.close(tell)
    text = os.read(told, _ANSWER)
    os.close(told)
    os.waitpid(middle, 0)
    return {"pid": int(text)} if text.isdigit() else {"error": "it could not fork: %s" % text.decode(errors="replace")}


def _start(order: int, ready: int, link: int) -> Start:
    with open(order, "rb") as file:
        file.seek(0)
        said = json.load(file)
    return Start(said["request"], said["directory"], None, sys.executable, ready, socket.socket(fileno=link))


def serve(control: socket.socket) -> None:
    """Fork kernels until the forkserver hangs up."""
    while True:
        size = socket.CMSG_SPACE(_DESCRIPTORS * 4)
        # Not for the programs that a cell runs.
        message, extra, _, _ = control.recvmsg(len(FORK), size, socket.MSG_CMSG_CLOEXEC)
        if not message:
            return
        fds = memoryview(extra[0][2]).cast("i").tolist()
        try:
            answer = _fork(control, *fds)
        except OSError as error:
            answer = {"error": "it could not fork: %s" % error.strerror}
        for fd in fds:
            os.close(fd)
        _tell(control, **answer)


def main() -> int:
    """Serve until the forkserver ends; a forked kernel returns from here when it ends."""
    control = socket.socket(fileno=CONTROL)
    with open(_COMM, encoding="utf-8") as file:
        name = file.read().rstrip("\n")
    _call_itself(environments.ZYGOTE)
    failure = preload()
    try:
        _tell(control, failure=failure)
        if not failure:
            serve(control)
    except Spawned as caught:
        start = caught.start
    except (BrokenPipeError, ConnectionResetError):
        return 0
    else:
        return 0
    _call_itself(name)
    # A forkserver that was killed meanwhile knows nothing of this kernel; neither would the next.
    if start.link.recv(len(BEGIN)) != BEGIN:
        return 0
    # What it raises goes to the kernel's log, as an interpreter's own.
    begin(start)
    return 0
