"""The lima.yaml of one of our instances."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import yaml

from ..errors import InstanceError
from . import sizes
from .models import Instance

# Where debuggers and other helpers of a kernel listen when they take any free port: never forwarded to the host,
# where every local user could reach them. Lima's forwarding of ports that a user chose stays.
EPHEMERAL_PORTS = (32768, 65535)
# The size of a disk that a lima.yaml does not say.
_DISK = "100GiB"
# Of a line, beyond any that there is.
_WIDTH = 1 << 30


class Source(enum.Enum):
    """Where an instance's disk came from."""

    LOCAL = "local image"
    TEMPLATE = "template"
    FILES = "files"


class OwnerMark(msgspec.Struct, frozen=True):
    """What tells an instance of ours from others; written into its lima.yaml, so it is there from the beginning.

    ``environment`` and ``image`` are digests of what it was made from, ``source`` says what kind of image that was;
    ``provisioned`` is what the guest leaves when it is ready for kernels, and ``directories`` are those that it shows
    for notebooks, and not because its environment lists them; None when an earlier version of ours wrote it.
    ``image_sha256`` is that of the disk which the instance was made from, empty when it is not known.
    """

    version: int
    environment: str
    image: str
    source: Source
    provisioned: str
    directories: tuple[str, ...] | None = None
    image_sha256: str = ""


MARK_VERSION = 1


class GuestFile(NamedTuple):
    """A file that Lima writes in the guest at every boot; content and path are templates of Lima's."""

    path: str
    content: str
    permissions: str = ""
    owner: str = ""

    @property
    def entry(self) -> dict[str, str]:
        """It as a provision entry of a lima.yaml; what is not said is left to Lima."""
        said = {"path": self.path, "content": self.content, "permissions": self.permissions, "owner": self.owner}
        return {"mode": "data", **{key: value for key, value in said.items() if value or key == "content"}}


def literal(text: str) -> str:
    """Return what Lima's templates make a text of: there ``{{`` would begin an action."""
    return text.replace("{{", '{{"{{"}}')


class Config(NamedTuple):
    """What of a lima.yaml is ours to say; sizes as Lima writes them, such as ``4GiB``."""

    images: Sequence[dict[str, Any]]
    mounts: Sequence[dict[str, Any]]
    provision: Sequence[dict[str, str]]
    files: Sequence[GuestFile]
    ca_certificates: Sequence[str] = ()
    cpus: int | None = None
    memory: str | None = None
    disk: str | None = None
    mount_type: str | None = None
    mount_inotify: bool | None = None
    arch: str | None = None
    legacy_bios: bool = False
    port_forwards: Sequence[dict[str, Any]] = ()


def render(config: Config, base: str = "") -> str:
    """Return a lima.yaml.

    :param base: a template with everything embedded; its images serve when the config has none, its mounts are dropped:
        only what was asked for is shown to the guest.
    """
    document: dict[str, Any] = yaml.safe_load(base) if base else {}
    document["mounts"] = list(config.mounts)
    if config.images:
        document["images"] = list(config.images)
    said = {
        "cpus": config.cpus,
        "memory": config.memory,
        "disk": config.disk,
        "mountType": config.mount_type,
        "mountInotify": config.mount_inotify,
        "arch": config.arch,
    }
    document.update({key: value for key, value in said.items() if value is not None})
    if config.legacy_bios:
        document["firmware"] = {"legacyBIOS": True}
    document.setdefault("containerd", {"system": False, "user": False})
    document["ssh"] = {**(document.get("ssh") or {}), "loadDotSSHPubKeys": False, "forwardAgent": False}
    # Lima takes the first that fits.
    forwards = [*config.port_forwards, *(document.get("portForwards") or [])]
    document["portForwards"] = [*forwards, *_ignored_ports()]
    files = [file.entry for file in config.files]
    document["provision"] = [*(document.get("provision") or []), *files, *config.provision]
    if config.ca_certificates:
        document["caCerts"] = {"certs": list(config.ca_certificates)}
    return _dumped(document)


class Hardware(NamedTuple):
    """What an instance is to have; sizes in bytes, architecture and VM type in Lima's words, None for no word on it."""

    cpus: int | None = None
    memory: int | None = None
    disk: int | None = None
    arch: str | None = None
    vm_type: str | None = None

    @property
    def said(self) -> dict[str, Any]:
        """What there is a word on, as a lima.yaml says it."""
        values = {
            "cpus": self.cpus,
            "memory": sizes.written(self.memory) if self.memory else None,
            "disk": sizes.written(self.disk) if self.disk else None,
            "arch": self.arch,
            "vmType": self.vm_type,
        }
        return {key: value for key, value in values.items() if value is not None}

    @property
    def expression(self) -> str:
        """The same for yq, with which limactl changes a lima.yaml."""
        return " | ".join(f".{key} = {msgspec.json.encode(value).decode()}" for key, value in self.said.items())


def with_hardware(config: str, hardware: Hardware) -> str:
    """Return a lima.yaml with other hardware; as it is when there is no word on any."""
    return _dumped({**yaml.safe_load(config), **hardware.said}) if hardware.said else config


def with_disk_of(config: str, disk: int) -> str:
    """Return a lima.yaml whose disk is not smaller than one that exists, in bytes."""
    document = yaml.safe_load(config) or {}
    wanted = sizes.in_bytes(str(document.get("disk") or _DISK))
    if wanted is None or wanted >= disk:
        return config
    return _dumped({**document, "disk": sizes.written(disk)})


def kept(before: str, after: str, hardware: Hardware) -> bool:
    """Tell whether an edit of a lima.yaml changed nothing but the hardware."""
    return bool({**yaml.safe_load(before), **hardware.said} == {**yaml.safe_load(after), **hardware.said})


def editable(config: str) -> str:
    """Return the same lima.yaml in the form that limactl's edits keep."""
    return _dumped(yaml.safe_load(config))


class _Dumper(yaml.SafeDumper):
    """Writes what limactl can edit: it tears strings of several lines apart that are not in double quotes."""


def _represented(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\n" in text else None)


_Dumper.add_representer(str, _represented)


def _dumped(document: dict[str, Any]) -> str:
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=_WIDTH)


def unsupported_mount_types(base: str) -> tuple[str, ...]:
    """Return the mount types that a template says its kernel does not know; an empty text is no template."""
    return tuple((yaml.safe_load(base) or {}).get("mountTypesUnsupported") or ()) if base else ()


def _ignored_ports() -> list[dict[str, Any]]:
    """Rules for loopback, and for all addresses: a rule for the one does not hold for the other."""
    anywhere = {"guestIP": "0.0.0.0", "guestIPMustBeZero": False}  # noqa: S104
    return [
        {**where, "guestPortRange": list(EPHEMERAL_PORTS), "proto": proto, "ignore": True}
        for where in ({}, anywhere)
        for proto in ("tcp", "udp")
    ]


def owner_mark(instance: Instance, path: str) -> OwnerMark | None:
    """Return the mark in an instance's config, or None when the instance is not ours.

    :param path: the marked file's path in the guest.
    :raises InstanceError: when another version of lima-kernels made it, whose mark we cannot read.
    """
    for entry in instance.config.provision:
        if entry.path == path:
            try:
                mark = msgspec.json.decode(entry.content, type=OwnerMark)
            except msgspec.DecodeError:
                mark = None
            if mark is None or mark.version != MARK_VERSION:
                raise InstanceError(
                    f"The VM {instance.name!r} was made by another version of lima-kernels.",
                    hint=f"To make it anew, which deletes its disk: limactl delete --force {instance.name}",
                )
            return mark
    return None
