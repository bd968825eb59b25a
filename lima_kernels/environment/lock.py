"""The lock of an environment file: what exactly was there when it was made. A TOML file that nobody writes by hand."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
from pathlib import Path
from typing import Any

import msgspec
import tomli_w

from ..errors import ConfigurationError
from . import checks
from .keys import Arch, Environment, ImageFiles, sha256
from .requirements import check_pylock, text_of, toml_of

LOCK_VERSION = 1
_HEADER = "# Written by `lima-kernels env lock`, which also changes it: a lock that was edited is refused.\n"
_AGAIN = "Make it again: lima-kernels env lock"
_HEX = re.compile(r"[0-9a-f]{64}")
# Of Debian's own: deb-version(7), and package names with an architecture.
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+:~-]*")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9.+-]*(:[a-z0-9-]+)?")
_PYTHON = re.compile(r"[0-9]+\.[0-9]+(\.[0-9]+([a-z0-9+.]*))?")
_ARCH = re.compile("|".join(arch.value for arch in Arch))
_SIZE = re.compile(r"[1-9][0-9]{0,14}")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+:~/-]*")
# The order that PEP 751 lists its keys in; what it does not know comes behind, by the alphabet.
_ORDER = (
    *("lock-version", "environments", "requires-python", "extras", "dependency-groups", "default-groups", "created-by"),
    *("name", "version", "marker", "dependencies", "index", "url", "size", "upload-time", "hashes"),
    *("archive", "sdist", "wheels", "attestation-identities", "packages", "tool"),
)


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Deb(_Strict, frozen=True):
    """An archive of a Debian package that had to be fetched when the lock was made; its size in bytes."""

    version: str
    sha256: str
    size: int


class Platform(_Strict, frozen=True, kw_only=True):
    """One architecture's guest: its image by name and SHA-256, kernel, Python, and all its Debian packages.

    ``apt`` has the version of every package by its name, or ``name:arch`` where that is not the guest's own.
    """

    image: str
    image_sha256: str
    kernel: str
    python: str
    apt: dict[str, str]
    debs: dict[str, Deb] = {}


class Lock(_Strict, frozen=True, kw_only=True):
    """What an environment exactly is: ``inputs`` is the digest of what was asked, ``pylock`` a lock of PEP 751."""

    version: int
    name: str
    inputs: str
    platforms: dict[str, Platform]
    pylock: dict[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of all that it says, in hexadecimal, whatever the order that it is said in."""
        return sha256(_document(self))

    def python_digest(self, arch: str) -> str:
        """Return the SHA-256 of what a guest's Python environment is made from, in hexadecimal.

        :raises ConfigurationError: when it was not locked for that architecture.
        """
        if arch not in self.platforms:
            raise ConfigurationError(
                f"The lock of {self.name!r} is for {', '.join(sorted(self.platforms))}, not for {arch}.", hint=_AGAIN
            )
        return sha256([self.platforms[arch].python, _ordered(self.pylock)])


def _ordered(value: Any) -> Any:
    """Return a TOML value in the one order that we write it in; no list of a lock means anything by its order."""
    if isinstance(value, dict):
        names = sorted(value, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))
        return {name: _ordered(value[name]) for name in names}
    if isinstance(value, list):
        return sorted(map(_ordered, value), key=_place)
    return value


def _place(value: Any) -> tuple[str, bytes]:
    name = str(value.get("name") or value.get("url") or "") if isinstance(value, dict) else ""
    return name, msgspec.json.encode(value, order="sorted")


def _document(lock: Lock) -> dict[str, Any]:
    built = msgspec.to_builtins(lock, builtin_types=(dt.datetime, dt.date, dt.time))
    platforms = {
        arch: {**platform, "apt": dict(sorted(platform["apt"].items())), "debs": dict(sorted(platform["debs"].items()))}
        for arch, platform in sorted(built["platforms"].items())
    }
    return {**built, "platforms": platforms, "pylock": _ordered(lock.pylock)}


def text(lock: Lock) -> str:
    """Return a lock as its file has it; the same lock is the same text."""
    document = _document(lock)
    head = {"version": document.pop("version"), "digest": lock.digest}
    return _HEADER + tomli_w.dumps({**head, **document})


