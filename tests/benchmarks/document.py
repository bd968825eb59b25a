"""What a run leaves in build/bench.json, and how its parts fared."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence

import msgspec

from lima_kernels import __version__
from lima_kernels.lima.limactl import Limactl
from lima_kernels.mount_benchmark.result import examine_host

from .samples import COSTS, RATIOS, Sample, collected, compared

VERSION = 1
LIBRARIES = ("ipykernel", "jupyter_client", "asyncssh", "pyzmq", "sshpyk")


class Machine(msgspec.Struct, frozen=True):
    """What the figures depend on; memory in bytes."""

    cpu: str
    cores: int
    memory: int
    system: str
    accelerator: str
    versions: Mapping[str, str]


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a part of the run went; ``failed`` is why it did not come to its end."""

    name: str
    seconds: float
    failed: str = ""
    note: str = ""


class Goal(msgspec.Struct, frozen=True):
    """A figure that has a goal; ``value`` and ``met`` are None where it was not measured."""

    name: str
    value: float | None
    goal: float
    met: bool | None


class Measured(msgspec.Struct, frozen=True):
    """One row: its median, and every measurement."""

    part: str
    figure: str
    contender: str
    unit: str
    median: float
    values: tuple[float, ...]


class Document(msgspec.Struct, frozen=True):
    """The whole file."""

    version: int
    machine: Machine
    seconds: float
    ratios: Mapping[str, float | None]
    host_mb_first_vm: float | None
    host_mb_per_kernel: float | None
    goals: tuple[Goal, ...]
    parts: tuple[Outcome, ...]
    runs: tuple[Measured, ...]

    @property
    def failed(self) -> bool:
        """Tell whether a part failed."""
        return any(part.failed for part in self.parts)


def rounded(value: float) -> float:
    """Return a figure with the digits that it is worth."""
    return float(f"{value:.4g}")


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return ""


async def examine() -> Machine:
    """Find out what the figures depend on."""
    host = await examine_host(Limactl())
    versions = {"lima-kernels": __version__, "python": platform.python_version(), "lima": host.lima, "qemu": host.qemu}
    versions |= {library: _version(library) for library in LIBRARIES}
    return Machine(
        cpu=host.cpu,
        cores=host.cores,
        memory=host.memory,
        system=host.system,
        accelerator=host.accelerator,
        versions={name: version for name, version in versions.items() if version},
    )


def document(machine: Machine, parts: Sequence[Outcome], samples: Sequence[Sample]) -> Document:
    """Return what is written of a run."""
    series = collected(samples)
    values = {
        comparison: None if value is None else rounded(value)
        for comparison, value in compared((*RATIOS, *COSTS), series)
    }
    named = {comparison.name: value for comparison, value in values.items()}
    goals = [
        Goal(comparison.name, value, comparison.goal, None if value is None else comparison.is_met(value))
        for comparison, value in values.items()
        if comparison.goal is not None
    ]
    return Document(
        version=VERSION,
        machine=machine,
        seconds=round(sum(part.seconds for part in parts), 1),
        ratios={comparison.name: named[comparison.name] for comparison in RATIOS},
        host_mb_first_vm=named["host_mb_first_vm"],
        host_mb_per_kernel=named["host_mb_per_kernel"],
        goals=tuple(goals),
        parts=tuple(parts),
        runs=tuple(
            Measured(*found.row, found.unit.value, rounded(found.median), tuple(map(rounded, found.values)))
            for found in series
        ),
    )


def encoded(made: Document) -> bytes:
    """Return it as JSON."""
    return msgspec.json.format(msgspec.json.encode(made), indent=2) + b"\n"


def decoded(data: bytes) -> Document:
    """Read it again.

    :raises msgspec.DecodeError: when it is none.
    """
    return msgspec.json.decode(data, type=Document)
