"""What a fake guest needs for locked environments: uv, an index of small wheels on loopback, and programs like apt's.

A wheel named ``ipykernel`` brings the tests' own packages along, so that kernels really run in what uv has built.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import http.server
import json
import os
import shutil
import sys
import sysconfig
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lima_kernels import paths
from lima_kernels.guest import startup
from lima_kernels.guest.forkserver.layers import apt, python

# What every locked environment has.
BASE = ("ipykernel", "ipywidgets", "anywidget", "psutil", "pip")


def wheel(directory: Path, name: str, version: str, *requires: str, files: Mapping[str, str] | None = None) -> Path:
    """Make a wheel of one module that knows its version, or of these files."""
    info = f"{name}-{version}.dist-info"
    metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}", *(f"Requires-Dist: {r}" for r in requires)]
    content = {
        **({f"{name}.py": f"VERSION = {version!r}\n"} if files is None else files),
        f"{info}/METADATA": "\n".join((*metadata, "")),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: us\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = []
    for path, text in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        rows.append(f"{path},sha256={digest},{len(text)}")
    content[f"{info}/RECORD"] = "\n".join((*rows, f"{info}/RECORD,,", ""))
    made = directory / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(made, "w") as archive:
        for path, text in content.items():
            # The same bytes for the same wheel.
            archive.writestr(zipfile.ZipInfo(path), text)
    return made


class Index:
    """A simple index (PEP 503) on loopback."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in BASE:
            self.add(name, "8.0", files={"tests.pth": sysconfig.get_path("purelib") + "\n"})

    def add(self, name: str, version: str, *requires: str, files: Mapping[str, str] | None = None) -> None:
        """Offer a wheel."""
        directory = self.root / name
        directory.mkdir(parents=True, exist_ok=True)
        wheel(directory, name, version, *requires, files={} if name in BASE and files is None else files)
        links = (
            f'<a href="{file.name}#sha256={hashlib.sha256(file.read_bytes()).hexdigest()}">{file.name}</a>'
            for file in sorted(directory.glob("*.whl"))
        )
        (directory / "index.html").write_text(f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>")

    @contextmanager
    def served(self) -> Iterator[str]:
        """Serve it for the time of the block, at this address."""
        handler = functools.partial(_Quiet, directory=str(self.root))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()
            thread.join(10)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def end_headers(self) -> None:
        # What is added is seen at once.
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, *_arguments: object) -> None:
        pass


_PROGRAM = r"""#!%(python)s -IS
import json, os, sys
state, archives = %(state)r, %(archives)r
def load(name, default):
    try:
        return json.load(open(os.path.join(state, name)))
    except FileNotFoundError:
        return default
def save(name, value):
    json.dump(value, open(os.path.join(state, name), "w"))
program, argv = os.path.basename(sys.argv[0]), sys.argv[1:]
if program == "sudo":
    argv = argv[1:]
    if argv[0] == "sh":
        # Nothing here is root's to change.
        save("as root", sys.stdin.read())
        sys.exit(load("root fails", 0))
    if argv[0] != "env":
        # There is no service manager.
        sys.exit(1)
    argv = argv[1:]
    while "=" in argv[0]:
        argv = argv[1:]
    os.execvp(argv[0], argv)
installed, archive = load("installed", {}), load("archive", {})
if program == "dpkg":
    print("amd64") if argv == ["--print-architecture"] else None
elif program == "dpkg-query":
    for name, version in installed.items():
        print("installed\t%%s\t%%s" %% (name, version))
    print("config-files\tgone\t1")
elif program == "apt-cache":
    name, _, version = argv[1].partition("=")
    if argv[0] == "madison":
        for known in archive.get(name, {}):
            print(" %%s | %%s | http://debian.invalid stable/main" %% (name, known))
    else:
        print("Package: %%s\nVersion: %%s\nSize: 4\nSHA256: %%s\n" %% (name, version, archive[name][version]))
elif program == "apt-get":
    with open(os.path.join(state, "calls"), "a") as calls:
        calls.write(" ".join(argv) + "\n")
    if "update" in argv:
        save("has_lists", True)
        sys.exit(load("update", 0))
    if "install" in argv:
        for change in argv[argv.index("install") + 1:]:
            name, _, version = change.partition("=")
            if change.endswith("-"):
                installed.pop(change[:-1])
                continue
            if name not in archive or not load("has_lists", True):
                print("E: Unable to locate package %%s" %% name)
                sys.exit(100)
            version = version or max(archive[name])
            if version not in archive[name]:
                print("E: Version '%%s' for '%%s' was not found" %% (version, name))
                sys.exit(100)
            print("Inst %%s (%%s Debian:12 [amd64])" %% (name, version))
            if "--download-only" in argv:
                open(os.path.join(archives, "%%s_%%s_amd64.deb" %% (name, version)), "w").write("deb\n")
            installed[name] = version
        if "--download-only" not in argv and "-s" not in argv:
            save("installed", installed)
            open(state + "/status", "a").write("\n")
"""
DEB = hashlib.sha256(b"deb\n").hexdigest()


