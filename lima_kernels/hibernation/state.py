"""What is known of a VM that sleeps, and whether its memory still belongs to its disk.

Memory that is loaded beside a disk that has changed since would destroy that disk. So whatever could have changed it is
written down, compared before, and the memory is gone before the guest takes its first step.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import hashlib
import os
import time
import zlib
from pathlib import Path
from typing import ClassVar

import msgspec

from .. import paths, records
from ..lima import hostagent
from ..lima.accelerator import detect
from ..lima.models import Instance

# What QEMU writes to, in an instance's directory (lima ``pkg/limatype/filenames``), and in an additional disk's.
_DISKS = ("disk", "diffdisk", "basedisk")
_ADDITIONAL = ("_disks", "datadisk")
_CONFIG = "lima.yaml"
_BLOCK = 1 << 20
# Seconds between looks.
LOOK_INTERVAL = 1.0
DAMAGED = "its memory file is damaged"


class Stage(enum.Enum):
    """How far a VM is on its way to sleep, or back."""

    SAVING = "saving"
    ASLEEP = "asleep"
    WAKING = "waking"


class Disk(msgspec.Struct, frozen=True):
    """What a file was when the VM fell asleep; times in nanoseconds."""

    path: str
    inode: int
    size: int
    modified: int


class Hibernated(records.Record, frozen=True, kw_only=True):
    """A VM that sleeps, or that a process (``pid``) just puts to sleep.

    ``config`` is the digest of its lima.yaml, ``qemu`` the version that saved it, ``machine`` what it ran on; ``size``
    and ``checksum`` (CRC-32) are its memory's, ``at`` is when, in seconds since the epoch; ``kernels`` lived in it.
    ``failed`` tells that it did not wake once.
    """

    VERSION: ClassVar[int] = 1
    version: int = VERSION
    stage: Stage
    pid: int
    at: float
    kernels: tuple[str, ...] = ()
    config: str = ""
    qemu: str = ""
    machine: str = ""
    disks: tuple[Disk, ...] = ()
    size: int = 0
    checksum: int = 0
    failed: bool = False


def _disk(path: Path) -> Disk:
    found = path.stat()
    return Disk(str(path), found.st_ino, found.st_size, found.st_mtime_ns)


def disks(instance: Instance) -> tuple[Disk, ...]:
    """Return what a stopped instance's disks are just now."""
    files = [instance.dir / name for name in _DISKS]
    directory, name = _ADDITIONAL
    files += [paths.lima_home() / directory / disk.name / name for disk in instance.additional_disks]
    return tuple(_disk(file) for file in files if file.exists())


def config_digest(instance: Instance) -> str:
    """Return the digest of what an instance is made of, to the last byte."""
    return hashlib.sha256((instance.dir / _CONFIG).read_bytes()).hexdigest()


def machine() -> str:
    """Return what VMs run on here."""
    return f"{detect().accelerator.value} {os.uname().machine}"


def begin(instance: Instance, kernels: tuple[str, ...]) -> None:
    """Write down that an instance is put to sleep, so that nobody takes its end for its kernels' end."""
    paths.instance_state(instance.name)
    record = Hibernated(stage=Stage.SAVING, pid=os.getpid(), at=time.time(), kernels=kernels)
    records.write(paths.hibernated_file(instance.name), record)


def read(name: str) -> Hibernated | None:
    """Return what is known of the sleep of an instance; None when it does not sleep."""
    return records.read(paths.hibernated_file(name), Hibernated)


def checksum(file: Path) -> int:
    """Return the CRC-32 of a file: what damages a disk's sector is no adversary."""
    found = 0
    with file.open("rb") as opened:
        while block := opened.read(_BLOCK):
            found = zlib.crc32(block, found)
    return found


def complete(instance: Instance, qemu: str) -> Hibernated:
    """Write down that an instance sleeps, once its memory is safe on the disk.

    :raises OSError: when it cannot be made safe.
    """
    file = paths.memory_file(instance.dir)
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
    before = read(instance.name)
    record = Hibernated(
        stage=Stage.ASLEEP,
        pid=os.getpid(),
        at=time.time(),
        kernels=before.kernels if before else (),
        config=config_digest(instance),
        qemu=qemu,
        machine=machine(),
        disks=disks(instance),
        size=file.stat().st_size,
        checksum=checksum(file),
    )
    records.write(paths.hibernated_file(instance.name), record)
    return record


def note_failure(name: str, record: Hibernated) -> None:
    """Write down that an instance did not wake."""
    records.write(paths.hibernated_file(name), msgspec.structs.replace(record, failed=True))


def objection(instance: Instance, record: Hibernated) -> str:
    """Return why a memory must not be loaded, in words, or nothing; its content is not looked at."""
    try:
        objections = {
            "it was not saved to its end": record.stage is not Stage.ASLEEP,
            "its disk has changed since, by a start or by hand": record.disks != disks(instance),
            "its lima.yaml has changed since": record.config != config_digest(instance),
            f"it ran by {record.machine}, and would now by {machine()}": record.machine != machine(),
            DAMAGED: paths.memory_file(instance.dir).stat().st_size != record.size,
        }
    except OSError as error:
        return f"{error.filename} cannot be looked at: {error.strerror}"
    return next((words for words, holds in objections.items() if holds), "")


def discard(instance: Instance) -> None:
    """Forget a sleep, and remove the memory for good."""
    _remove_memory(instance)
    records.remove(paths.hibernated_file(instance.name))


def begin_to_wake(instance: Instance, record: Hibernated) -> None:
    """Remove the memory of a VM that has it and stands still: it may run now, and nobody can load it again.

    :raises OSError: when it cannot be removed.
    """
    waking = msgspec.structs.replace(record, stage=Stage.WAKING, pid=os.getpid())
    records.write(paths.hibernated_file(instance.name), waking)
    _remove_memory(instance)


def _remove_memory(instance: Instance) -> None:
    memory = paths.memory_file(instance.dir)
    memory.unlink(missing_ok=True)
    # A host that loses its power in this moment must not find it again beside a disk that has changed.
    with contextlib.suppress(FileNotFoundError):
        _sync(memory.parent)


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


async def given_up(name: str) -> None:
    """Wait until whoever puts an instance to sleep, or wakes it, was killed at it, for as long as the caller does."""
    while True:
        record = read(name)
        if record is not None and record.stage is not Stage.ASLEEP and not hostagent.is_alive(record.pid):
            return
        # The system tells nobody of another's end.
        await asyncio.sleep(LOOK_INTERVAL)


async def awake(name: str) -> None:
    """Wait until an instance does not sleep any more, for as long as the caller does."""
    while is_asleep(name):  # noqa: ASYNC110
        # Another process wakes it; the system does not tell us.
        await asyncio.sleep(LOOK_INTERVAL)


def is_asleep(name: str) -> bool:
    """Tell whether an instance sleeps, or is on its way to sleep or back; asks no process."""
    return read(name) is not None
