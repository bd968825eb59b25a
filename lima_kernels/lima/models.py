"""What limactl prints, as types; fields that we do not know are ignored, as limactl grows them."""

from __future__ import annotations

import enum
import re
from pathlib import Path
from typing import Any, NamedTuple

import msgspec


class Status(enum.Enum):
    """An instance's state, in Lima's words (lima ``pkg/limatype/lima_instance.go``)."""

    UNKNOWN = ""
    UNINITIALIZED = "Uninitialized"
    INSTALLING = "Installing"
    BROKEN = "Broken"
    STOPPED = "Stopped"
    RUNNING = "Running"

    @classmethod
    def _missing_(cls, value: object) -> Status:
        return cls.UNKNOWN


class Mount(msgspec.Struct, frozen=True, rename="camel"):
    """One entry of ``mounts`` in an instance's config."""

    location: str
    mount_point: str = ""
    writable: bool = False

    @property
    def guest_path(self) -> str:
        return self.mount_point or self.location


class User(msgspec.Struct, frozen=True):
    """The guest's user."""

    name: str = ""
    home: str = ""
    uid: int | None = None


class Provision(msgspec.Struct, frozen=True):
    """One provision entry; only what tells an instance of ours from others is read."""

    path: str = ""
    content: str = ""


class PortForward(msgspec.Struct, frozen=True, rename="camel"):
    """One rule of ``portForwards``; only sockets on this host are read."""

    host_socket: str = ""


class CopyToHost(msgspec.Struct, frozen=True):
    """A file that Lima copies from the guest when it has booted."""

    host_file: str = msgspec.field(default="", name="host")


class AdditionalDisk(msgspec.Struct, frozen=True):
    """One of Lima's disks that an instance names."""

    name: str = ""


class InstanceConfig(msgspec.Struct, frozen=True, rename="camel"):
    """The part of lima.yaml that we read back."""

    mounts: tuple[Mount, ...] = ()
    mount_type: str = ""
    mount_types_unsupported: tuple[str, ...] = ()
    user: User = User()
    provision: tuple[Provision, ...] = ()
    port_forwards: tuple[PortForward, ...] = ()
    copy_to_host: tuple[CopyToHost, ...] = ()


class Instance(msgspec.Struct, frozen=True, rename="camel"):
    """One line of ``limactl list``; memory and disk in bytes."""

    name: str
    raw_dir: str = msgspec.field(name="dir")
    raw_status: str = msgspec.field(default="", name="status")
    vm_type: str = ""
    arch: str = ""
    cpus: int = 0
    memory: int = 0
    disk: int = 0
    ssh_local_port: int = 0
    ssh_address: str = "127.0.0.1"
    host_agent_pid: int = msgspec.field(default=0, name="hostAgentPID")
    driver_pid: int = msgspec.field(default=0, name="driverPID")
    errors: tuple[str, ...] = ()
    config: InstanceConfig = InstanceConfig()
    additional_disks: tuple[AdditionalDisk, ...] = ()
    protected: bool = False
    lima_version: str = ""

    @property
    def dir(self) -> Path:
        return Path(self.raw_dir)

    @property
    def status(self) -> Status:
        return Status(self.raw_status)

    @property
    def is_up(self) -> bool:
        """Whether the VM runs, be its host agent dead or dumb: Lima calls that broken, but SSH goes on to work."""
        return self.status is Status.RUNNING or (self.status is Status.BROKEN and self.driver_pid > 0)

    @property
    def is_between(self) -> bool:
        """Whether there is a host agent without a VM: for a moment while an instance starts or stops."""
        return self.status is Status.BROKEN and self.host_agent_pid > 0 and self.driver_pid == 0


class Disk(msgspec.Struct, frozen=True):
    """One line of ``limactl disk list``: a disk of Lima's own; the size in bytes, ``instance`` has it locked."""

    name: str
    size: int = 0
    format: str = ""
    dir: str = ""
    instance: str = ""


class Snapshot(NamedTuple):
    """A state that an instance can go back to.

    :param memory: how much of the running VM it holds, in QEMU's words; ``0 B`` when the VM was stopped.
    :param made: when, in this host's time.
    """

    tag: str
    memory: str
    made: str


class LimaInfo(msgspec.Struct, frozen=True, rename="camel"):
    """What ``limactl info`` tells of Lima itself."""

    version: str = ""
    lima_home: str = ""
    vm_types: tuple[str, ...] = ()
    host_os: str = msgspec.field(default="", name="hostOS")
    host_arch: str = ""
    identity_file: str = ""


class LogLine(msgspec.Struct, frozen=True):
    """One line that limactl logs with ``--log-format json``."""

    msg: str = ""
    level: str = "info"


class AgentLine(LogLine, frozen=True):
    """One line that a host agent logged; the time in RFC 3339, where it is known."""

    time: str = ""


