"""One directory of the host that was added to the guest, and the record from which a new forkserver knows it."""

from __future__ import annotations

import enum
import socket
import subprocess
from typing import Any

from .clients import Client

RECORD_VERSION = 1


class State(enum.Enum):
    """A mount's state; at its end it is not there."""

    STARTING = "starting"
    MOUNTED = "mounted"
    ENDING = "ending"


class Mount:
    """One directory of the host.

    ``point`` is its path here; ``users`` are kernels, and KEPT; ``owner`` is the token of who serves it on the host.
    """

    def __init__(self, name: str, request: dict[str, Any]) -> None:
        self.name = name
        self.point = str(request["point"])
        self.read_only = bool(request["read_only"])
        self.options = [str(option) for option in request["options"]]
        self.users = {str(user) for user in request.get("users", ())}
        self.state = State.STARTING
        self.owner = ""
        # sshfs until it is in the background, or what unmounts it.
        self.process: subprocess.Popen[bytes] | None = None
        # Who is answered when it is mounted, and when it is gone, each with the number of the request.
        self.waiting: list[tuple[Client, object]] = []
        self.leaving: list[tuple[Client, object]] = []
        # Users that are no kernels yet: they go with the client that spoke for them.
        self.announced: dict[str, Client] = {}
        # What sshfs talks to, until the host carries it.
        self.joined: socket.socket | None = None
        self.unused_since: float | None = None

    @property
    def source(self) -> str:
        """What the guest's own table of mounts calls it."""
        return "lima-kernels-%s:/" % self.name

    def describe(self) -> dict[str, Any]:
        return {
            "point": self.point,
            "read_only": self.read_only,
            "users": sorted(self.users),
            "state": self.state.value,
        }

    def record(self) -> dict[str, Any]:
        return {
            "version": RECORD_VERSION,
            "point": self.point,
            "read_only": self.read_only,
            "options": self.options,
            "users": sorted(self.users),
        }

    def covers(self, path: str) -> bool:
        return path == self.point or path.startswith(self.point.rstrip("/") + "/")
