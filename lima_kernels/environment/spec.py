"""The environment file: what a VM is. Parsing is done here, at the edge; frozen structs go on from here.

Field names are Lima's where Lima has them (``mountType``, ``mountPoint``).
"""

from __future__ import annotations

import enum
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from ..errors import ConfigurationError, nearest
from ..lima.mounting import MountType
from . import checks, mounts, requirements, yaml_text
from .certificates import certificates_in
from .keys import (
    DEFAULT,
    Arch,
    Environment,
    FileSpec,
    HostCertificates,
    ImageFiles,
    InitrdFile,
    KernelFile,
    PortSpec,
    ProvisionMode,
    ProvisionScript,
    ProvisionTime,
    PythonFiles,
    PythonSpec,
)
from .mounts import MountOptions, MountSpec, NinepOptions, SshfsOptions, VirtiofsOptions

__all__ = ["DEFAULT", "Environment", "load", "parse"]

_VARIABLE = re.compile(r"\$(?:(\w+)|\{([^}]+)\})", re.ASCII)


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
    "python": _field_names(PythonSpec),
    "provision": _field_names(ProvisionScript),
    "files": _field_names(FileSpec),
    "ports": _field_names(PortSpec),
}
_CHOICES: dict[str, type[enum.Enum]] = {
    "arch": Arch,
    "mountType": MountType,
    "mode": ProvisionMode,
    "when": ProvisionTime,
    "caCertificates": HostCertificates,
    "securityModel": mounts.SecurityModel,
    "protocolVersion": mounts.ProtocolVersion,
    "cache": mounts.NinepCache,
    "sftpDriver": mounts.SftpDriver,
}
# What YAML takes for a number: a version, and permissions.
_TO_BE_QUOTED = re.compile(r"python\.version|files\[\d+\]\.mode")


def _explain(document: yaml_text.Document, error: msgspec.ValidationError) -> ConfigurationError:
    """Turn msgspec's words into a line that names the field's path."""
    text, _, path = str(error).partition(" - at `$")
    if not path:
        text, _, path = str(error).partition(" - at `key` in `$")
    path = path.rstrip("`").lstrip(".")
    unknown = re.match(r"Object contains unknown field `(.+)`", text)
    if unknown:
        field = f"{path}.{unknown[1]}" if path else unknown[1]
        known = _NESTED.get(re.sub(r"\[.*?\]", "", path).rpartition(".")[2], _FIELDS)
        hint = nearest(unknown[1], known) or f"Known: {', '.join(known)}."
        return document.error(field, f"unknown key {field!r}.", hint)
    choices = _CHOICES.get(path.rpartition(".")[2]) if text.startswith("Invalid enum value") else None
    hint = f"Choose one of: {', '.join(member.value for member in choices)}." if choices else ""
    if _TO_BE_QUOTED.fullmatch(path):
        hint = "Put it into quotes."
    text = text.replace(" | null", "").replace("`", "")
    return document.error(path, f"{text[0].lower()}{text[1:]} at {path or 'the top'}.", hint)


def _absolute(document: yaml_text.Document, field: str, location: str, base: Path) -> str:
    """Make a path of the host absolute; what cannot be replaced in it is no name of a directory, but a mistake."""
    if not location or "\0" in location:
        raise document.error(field, f"expected a path, got {location!r} at {field}.")

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if not os.environ.get(name):
            what = f"the variable {name} in {location!r} at {field} is not set, or empty."
            raise document.error(field, what)
        return os.environ[name]

    expanded = _VARIABLE.sub(value, location)
    if location.startswith("~"):
        expanded = os.path.expanduser(expanded)
        if expanded.startswith("~"):
            user = expanded.partition("/")[0][1:]
            raise document.error(field, f"there is no user {user!r}, whom {location!r} at {field} names.")
    return os.path.normpath(base / expanded)