class LimaStatus(msgspec.Struct, frozen=True, rename="camel"):
    """What an event says of an instance (lima ``pkg/hostagent/events``)."""

    running: bool = False
    degraded: bool = False
    exiting: bool = False
    errors: tuple[str, ...] = ()
    ssh_local_port: int = 0


class Event(msgspec.Struct, frozen=True):
    """One line of ``ha.stdout.log``; what it tells of forwarded ports is read by :func:`decode_forwarded`."""

    time: str = ""
    status: LimaStatus = LimaStatus()


class Forwarded(msgspec.Struct, frozen=True, rename="camel"):
    """What an event says of a port that Lima forwards; ``type`` is Lima's word for what happened."""

    type: str = ""
    protocol: str = ""
    guest_addr: str = ""
    host_addr: str = ""


class _ForwardedIn(msgspec.Struct, frozen=True, rename="camel"):
    port_forward: Forwarded | None = None


class _ForwardEvent(msgspec.Struct, frozen=True):
    status: _ForwardedIn = _ForwardedIn()


_forward_decoder = msgspec.json.Decoder(_ForwardEvent)
_log_decoder = msgspec.json.Decoder(LogLine)
_agent_decoder = msgspec.json.Decoder(AgentLine)
_event_decoder = msgspec.json.Decoder(Event)


def decode_instances(text: str) -> tuple[Instance, ...]:
    """Decode what ``limactl list`` printed: a JSON object a line, then its errors as JSON texts, each behind a tab.

    :raises msgspec.DecodeError: when a line is not what it should be.
    """
    return tuple(_decode_instance(line) for line in text.split("\n") if line.strip())


def _decode_instance(line: str) -> Instance:
    head, *reasons = line.split("\t")
    value = _pruned(msgspec.json.decode(head))
    if isinstance(value, dict):
        # Go prints an error as an empty object.
        value["errors"] = [msgspec.json.decode(reason, type=str) for reason in reasons]
    return msgspec.convert(value, Instance)


def _pruned(value: Any) -> Any:
    """Drop null members: Go prints them for what is unset, and our fields have defaults for that."""
    if isinstance(value, dict):
        return {key: _pruned(member) for key, member in value.items() if member is not None}
    if isinstance(value, list):
        return [_pruned(member) for member in value]
    return value


# How `limactl snapshot` logs, whatever it is told: in logrus's own form.
_LOGRUS = re.compile(r'time="[^"]*" level=(?P<level>\w+) msg=(?P<msg>"(?:[^"\\]|\\.)*"|\S*)')


def decode_log_line(line: str) -> LogLine:
    """Decode one line of limactl's log; a line of another form is taken as the message itself."""
    try:
        return _log_decoder.decode(line)
    except msgspec.DecodeError:
        pass
    found = _LOGRUS.match(line)
    if found is None:
        return LogLine(msg=line)
    try:
        return LogLine(msgspec.json.decode(found["msg"], type=str), found["level"])
    except msgspec.DecodeError:
        # Without quotes, or with an escape of Go's that JSON does not know.
        return LogLine(found["msg"].strip('"'), found["level"])


def decode_agent_line(raw: bytes) -> AgentLine:
    """Decode one line of a host agent's log; a panic, or a line of which there is the end only, is its own message."""
    try:
        return _agent_decoder.decode(raw)
    except ValueError:
        return AgentLine(raw.decode(errors="replace"))


def decode_event(raw: bytes) -> Event | None:
    """Decode one event of a host agent, or return None when it is none."""
    try:
        return _event_decoder.decode(raw)
    except ValueError:
        return None


def decode_forwarded(raw: bytes) -> Forwarded | None:
    """Decode what an event of a host agent says of a forwarded port, or return None when it says nothing of one."""
    try:
        return _forward_decoder.decode(raw).status.port_forward
    except ValueError:
        return None


def decode_info(text: str) -> LimaInfo:
    """Decode what ``limactl info`` printed.

    :raises msgspec.DecodeError: when it is not what it should be.
    """
    return msgspec.convert(_pruned(msgspec.json.decode(text)), LimaInfo)


def decode_disks(text: str) -> tuple[Disk, ...]:
    """Decode what ``limactl disk list --json`` printed: a JSON object a line.

    :raises msgspec.DecodeError: when a line is not what it should be.
    """
    return tuple(msgspec.json.decode(line, type=Disk) for line in text.splitlines() if line.strip())


# ID, TAG, VM SIZE, DATE, VM CLOCK and maybe ICOUNT, in columns without a separator; a tag may have spaces.
_SNAPSHOT = re.compile(
    r"\S+\s+(?P<tag>\S.*?)\s+(?P<memory>[\d.]+ ?[KMGT]?i?B?)\s+(?P<made>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)\s"
)


def decode_snapshots(text: str) -> tuple[Snapshot, ...]:
    """Decode what ``limactl snapshot list`` printed, which is QEMU's own table; what is no row of it is passed over."""
    found = filter(None, map(_SNAPSHOT.match, text.splitlines()))
    return tuple(Snapshot(row["tag"], row["memory"], row["made"]) for row in found)
