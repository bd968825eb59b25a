"""`lima-kernels mount benchmark` on a real VM of its own; what it measured is left in build/mounts.json."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from lima_kernels.cli.main import main
from lima_kernels.lima.limactl import Limactl
from lima_kernels.mount_benchmark.plan import UNITS

from .conftest import Figures, run

BUILD = Path(__file__).parents[2] / "build"


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_benchmark_of_the_mounts(directories: Path, figures: Figures) -> None:
    BUILD.mkdir(exist_ok=True)
    output, picture = BUILD / "mounts.json", BUILD / "mounts.svg"
    with figures.timed("mount benchmark"):
        assert main(["mount", "benchmark", "--quick", "--output", str(output), "--picture", str(picture)]) == 0
    document = json.loads(output.read_text())
    rows = {(row["setting"], row["figure"]): row for row in document["rows"]}
    settings = {setting for setting, _ in rows}
    ours = next(setting for setting in settings if setting.endswith("our default"))
    assert {"guest's disk", "added (sshfs)", "reverse-sshfs, Lima's default"} <= settings
    # Every figure of what people use, the host's edit among them: a default that shows old files would fail here.
    for setting in (ours, "added (sshfs)"):
        assert [rows[setting, figure].get("failed") for figure in UNITS] == [None] * len(UNITS)
    assert document["ratios"]["large_vs_best"] >= 0.9
    assert document["ratios"]["git_status_vs_default"] > 0
    assert ET.fromstring(picture.read_text()).tag.endswith("svg")
    assert document["machine"]["caches_emptied"]
    left = run(Limactl().list())
    assert [instance.name for instance in left if instance.name.startswith("lk-benchmark")] == []
    assert not list(directories.glob("data/lima-kernels/mounts-*"))
