"""What an environment file says and nobody can obey."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from .. import paths
from ..lima.mounting import plain_path
from ..lima.sizes import in_bytes
from . import mounts
from .keys import Environment, FileSpec, ImageFiles, PortSpec, PythonSpec
from .mounts import Fault

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,40}")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
# Of one text that goes to the guest; Lima keeps it in the lima.yaml.
MAX_FILE = 256 * 1024
HOME = "{{.Home}}/"
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_APT_NAME = re.compile(r"[a-z0-9][a-z0-9.+-]*(?::[a-z0-9]+)?(?:=[\w.+:~-]+)?")
_KERNEL_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_PYTHON_VERSION = re.compile(r"[0-9]+\.[0-9]+(\.[0-9]+)?")
_MODE = re.compile(r"0?[0-7]{3,4}")
# Lima's boot script expands the path once more as words of the shell.
_GUEST_FILE = re.compile(r"/[A-Za-z0-9._/@%+=:,-]*[A-Za-z0-9._@%+=:,-]")
_NOT_BELOW = (*("/dev", "/mnt/lima-cidata", "/proc", "/run", "/sys"), paths.GUEST_PREFIX)
_NOT_THESE = (paths.GUEST_INSTANCE_FILE, paths.GUEST_CLOUD_CONFIG)
_NOT_IN_HOME = (".ssh", paths.GUEST_STATE)
_LARGEST_PORT = 65535


def faults(environment: Environment) -> Iterator[Fault]:
    """Yield what cannot be obeyed of an environment."""
    yield from _of_the_machine(environment)
    yield from _image_faults(environment.image)
    for number, package in enumerate(environment.apt):
        if not _APT_NAME.fullmatch(package):
            path = f"apt[{number}]"
            yield Fault(path, f"{package!r} is not the name of a Debian package at {path}.")
    yield from _python_faults(environment.python)
    yield from _kernel_faults(environment.kernels)
    for name in environment.env:
        if not _ENV_NAME.fullmatch(name):
            yield Fault("env", f"{name!r} is not the name of an environment variable at env.")
    yield from _file_faults(environment.files)
    yield from _port_faults(environment.ports)
    yield from mounts.faults(environment.mounts, environment.mount_options, environment.mount_type)


def _of_the_machine(environment: Environment) -> Iterator[Fault]:
    if environment.name is not None and not NAME.fullmatch(environment.name):
        what = f"{environment.name!r} cannot be an environment's name at name."
        yield Fault("name", what, "It has small letters, digits and '-', 41 at most, and begins with no '-'.")
    if environment.cpus is not None and environment.cpus < 1:
        yield Fault("cpus", f"cpus must be at least 1, got {environment.cpus} at cpus.")
    for name in ("memory", "disk"):
        value = getattr(environment, name)
        if value is not None and in_bytes(value) is None:
            yield Fault(name, f"expected a size such as 4GiB, got {value!r} at {name}.")


def _image_faults(image: str | ImageFiles) -> Iterator[Fault]:
    if isinstance(image, ImageFiles):
        path, digest = "image.digest", image.digest
        wrong = bool(digest) and not DIGEST.fullmatch(digest)
    else:
        name, pinned, digest = image.partition("@")
        path, wrong = "image", bool(pinned) and not (name and DIGEST.fullmatch(digest))
    if wrong:
        yield Fault(path, f"expected sha256: and 64 hexadecimal digits, got {digest!r} at {path}.")


def _python_faults(python: Sequence[str] | PythonSpec) -> Iterator[Fault]:
    where, requirements = "python", python
    if isinstance(python, PythonSpec):
        where, requirements = "python.requirements", python.requirements
        if python.version is not None and not _PYTHON_VERSION.fullmatch(python.version):
            path = "python.version"
            yield Fault(path, f"expected a version such as '3.11', got {python.version!r} at {path}.")
        if python.pylock is not None and (requirements or python.requirements_file or python.pyproject):
            what = "python.pylock says which packages there are, and so nothing else can."
            yield Fault("python.pylock", what, "Take requirements, requirementsFile and pyproject out, or pylock.")
    assert not isinstance(requirements, PythonSpec)
    for number, requirement in enumerate(requirements):
        if not requirement.strip() or requirement.lstrip().startswith("-") or "\n" in requirement:
            path = f"{where}[{number}]"
            yield Fault(path, f"{requirement!r} is not a Python requirement at {path}.")


def _kernel_faults(kernels: Sequence[str]) -> Iterator[Fault]:
    for number, name in enumerate(kernels):
        path = f"kernels[{number}]"
        if not _KERNEL_NAME.fullmatch(name):
            yield Fault(path, f"{name!r} is not the name of a kernel spec at {path}.")
        elif name in kernels[:number]:
            yield Fault(path, f"{name!r} at {path} is there already.")


def _file_faults(files: Sequence[FileSpec]) -> Iterator[Fault]:
    taken: dict[str, int] = {}
    for number, file in enumerate(files):
        where = f"files[{number}]"
        if why := _place_fault(file.path):
            yield Fault(f"{where}.path", f"{file.path!r} at {where}.path cannot be written: {why}.")
        if not _MODE.fullmatch(file.mode):
            yield Fault(f"{where}.mode", f"expected permissions such as '0644', got {file.mode!r} at {where}.mode.")
        content = file.content or ""
        if "\0" in content or len(content.encode()) > MAX_FILE:
            what = f"a file is text of at most {MAX_FILE // 1024} KiB at {where}."
            yield Fault(where, what, "Show the directory of a larger one to the guest: mounts.")
        if file.path in taken:
            yield Fault(f"{where}.path", f"{file.path!r} at {where}.path is taken by files[{taken[file.path]}].")
        taken.setdefault(file.path, number)


def _place_fault(path: str) -> str:
    """Return why a file cannot be there in a guest, or an empty string."""
    in_home = path.startswith(HOME)
    plain = f"/{path.removeprefix(HOME)}" if in_home else path
    if not _GUEST_FILE.fullmatch(plain) or plain_path(plain) != plain:
        return f"it is to be an absolute path, or to begin with {HOME}, of letters, digits and ._@%+=:,-"
    place = PurePosixPath(plain)
    tops = [f"/{name}" for name in _NOT_IN_HOME] if in_home else _NOT_BELOW
    if plain in _NOT_THESE or any(place.is_relative_to(top) for top in tops):
        return "it is the guest's own, or Lima's"
    return ""


def _port_faults(ports: Sequence[int | PortSpec]) -> Iterator[Fault]:
    taken: dict[tuple[str, int], str] = {}
    for number, port in enumerate(ports):
        where = f"ports[{number}]"
        ends = (port, port) if isinstance(port, int) else (port.guest, port.guest if port.host is None else port.host)
        for side, value in zip(("guest", "host"), ends, strict=True):
            path = where if isinstance(port, int) or (side == "host" and port.host is None) else f"{where}.{side}"
            if not 1 <= value <= _LARGEST_PORT:
                yield Fault(path, f"expected a port from 1 to {_LARGEST_PORT}, got {value} at {path}.")
                break
            if (side, value) in taken:
                yield Fault(path, f"the {side}'s port {value} at {path} is taken by {taken[side, value]}.")
                break
            taken[side, value] = path
