"""A guest lets go of what it has of this host before it sleeps, and takes it up again when it is awake."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from .kernels import Forkserver, decoded

# Seconds: what was not written to the disk yet is written first.
LEAVE_TIMEOUT = 300.0


class Holder(msgspec.Struct, frozen=True):
    """A process of the guest that keeps a directory of this host in use; ``kernel`` is the one that it belongs to."""

    pid: int
    path: str
    program: str = ""
    kernel: str = ""


class Left(msgspec.Struct, frozen=True):
    """Whether the guest has let go; if not, which kernels work, or who holds what; neither when that is not known."""

    is_away: bool
    busy: tuple[str, ...] = ()
    held: tuple[Holder, ...] = ()


class _Use(msgspec.Struct, frozen=True):
    by: str


async def used_by(forkserver: Forkserver) -> str:
    """Return who uses the guest, in words, or nothing when nobody does.

    :raises GuestError: when an older forkserver cannot say.
    """
    return decoded(await forkserver.ask("use"), _Use).by


async def leave(forkserver: Forkserver, mounts: Sequence[str], *, force: bool) -> Left:
    """Let the guest unmount directories of this host; its kernels leave them, and remember where they were.

    :param force: also while cells run.
    :raises GuestError: when that cannot be tried.
    """
    return decoded(await forkserver.ask("leave", timeout=LEAVE_TIMEOUT, mounts=list(mounts), force=force), Left)


async def come_back(forkserver: Forkserver, mounts: Sequence[str], *, iid: str, now: float) -> None:
    """Let the guest mount them again, in the order in which they are given.

    :param iid: what Lima calls this start of the VM; empty when it has not slept.
    :param now: the time, in seconds since the epoch.
    :raises GuestError: when one cannot be mounted.
    """
    await forkserver.ask("return", mounts=list(mounts), iid=iid, now=now)
