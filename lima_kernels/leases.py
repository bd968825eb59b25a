"""Leases: who on this host uses which kernel of a VM.

A lease is a lock of the operating system, beside a record of who holds it: a holder that dies, however it does, loses
it at once, and two live processes never have the same kernel.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import ClassVar

from filelock import FileLock, Timeout

from . import paths, records


class LeaseRecord(records.Record, frozen=True, kw_only=True):
    """Who uses a kernel; ``session`` is the notebook as the Jupyter server names it."""

    VERSION: ClassVar[int] = 1
    version: int = VERSION
    kernel: str
    pid: int
    program: str
    session: str = ""
    spec: str = ""


class Lease:
    """A kernel that is ours alone; made by :func:`acquire`."""

    def __init__(self, lock: FileLock, file: Path) -> None:
        self._lock = lock
        self._file = file

    def release(self, *, kernel_has_ended: bool) -> None:
        """Give the kernel up; may be called twice.

        :param kernel_has_ended: then nobody will ask for its lease again, and its files go.
        """
        if self._lock.is_locked:
            self._file.unlink(missing_ok=True)
            if kernel_has_ended:
                Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock.release()


def _lock(directory: Path, kernel: str) -> FileLock:
    return FileLock(directory / f"{kernel}.lock", mode=0o600)


def _program() -> str:
    return Path(sys.argv[0]).name or "python"


def acquire(instance: str, kernel: str, *, session: str = "", spec: str = "") -> Lease | None:
    """Take the lease of a kernel; None when a live process has it.

    :raises HostError: when it cannot be written down.
    """
    directory = paths.leases_directory(instance)
    lock = _lock(directory, kernel)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return None
    file = directory / f"{kernel}.json"
    try:
        records.write(file, LeaseRecord(kernel=kernel, pid=os.getpid(), program=_program(), session=session, spec=spec))
    except BaseException:
        lock.release()
        raise
    return Lease(lock, file)


def held(instance: str) -> dict[str, LeaseRecord]:
    """Return the leases of live processes, by kernel; what dead ones left is removed."""
    directory = paths.leases_directory(instance)
    found = {}
    for file in sorted(directory.glob("*.lock")):
        lock = _lock(directory, file.stem)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            if record := records.read(file.with_suffix(".json"), LeaseRecord):
                found[file.stem] = record
            continue
        file.with_suffix(".json").unlink(missing_ok=True)
        file.unlink(missing_ok=True)
        lock.release()
    return found


def users_of(instance: str) -> list[str]:
    """Return in words who uses an instance, a line for each kernel."""
    return [
        f"{record.session or record.spec or record.kernel} ({record.program}, process {record.pid})"
        for record in held(instance).values()
    ]
