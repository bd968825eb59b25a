"""Directories of this host that are added to a VM while it runs: what is served to which, and to whom.

What is served is written down on this host, and never taken from the guest. A process of its own serves it
(:mod:`mount_server`), so that a kernel which outlives its Jupyter server has its files meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from filelock import FileLock, Timeout

from . import locks, paths, records
from .errors import GuestError, HostError, LimaKernelsError, MountError, PhaseTimeout
from .guest import sshfs, startup
from .guest.kernels import KEPT, MountRequest
from .instances import Wish
from .lima import process
from .progress import Phase
from .vm import VM, Guest

SERVER = (sys.executable, "-P", "-m", f"{__package__}.mount_server")
# Seconds: for the process that serves to reach the VM, for sshfs to be there, and to look whether it is served.
SERVER_TIMEOUT = 60.0
MOUNT_TIMEOUT = 60.0
CHECK_INTERVAL = 2.0
_GUARD_TIMEOUT = 10.0


class ServedDirectory(records.Record, frozen=True, kw_only=True):
    """A directory of this host that one instance may see."""

    VERSION: ClassVar[int] = 1
    version: int = VERSION
    directory: str
    read_only: bool


def name_of(directory: Path) -> str:
    """Return what guest and host call a directory's mount."""
    return hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]


@contextmanager
def guarded(instance: str) -> Iterator[Path]:
    """Let nobody else change what is served to an instance meanwhile, and give the records' directory."""
    directory = paths.mounts_directory(instance)
    busy = HostError(
        f"What is served to the VM {instance!r} has been changed by another process for {_GUARD_TIMEOUT:.0f} s."
    )
    with locks.guarded(directory, _GUARD_TIMEOUT, busy):
        yield directory


def served(instance: str) -> dict[str, ServedDirectory]:
    """Return what may be served to an instance, by its mount's name."""
    found: dict[str, ServedDirectory] = {}
    if not paths.has_instance_state(instance):
        return found
    for file in sorted(paths.mounts_directory(instance).glob("[!.]*.json")):
        record = records.read(file, ServedDirectory)
        if record is not None and file.stem == name_of(Path(record.directory)):
            found[file.stem] = record
    return found


def forget(instance: str, name: str) -> None:
    """Serve a directory no longer, unless somebody adds it just now: the guest will ask for it again then."""
    with guarded(instance) as directory:
        if not _is_being_added(directory, name):
            records.remove(directory / f"{name}.json")


@contextmanager
def _adding(instance: str, name: str) -> Iterator[None]:
    """Tell all other processes meanwhile that a directory is being added."""
    with guarded(instance) as directory:
        mark = FileLock(directory / f".{name}.{secrets.token_hex(4)}", mode=0o600)
        mark.acquire(blocking=False)
    try:
        yield
    finally:
        Path(mark.lock_file).unlink(missing_ok=True)
        mark.release()


def _is_being_added(directory: Path, name: str) -> bool:
    for file in directory.glob(f".{name}.*"):
        mark = FileLock(file, mode=0o600)
        try:
            mark.acquire(blocking=False)
        except Timeout:
            return True
        # Whoever made it was killed.
        file.unlink(missing_ok=True)
        mark.release()
    return False


def server_lock(instance: str) -> FileLock:
    """Return the lock of the process that serves an instance's forkserver of our version.

    After an upgrade the guest has two of them, each with its own mounts.
    """
    version = hashlib.sha256(startup.program()).hexdigest()[:12]
    return FileLock(paths.mount_server_lock(instance, version), mode=0o600)


def is_served(instance: str) -> bool:
    """Tell whether the process lives that serves directories to an instance."""
    if not paths.has_instance_state(instance):
        return False
    lock = server_lock(instance)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    lock.release()
    return False


async def ensure_served(instance: str) -> None:
    """Start the process that serves directories to an instance when there is none.

    :raises HostError: when it cannot be started, with what it said.
    """
    if is_served(instance):
        return
    try:
        done = await process.run([*SERVER, instance], cwd=Path("/"), timeout=SERVER_TIMEOUT)
    except TimeoutError as error:
        raise PhaseTimeout(
            f"The process that serves directories to the VM {instance!r} was not ready within {SERVER_TIMEOUT:.0f} s.",
            hint=f"What it said is in {paths.mount_server_log(instance)}",
        ) from error
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise HostError(
            f"The process that serves directories to the VM {instance!r} could not be started: "
            f"{said[-1] if said else f'exit code {done.returncode}'}",
            context=said[:-1],
        )


