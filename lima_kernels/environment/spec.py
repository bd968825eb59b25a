"""The environment file: what a VM is. Parsing is done here, at the edge; frozen structs go on from here.

Field names are Lima's where Lima has them (``mountType``, ``mountPoint``).
"""

from __future__ import annotations

import enum
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import yaml

from ..errors import ConfigurationError, nearest
from ..lima.mounting import MountType
from ..lima.sizes import in_bytes
from . import mounts
from .mounts import MountOptions, MountSpec, NinepOptions, SshfsOptions, VirtiofsOptions

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_APT_NAME = re.compile(r"[a-z0-9][a-z0-9.+-]*(?::[a-z0-9]+)?(?:=[\w.+:~-]+)?")
_VARIABLE = re.compile(r"\$(?:(\w+)|\{([^}]+)\})", re.ASCII)


class ProvisionMode(enum.Enum):
    """As whom a provision script runs: root or the guest's user."""

    SYSTEM = "system"
    USER = "user"


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    pass


class KernelFile(_Strict, frozen=True):
    location: str
    cmdline: str = ""


class InitrdFile(_Strict, frozen=True):
    location: str


class ImageFiles(_Strict, frozen=True):
    """A guest image given by its files, booted directly when a kernel is given."""

    location: str
    kernel: KernelFile | None = None
    initrd: InitrdFile | None = None


class ProvisionScript(_Strict, frozen=True):
    """A script that Lima runs at every boot of the guest."""

    script: str
    mode: ProvisionMode = ProvisionMode.SYSTEM


class Environment(_Strict, frozen=True, kw_only=True):
    """What a VM is; the environment file's content, relative paths resolved against the file's directory.

    ``image`` is the name of an image built on this host, else of a Lima template, or files. ``memory`` and ``disk``
    are sizes such as ``4GiB``; without them, and without ``cpus``, Lima's defaults hold. ``mount_options`` hold for
    all mounts that say nothing else themselves, the notebook's directory included.
    """

    image: str | ImageFiles = "debian-12"
    cpus: int | None = None
    memory: str | None = None
    disk: str | None = None
    mount_type: MountType | None = None
    mount_inotify: bool | None = None
    mount_options: MountOptions = MountOptions()
    mounts: tuple[MountSpec, ...] = ()
    apt: tuple[str, ...] = ()
    python: tuple[str, ...] = ()
    provision: tuple[ProvisionScript, ...] = ()
    env: dict[str, str] = {}

    @property
    def digest(self) -> str:
        """SHA-256 of what differs from the defaults, in hexadecimal: a key that is new to us changes no older one's."""
        plain = msgspec.structs.asdict(DEFAULT)
        return _digest({key: value for key, value in msgspec.structs.asdict(self).items() if value != plain[key]})

    @property
    def image_digest(self) -> str:
        """The same of the image alone: the one thing that an instance cannot change later."""
        return _digest(self.image)


def _digest(value: object) -> str:
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()


DEFAULT = Environment()


def _field_names(*structs: type[msgspec.Struct]) -> tuple[str, ...]:
    return tuple(field.encode_name for struct in structs for field in msgspec.structs.fields(struct))


_FIELDS = _field_names(Environment)
_NESTED = {
    "image": _field_names(ImageFiles),
    "kernel": _field_names(KernelFile),
    "initrd": _field_names(InitrdFile),
    "mountOptions": _field_names(MountOptions),
    "mounts": _field_names(MountSpec),
    "9p": _field_names(NinepOptions),
    "sshfs": _field_names(SshfsOptions),
    "virtiofs": _field_names(VirtiofsOptions),
    "provision": _field_names(ProvisionScript),
}
_CHOICES: dict[str, type[enum.Enum]] = {
    "mountType": MountType,
    "mode": ProvisionMode,
    "securityModel": mounts.SecurityModel,
    "protocolVersion": mounts.ProtocolVersion,
    "cache": mounts.NinepCache,
    "sftpDriver": mounts.SftpDriver,
}


def _error(source: str, what: str, hint: str = "") -> ConfigurationError:
    return ConfigurationError(f"{source}: {what}", hint=hint)


