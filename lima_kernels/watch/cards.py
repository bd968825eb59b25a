"""The wire of panels: a VM as a card shows it, what it uses, a job, and the messages that tell of them; JSON.

Times are seconds since the epoch, sizes are bytes. Whoever reads ignores fields that he does not know.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import msgspec


class State(enum.Enum):
    """What a person calls a VM's state; ``gone`` is for a panel whose VM was deleted."""

    STOPPED = "stopped"
    ASLEEP = "asleep"
    CREATING = "creating"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    BROKEN = "broken"
    GONE = "gone"


class Kernel(msgspec.Struct, frozen=True, rename="camel"):
    """A kernel that lives in a VM; ``busy`` is None when it does not say, ``user`` is who has it on this host."""

    id: str
    title: str
    busy: bool | None
    user: str
    since: float


class Port(msgspec.Struct, frozen=True, rename="camel"):
    """A port or socket of the guest on this host; ``url`` is empty where no browser could open it."""

    host: str
    guest: str
    url: str


class Mount(msgspec.Struct, frozen=True, rename="camel"):
    """A directory of this host that the guest shows."""

    location: str
    mount_point: str
    writable: bool


class Problem(msgspec.Struct, frozen=True, rename="camel"):
    """Why a VM is not as it should be, and what to do; one line each."""

    message: str
    hint: str


class Card(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A VM.

    :param status: Lima's own word.
    :param phase: what is under way, for people; empty when nothing is.
    :param began: when that began.
    :param expected: seconds that such a start took before; None when there was none.
    :param disk_used: bytes that its disks take on this host; None when it has none yet.
    :param ours: whether lima-kernels made it.
    :param kernels: None when we are not connected to its guest.
    """

    name: str
    state: State
    status: str = ""
    phase: str = ""
    began: float | None = None
    expected: float | None = None
    cpus: int = 0
    memory: int = 0
    disk: int = 0
    disk_used: int | None = None
    arch: str = ""
    vm_type: str = ""
    ours: bool = False
    kernels: Sequence[Kernel] | None = None
    ports: Sequence[Port] = ()
    mounts: Sequence[Mount] = ()
    problem: Problem | None = None


class Usage(msgspec.Struct, frozen=True, rename="camel"):
    """What a VM uses now.

    :param cpu: the share of its CPUs that its process takes on this host, 0 to 1 and at times a little more; None in
        the first look.
    :param memory: bytes that the guest has in use; None when we are not connected to it.
    """

    name: str
    time: float
    cpu: float | None
    memory: int | None


class JobState(enum.Enum):
    """How far a job is."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Job(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A verb that somebody asked for, or the start of a VM for a kernel of this process (verb ``kernel``).

    :param step: what it is at, for people.
    :param message: what came of it, or why it failed, in one line.
    :param hint: what to do about that.
    :param context: further lines, such as the end of a log.
    """

    id: str
    vm: str
    verb: str
    state: JobState
    step: str = ""
    began: float
    expected: float | None = None
    message: str = ""
    hint: str = ""
    context: Sequence[str] = ()
    cancellable: bool = True


class Message(msgspec.Struct, frozen=True, rename="camel", tag_field="type"):
    """What a subscriber is told."""


class Snapshot(Message, frozen=True, tag="snapshot"):
    """All there is; what was told before holds no longer."""

    vms: Sequence[Card]
    jobs: Sequence[Job]


class CardChanged(Message, frozen=True, tag="vm"):
    """A VM is new, or changed."""

    vm: Card


class CardGone(Message, frozen=True, tag="gone"):
    """A VM is no more."""

    name: str


class UsageTaken(Message, frozen=True, tag="usage"):
    """What a VM uses now; only for who shows it."""

    usage: Usage


class LogGrown(Message, frozen=True, tag="log"):
    """New lines of a VM's log; only for who follows it."""

    name: str
    lines: Sequence[str]


class JobChanged(Message, frozen=True, tag="job"):
    """A job is new, or changed."""

    job: Job


class Visible(msgspec.Struct, frozen=True, tag_field="type", tag="visible"):
    """A client says whose usage it shows now; None for all."""

    names: Sequence[str] | None


class Follow(msgspec.Struct, frozen=True, tag_field="type", tag="follow"):
    """A client says whose log it wants; None for none."""

    name: str | None


_encoder = msgspec.json.Encoder()
_request: msgspec.json.Decoder[Visible | Follow] = msgspec.json.Decoder(Visible | Follow)


def encode(message: Message) -> bytes:
    """Return a message as it is sent."""
    return _encoder.encode(message)


def decode_request(raw: bytes | str) -> Visible | Follow:
    """Return what a client says.

    :raises msgspec.DecodeError: when it is nothing that we know.
    """
    return _request.decode(raw)
