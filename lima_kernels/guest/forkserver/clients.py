"""Who talks with the forkserver, and who waits there for a kernel to start."""

from __future__ import annotations

import json
from typing import Any

from .kernels import Kernel
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
    """A kernel whose sockets are not bound yet, and whom to tell; ``ready`` is a pipe that ends with the exec."""

    def __init__(self, kernel: Kernel, client: Client, number: object, ready: int, is_program: bool) -> None:
        self.kernel = kernel
        self.client = client
        self.number = number
        self.ready = ready
        self.is_program = is_program
