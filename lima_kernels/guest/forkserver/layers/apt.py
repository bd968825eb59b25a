"""The guest's Debian packages: what is installed, what a wish leads to, and how exactly that comes about."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .commands import Failed, quietly, run, say

STATUS = "/var/lib/dpkg/status"
ARCHIVES = "/var/cache/apt/archives"
_FORMAT = "${db:Status-Status}\t${binary:Package}\t${Version}\n"
_INSTALLED = re.compile(r"^Inst (\S+) (?:\[[^\]]*\] )?\((\S+) .*\[([^\]]+)\]\)", re.MULTILINE)
_GONE = re.compile(r"Version '([^']+)' for '([^']+)' was not found")
_UNKNOWN = re.compile(r"Unable to locate package (\S+)|Package '?([^ ']+)'? has no installation candidate")
_ENV = ("sudo", "-n", "env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8")
_GET = (*_ENV, "apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=120", "-o", "Dpkg::Options::=--force-confold")
_HINT = "Lock the environment again: lima-kernels env lock --upgrade"


def present() -> dict[str, str]:
    """Return the installed packages with their versions; ``name:arch`` for those of another architecture."""
    lines = quietly(("dpkg-query", "--show", "--showformat", _FORMAT), "Listing the guest's packages").splitlines()
    parts = (line.split("\t") for line in lines)
    return {_plain(name): version for status, name, version in parts if status == "installed"}


def _paragraphs(text: str) -> Iterator[str]:
    return (paragraph for paragraph in text.split("\n\n") if paragraph.strip())


def _field(paragraph: str, name: str) -> str:
    match = re.search(r"^%s:[ \t]*(.*)$" % re.escape(name), paragraph, re.MULTILINE)
    return match[1].strip() if match else ""


def _status_of(names: Mapping[str, str]) -> str:
    """Return dpkg's status as if only these were installed."""
    with open(STATUS, encoding="utf-8", errors="replace") as file:
        text = file.read()
    known = {name.partition(":")[0] for name in names}
    return "\n\n".join(entry for entry in _paragraphs(text) if _field(entry, "Package") in known) + "\n"


def update() -> None:
    """Fetch the archive's lists.

    :raises Failed: when that fails.
    """
    say(phase="apt-get update")
    # Half a list would give half an answer.
    run((*_GET, "-o", "APT::Update::Error-Mode=any", "update"), "Reading the package archive's lists")


def _version_of(name: str, versions: Mapping[str, str]) -> str:
    return versions.get(name, "") or versions.get(name.partition(":")[0], "")


def resolve(wanted: Sequence[str], base: Mapping[str, str], kept: Mapping[str, str]) -> dict[str, Any]:
    """Return all packages that the guest has once the wanted ones are installed, and the archives for that.

    :param base: what it has without any wish; what somebody installed by hand counts for nothing.
    :param kept: versions of an earlier lock, taken where the archive still has them.
    :raises Failed: when the archive lacks one, or they do not go together.
    """
    now = present()
    before = {name: now[name] for name in base if name in now} or now
    if not wanted:
        return {"apt": before, "debs": {}}
    update()
    say(phase="resolving Debian packages")
    pinned = [name if "=" in name else _pinned(name, kept) for name in wanted]
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".status") as status:
        status.write(_status_of(before))
        status.flush()
        # Only a look: no root is needed, and nothing changes.
        argv = ["apt-get", "-q", "-y", "-s", "-o", "Dir::State::status=%s" % status.name, "-o", "Debug::NoLocking=1"]
        said = _simulated([*argv, "--no-install-recommends", "install", *pinned])
    added = {}
    for name, version, arch in _INSTALLED.findall(said):
        foreign = name + ":" + arch if ":" not in name and arch not in ("all", _architecture()) else name
        added[foreign] = version
    return {"apt": {**before, **added}, "debs": {name: _archive(name, version) for name, version in added.items()}}


def _simulated(argv: Sequence[str]) -> str:
    try:
        return run(argv, "Resolving the Debian packages")
    except Failed as error:
        said = "\n".join(error.log)
        if unknown := _UNKNOWN.search(said):
            name = unknown[1] or unknown[2]
            raise Failed(
                "The package archive has no package %r for %s." % (name, _architecture()),
                "Correct it under apt in the environment file.",
                error.log,
            ) from error
        raise _gone(error) from error


