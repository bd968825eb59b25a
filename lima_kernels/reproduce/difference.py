"""How a guest's environment differs from its lock: image, kernel, Python, Debian packages, Python packages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version
from rich.markup import escape
from rich.table import Table

from ..environment.lock import Lock, Platform
from ..errors import printable
from .pylock import wanted
from .state import GuestState

UNKNOWN = "unknown"
# Characters of a digest that tell two of them apart for a person.
_SHORT = 12


class Difference(NamedTuple):
    """One thing that is not as it should be; an empty string says that it is not there."""

    what: str
    expected: str
    found: str


def short(digest: str) -> str:
    """Return as much of a digest as a person compares."""
    return digest[:_SHORT]


def differences(lock: Lock, state: GuestState) -> list[Difference]:
    """Return how a guest differs from a lock, nothing when it is what the lock says.

    :raises ConfigurationError: when a marker of the lock cannot be read.
    """
    platform = lock.platforms.get(state.arch)
    if platform is None:
        return [Difference("architecture", ", ".join(sorted(lock.platforms)), state.arch)]
    return [
        *_of_the_machine(platform, state),
        *between("apt", platform.apt, state.apt),
        *_of_python(lock, state),
    ]


def between(kind: str, expected: Mapping[str, str], found: Mapping[str, str]) -> Iterator[Difference]:
    """Yield how two lists of versions differ, in the order of the names."""
    for name in sorted(expected.keys() | found.keys()):
        before, now = expected.get(name, ""), found.get(name, "")
        if before != now:
            yield Difference(f"{kind} {name}", before, now)


def _of_the_machine(platform: Platform, state: GuestState) -> Iterator[Difference]:
    # An image that was given without a digest has none to compare.
    if platform.image_sha256 and platform.image_sha256 != state.image_sha256:
        yield Difference("image", short(platform.image_sha256), short(state.image_sha256) or UNKNOWN)
    if platform.kernel != state.kernel:
        yield Difference("kernel", platform.kernel, state.kernel)
    if platform.python != state.python:
        yield Difference("Python", platform.python, state.python)


def _of_python(lock: Lock, state: GuestState) -> list[Difference]:
    expected = _locked_versions(lock, state)
    if not state.python:
        # One line for an environment that has not been made, not one for each package.
        return [Difference("Python packages", str(len(expected)), "")] if expected else []
    found = []
    for name in sorted(expected.keys() | state.packages.keys()):
        package = state.packages.get(name)
        version = package.version if package else ""
        if name not in expected:
            found.append(Difference(f"python {name}", "", version))
        elif package is None:
            found.append(Difference(f"python {name}", expected[name] or "any version", ""))
        elif expected[name] and not _same_version(expected[name], version):
            found.append(Difference(f"python {name}", expected[name], version))
        elif (built := state.built.get(name)) and built.record != package.record:
            found.append(
                Difference(
                    f"python {name}", f"{version}, as built", f"{version}, other files ({short(package.record)})"
                )
            )
    digest = lock.python_digest(state.arch)
    if not found and state.python_digest != digest:
        # The same versions from another lock: its archives' hashes were others.
        return [Difference("lock of Python packages", short(digest), short(state.python_digest))]
    return found


def _same_version(one: str, other: str) -> bool:
    try:
        return Version(one) == Version(other)
    except InvalidVersion:
        return one == other


def _locked_versions(lock: Lock, state: GuestState) -> dict[str, str]:
    """Return the versions of the packages that the lock has for a guest; an empty one where any will do."""
    python = lock.platforms[state.arch].python
    return {
        canonicalize_name(package["name"]): str(package.get("version", ""))
        for package in wanted(lock.pylock, python, state.arch)
    }


def table(found: Sequence[Difference], expected: str = "lock", present: str = "VM") -> Table:
    """Return the differences for a terminal."""
    made = Table("", expected, present)
    for difference in found:
        made.add_row(*(escape(printable(cell)) or "-" for cell in difference))
    return made
