"""A PEP 751 document reduced to what guests of ours can use: CPython on Linux, on the two architectures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging.markers import InvalidMarker, Marker, UndefinedComparison, UndefinedEnvironmentName
from packaging.tags import compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from ..errors import ConfigurationError

ARCHITECTURES = ("x86_64", "aarch64")
# A wheel's files, and what uv keeps of it, take some four times its own size.
UNPACKED = 4
_LINUX = re.compile(r"(?:many)?linux(?:\d*_\d+_\d+|1|2010|2014)?_(x86_64|aarch64)")


def _marker_environment(python: str, arch: str) -> dict[str, str]:
    return {
        "implementation_name": "cpython",
        "implementation_version": python,
        "os_name": "posix",
        "platform_machine": arch,
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": python,
        "python_version": ".".join(python.split(".")[:2]),
        "sys_platform": "linux",
    }


def is_wanted(package: Mapping[str, Any], python: str, arch: str) -> bool:
    """Tell whether a package of a PEP 751 document belongs into a guest.

    :param python: the guest's Python version, in full.
    :raises ConfigurationError: when its marker is none.
    """
    text = package.get("marker", "")
    try:
        return not text or Marker(text).evaluate(_marker_environment(python, arch), context="lock_file")
    except (InvalidMarker, UndefinedComparison, UndefinedEnvironmentName) as error:
        what = f"The lock's package {package.get('name')!r} has a marker that is none in a guest: {text}"
        raise ConfigurationError(what) from error


def _file_name(entry: Mapping[str, Any]) -> str:
    if name := entry.get("name"):
        return str(name)
    place = entry.get("url") or entry.get("path") or ""
    return unquote(PurePosixPath(urlsplit(str(place)).path).name)


def _fits(entry: Mapping[str, Any], minor: int, architectures: Sequence[str]) -> bool:
    """Tell whether CPython 3.minor on one of the architectures could install a wheel."""
    try:
        tags = parse_wheel_filename(_file_name(entry))[3]
    except InvalidWheelFilename:
        # It is uv's to say what is wrong with it.
        return True
    return any(
        (tag.interpreter, tag.abi) in _interpreters(minor) and _fits_platform(tag.platform, architectures)
        for tag in tags
    )


@cache
def _interpreters(minor: int) -> frozenset[tuple[str, str]]:
    """Return what wheels for CPython 3.minor call it, each with its ABI."""
    own, version = f"cp3{minor}", (3, minor)
    tags = (*cpython_tags(version, [own], ["any"]), *compatible_tags(version, own, ["any"]))
    return frozenset((tag.interpreter, tag.abi) for tag in tags)


def _fits_platform(platform: str, architectures: Sequence[str]) -> bool:
    match = _LINUX.fullmatch(platform)
    return platform == "any" or (match is not None and match[1] in architectures)


def _trimmed(package: Mapping[str, Any], minor: int) -> dict[str, Any]:
    wheels = [entry for entry in package.get("wheels", ()) if _fits(entry, minor, ARCHITECTURES)]
    kept = {key: value for key, value in package.items() if key != "wheels"}
    if not wheels and not kept.keys() & {"sdist", "archive"}:
        raise ConfigurationError(
            f"The Python package {package.get('name')} {package.get('version', '')} has no build for Linux and CPython "
            f"3.{minor}.",
            hint="Choose another version in the environment file, and lock again.",
        )
    # A wheel for both makes the source needless, and nobody builds what need not be built.
    everywhere = all(any(_fits(entry, minor, (arch,)) for entry in wheels) for arch in ARCHITECTURES)
    if wheels and everywhere:
        kept.pop("sdist", None)
    return {**kept, "wheels": wheels} if wheels else kept


def trimmed(document: Mapping[str, Any], python: str) -> dict[str, Any]:
    """Return the document without packages and wheels that no guest of ours can use; it stays a valid one.

    :param python: the guests' Python version, in full.
    :raises ConfigurationError: when a package that is wanted could be installed nowhere.
    """
    minor = int(python.split(".")[1])
    packages = [
        _trimmed(package, minor)
        for package in document.get("packages", ())
        if any(is_wanted(package, python, arch) for arch in ARCHITECTURES)
    ]
    here = [f"sys_platform == 'linux' and platform_machine == '{arch}'" for arch in ARCHITECTURES]
    head = {key: value for key, value in document.items() if key not in ("packages", "environments", "tool")}
    packages.sort(key=lambda package: str(package.get("name", "")))
    return {**head, "environments": here, "packages": packages}


def wanted(document: Mapping[str, Any], python: str, arch: str) -> Iterator[Mapping[str, Any]]:
    """Yield the packages that belong into a guest."""
    return (package for package in document.get("packages", ()) if is_wanted(package, python, arch))


def needed_space(document: Mapping[str, Any], python: str, arch: str) -> int:
    """Return how many bytes of disk an environment takes at most, as far as its document tells."""
    minor = int(python.split(".")[1])
    total = 0
    for package in wanted(document, python, arch):
        sizes = [entry.get("size", 0) for entry in package.get("wheels", ()) if _fits(entry, minor, (arch,))]
        total += max(sizes, default=package.get("sdist", {}).get("size", 0))
    return UNPACKED * total