def _gone(error: Failed) -> Failed:
    said = "\n".join(error.log)
    if gone := _GONE.search(said):
        return Failed("The package archive no longer has version %s of %s." % gone.groups(), _HINT, error.log)
    if unknown := _UNKNOWN.search(said):
        return Failed("The package archive no longer has %s." % (unknown[1] or unknown[2]), _HINT, error.log)
    return error


def _plain(name: str) -> str:
    """dpkg names a package of the guest's own architecture with it where several may be there; apt does not."""
    return name.removesuffix(":" + _architecture())


def _pinned(name: str, kept: Mapping[str, str]) -> str:
    version = _version_of(name, kept)
    if version:
        known = quietly(("apt-cache", "madison", name), "Looking for versions of %s" % name)
        if any(line.split("|")[1].strip() == version for line in known.splitlines() if line.count("|") > 1):
            return "%s=%s" % (name, version)
    return name


_own: list[str] = []


def _architecture() -> str:
    if not _own:
        _own.append(quietly(("dpkg", "--print-architecture"), "Asking for the guest's architecture").strip())
    return _own[0]


def _archive(name: str, version: str) -> dict[str, Any]:
    shown = quietly(("apt-cache", "show", "%s=%s" % (name, version)), "Looking for %s" % name)
    entry = next(iter(_paragraphs(shown)), "")
    return {"version": version, "sha256": _field(entry, "SHA256"), "size": int(_field(entry, "Size") or 0)}


def differences(wanted: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return what is to be installed, with its version, and what is to be removed."""
    now = present()
    missing = {name: version for name, version in wanted.items() if now.get(name) != version}
    return missing, sorted(name for name in now if name not in wanted)


def sync(wanted: Mapping[str, str], debs: Mapping[str, Mapping[str, Any]]) -> bool:
    """Make the guest's packages those of a lock, and tell whether anything had to be done.

    :raises Failed: when the archive lacks a version, a hash differs (then nothing was installed), or dpkg fails.
    """
    missing, extra = differences(wanted)
    if not missing and not extra:
        return False
    say(phase="installing Debian packages" if missing else "removing Debian packages")
    # What an interrupted run left half-way.
    run((*_ENV, "dpkg", "--configure", "-a"), "Finishing an earlier installation")
    changes = ["%s=%s" % entry for entry in sorted(missing.items())] + ["%s-" % name for name in extra]
    options = ("--no-install-recommends", "--allow-downgrades", "--allow-change-held-packages", "install")
    if missing:
        _download((*_GET, "--download-only", *options, *changes), missing)
        _verify({name: debs[name] for name in missing if name in debs})
    run((*_GET, "--allow-remove-essential", *options, *changes), "Installing the Debian packages")
    missing, extra = differences(wanted)
    if missing or extra:
        names = ", ".join(sorted((*missing, *extra))[:5])
        raise Failed("The guest's Debian packages are still not those of the lock: %s." % names, _HINT)
    return True


def _download(argv: Sequence[str], missing: Mapping[str, str]) -> None:
    try:
        run(argv, "Fetching the Debian packages")
    except Failed as error:
        said = "\n".join(error.log)
        if not (_GONE.search(said) or _UNKNOWN.search(said)):
            raise
        # There are no lists yet, or they are older than the lock and do not know what it names.
        update()
        try:
            run(argv, "Fetching the Debian packages")
        except Failed as second:
            raise _gone(second) from second


def _verify(debs: Mapping[str, Mapping[str, Any]]) -> None:
    """Compare what was fetched with the lock's hashes."""
    for name, deb in debs.items():
        version = str(deb["version"]).replace(":", "%3a")
        plain, _, arch = name.partition(":")
        for architecture in (arch or _architecture(), "all"):
            file = os.path.join(ARCHIVES, "%s_%s_%s.deb" % (plain, version, architecture))
            if os.path.exists(file):
                got = _digest(file)
                if got != deb["sha256"]:
                    raise Failed(
                        "The Debian package %s is not the one that was locked: expected SHA-256 %s, got %s. Nothing "
                        "was installed." % (name, deb["sha256"], got),
                        _HINT,
                    )
                break
        else:
            raise Failed("The Debian package %s %s was not fetched." % (name, deb["version"]))


def _digest(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
