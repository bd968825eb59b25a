"""Environments in a guest: virtual environments that are built aside and switched by one rename.

``BASE/NAME/builds/ID`` is one, whole when it has a manifest; ``BASE/NAME/current`` is a link to the one that is used.
Standard library alone: what builds environments uses this too, and where an image is made there is no more.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from typing import Any

MANIFEST = "lima-env.json"
MANIFEST_VERSION = 1
# What a process calls itself that waits to fork kernels (proc(5), comm): it is in no one's way.
ZYGOTE = "lima-zygote"

# Changes with every Debian package that is installed or removed.
DPKG_STATUS = "/var/lib/dpkg/status"

_BUILDS = "builds"
# Beside the builds: of which lock the guest's Debian packages were when, by dpkg's status.
_SYSTEM = "system.json"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,40}")
_BUILD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_INSTALLED = ".dist-info"
_RECORD = "RECORD"
# Written by whoever installed a package, each in its own way; they do not tell what it is.
_INSTALLERS = frozenset({_RECORD, "INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json", "uv_build.json"})
# Python makes it beside what it imports.
_CACHE = "__pycache__"


class BadName(ValueError):
    """What the host named is no environment; the text says so."""


def _home(base: str, name: object) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BadName("%r cannot be an environment's name" % (name,))
    return os.path.join(base, name)


def interpreter(venv: str) -> str:
    """Return the path of an environment's Python."""
    return os.path.join(venv, "bin", "python")


def venv_of(base: str, python: object) -> str:
    """Return the virtual environment of a Python that is one of ours.

    :raises BadName: when it is none, or is not there (any more).
    """
    parts = python[len(base) + 1 :].split("/") if isinstance(python, str) else []
    if len(parts) == 5 and _NAME.fullmatch(parts[0]) and _BUILD.fullmatch(parts[2]):
        venv = os.path.join(base, parts[0], _BUILDS, parts[2])
        if python == interpreter(venv):
            if not os.access(python, os.X_OK):
                raise BadName("the environment's Python %s is not there any more" % python)
            return venv
    raise BadName("%r is no Python of an environment" % (python,))


def site_packages(venv: str) -> str:
    """Return the directory of an environment's packages.

    :raises FileNotFoundError: when there is none.
    """
    library = os.path.join(venv, "lib")
    for entry in sorted(os.listdir(library)):
        found = os.path.join(library, entry, "site-packages")
        if entry.startswith("python3") and os.path.isdir(found):
            return found
    raise FileNotFoundError("there is no lib/python3.*/site-packages in %s" % venv)


def fingerprint(venv: str) -> str:
    """Return what changes whenever packages are installed or removed; it costs two looks for each.

    Directories other than a package's metadata count by their name alone: Python writes into them when it imports.
    """
    seen = []
    packages = site_packages(venv)
    for entry in os.scandir(packages):
        if entry.name == _CACHE:
            continue
        if entry.name.endswith(_INSTALLED):
            seen.append(_look(entry.name, entry.path))
            seen.append(_look(entry.name + "/" + _RECORD, os.path.join(entry.path, _RECORD)))
        elif entry.is_dir():
            seen.append(entry.name)
        else:
            seen.append(_look(entry.name, entry.path))
    return hashlib.sha256("\0".join(sorted(seen)).encode(errors="surrogateescape")).hexdigest()


def _look(name: str, path: str) -> str:
    try:
        found = os.stat(path)
    except OSError:
        return name
    # A directory's size is its file system's affair.
    size = 0 if stat.S_ISDIR(found.st_mode) else found.st_size
    return "%s %d %d" % (name, found.st_mtime_ns, size)


def records(venv: str) -> dict[str, list[str]]:
    """Return version and digest of what is installed, by normalized name: ``[version, sha256]``.

    The digest is that of the RECORD's lines, sorted, without what depends on who installed it or where: two
    environments have the same one exactly when the package's files were the same. It is empty without a RECORD.
    """
    found = {}
    for entry in sorted(os.scandir(site_packages(venv)), key=lambda entry: entry.name):
        if entry.name.endswith(_INSTALLED):
            # What pip moved aside, and never came to remove, has a name that is none.
            name, version = _named(entry.path)
            if re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name):
                found[name] = [version, _record(entry.path)]
    return found


def _named(metadata: str) -> tuple[str, str]:
    """Return a package's normalized name and its version; its directory's name says them where nothing else does."""
    directory = os.path.basename(metadata)[: -len(_INSTALLED)]
    name, _, version = directory.partition("-")
    said = {"name": name, "version": version}
    if directory.startswith("~"):
        return directory, version
    with (
        contextlib.suppress(OSError),
        open(os.path.join(metadata, "METADATA"), encoding="utf-8", errors="replace") as file,
    ):
        for line in file:
            if not line.strip():
                break
            field, _, value = line.partition(":")
            if field.lower() in said:
                said[field.lower()] = value.strip()
    return re.sub(r"[-_.]+", "-", said["name"]).lower(), said["version"]