class Debian:
    """Programs of the names of apt's, which keep a list of packages in a file."""

    def __init__(self, root: Path, programs: Path) -> None:
        self.directory, self.archives, self.status = root / "apt", root / "archives", root / "apt" / "status"
        for directory in (self.directory, self.archives, programs):
            directory.mkdir(exist_ok=True)
        text = _PROGRAM % {
            "python": os.path.realpath(sys.executable),
            "state": str(self.directory),
            "archives": str(self.archives),
        }
        for name in ("sudo", "dpkg", "dpkg-query", "apt-cache", "apt-get"):
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        self.status.write_text("Package: base\nVersion: 1\n\nPackage: byhand\nVersion: 1\n")
        self.set("installed", {"base": "1"})
        self.set("archive", {"base": {"1": DEB}, "tree": {"2.0": DEB, "2.1": DEB}, "jq": {"1:1.6": DEB}})

    def set(self, name: str, value: object) -> None:
        (self.directory / name).write_text(json.dumps(value))

    @property
    def installed(self) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.directory / "installed").read_text())
        return found

    @property
    def calls(self) -> list[str]:
        file = self.directory / "calls"
        return file.read_text().splitlines() if file.exists() else []


class Workshop:
    """Where a fake guest has its environments, and what they are made from."""

    def __init__(self, directory: Path, index: Index, debian: Debian) -> None:
        self.directory = directory
        self.index = index
        self.debian = debian

    def builds(self, name: str) -> list[str]:
        """Return the builds of an environment."""
        found = self.directory / name / "builds"
        return sorted(entry.name for entry in found.iterdir()) if found.is_dir() else []

    def packages(self, name: str) -> Path:
        """Return the directory of an environment's packages."""
        (found,) = (self.directory / name / "current" / "lib").glob("python3*/site-packages")
        return found


@contextmanager
def prepared(root: Path, programs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workshop]:
    """A guest's place for environments below a directory, for the time of the block.

    :param programs: a directory of its PATH.
    """
    debian, index = Debian(root, programs), Index(root / "index")
    directory = root / "environments"
    uv = directory / ".uv" / "bin" / "uv"
    uv.parent.mkdir(parents=True)
    real = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert real is not None
    monkeypatch.setattr(paths, "GUEST_ENVIRONMENTS", str(directory))
    # The guest gets our program with this guest's own places in it.
    places: dict[str, dict[str, Any]] = {
        "layers/apt.py": {apt.STATUS: debian.status, apt.ARCHIVES: debian.archives},
        "layers/python.py": {python.PYTHON: os.path.realpath(sys.executable), python.UV: root / "nowhere"},
        "environments.py": {apt.STATUS: debian.status},
    }
    sources = startup._sources

    def changed() -> Iterator[tuple[str, bytes]]:
        for path, data in sources():
            text = data.decode()
            for before, after in places.get(path, {}).items():
                assert text.count(f'"{before}"') == 1, (path, before)
                text = text.replace(f'"{before}"', f'"{after}"')
            yield path, text.encode() if path in places else data

    monkeypatch.setattr(startup, "_sources", changed)
    startup.program.cache_clear()
    try:
        with index.served() as address:
            uv.write_text(f'#!/bin/sh\nUV_DEFAULT_INDEX={address} exec {real} "$@"\n')
            uv.chmod(0o755)
            yield Workshop(directory, index, debian)
    finally:
        startup.program.cache_clear()
