"""What Lima keeps on this host: snapshots of instances, disks of its own, and what it downloaded."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from .. import paths
from ..errors import InstanceError, LimactlError, nearest
from . import process
from .limactl import Limactl
from .models import Disk, Instance, LogLine, Snapshot, decode_disks, decode_log_line, decode_snapshots

# Seconds: the memory of a running VM is written to its disk, or read from it.
_SNAPSHOT = 900.0
# Seconds to make or grow a disk, and to look at every download.
_LONG = 600.0
# Below LIMA_HOME, and in each disk's directory (lima ``pkg/limatype/filenames``).
_DISKS = "_disks"
_IN_USE = "in_use_by"
# In an instance's directory: where its one connection is that all of Lima's SSH goes over.
_SSH_MASTER = "ssh.sock"
_HANG_UP = 10.0
# What QEMU's monitor said, as limactl tells it: there is no word when all went well, and the exit code is always 0.
_MONITOR = "output: "


def _log(text: str) -> Iterator[LogLine]:
    return (decode_log_line(line) for line in text.splitlines() if line.strip())


async def snapshots(limactl: Limactl, instance: Instance) -> tuple[Snapshot, ...]:
    """Return the snapshots in an instance's disk, those first that were made first."""
    if not (instance.dir / "disk").exists():
        # It was never started, or reset since: qemu-img would fail.
        return ()
    return decode_snapshots((await _snapshot(limactl, "list", instance.name)).stdout)


async def _snapshot(limactl: Limactl, *arguments: str) -> process.Completed:
    """Run `limactl snapshot`; how it fails depends on whether the instance runs.

    :raises LimactlError: when limactl, qemu-img or QEMU's monitor does not do it.
    """
    done = await limactl.run("snapshot", *arguments, timeout=_SNAPSHOT, check=False)
    lines = list(_log(done.stderr))
    if done.returncode:
        if any(line.level == "fatal" for line in lines):
            raise limactl.failure(("snapshot", *arguments), done.returncode, done.stderr.splitlines())
        raise LimactlError(
            f"limactl snapshot {' '.join(arguments)} failed, and keeps to itself what qemu-img said.",
            hint="Does another program have the VM's disk open, or is this host's disk full?",
        )
    if said := next((line.msg for line in lines if line.msg.startswith(_MONITOR)), ""):
        raise LimactlError(f"limactl snapshot {' '.join(arguments)} failed: {said.removeprefix(_MONITOR)}")
    return done


async def create_snapshot(limactl: Limactl, name: str, tag: str) -> None:
    """Keep an instance's disk as it is, and its memory when it runs."""
    await _snapshot(limactl, "create", name, f"--tag={tag}")


async def apply_snapshot(limactl: Limactl, instance: Instance, tag: str) -> None:
    """Give an instance the disk that it had, and its memory when it runs; what it has now is lost."""
    await _snapshot(limactl, "apply", instance.name, f"--tag={tag}")
    if (master := instance.dir / _SSH_MASTER).is_socket():
        # The guest no longer knows of this connection; Lima's host agent would wait for it when it is to stop.
        with contextlib.suppress(OSError, TimeoutError):
            await process.run(["ssh", "-F", "none", "-S", str(master), "-O", "exit", instance.name], timeout=_HANG_UP)


async def delete_snapshot(limactl: Limactl, name: str, tag: str) -> None:
    """Remove a snapshot."""
    await _snapshot(limactl, "delete", name, f"--tag={tag}")


async def disks(limactl: Limactl) -> tuple[Disk, ...]:
    """Return all disks of Lima's own."""
    done = await limactl.run("disk", "list", "--json")
    try:
        return decode_disks(done.stdout)
    except msgspec.DecodeError as error:
        raise LimactlError(
            f"limactl disk list printed what is no list of disks: {error}.", context=done.stdout.splitlines()[:5]
        ) from error


async def get_disk(limactl: Limactl, name: str) -> Disk:
    """Return the disk of that name.

    :raises InstanceError: when there is none; names the nearest that exists.
    """
    known = {disk.name: disk for disk in await disks(limactl)}
    if name not in known:
        raise InstanceError(f"Lima has no disk {name!r}.", hint=nearest(name, list(known)))
    return known[name]


def disk_directory(name: str) -> Path:
    """Where Lima keeps a disk; there may be one that `disk list` leaves out, for it is half-made."""
    return paths.lima_home() / _DISKS / name


def is_in_use(directory: Path) -> bool:
    """Tell whether an instance has locked the disk in a directory."""
    return (directory / _IN_USE).is_symlink()


async def create_disk(limactl: Limactl, name: str, size: str) -> None:
    """Make a disk; the size as Lima writes it."""
    await limactl.run("disk", "create", name, f"--size={size}", timeout=_LONG)


async def resize_disk(limactl: Limactl, name: str, size: str) -> None:
    """Make a disk bigger; the size as Lima writes it."""
    await limactl.run("disk", "resize", name, f"--size={size}", timeout=_LONG)


async def delete_disk(limactl: Limactl, name: str) -> None:
    """Remove a disk that no instance names.

    :raises LimactlError: when Lima does not.
    """
    await _unless_refused(limactl, "delete", name)


async def delete_disk_forcibly(limactl: Limactl, name: str) -> None:
    """Remove a disk, whoever names or uses it."""
    await _unless_refused(limactl, "delete", name, "--force")


async def unlock_disk(limactl: Limactl, name: str) -> None:
    """Free a disk from an instance that no longer runs.

    :raises LimactlError: when Lima does not.
    """
    await _unless_refused(limactl, "unlock", name)


async def _unless_refused(limactl: Limactl, verb: str, name: str, *options: str) -> None:
    """Run a verb on a disk; limactl only warns when it passes it over, and ends with 0."""
    done = await limactl.run("disk", verb, name, *options)
    for line in _log(done.stderr):
        if line.level == "warning" and f"disk `{name}`" in line.msg:
            raise LimactlError(f"limactl disk {verb} {name} did nothing: {line.msg}")


def cache_directory() -> Path:
    """Where Lima keeps what it downloaded (Go's ``os.UserCacheDir``)."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "lima"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lima"


async def prune(limactl: Limactl) -> None:
    """Remove all that Lima downloaded; instances have their own copies."""
    await limactl.run("prune", timeout=_LONG)


async def prune_unreferred(limactl: Limactl) -> None:
    """Remove what Lima downloaded for no instance and no template."""
    await limactl.run("prune", "--keep-referred", timeout=_LONG)
