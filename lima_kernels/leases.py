"""Leases: who on this host uses which kernel of a VM.

A lease is a lock of the operating system, beside a record of who holds it: a holder that dies, however it does, loses
it at once, and two live processes never have the same kernel.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from filelock import FileLock, Timeout

from . import paths, records
from .errors import HostError
from .guest.kernels import KernelFacts
from .locks import guarded

# Seconds. Nobody looks for longer than files take to be read.
_GUARD_TIMEOUT = 2.0


class LeaseRecord(records.Record, frozen=True, kw_only=True):
    """Who uses a kernel; ``session`` is the notebook as the Jupyter server names it.

    ``sockets`` is the directory of its unix sockets on the host, which a dead holder leaves behind.
    """

    VERSION: ClassVar[int] = 1
    version: int = VERSION
    kernel: str
    pid: int
    program: str
    session: str = ""
    spec: str = ""
    sockets: str = ""


class Lease:
    """A kernel that is ours alone; made by :func:`acquire`."""

    def __init__(self, instance: str, lock: FileLock, file: Path) -> None:
        self._instance = instance
        self._lock = lock
        self._file = file

    def release(self) -> None:
        """Give the kernel up; may be called twice."""
        if self._lock.is_locked:
            with _guarded(self._instance):
                _forget(self._lock, self._file)


@contextlib.contextmanager
def _guarded(instance: str) -> Iterator[Path]:
    """Let nobody else look at an instance's leases meanwhile, and give their directory.

    So a lock that is only tried for a look is never in the way of who wants it, and its file can be removed without
    anybody's waiting for a file that is gone.
    """
    directory = paths.leases_directory(instance)
    busy = HostError(
        f"The leases of the VM {instance!r} have been looked at by another process for {_GUARD_TIMEOUT:.0f} s.",
        hint="End that process if it hangs: lima-kernels kernels list names those that use the VM.",
    )
    with guarded(directory, _GUARD_TIMEOUT, busy):
        yield directory


def _lock(directory: Path, kernel: str) -> FileLock:
    return FileLock(directory / f"{kernel}.lock", mode=0o600)


def _clean_up(file: Path) -> None:
    """Remove what a dead holder left on the host."""
    record = records.read(file, LeaseRecord)
    if record is not None and record.sockets and paths.is_socket_directory(Path(record.sockets)):
        shutil.rmtree(record.sockets, ignore_errors=True)


def _forget(lock: FileLock, file: Path) -> None:
    file.unlink(missing_ok=True)
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


def _program() -> str:
    return Path(sys.argv[0]).name or "python"


def acquire(instance: str, kernel: str, facts: KernelFacts, sockets: Path | None = None) -> Lease | None:
    """Take the lease of a kernel; None when a live process has it.

    :param sockets: the directory of its unix sockets on the host, for whoever cleans up when we die.

    :raises HostError: when it cannot be written down.
    """
    with _guarded(instance) as directory:
        lock, file = _lock(directory, kernel), directory / f"{kernel}.json"
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return None
        _clean_up(file)
        record = LeaseRecord(
            kernel=kernel,
            pid=os.getpid(),
            program=_program(),
            session=facts.session,
            spec=facts.spec,
            sockets=str(sockets or ""),
        )
        try:
            records.write(file, record)
        except BaseException:
            _forget(lock, file)
            raise
    return Lease(instance, lock, file)


def held(instance: str) -> dict[str, LeaseRecord]:
    """Return the leases of live processes, by kernel; what dead ones left is removed."""
    found = {}
    with _guarded(instance) as directory:
        for entry in sorted(directory.glob("[!.]*.lock")):
            lock, file = _lock(directory, entry.stem), entry.with_suffix(".json")
            try:
                lock.acquire(blocking=False)
            except Timeout:
                if record := records.read(file, LeaseRecord):
                    found[entry.stem] = record
            else:
                _clean_up(file)
                _forget(lock, file)
    return found


def users_of(instance: str, but: str = "") -> list[str]:
    """Return in words who uses an instance, a line for each kernel but one."""
    return [
        f"{record.session or record.spec or record.kernel} ({record.program}, process {record.pid})"
        for kernel, record in held(instance).items()
        if kernel != but
    ]
