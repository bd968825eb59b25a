"""What was measured and where, as it is written to a file, and the two ratios that our default is judged by."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import psutil

from ..lima import accelerator, process
from ..lima.limactl import Limactl
from ..lima.models import Instance
from ..vm import Guest
from .plan import UNITS, Setting, Size

VERSION = 1
_TIMEOUT = 20.0


class Host(NamedTuple):
    """This host, as far as figures depend on it; memory in bytes."""

    cpu: str
    cores: int
    memory: int
    system: str
    accelerator: str
    lima: str
    qemu: str


class Machine(msgspec.Struct, frozen=True):
    """What the figures depend on; memory in bytes."""

    cpu: str
    system: str
    accelerator: str
    lima: str
    qemu: str
    guest_kernel: str
    guest_cpus: int
    guest_memory: int
    caches_emptied: bool


class Measured(NamedTuple):
    """What one setting gave: figures, and why others are missing."""

    setting: Setting
    figures: Mapping[str, float]
    failures: Mapping[str, str]


class Result(NamedTuple):
    """One run."""

    machine: Machine
    size: Size
    measured: Sequence[Measured]


class _Row(msgspec.Struct, frozen=True, omit_defaults=True):
    setting: str
    figure: str
    unit: str
    value: float | None = None
    failed: str = ""


class _Document(msgspec.Struct, frozen=True):
    version: int
    machine: Machine
    files: int
    large_file: str
    rows: Sequence[_Row]
    ratios: Mapping[str, float | None] = {}


def _first_word_of(file: Path, key: str) -> str:
    """Return the value of the first ``key : value`` line of a file such as ``/proc/cpuinfo``."""
    lines = file.read_text(errors="replace").splitlines() if file.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


async def _said(*argv: str) -> str:
    """Return the first line that a program prints, or an empty string."""
    if shutil.which(argv[0]) is None:
        return ""
    done = await process.run(argv, timeout=_TIMEOUT)
    return next(iter(done.stdout.splitlines()), "").strip()


async def examine_host(limactl: Limactl) -> Host:
    """Find out what figures depend on, without a VM; no name of anybody is in it."""
    if sys.platform == "darwin":
        cpu, qemu = await _said("sysctl", "-n", "machdep.cpu.brand_string"), ""
    else:
        cpu = _first_word_of(Path("/proc/cpuinfo"), "model name")
        qemu = await _said(f"qemu-system-{platform.machine()}", "--version")
    return Host(
        cpu=cpu or platform.machine(),
        cores=psutil.cpu_count() or 0,
        memory=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.release()}",
        accelerator=accelerator.detect().accelerator.value,
        lima=".".join(map(str, await limactl.version())),
        qemu=qemu,
    )


async def examine(limactl: Limactl, instance: Instance, guest: Guest, *, caches_emptied: bool) -> Machine:
    """Find out what the figures depend on."""
    host = await examine_host(limactl)
    kernel = await guest.connection.run("uname -r", timeout=_TIMEOUT)
    return Machine(
        cpu=host.cpu,
        system=host.system,
        accelerator=host.accelerator,
        lima=host.lima,
        qemu=host.qemu,
        guest_kernel=kernel.stdout.strip(),
        guest_cpus=instance.cpus,
        guest_memory=instance.memory,
        caches_emptied=caches_emptied,
    )


def large(measured: Measured) -> float | None:
    """Return in MiB/s how fast a large file is written and read again, or None where one of both failed."""
    write, read = (measured.figures.get(name) for name in ("large_write", "large_read"))
    return 2 / (1 / write + 1 / read) if write and read else None


def ratios(result: Result) -> dict[str, float | None]:
    """Return how our default compares, None where it was not measured.

    ``large_vs_best``: its MiB/s of a large file, to those of the best setting that Lima has. ``git_status_vs_default``:
    its seconds for `git status`, to those of what Lima takes when nothing is said.
    """
    ours = next((found for found in result.measured if found.setting.origin.name == "DEFAULT"), None)
    default = next((found for found in result.measured if found.setting.limas_default), None)
    speeds = [speed for found in result.measured if found.setting.limas and (speed := large(found))]
    our_speed = large(ours) if ours else None
    our_seconds, their_seconds = (found and found.figures.get("git_status") for found in (ours, default))
    return {
        "large_vs_best": round(our_speed / max(speeds), 2) if our_speed else None,
        "git_status_vs_default": round(our_seconds / their_seconds, 2) if our_seconds and their_seconds else None,
    }


def encoded(result: Result) -> bytes:
    """Return a result as JSON: a row for each setting and figure, the machine, and the ratios."""
    rows = []
    for found in result.measured:
        for figure, unit in UNITS.items():
            value, failed = found.figures.get(figure), found.failures.get(figure, "")
            if value is not None or failed:
                rows.append(_Row(found.setting.name, figure, unit, value and round(value, 4), failed))
    document = _Document(
        version=VERSION,
        machine=result.machine,
        files=result.size.files,
        large_file=f"{result.size.mebibytes} MiB",
        rows=rows,
        ratios=ratios(result),
    )
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"