def _explain(source: str, error: msgspec.ValidationError) -> ConfigurationError:
    """Turn msgspec's words into a line that names the field's path."""
    text, _, path = str(error).partition(" - at `$")
    if not path:
        text, _, path = str(error).partition(" - at `key` in `$")
    path = path.rstrip("`").lstrip(".")
    unknown = re.match(r"Object contains unknown field `(.+)`", text)
    if unknown:
        field = f"{path}.{unknown[1]}" if path else unknown[1]
        known = _NESTED.get(re.sub(r"\[.*?\]", "", path).rpartition(".")[2], _FIELDS)
        return _error(source, f"unknown key {field!r}.", nearest(unknown[1], known) or f"Known: {', '.join(known)}.")
    choices = _CHOICES.get(path.rpartition(".")[2]) if text.startswith("Invalid enum value") else None
    hint = f"Choose one of: {', '.join(member.value for member in choices)}." if choices else ""
    text = text.replace(" | null", "").replace("`", "")
    return _error(source, f"{text[0].lower()}{text[1:]} at {path or 'the top'}.", hint)


def _check(source: str, environment: Environment) -> None:
    if environment.cpus is not None and environment.cpus < 1:
        raise _error(source, f"cpus must be at least 1, got {environment.cpus} at cpus.")
    for name in ("memory", "disk"):
        value = getattr(environment, name)
        if value is not None and in_bytes(value) is None:
            raise _error(source, f"expected a size such as 4GiB, got {value!r} at {name}.")
    for number, package in enumerate(environment.apt):
        if not _APT_NAME.fullmatch(package):
            raise _error(source, f"{package!r} is not the name of a Debian package at apt[{number}].")
    for number, requirement in enumerate(environment.python):
        if not requirement.strip() or requirement.lstrip().startswith("-") or "\n" in requirement:
            raise _error(source, f"{requirement!r} is not a Python requirement at python[{number}].")
    for name in environment.env:
        if not _ENV_NAME.fullmatch(name):
            raise _error(source, f"{name!r} is not the name of an environment variable at env.")
    for what, hint in mounts.faults(environment.mounts, environment.mount_options, environment.mount_type):
        raise _error(source, what, hint)


def _absolute(source: str, field: str, location: str, base: Path) -> str:
    """Make a path of the host absolute; what cannot be replaced in it is no name of a directory, but a mistake."""
    if not location or "\0" in location:
        raise _error(source, f"expected a path, got {location!r} at {field}.")

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if not os.environ.get(name):
            raise _error(source, f"the variable {name} in {location!r} at {field} is not set, or empty.")
        return os.environ[name]

    expanded = _VARIABLE.sub(value, location)
    if location.startswith("~"):
        expanded = os.path.expanduser(expanded)
        if expanded.startswith("~"):
            user = expanded.partition("/")[0][1:]
            raise _error(source, f"there is no user {user!r}, whom {location!r} at {field} names.")
    return os.path.normpath(base / expanded)


def _resolve(source: str, environment: Environment, base: Path) -> Environment:
    """Make every path of the host absolute."""

    def absolute(field: str, location: str) -> str:
        return _absolute(source, field, location, base)

    image = environment.image
    if isinstance(image, ImageFiles):
        image = _resolved_image(image, absolute)
    shown = tuple(
        mounts.tidied(mount, absolute(f"mounts[{number}].location", mount.location))
        for number, mount in enumerate(environment.mounts)
    )
    return msgspec.structs.replace(environment, image=image, mounts=shown)


def _resolved_image(image: ImageFiles, absolute: Callable[[str, str], str]) -> ImageFiles:
    kernel, initrd = image.kernel, image.initrd
    return ImageFiles(
        absolute("image.location", image.location),
        kernel and KernelFile(absolute("image.kernel.location", kernel.location), kernel.cmdline),
        initrd and InitrdFile(absolute("image.initrd.location", initrd.location)),
    )


def parse(text: str, *, source: str, base: Path) -> Environment:
    """Parse an environment file's text.

    :param source: how messages name it.
    :param base: the directory that relative paths start from.
    :raises ConfigurationError: one line that says what is wrong and where.
    """
    try:
        value: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise _error(f"{source}{where}", f"not YAML: {problem}.") from error
    except ValueError as error:
        # A date or a tagged number that Python cannot make.
        raise _error(source, f"not YAML: {error}.") from error
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise _error(source, f"expected keys such as {', '.join(_FIELDS[:4])}, got {type(value).__name__}.")
    try:
        environment = msgspec.convert(value, Environment)
    except msgspec.ValidationError as error:
        raise _explain(source, error) from error
    environment = _resolve(source, environment, base)
    _check(source, environment)
    return environment


def load(path: Path) -> Environment:
    """Read and parse an environment file.

    :raises ConfigurationError: when it cannot be read, or says what cannot be obeyed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigurationError(f"The environment file {path} cannot be read: {reason}.") from error
    return parse(text, source=str(path), base=path.resolve().parent)
