"""Standby kernels of the real VM: handed out, and what a fresh kernel would be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lima_kernels.progress import Step
from tests.client import Notebook
from tests.kernel_report import READS, REPORT

from .conftest import Figures, Start, guest_shell, until

pytestmark = pytest.mark.timeout(300)
# Those that wait have been given the score of one that goes first.
_WAITING = "for at in /proc/[0-9]*; do grep -qx 500 $at/oom_score_adj 2>/dev/null && echo ${at#/proc/}; done || :"
_BOUND = "ls -d ~/.lima-kernels/*/k/*/c-5 ~/.lima-kernels/*/k/*/kernel.json 2>/dev/null || :"


def waiting() -> list[int]:
    """Return the processes of the guest that stand by, once their sockets are bound."""
    found = guest_shell(_BOUND).split()
    directories = {Path(path).parent for path in found}
    records = {Path(path).parent for path in found if path.endswith(".json")}
    pids = [int(pid) for pid in guest_shell(_WAITING).split()]
    return pids if len(pids) == len(directories - records) else []


def report(notebook: Notebook) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(notebook.run(REPORT))
    return {name: value for name, value in said.items() if name != "key"}


def test_it_is_handed_out_and_is_what_a_fresh_kernel_is(
    start: Start, notebooks: Path, steps: list[Step], figures: Figures
) -> None:
    (notebooks / "reads.py").write_text(READS)
    start().run("1")
    until(lambda: len(waiting()) == 1, "nobody stands by")
    (pid,) = waiting()
    with figures.timed("standby, start to first cell"):
        handed_out = start()
        assert handed_out.run("import os; print(os.getpid())") == str(pid)
    until(lambda: len(waiting()) == 1, "nobody stands by")
    (pid,) = waiting()
    with figures.timed("standby, restart to first cell"):
        handed_out.manager.restart_kernel()
        handed_out.client.wait_for_ready(timeout=60)
        assert handed_out.run("import os; print(os.getpid())") == str(pid)
    # Each cell counts.
    fresh = start(standby_kernels=0)
    fresh.run("import os; print(os.getpid())")
    assert report(handed_out) == report(fresh)


def test_where_none_is_wanted_there_is_none(start: Start) -> None:
    start(standby_kernels=0).run("1")
    until(lambda: not guest_shell(_WAITING), "somebody stands by")
    start().run("1")
    until(lambda: len(waiting()) == 1, "nobody stands by")


def test_its_end_leaves_what_it_wrote(start: Start, notebooks: Path) -> None:
    (notebooks / "writes.py").write_text("file = open('of-a-module', 'w')\nfile.write('kept')\n")
    notebook = start()
    notebook.run("import writes\nhere = open('of-a-cell', 'w'); _ = here.write('kept')")
    notebook.run("import atexit, pathlib; _ = atexit.register(lambda: pathlib.Path('of-the-end').write_text('kept'))")
    notebook.manager.shutdown_kernel()
    assert [(notebooks / name).read_text() for name in ("of-a-module", "of-a-cell", "of-the-end")] == ["kept"] * 3