def _resolve(document: yaml_text.Document, environment: Environment, base: Path) -> Environment:
    """Make every path of the host absolute, and read the files that are meant by their content."""

    def absolute(field: str, location: str) -> str:
        return _absolute(document, field, location, base)

    image = environment.image
    if isinstance(image, ImageFiles):
        image = _resolved_image(image, absolute)
    shown = tuple(
        mounts.tidied(mount, absolute(f"mounts[{number}].location", mount.location))
        for number, mount in enumerate(environment.mounts)
    )
    python = environment.python
    if isinstance(python, PythonSpec):
        python = requirements.collected(python, absolute)
    return msgspec.structs.replace(
        environment,
        image=image,
        mounts=shown,
        python=python,
        files=tuple(_resolved_file(document, number, file, absolute) for number, file in enumerate(environment.files)),
        ca_certificates=_certificates(document, environment.ca_certificates, absolute),
    )


def _resolved_image(image: ImageFiles, absolute: Callable[[str, str], str]) -> ImageFiles:
    kernel, initrd = image.kernel, image.initrd
    return ImageFiles(
        absolute("image.location", image.location),
        kernel and KernelFile(absolute("image.kernel.location", kernel.location), kernel.cmdline),
        initrd and InitrdFile(absolute("image.initrd.location", initrd.location)),
        image.digest,
    )


def _resolved_file(
    document: yaml_text.Document, number: int, file: FileSpec, absolute: Callable[[str, str], str]
) -> FileSpec:
    where = f"files[{number}]"
    if (file.content is None) == (file.source is None):
        raise document.error(where, f"expected one of content and source at {where}.")
    if file.source is None:
        return file
    source = Path(absolute(f"{where}.source", file.source))
    return msgspec.structs.replace(file, content=requirements.text_of(source, checks.MAX_FILE), source=None)


def _certificates(
    document: yaml_text.Document, said: HostCertificates | tuple[str, ...], absolute: Callable[[str, str], str]
) -> HostCertificates | tuple[str, ...]:
    if isinstance(said, HostCertificates):
        return said
    found: dict[str, None] = {}
    for number, location in enumerate(said):
        field = f"caCertificates[{number}]"
        path = absolute(field, location)
        certificates = certificates_in(requirements.text_of(Path(path)))
        if not certificates:
            raise document.error(field, f"{path} at {field} has no certificate in it, in PEM form.")
        found.update(dict.fromkeys(certificates))
    return tuple(found)


def _conda(document: yaml_text.Document) -> ConfigurationError | None:
    """Return why a conda environment file cannot be served, or None when it is none."""
    value = document.value
    if not isinstance(value.get("dependencies"), list) or "dependencies" in _FIELDS:
        return None
    packages = [str(entry) for entry in value["dependencies"] if isinstance(entry, str)]
    named = ", ".join(packages[:5]) + (" and others" if len(packages) > 5 else "")
    return document.error(
        "dependencies",
        f"this is an environment file of conda, whose packages ({named or 'none'}) no guest of ours can install.",
        "Write a lima-env.yaml (lima-kernels env init): Python packages by their PyPI names, all others from apt.",
    )


def _in_one_way(environment: Environment) -> Environment:
    """Return an environment with what can be written in two ways in one of them."""
    python = environment.python
    if isinstance(python, PythonFiles) and python == PythonFiles(requirements=python.requirements):
        python = python.requirements
    ports = tuple(PortSpec(port) if isinstance(port, int) else port for port in environment.ports)
    return msgspec.structs.replace(environment, python=python, ports=ports)


def parse(text: str, *, source: str, base: Path) -> Environment:
    """Parse an environment file's text, and read the files that it names.

    :param source: how messages name it.
    :param base: the directory that relative paths start from.
    :raises ConfigurationError: one line that says what is wrong and where.
    """
    document = yaml_text.read(text, source)
    value: Any = {} if document.value is None else document.value
    if not isinstance(value, dict):
        what = f"expected keys such as {', '.join(_FIELDS[:4])}, got {type(value).__name__}."
        raise document.error("", what)
    try:
        environment = msgspec.convert(value, Environment)
    except msgspec.ValidationError as error:
        raise (_conda(document) or _explain(document, error)) from error
    environment = _resolve(document, environment, base)
    for fault in checks.faults(environment):
        raise document.error(*fault)
    return _in_one_way(environment)


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
