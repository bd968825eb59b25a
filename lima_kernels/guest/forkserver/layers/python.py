"""The guest's virtual environments: resolved and built by uv, aside, and switched by one rename."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .. import environments
from .commands import Failed, quietly, run, say

# Where an image of ours has it.
UV = "/opt/lima-kernels/bin/uv"
# The distribution's: what an environment is made of must not change with another one.
PYTHON = "/usr/bin/python3"
# Seconds that a second sync waits for the first.
PATIENCE = 900.0
_ENV = {
    "UV_PYTHON_DOWNLOADS": "never",
    "UV_NO_CONFIG": "1",
    "UV_NO_PROGRESS": "1",
    "UV_SYSTEM_CERTS": "1",
    "NO_COLOR": "1",
    "LC_ALL": "C.UTF-8",
}
_HASH = re.compile(r"Hash mismatch for `([^`]+)`.*?Expected:\s*(\S+).*?Computed:\s*(\S+)", re.DOTALL)
_NO_BUILD = re.compile(
    r"`?([\w.=-]+)`? (?:can't be installed because it )?(?:doesn't have|has no)[^.]*(?:wheel|source)"
)


def _cache(base: str) -> str:
    return os.path.join(base, ".cache")


def _env(base: str) -> dict[str, str]:
    return {**_ENV, "UV_CACHE_DIR": _cache(base)}


@contextlib.contextmanager
def locked(base: str) -> Iterator[None]:
    """Be the only one who changes environments, as a block.

    :raises Failed: when another one takes too long.
    """
    with open(os.path.join(base, ".lock"), "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(phase="waiting for another sync")
            # As a program, for a wait with a limit that needs no signal and no polling.
            waited = subprocess.run(
                ("flock", "--timeout", str(int(PATIENCE)), str(file.fileno())), pass_fds=(file.fileno(),), check=False
            )
            if waited.returncode:
                what = "Another sync of an environment of this VM has not ended within %.0f s." % PATIENCE
                raise Failed(what, "Is it stuck? Look: limactl shell NAME ps ax") from None
        yield


def prepare(base: str) -> None:
    """Make the directory of environments, the guest user's own.

    :raises Failed: when that is not possible.
    """
    own = ("--owner=%d" % os.getuid(), "--group=%d" % os.getgid())
    if not os.access(base, os.W_OK):
        quietly(("sudo", "-n", "install", "-d", "-m", "0755", *own, base), "Making %s" % base)


def have_uv(base: str) -> str:
    """Return uv's path; it is fetched where the guest's image does not bring it.

    :raises Failed: when it cannot be had.
    """
    if os.access(UV, os.X_OK):
        return UV
    tools = os.path.join(base, ".uv")
    found = os.path.join(tools, "bin", "uv")
    if not os.access(found, os.X_OK):
        say(phase="fetching uv")
        run((sys.executable, "-m", "pip", "install", "--quiet", "--target", tools, "uv"), "Fetching uv")
    return found


def version() -> str:
    """Return the version of the Python that environments are made of."""
    return quietly((PYTHON, "-I", "-S", "-c", "import platform; print(platform.python_version())"), "Python").strip()


def resolve(base: str, requirements: str, before: str, upgrade: Sequence[str] | None) -> str:
    """Return the PEP 751 document that requirements lead to, for every platform.

    :param before: that of an earlier lock, whose versions stay where they can.
    :param upgrade: names whose versions need not stay; all when empty, none when None.
    :raises Failed: uv's own explanation when they do not go together.
    """
    uv = have_uv(base)
    say(phase="resolving Python packages")
    with tempfile.TemporaryDirectory() as work:
        output = os.path.join(work, "pylock.toml")
        if before and upgrade != []:
            with open(output, "w", encoding="utf-8") as file:
                file.write(before)
        argv = [uv, "pip", "compile", "-", "--universal", "--format", "pylock.toml", "--generate-hashes", "--no-header"]
        argv += ["--quiet", "--python", PYTHON, "--output-file", output]
        for name in upgrade or ():
            argv += ["--upgrade-package", name]
        try:
            run(argv, "Resolving the Python packages", env=_env(base), text=requirements)
        except Failed as error:
            if any("No solution found" in line for line in error.log):
                raise Failed(
                    "The Python requirements do not go together.", "Correct python in the environment file.", error.log
                ) from error
            raise
        with open(output, encoding="utf-8") as file:
            return file.read()


def exported(base: str, pyproject: str, uv_lock: str) -> str:
    """Return the PEP 751 document of a project that has a uv.lock.

    :raises Failed: when uv does not take them.
    """
    uv = have_uv(base)
    say(phase="reading uv.lock")
    with tempfile.TemporaryDirectory() as work:
        for name, text in (("pyproject.toml", pyproject), ("uv.lock", uv_lock)):
            with open(os.path.join(work, name), "w", encoding="utf-8") as file:
                file.write(text)
        argv = [uv, "export", "--format", "pylock.toml", "--frozen", "--no-emit-project", "--no-header"]
        return quietly([*argv, "--python", PYTHON], "Reading uv.lock", env=_env(base), directory=work)


def sync(base: str, name: str, wanted: dict[str, Any]) -> bool:
    """Make an environment's present build that of a lock, and tell whether that changed anything.

    :param wanted: ``lock`` and ``python`` are digests, ``pylock`` the document, ``needed`` bytes of disk.
    :raises Failed: when it cannot be built; the present build is as it was.
    """
    found = environments.find(base, name)
    if found["lock"] == wanted["lock"] and not environments.has_drifted(base, name):
        return False
    home = os.path.join(base, name)
    builds = os.path.join(home, "builds")
    os.makedirs(builds, exist_ok=True)
    _tidy(home)
    _check_space(base, int(wanted["needed"]))
    venv = os.path.join(builds, "%s-%s" % (wanted["python"][:12], secrets.token_hex(3)))
    try:
        build(base, venv, wanted["pylock"])
        environments.write_manifest(venv, lock=wanted["lock"], python=wanted["python"])
        switch(home, venv)
    except BaseException:
        shutil.rmtree(venv, ignore_errors=True)
        raise
    _tidy(home)
    return True


def build(base: str, venv: str, pylock: str) -> None:
    """Make a virtual environment of what a PEP 751 document names, and nothing else.

    :raises Failed: when something cannot be had, or is not what the document says.
    """
    uv, env = have_uv(base), _env(base)
    say(phase="building the virtual environment")
    run((uv, "venv", "--quiet", "--no-project", "--python", PYTHON, venv), "Making the virtual environment", env=env)
    with tempfile.TemporaryDirectory() as work:
        file = os.path.join(work, "pylock.toml")
        with open(file, "w", encoding="utf-8") as lock:
            lock.write(pylock)
        # Copies, for whoever edits a package in place would edit uv's cache, and so the next environment.
        argv = [uv, "pip", "sync", "--preview-features", "pylock", "--link-mode", "copy", "--require-hashes"]
        argv += ["--python", environments.interpreter(venv), file]
        say(phase="installing Python packages")
        try:
            # Hashes tell whether what is cached is right: no index is asked whether it still thinks so.
            quietly((*argv, "--offline"), "Installing the Python packages", env=env)
        except Failed:
            _install(argv, env)


def _install(argv: Sequence[str], env: Mapping[str, str]) -> None:
    try:
        run(argv, "Installing the Python packages", env=env)
    except Failed as error:
        raise _explained(error) from error


def _explained(error: Failed) -> Failed:
    said = "\n".join(error.log)
    if mismatch := _HASH.search(said):
        package, expected, got = mismatch.groups()
        return Failed(
            "The Python package %s is not the one that was locked: expected %s, got %s. Nothing was installed."
            % (package, expected, got),
            "Did its index change it? Look at that before: lima-kernels env lock --upgrade %s" % package.split("==")[0],
            error.log,
        )
    if missing := _NO_BUILD.search(said):
        return Failed(
            "The Python package %s has no build for this guest (%s)." % (missing[1], os.uname().machine),
            "Choose another version in the environment file, and lock again.",
            error.log,
        )
    return error


def _check_space(base: str, needed: int) -> None:
    """See that there is room for it before anything is fetched; in bytes."""
    free = shutil.disk_usage(base).free
    if needed > free:
        raise Failed(
            "The guest's disk has no room for the environment: %d MiB are free, some %d MiB are needed."
            % (free >> 20, needed >> 20),
            "Look: limactl shell NAME df -h; a larger disk: disk in the environment file.",
        )


def switch(home: str, venv: str) -> None:
    """Make a build the one that an environment uses, in one step."""
    incoming = os.path.join(home, "current.new")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(incoming)
    os.symlink(os.path.join("builds", os.path.basename(venv)), incoming)
    os.replace(incoming, os.path.join(home, "current"))


def users(directory: str) -> list[int]:
    """Return the processes that were started from a directory: kernels show their Python's path."""
    prefix, found = directory.encode() + b"/", []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                with open("/proc/%s/cmdline" % entry, "rb") as file:
                    is_user = any(part.startswith(prefix) for part in file.read().split(b"\0"))
                with open("/proc/%s/comm" % entry, encoding="utf-8", errors="replace") as file:
                    # One that only waits to fork kernels ends by itself.
                    if is_user and file.read().strip() != environments.ZYGOTE:
                        found.append(int(entry))
    return found


def _tidy(home: str) -> None:
    """Remove builds that are neither present nor in use: of interrupted syncs, and of earlier locks."""
    builds = os.path.join(home, "builds")
    present = os.path.basename(os.path.realpath(os.path.join(home, "current")))
    for entry in os.listdir(builds):
        if entry != present and not users(os.path.join(builds, entry)):
            shutil.rmtree(os.path.join(builds, entry), ignore_errors=True)


def remove(base: str, name: str, *, force: bool) -> None:
    """Remove an environment; the kernels that run in it are ended first where that is forced.

    :raises Failed: when kernels run in it.
    """
    home = os.path.join(base, name)
    if (used := users(home)) and not force:
        raise Failed(
            "%d processes run in the environment %s." % (len(used), name), "End its kernels first, or: --force"
        )
    for pid in used:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(home, ignore_errors=True)


def read_manifest(base: str, name: str) -> dict[str, Any]:
    """Return what the present build says of itself; empty when there is none."""
    with (
        contextlib.suppress(OSError, ValueError),
        open(os.path.join(environments.current(base, name), environments.MANIFEST), encoding="utf-8") as file,
    ):
        found: dict[str, Any] = json.load(file)
        return found
    return {}
