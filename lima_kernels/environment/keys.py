"""The keys of an environment file, as types; what is wrong with their values is said in checks.py.

Names are Lima's where Lima has them. The descriptions are what an editor shows: they go into the JSON Schema.
"""

from __future__ import annotations

import enum
import hashlib
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ..lima.mounting import MountType
from .mounts import MountOptions, MountSpec


class ProvisionMode(enum.Enum):
    """As whom a provision script runs: root or the guest's user."""

    SYSTEM = "system"
    USER = "user"


class ProvisionTime(enum.Enum):
    """When a provision script runs: at every boot, or until it has succeeded once on a VM's disk."""

    BOOT = "boot"
    ONCE = "once"


class Arch(enum.Enum):
    """The guest's CPU, in Lima's words."""

    X86_64 = "x86_64"
    AARCH64 = "aarch64"


class HostCertificates(enum.Enum):
    """Whether a guest trusts the certificate authorities that were added to this host."""

    AUTO = "auto"
    NONE = "none"


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """What may have the keys that are named, and no others."""


class KernelFile(Strict, frozen=True):
    """A Linux kernel that is booted directly."""

    location: Annotated[str, Meta(description="The kernel's file on this host.")]
    cmdline: Annotated[str, Meta(description="Its command line.")] = ""


class InitrdFile(Strict, frozen=True):
    """The initial RAM disk of a kernel that is booted directly."""

    location: Annotated[str, Meta(description="The file on this host.")]


class ImageFiles(Strict, frozen=True):
    """A guest image given by its files, booted directly when a kernel is given."""

    location: Annotated[str, Meta(description="The disk's file on this host, qcow2 or raw.")]
    kernel: Annotated[KernelFile | None, Meta(description="A kernel to boot without the disk's boot loader.")] = None
    initrd: Annotated[InitrdFile | None, Meta(description="Its initial RAM disk.")] = None
    digest: Annotated[str, Meta(description="What the disk's file has to be: sha256: and 64 hexadecimal digits.")] = ""


class ProvisionScript(Strict, frozen=True):
    """A script that Lima runs when the guest boots."""

    script: Annotated[str, Meta(description="The script; its first line may name what runs it, such as #!/bin/bash.")]
    mode: Annotated[ProvisionMode, Meta(description="As root (system) or as the guest's user (user).")] = (
        ProvisionMode.SYSTEM
    )
    when: Annotated[ProvisionTime, Meta(description="At every boot, or until it has succeeded once.")] = (
        ProvisionTime.BOOT
    )


class PythonSpec(Strict, frozen=True, kw_only=True):
    """The Python packages, from one or several places."""

    requirements: Annotated[tuple[str, ...], Meta(description="Requirements as pip takes them.")] = ()
    requirements_file: Annotated[str | None, Meta(description="A requirements.txt.")] = None
    pyproject: Annotated[
        str | None, Meta(description="A pyproject.toml, whose dependencies are meant; with the uv.lock beside it.")
    ] = None
    pylock: Annotated[str | None, Meta(description="A pylock.toml (PEP 751), which says all; it needs a lock.")] = None
    version: Annotated[
        str | None, Meta(description='The Python that the guest has to have, such as "3.11"; looked at, not installed.')
    ] = None


class PythonFiles(PythonSpec, frozen=True, kw_only=True):
    """The same with what its files hold; they may have changed since.

    ``collected`` are the requirements of ``requirements_file`` and ``pyproject``. ``texts`` are whole files by the
    names that uv knows them by: ``pyproject.toml``, ``uv.lock``, ``pylock.toml``.
    """

    collected: tuple[str, ...] = ()
    texts: dict[str, str] = {}


class FileSpec(Strict, frozen=True):
    """A small text file for the guest, written at every boot."""

    path: Annotated[str, Meta(description="Where it is in the guest; {{.Home}}/ begins one in the user's home.")]
    content: Annotated[str | None, Meta(description="What it holds.")] = None
    source: Annotated[str | None, Meta(description="A file of this host that it is a copy of.")] = None
    mode: Annotated[str, Meta(description="Its permissions, in quotes.")] = "0644"


class PortSpec(Strict, frozen=True):
    """A port of the guest that is reached on this host, at 127.0.0.1."""

    guest: Annotated[int, Meta(description="The port in the guest.")]
    host: Annotated[int | None, Meta(description="The port of this host; the same number when it is not said.")] = None


# Keys that came later. Digests do not count them at their defaults, so that no older digest changes.
_LATER: dict[type[msgspec.Struct], str] = {ImageFiles: "digest", ProvisionScript: "when"}


def plain(value: Any) -> Any:
    """Return a value of an environment as what its digest is made of: no paths of this host where contents count."""
    if isinstance(value, tuple):
        return [plain(member) for member in value]
    if isinstance(value, PythonFiles):
        found = {"requirements": [*value.requirements, *value.collected], "texts": value.texts}
        return {**found, "version": value.version}
    later = _LATER.get(type(value))
    built = msgspec.to_builtins(value)
    if later is not None:
        default = next(field.default for field in msgspec.structs.fields(value) if field.name == later)
        if getattr(value, later) == default:
            del built[later]
    return built