async def keep_served(instance: str) -> None:
    """See that a VM's directories are served, for as long as the caller lives: what serves them may be killed."""
    while True:
        # The system tells nobody when a lock is given back.
        await asyncio.sleep(CHECK_INTERVAL)
        with contextlib.suppress(LimaKernelsError):
            await ensure_served(instance)


async def add(vm: VM, guest: Guest, wish: Wish, directory: Path, *, read_only: bool = False, user: str = KEPT) -> None:
    """Show a directory to a guest that runs, at its own path; one that is there already has one user more.

    :param user: the kernel that uses it; KEPT for a mount that stays until somebody removes it.
    :raises LimaKernelsError: one line that says what failed; nothing is left then.
    """
    vm.progress.enter(Phase.MOUNT, str(directory))
    name = name_of(directory)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_adding(vm.name, name))
        read_only = _serve(vm.name, directory, read_only)
        try:
            await _have_mounted(vm, guest, wish, MountRequest(str(directory), read_only, ()), user)
        except BaseException:
            stack.close()
            await asyncio.shield(_undo(vm, guest, name, user))
            raise


def _serve(instance: str, directory: Path, read_only: bool) -> bool:
    """Write down that a directory may be served, and return whether it is served read-only."""
    name = name_of(directory)
    with guarded(instance) as records_directory:
        existing = served(instance).get(name)
        if existing is None:
            existing = ServedDirectory(directory=str(directory), read_only=read_only)
            records.write(records_directory / f"{name}.json", existing)
    if existing.read_only and not read_only:
        raise MountError(
            f"The VM {instance!r} shows {directory} read-only.",
            hint=f"Remove that first: lima-kernels mount remove {directory}",
        )
    return existing.read_only


async def _have_mounted(vm: VM, guest: Guest, wish: Wish, wanted: MountRequest, user: str) -> None:
    name = name_of(Path(wanted.point))
    # Two ways that have nothing to do with each other.
    server = asyncio.ensure_future(ensure_served(vm.name))
    try:
        is_known = name in await guest.forkserver.mounts()
        if is_known:
            await server
            try:
                await _mount(vm, guest, name, user, wanted)
            except MountError:
                # Unless its last user left it in between.
                if name in await guest.forkserver.mounts():
                    raise
                is_known = False
        if not is_known:
            options = await sshfs.prepare(guest.connection, may_install=not wish.attach)
            await server
            await _mount(vm, guest, name, user, wanted._replace(options=options))
    finally:
        server.cancel()
        await asyncio.gather(server, return_exceptions=True)


async def _mount(vm: VM, guest: Guest, name: str, user: str, wanted: MountRequest) -> None:
    try:
        await guest.forkserver.mount(name, user, wanted, timeout=MOUNT_TIMEOUT)
    except TimeoutError as error:
        raise PhaseTimeout(
            f"The guest of {vm.name!r} did not mount {wanted.point} within {MOUNT_TIMEOUT:.0f} s.",
            hint=f"What the process said that serves it is in {paths.mount_server_log(vm.name)}",
        ) from error
    except GuestError as error:
        raise MountError(
            f"The directory {wanted.point} could not be added to the VM {vm.name!r}. {error.message}",
            hint=error.hint,
            context=error.context,
        ) from error


async def _undo(vm: VM, guest: Guest, name: str, user: str) -> None:
    with contextlib.suppress(LimaKernelsError):
        await guest.forkserver.unmount(name, user)
    with contextlib.suppress(LimaKernelsError):
        if name not in await guest.forkserver.mounts():
            forget(vm.name, name)


async def remove(vm: VM, guest: Guest, directory: Path) -> Sequence[str]:
    """Keep a directory no longer, and return who uses it still: it goes with the last of them.

    :raises MountError: when the guest has no such directory.
    """
    name = name_of(directory)
    if name not in await guest.forkserver.mounts():
        forget(vm.name, name)
        raise MountError(
            f"The directory {directory} was not added to the VM {vm.name!r}.",
            hint=f"Look: lima-kernels mount list --instance {vm.name}",
        )
    left = await guest.forkserver.unmount(name, KEPT)
    if not left:
        forget(vm.name, name)
    return left
