"""The fake limactl's snapshots, disks and downloads."""

import json
import os
import shutil
import sys
from pathlib import Path

from fake_lima_base import HOME, describe, fail, late, log, size, told


def snapshots(directory: Path) -> list[list[str]]:
    return json.loads((directory / "disk").read_bytes().removeprefix(b"QFI\xfb"))


def write_snapshots(directory: Path, kept: list[list[str]]) -> None:
    (directory / "disk").write_bytes(b"QFI\xfb" + json.dumps(kept).encode())


def snapshot_log(message: str, level: str = "info") -> None:
    """Log as `limactl snapshot` does: it does not obey --log-format."""
    print(f'time="2026-11-21T21:58:08Z" level={level} msg={json.dumps(message)}', file=sys.stderr, flush=True)


def snapshot(action: str, name: str, options: list[str]) -> None:
    snapshot_log("`limactl snapshot` is experimental", "warning")
    directory = HOME / name
    tag = next((option.removeprefix("--tag=") for option in options if option.startswith("--tag=")), "")
    running = describe(directory)["status"] == "Running"
    kept = snapshots(directory)
    if running and action != "list" and (answer := told().get("monitor")):
        # QEMU's monitor has no exit code.
        snapshot_log(f"output: {answer}", "warning")
        return
    if action == "list":
        if kept:
            print("ID        TAG               VM SIZE                DATE     VM CLOCK     ICOUNT")
        for number, (of, memory, made) in enumerate(kept, start=1):
            print(f"{'--' if running else number:<10}{of:<15} {memory:>9} {made} 00:00:00.000          0")
        return
    if action == "create":
        # Without a VM, QEMU gives two the same tag.
        others = [one for one in kept if one[0] != tag or not running]
        write_snapshots(directory, [*others, [tag, "353 MiB" if running else "0 B", "2026-11-21 21:57:23"]])
        late("kept")
        return
    if tag not in [one[0] for one in kept]:
        # What qemu-img says is lost, and limactl ends with its exit code.
        sys.exit(1)
    if action == "delete":
        write_snapshots(directory, [one for one in kept if one[0] != tag])


def describe_disk(directory: Path) -> dict:
    lock = directory / "in_use_by"
    user = os.readlink(lock) if lock.is_symlink() else ""
    return {
        "name": directory.name,
        "size": int((directory / "datadisk").read_text()),
        "format": "qcow2",
        "dir": str(directory),
        "instance": Path(user).name,
        "instanceDir": user,
        "mountPoint": f"/mnt/lima-{directory.name}",
    }


def delete_disk(name: str, directory: Path, force: bool) -> None:
    user = describe_disk(directory)["instance"]
    if user and not force:
        fail(f"cannot delete disk `{name}` in use by instance `{user}`")
    instances = [describe(file.parent) for file in sorted(HOME.glob("*/lima.yaml"))]
    naming = [one["name"] for one in instances if {"name": name} in one["additionalDisks"]]
    if naming and not force:
        names = " ".join(f"`{one}`" for one in naming)
        log(
            f"Skipping deleting disk `{name}`, disk is referenced by one or more non-running instances: [{names}]",
            "warning",
        )
        log(f"To delete anyway, run `limactl disk delete --force {name}`", "warning")
        return
    shutil.rmtree(directory)
    log(f"Deleted `{name}` (`{directory}`)")


def disk(action: str, name: str, options: list[str]) -> None:
    directory = HOME / "_disks" / name
    asked = next((size(option.removeprefix("--size="), 0) for option in options if option.startswith("--size=")), 0)
    if action == "list":
        for file in sorted(HOME.glob("_disks/*/datadisk")):
            print(json.dumps(describe_disk(file.parent)))
    elif action == "create":
        if directory.exists():
            fail(f"disk `{name}` already exists (`{directory}`)")
        directory.mkdir(parents=True)
        late("datadisk")
        (directory / "datadisk").write_text(str(asked))
    elif not (directory / "datadisk").exists():
        if action == "resize":
            fail(f"disk `{name}` does not exists")
        log(f"Ignoring non-existent disk `{name}`", "warning")
    elif action == "delete":
        delete_disk(name, directory, "--force" in options)
    elif action == "resize":
        if asked < describe_disk(directory)["size"]:
            fail(
                f"specified size `{asked}` is less than the current disk size. Disk shrinking is currently unavailable"
            )
        (directory / "datadisk").write_text(str(asked))
    else:
        user = describe_disk(directory)["instance"]
        if user and (HOME / user / "lima.yaml").exists() and describe(HOME / user)["status"] != "Stopped":
            log(f"Cannot unlock disk `{name}` used by running instance `{user}`", "warning")
            return
        (directory / "in_use_by").unlink()
        log(f"Unlocked disk `{name}` (`{directory}`)")


def prune(options: list[str]) -> None:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lima"
    if not options:
        shutil.rmtree(cache, ignore_errors=True)
    for entry in cache.glob("download/by-url-sha256/*"):
        if entry.name != told().get("referred"):
            shutil.rmtree(entry)
