"""The benchmark's own arithmetic, and how it goes on where a part of it fails."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lima_kernels.errors import GuestError
from tests.benchmarks.cost import guest_cost
from tests.benchmarks.document import Document, Machine, Outcome, decoded, document, encoded
from tests.benchmarks.machine_room import Room
from tests.benchmarks.parts import NAMES, Part, Results, chosen, reason
from tests.benchmarks.report import markdown, picture
from tests.benchmarks.samples import (
    BULK,
    COSTS,
    HOST,
    LOCAL,
    MEMORY,
    NO_VM,
    OURS,
    RATIOS,
    ROUND_TRIP,
    SSH,
    START,
    Row,
    Sample,
    Unit,
    collected,
    compared,
)

ROOT = Path(__file__).parents[2]
MACHINE = Machine("a CPU", 2, 8 * 1024**3, "Linux 6.1", "tcg", {"lima-kernels": "1.0", "lima": "2.2.0"})


def seconds(contender: str, *values: float) -> list[Sample]:
    return [Sample(Row("warm", START, contender), value, Unit.SECONDS) for value in values]


def value_of(name: str, samples: list[Sample]) -> float | None:
    found = {comparison.name: value for comparison, value in compared((*RATIOS, *COSTS), collected(samples))}
    return found[name]


def test_a_ratio_is_that_of_the_medians() -> None:
    # One start that was late changes nothing.
    samples = seconds(OURS, 0.1, 9.0, 0.2) + seconds(LOCAL, 0.4, 0.3, 0.5)
    assert value_of("warm_start_vs_local", samples) == pytest.approx(0.5)


def test_of_what_was_not_measured_there_is_no_ratio() -> None:
    assert value_of("warm_start_vs_local", seconds(OURS, 0.1)) is None
    assert value_of("warm_start_vs_local", seconds(LOCAL, 0.1)) is None
    assert value_of("warm_start_vs_local", seconds(OURS, 0.1) + seconds(LOCAL, 0.0)) is None


def test_measurements_keep_their_order_and_rows() -> None:
    mixed = [seconds(OURS, 3.0)[0], seconds(LOCAL, 2.0)[0], seconds(OURS, 1.0)[0]]
    assert [(found.row.contender, found.values) for found in collected(mixed)] == [(OURS, [3.0, 1.0]), (LOCAL, [2.0])]


def test_what_a_kernel_costs_is_what_nine_more_cost() -> None:
    def memory(count: int, of: str, megabytes: float) -> Sample:
        return Sample(Row("cost", MEMORY.format(count), of), megabytes, Unit.MEMORY)

    samples = [memory(0, NO_VM, 60.0), memory(0, HOST, 85.0), memory(1, HOST, 86.0), memory(10, HOST, 90.5)]
    assert value_of("host_mb_first_vm", samples) == pytest.approx(25.0)
    assert value_of("host_mb_per_kernel", samples) == pytest.approx(0.5)


def loopback(figure: str, unit: Unit, ours: float, theirs: float) -> list[Sample]:
    return [
        Sample(Row("loopback", figure, OURS), ours, unit),
        Sample(Row("loopback", figure, SSH), theirs, unit),
    ]


@pytest.mark.parametrize(
    ("name", "samples", "value", "met"),
    [
        ("bulk_vs_openssh", loopback(BULK, Unit.SPEED, 95.0, 100.0), 0.95, True),
        ("bulk_vs_openssh", loopback(BULK, Unit.SPEED, 80.0, 100.0), 0.8, False),
        ("loopback_roundtrip_added_ms", loopback(ROUND_TRIP, Unit.MILLISECONDS, 4.1, 4.0), 0.1, True),
        ("loopback_roundtrip_added_ms", loopback(ROUND_TRIP, Unit.MILLISECONDS, 4.2, 4.0), 0.2, False),
        ("warm_start_vs_local", seconds(OURS, 0.2) + seconds(LOCAL, 0.4), 0.5, True),
        ("warm_start_vs_local", [], None, None),
    ],
)
def test_goals(name: str, samples: list[Sample], value: float | None, met: bool | None) -> None:
    (goal,) = (goal for goal in document(MACHINE, [], samples).goals if goal.name == name)
    assert goal.value == (None if value is None else pytest.approx(value))
    assert goal.met is met


def made() -> Document:
    samples = seconds(OURS, 0.123456, 0.2) + seconds(LOCAL, 0.4) + loopback(BULK, Unit.SPEED, 80.0, 100.0)
    parts = [Outcome("warm", 3.2, note="a note"), Outcome("golden", 1.0, failed="no < VM")]
    return document(MACHINE, parts, samples)


def test_the_file_has_what_is_promised_and_can_be_read_again() -> None:
    data = encoded(made())
    said = json.loads(data)
    assert set(said["ratios"]) == {
        *("warm_start_vs_local", "restart_vs_local", "roundtrip_vs_ssh", "bulk_vs_openssh", "cold_vs_stock"),
        *("first_boot_vs_stock", "golden_vs_provision", "warm_start_vs_sshpyk"),
        *("wake_alive_vs_stock", "wake_new_vs_stock", "hibernate_vs_stock"),
    }
    assert {"host_mb_first_vm", "host_mb_per_kernel", "machine", "runs"} <= said.keys()
    assert said["runs"][0] == {
        "part": "warm",
        "figure": START,
        "contender": OURS,
        "unit": "s",
        "median": 0.1617,
        "values": [0.1235, 0.2],
    }
    assert decoded(data) == made()
    assert made().failed
    assert not document(MACHINE, [Outcome("warm", 1.0)], []).failed


def test_the_report_says_goals_failures_and_notes() -> None:
    text = markdown(made(), ["bulk_vs_openssh"])
    assert "| `bulk_vs_openssh` | 0.80 | >= 0.9 | missed |" in text
    assert "| `cold_vs_stock` | - | <= 0.35 | not measured |" in text
    assert f"| warm | {START} | {OURS} | 0.16 s | 0.12 | 0.20 | 2 |" in text
    assert text.endswith("- `golden` failed: no < VM\n- a note\n")


def test_the_picture_has_a_bar_for_each_row() -> None:
    svg = ET.fromstring(picture(made()))
    bars = svg.findall("{http://www.w3.org/2000/svg}rect")[1:]
    assert [float(bar.attrib["width"]) for bar in bars] == pytest.approx([177.9, 440.0, 352.0, 440.0], abs=1)


def test_what_the_guest_says_of_itself() -> None:
    stats = "cpu  10 0 20 1000 5 0 0 0 0 0\ncpu  20 0 30 2980 5 0 0 0 0 0\n"
    said = f"{stats}MemTotal: 2000000 kB\nMemAvailable:  1500000 kB\n"
    memory, load = guest_cost(said)
    # 20 hundredths of a second in ten seconds.
    assert (memory, load) == (pytest.approx(512.0), pytest.approx(2.0))
    with pytest.raises(ValueError, match="no cost"):
        guest_cost("Connection closed\n")


def test_a_part_that_fails_keeps_what_it_has_and_the_others_run(tmp_path: Path) -> None:
    said: list[str] = []

    def fails(_room: Room) -> Iterator[Sample]:
        yield from seconds(OURS, 1.0)
        raise GuestError("The guest is gone.\nIt was here.")

    parts = [Part("one", "fails", fails), Part("two", "works", lambda _room: iter(seconds(LOCAL, 2.0)))]
    results = Results()
    with ExitStack() as stack:
        results.run(parts, Room(tmp_path, stack, said.append))
    assert [sample.value for sample in results.samples] == [1.0, 2.0]
    assert [part.failed for part in results.outcomes] == ["GuestError: The guest is gone.", ""]
    assert said == ["one: fails", "  failed: GuestError: The guest is gone.", "two: works"]


def test_an_interrupted_part_is_told_of(tmp_path: Path) -> None:
    def interrupted(_room: Room) -> Iterator[Sample]:
        yield from seconds(OURS, 1.0)
        raise KeyboardInterrupt

    results = Results()
    with ExitStack() as stack, pytest.raises(KeyboardInterrupt):
        results.run([Part("one", "", interrupted)], Room(tmp_path, stack, lambda _text: None))
    assert results.outcomes[0].failed == "it was interrupted"
    assert len(results.samples) == 1


def test_a_reason_names_no_directory_of_anybody() -> None:
    assert reason(RuntimeError(f"{Path.home()}/lk/lima: no room")) == "RuntimeError: ~/lk/lima: no room"


def test_parts_are_chosen_by_name_in_the_order_of_a_run() -> None:
    assert [part.name for part in chosen("warm,loopback")] == ["loopback", "warm"]
    assert tuple(part.name for part in chosen("")) == NAMES
    with pytest.raises(ValueError, match="there is no part 'wram'"):
        chosen("wram")


def test_every_part_is_in_the_page() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    table = page.partition("## What is measured")[2].partition("## How")[0]
    assert tuple(line.split("`")[1] for line in table.splitlines() if line.startswith("| `")) == NAMES


def test_the_command_shows_an_earlier_run_and_refuses_an_unknown_part(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    file.write_bytes(encoded(made()))
    argv = [sys.executable, "-m", "tests.benchmarks"]
    shown = subprocess.run([*argv, "--show", str(file)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.rstrip() == markdown(made(), ["bulk_vs_openssh"]).rstrip()
    refused = subprocess.run([*argv, "--only", "wram"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "there is no part 'wram'" in refused.stderr
