"""`lima-kernels mount benchmark` on a real VM of its own; what it measured is left in build/mounts.json."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lima_kernels.cli.main import main
from lima_kernels.lima.limactl import Limactl
from lima_kernels.mount_benchmark.plan import UNITS

from .conftest import Figures, run

BUILD = Path(__file__).parents[2] / "build"


OURS, LIMAS, ADDED = "9p, our default", "9p, Lima's default", "added (sshfs)"


def measured(figures: Figures, used: Sequence[str], *arguments: str) -> dict[str, Any]:
    """Run it, and return its figures; nothing may be left of its VM.

    :param used: settings that must have every figure, the host's edit among them: one that shows old files fails here.
    """
    BUILD.mkdir(exist_ok=True)
    output, picture = BUILD / "mounts.json", BUILD / "mounts.svg"
    with figures.timed("mount benchmark"):
        assert main(["mount", "benchmark", *arguments, "--output", str(output), "--picture", str(picture)]) == 0
    document: dict[str, Any] = json.loads(output.read_text())
    rows = {(row["setting"], row["figure"]): row for row in document["rows"]}
    for setting in used:
        assert [rows[setting, figure].get("failed") for figure in UNITS] == [None] * len(UNITS)
    assert ET.fromstring(picture.read_text()).tag.endswith("svg")
    assert document["machine"]["caches_emptied"]
    left = run(Limactl().list())
    assert [instance.name for instance in left if instance.name.startswith("lk-benchmark")] == []
    return document


# Figures, not a capability: of a machine with nothing else to do.
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_our_default_is_as_fast_as_limas(directories: Path, figures: Figures) -> None:
    settings = ("guest's disk", OURS, LIMAS)
    document = measured(figures, [OURS], "--quick", *(word for name in settings for word in ("--only", name)))
    assert {row["setting"] for row in document["rows"]} == set(settings)
    assert document["ratios"]["large_vs_best"] >= 0.9
    assert document["ratios"]["git_status_vs_default"] > 0
    assert not list(directories.glob("data/lima-kernels/mounts-*"))


@pytest.mark.long
@pytest.mark.timeout(10800)
def test_the_whole_benchmark(figures: Figures) -> None:
    document = measured(figures, [OURS, ADDED])
    assert {"reverse-sshfs, Lima's default", "9p, cache none"} <= {row["setting"] for row in document["rows"]}
    assert document["ratios"]["large_vs_best"] >= 0.9
