"""What limactl prints, as types; fields that we do not know are ignored, as limactl grows them."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any

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


class Provision(msgspec.Struct, frozen=True):
    """One provision entry; only what tells an instance of ours from others is read."""

    path: str = ""
    content: str = ""


class InstanceConfig(msgspec.Struct, frozen=True, rename="camel"):
    """The part of lima.yaml that we read back."""

    mounts: tuple[Mount, ...] = ()
    mount_type: str = ""
    mount_types_unsupported: tuple[str, ...] = ()
    user: User = User()
    provision: tuple[Provision, ...] = ()


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


class LogLine(msgspec.Struct, frozen=True):
    """One line that limactl logs with ``--log-format json``."""

    msg: str = ""
    level: str = "info"


_log_decoder = msgspec.json.Decoder(LogLine)


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


def decode_log_line(line: str) -> LogLine:
    """Decode one line of limactl's log; a line that is no JSON is taken as the message itself."""
    try:
        return _log_decoder.decode(line)
    except msgspec.DecodeError:
        return LogLine(msg=line)