def _record(metadata: str) -> str:
    lines = set(_lines(metadata))
    return hashlib.sha256("\n".join(sorted(lines)).encode(errors="surrogateescape")).hexdigest() if lines else ""


def _lines(metadata: str) -> Iterator[str]:
    own = os.path.basename(metadata)
    with (
        contextlib.suppress(OSError, csv.Error),
        open(os.path.join(metadata, _RECORD), encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        for row in csv.reader(file):
            path = row[0] if row else ""
            directory, _, name = path.rpartition("/")
            # Scripts hold the path of the environment's Python.
            elsewhere = path.startswith(("/", "../"))
            if path and not elsewhere and not path.endswith(".pyc") and not (directory == own and name in _INSTALLERS):
                yield ",".join(row)


def write_manifest(venv: str, *, lock: str, python: str) -> None:
    """Say of an environment that it is whole, last of all: what was locked, and what is there now.

    :param lock: the lock's digest.
    :param python: the digest of the lock's Python part.
    """
    manifest = {
        "version": MANIFEST_VERSION,
        "lock": lock,
        "python": python,
        "fingerprint": fingerprint(venv),
        "packages": records(venv),
    }
    path = os.path.join(venv, MANIFEST)
    with open(path + ".new", "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1, sort_keys=True)
        file.flush()
        # After a crash of the VM a manifest must not be there without what it tells of.
        os.fsync(file.fileno())
    os.replace(path + ".new", path)


def _manifest(venv: str) -> dict[str, Any] | None:
    """Return what an environment says of itself; None when it is not whole, or is of another version."""
    try:
        with open(os.path.join(venv, MANIFEST), encoding="utf-8") as file:
            manifest: dict[str, Any] = json.load(file)
        texts = (manifest["lock"], manifest["python"], manifest["fingerprint"])
        known = manifest["version"] == MANIFEST_VERSION and isinstance(manifest["packages"], dict)
        return manifest if known and all(isinstance(text, str) for text in texts) else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def current(base: str, name: str) -> str:
    """Return the virtual environment that an environment uses now, or nothing.

    :raises BadName: when that is no environment's name.
    """
    home = _home(base, name)
    try:
        directory, _, build = os.readlink(os.path.join(home, "current")).rpartition("/")
    except OSError:
        return ""
    return os.path.join(home, _BUILDS, build) if directory == _BUILDS and _BUILD.fullmatch(build) else ""


def write_system(base: str, name: str, *, lock: str) -> None:
    """Say that the guest's Debian packages are, at this moment, those of a lock."""
    path = os.path.join(_home(base, name), _SYSTEM)
    with open(path + ".new", "w", encoding="utf-8") as file:
        json.dump({"lock": lock, "status": _look(DPKG_STATUS, DPKG_STATUS)}, file)
    os.replace(path + ".new", path)


def _system(base: str, name: str) -> tuple[str, bool]:
    """Return of which lock the guest's Debian packages were, and whether they have changed since."""
    try:
        with open(os.path.join(_home(base, name), _SYSTEM), encoding="utf-8") as file:
            known = json.load(file)
        return str(known["lock"]), known["status"] != _look(DPKG_STATUS, DPKG_STATUS)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return "", False


def find(base: str, name: str) -> dict[str, Any]:
    """Return an environment's Python, the digest of its lock, and whether it has drifted from that.

    ``system`` is the lock that the guest's Debian packages were last made to be of, where that is known. The path of
    that Python is the build's own, and stays while kernels run there, whatever is switched meanwhile; it is empty when
    there is none.

    :raises BadName: when that is no environment's name.
    """
    venv = current(base, name)
    manifest = _manifest(venv) if venv else None
    if manifest is None or not os.access(interpreter(venv), os.X_OK):
        return {"python": "", "lock": "", "system": "", "drifted": False}
    system, has_changed = _system(base, name)
    drifted = has_changed or _has_drifted(venv, manifest)
    return {"python": interpreter(venv), "lock": manifest["lock"], "system": system, "drifted": drifted}


def has_drifted(base: str, name: str) -> bool:
    """Tell whether an environment's Python packages are others than those that it was built with."""
    venv = current(base, name)
    manifest = _manifest(venv) if venv else None
    return manifest is None or _has_drifted(venv, manifest)


def _has_drifted(venv: str, manifest: dict[str, Any]) -> bool:
    try:
        now = fingerprint(venv)
        if now == manifest["fingerprint"]:
            return False
        # An image keeps other times than those of the build in it; then what is there tells.
        packages: object = manifest["packages"]
        return _records_then(venv, now) != packages
    except OSError:
        return True


@functools.lru_cache(maxsize=16)
def _records_then(venv: str, _fingerprint: str) -> dict[str, list[str]]:
    """Return what is installed, as long as the fingerprint is the same."""
    return records(venv)
