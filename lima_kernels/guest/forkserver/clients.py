"""Who talks with the forkserver, and who waits there for a kernel to start."""

from __future__ import annotations

import json
import sys
from typing import Any

from .kernels import Kernel
from .standbys import Standby
from .wire import Wire


class Refused(Exception):
    """A request that cannot be obeyed; its text goes back to the client."""


class Client:
    """One connection to us."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.incoming = b""

    def send(self, message: dict[str, Any]) -> None:
        self.wire.send(json.dumps(message).encode() + b"\n")


class Starting:
    """A kernel whose sockets are not bound yet, and whom to tell; ``ready`` is a pipe that ends with the exec.

    ``python`` is its own, and ``venv`` the environment of that, empty for our own; ``standby`` is what is to become the
    kernel, where that is not forked for it.
    """

    def __init__(
        self,
        kernel: Kernel,
        client: Client,
        request: dict[str, Any],
        venv: str,
        *,
        ready: int,
        standby: Standby | None = None,
    ) -> None:
        self.kernel = kernel
        self.client = client
        self.number = request.get("id")
        self.ready = ready
        self.is_program = bool(request.get("spec"))
        self.python = request.get("python") or sys.executable
        self.venv = venv
        self.standby = standby