def pylock_text(lock: Lock) -> str:
    """Return the Python part as a ``pylock.toml``."""
    return tomli_w.dumps(_ordered(lock.pylock))


def write(path: Path, lock: Lock) -> None:
    """Write a lock in one step; whoever reads sees the older one or this, whole.

    :raises ConfigurationError: when it cannot be written, or could not be read again.
    """
    _check(path, lock)
    incoming = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # With the permissions that a new file gets here: it is to be shared, not kept.
        with incoming.open("x", encoding="utf-8") as file:
            file.write(text(lock))
        incoming.replace(path)
    except OSError as error:
        raise ConfigurationError(f"The lock {path} cannot be written: {error.strerror}.") from error
    finally:
        with contextlib.suppress(OSError):
            incoming.unlink()


def read(path: Path) -> Lock:
    """Read a lock, which may be anybody's.

    :raises ConfigurationError: when it cannot be read, is no lock, was made by a newer lima-kernels, or was edited.
    """
    content = toml_of(path, text_of(path))
    version = content.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ConfigurationError(f"{path}, line 1: it is no lock of an environment.", hint=_AGAIN)
    if version > LOCK_VERSION:
        raise ConfigurationError(
            f"{path}: it was made by a newer lima-kernels (version {version} of its form; we know {LOCK_VERSION}).",
            hint="Update lima-kernels.",
        )
    said = content.pop("digest", None)
    try:
        lock = msgspec.convert(content, Lock)
        digest = lock.digest
    except (msgspec.ValidationError, TypeError, RecursionError) as error:
        what, _, where = str(error).partition(" - at `$.")
        raise ConfigurationError(
            f"{path}: it is not what a lock is: {what} at {where.rstrip('`') or 'the top'}.", hint=_AGAIN
        ) from error
    if said != digest:
        raise ConfigurationError(
            f"{path}: it was edited since it was made (its digest is another).",
            hint="Change the environment file instead, or undo that; then: lima-kernels env lock",
        )
    _check(path, lock)
    return lock


def _check(path: Path, lock: Lock) -> None:
    """See that nothing in a lock is more than it should be: its words end up in commands in the guest."""
    for where, value, form in _words(lock):
        if not form.fullmatch(value):
            raise ConfigurationError(f"{path}: it is not what a lock is: {value!r} at {where}.", hint=_AGAIN)
    if not lock.platforms:
        raise ConfigurationError(f"{path}: it is for no architecture.", hint=_AGAIN)
    check_pylock(str(path), lock.pylock)


def _words(lock: Lock) -> list[tuple[str, str, re.Pattern[str]]]:
    found = [("name", lock.name, checks.NAME), ("inputs", lock.inputs, _HEX)]
    for arch, platform in lock.platforms.items():
        where = f"platforms.{arch}"
        found.append(("platforms", arch, _ARCH))
        found += [(f"{where}.image", platform.image, _WORD)] if platform.image else []
        found += [(f"{where}.image_sha256", platform.image_sha256, _HEX)] if platform.image_sha256 else []
        found += [(f"{where}.kernel", platform.kernel, _WORD), (f"{where}.python", platform.python, _PYTHON)]
        for name, version in platform.apt.items():
            found += [(f"{where}.apt", name, _PACKAGE), (f"{where}.apt.{name}", version, _VERSION)]
        for name, deb in platform.debs.items():
            found += [(f"{where}.debs", name, _PACKAGE), (f"{where}.debs.{name}.version", deb.version, _VERSION)]
            found += [(f"{where}.debs.{name}.sha256", deb.sha256, _HEX)]
            found += [(f"{where}.debs.{name}.size", str(deb.size), _SIZE)]
    return found


def inputs_digest(environment: Environment) -> str:
    """Return the SHA-256 of what a lock answers to, in hexadecimal: image, Debian packages, Python packages.

    What files of this host say counts, not where they are: it is the same on another machine.
    """
    image = environment.image
    if isinstance(image, ImageFiles):
        image = f"{Path(image.location).name}@sha256:{environment.image_pin}"
    python = [sorted(environment.requirements), environment.python_texts, environment.python_version]
    return sha256([image, sorted(environment.apt), python])
