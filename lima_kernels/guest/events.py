"""What a guest's forkserver tells of itself."""

from __future__ import annotations

import msgspec


class KernelExit(msgspec.Struct, frozen=True):
    """The end of a kernel, with its reason as far as it is known, and the last lines of its raw output."""

    kernel: str
    code: int
    log: tuple[str, ...] = ()
    reason: str = ""


class PowerOff(msgspec.Struct, frozen=True):
    """The guest shuts down because nobody used it for ``idle`` seconds."""

    idle: float


class Idle(msgspec.Struct, frozen=True):
    """The guest has not been used for ``idle`` seconds, and may be put to sleep."""

    idle: float


class JoinRequest(msgspec.Struct, frozen=True):
    """The sshfs of a mount wants to be served."""

    mount: str


class Unmounted(msgspec.Struct, frozen=True):
    """A mount is no more."""

    mount: str


MountEvent = JoinRequest | Unmounted
GuestEvent = KernelExit | PowerOff | Idle | MountEvent