class Environment(Strict, frozen=True, kw_only=True):
    """What a VM is; the environment file's content, relative paths resolved against the file's directory.

    ``image`` is the name of an image built on this host, else of a Lima template, or files. ``memory`` and ``disk``
    are sizes such as ``4GiB``; without them, and without ``cpus``, Lima's defaults hold. ``mount_options`` hold for
    all mounts that say nothing else themselves, the notebook's directory included. What it names of this host's files
    has been read: ``python`` is a :class:`PythonFiles` unless it is a list, every file has its content, and
    ``ca_certificates`` holds PEM texts. ``ports`` are all :class:`PortSpec`.
    """

    name: Annotated[str | None, Meta(description="The environment's name; its directory's when it is not said.")] = None
    image: Annotated[
        str | ImageFiles,
        Meta(description="An image built here, else a Lima template, or files; NAME@sha256:HEX names one alone."),
    ] = "debian-12"
    arch: Annotated[Arch | None, Meta(description="The guest's CPU; this host's when it is not said.")] = None
    cpus: Annotated[int | None, Meta(description="CPUs of the VM; Lima's default when it is not said.")] = None
    memory: Annotated[str | None, Meta(description="Memory of the VM, such as 4GiB.")] = None
    disk: Annotated[str | None, Meta(description="The disk's size, such as 50GiB.")] = None
    mount_type: Annotated[MountType | None, Meta(description="How directories are shown to the guest.")] = None
    mount_inotify: Annotated[bool | None, Meta(description="Tell the guest of changed files (Lima's own try).")] = None
    mount_options: Annotated[MountOptions, Meta(description="Options for all mounts.")] = MountOptions()
    mounts: Annotated[tuple[MountSpec, ...], Meta(description="More directories for the guest.")] = ()
    apt: Annotated[tuple[str, ...], Meta(description="Debian packages, each NAME, NAME=VERSION or NAME:ARCH.")] = ()
    python: Annotated[
        tuple[str, ...] | PythonSpec, Meta(description="Python packages: requirements, or files that list them.")
    ] = ()
    kernels: Annotated[
        tuple[str, ...], Meta(description="Kernels of the guest to offer, by their names there; python3 is ipykernel.")
    ] = ()
    provision: Annotated[tuple[ProvisionScript, ...], Meta(description="Scripts that run in the guest.")] = ()
    files: Annotated[tuple[FileSpec, ...], Meta(description="Small text files for the guest.")] = ()
    ports: Annotated[
        tuple[int | PortSpec, ...], Meta(description="Ports of the guest that are reached at 127.0.0.1 of this host.")
    ] = ()
    ca_certificates: Annotated[
        HostCertificates | tuple[str, ...],
        Meta(description="Authorities that the guest trusts: this host's own (auto), none, or PEM files."),
    ] = HostCertificates.AUTO
    env: Annotated[dict[str, str], Meta(description="Variables of every kernel.")] = {}

    @property
    def digest(self) -> str:
        """SHA-256 of what differs from the defaults, in hexadecimal: a key that is new to us changes no older one's."""
        default = msgspec.structs.asdict(DEFAULT)
        said = {key: value for key, value in msgspec.structs.asdict(self).items() if value != default[key]}
        return sha256({key: plain(value) for key, value in said.items()})

    @property
    def image_name(self) -> str:
        """The image's name without the digest that it may be pinned to; empty when it is given by files."""
        return "" if isinstance(self.image, ImageFiles) else self.image.partition("@")[0]

    @property
    def image_pin(self) -> str:
        """The SHA-256 that the image's disk has to have, in hexadecimal; empty when any will do."""
        pin = self.image.digest if isinstance(self.image, ImageFiles) else self.image.partition("@")[2]
        return pin.removeprefix("sha256:")

    @property
    def image_digest(self) -> str:
        """The digest of the image alone, whatever it is pinned to: the one thing that an instance cannot change."""
        if isinstance(self.image, ImageFiles):
            return sha256(plain(msgspec.structs.replace(self.image, digest="")))
        return sha256(self.image_name)

    @property
    def requirements(self) -> tuple[str, ...]:
        """What pip would be given: the requirements, and those of the files that list some."""
        if isinstance(self.python, PythonFiles):
            return (*self.python.requirements, *self.python.collected)
        return self.python.requirements if isinstance(self.python, PythonSpec) else self.python

    @property
    def python_version(self) -> str:
        """The Python that the guest has to have, such as ``3.11``; empty when any will do."""
        return (self.python.version or "") if isinstance(self.python, PythonSpec) else ""

    @property
    def python_texts(self) -> dict[str, str]:
        """The texts of ``pyproject.toml``, ``uv.lock`` and ``pylock.toml``, as far as it names them."""
        return self.python.texts if isinstance(self.python, PythonFiles) else {}

    @property
    def machine(self) -> Environment:
        """The same without what a lock brings: what is left is the VM's."""
        return msgspec.structs.replace(self, name=None, apt=(), python=(), kernels=(), env={})

    @property
    def machine_digest(self) -> str:
        """SHA-256 of the machine and its Debian packages: environments that have one digest may share a VM."""
        return msgspec.structs.replace(self.machine, apt=tuple(sorted(self.apt))).digest


def sha256(value: object) -> str:
    """Return the SHA-256 of a value that JSON can hold, in hexadecimal, whatever the order of its keys."""
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()


DEFAULT = Environment()
