"""A new environment: from its base, and as a copy of the golden VM."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from .machine_room import Room, delete_all
from .samples import COPIED, OURS, PROVISIONED, Row, Sample, Unit
from .timing import timed

ENVIRONMENT = """\
name: golden
apt: [tree]
python: [tabulate==0.9.0, pandas]
"""
VM = "lima-kernels-golden"
# Seconds for one command.
LIMIT = 900.0


def measure(room: Room) -> Iterator[Sample]:
    """Measure an environment from its base, the making of its golden VM, and a copy of that."""
    project = room.root / "golden"
    project.mkdir()
    (project / "lima-env.yaml").write_text(ENVIRONMENT)
    room.stack.callback(delete_all)

    def ours(*arguments: str) -> None:
        argv = [sys.executable, "-m", "lima_kernels", *arguments]
        done = subprocess.run(
            argv, cwd=project, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT, check=False
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
            raise RuntimeError(f"lima-kernels {' '.join(arguments)} ended with exit code {done.returncode}: {last}")

    def provision() -> None:
        ours("start", VM)
        ours("env", "sync")

    def sample(figure: str, seconds: float) -> Sample:
        return Sample(Row("golden", figure, OURS), seconds, Unit.SECONDS)

    ours("env", "lock")
    ours("install", "--name", "golden", "--environment", "lima-env.yaml", "--user")
    ours("delete", VM, "--force")
    yield sample(PROVISIONED, timed(provision))
    ours("delete", VM, "--force")
    yield sample("golden VM made, and a copy", timed(lambda: ours("env", "sync")))
    ours("delete", VM, "--force")
    yield sample(COPIED, timed(lambda: ours("env", "sync")))
