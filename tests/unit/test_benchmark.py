"""`lima-kernels mount benchmark`: the guest's program on this machine, the plan, what is shown, and the VM's end."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lima_kernels import paths
from lima_kernels.cli.main import main
from lima_kernels.environment.mounts import MountOptions, NinepOptions
from lima_kernels.lima.mounting import MountType
from lima_kernels.mount_benchmark import plan, report, workload
from lima_kernels.mount_benchmark.plan import UNITS, Origin, Setting, Size
from lima_kernels.mount_benchmark.result import Machine as Place
from lima_kernels.mount_benchmark.result import Measured, Result, encoded, ratios
from tests import mounts_table

from .conftest import Machine
from .test_added_mounts import Added, added  # noqa: F401

MEASURED_BY_THE_GUEST = set(UNITS) - {"edit_seen"}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Programs of a machine on which nobody may empty caches."""
    sudo = tmp_path / "bin" / "sudo"
    sudo.parent.mkdir()
    sudo.write_text("#!/bin/sh\nexit 1\n")
    sudo.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sudo.parent}:{os.environ['PATH']}")


def ran(*arguments: object) -> list[dict[str, Any]]:
    """Run the program as the guest does, and return what it said."""
    argv = [sys.executable, "-", *map(str, arguments)]
    source = Path(workload.__file__).read_text(encoding="utf-8")
    done = subprocess.run(argv, input=source, capture_output=True, text=True, timeout=60, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.usefixtures("few")
def test_the_guests_program_says_every_figure(tmp_path: Path) -> None:
    (root := tmp_path / "root").mkdir()
    said = ran("measure", root, 150, 2)
    figures = {message["figure"]: message for message in said if "figure" in message}
    assert set(figures) == MEASURED_BY_THE_GUEST
    assert [figure for figure, message in figures.items() if not message.get("value", 0) > 0] == []
    assert said[0] == {"caches_emptied": False}
    assert said[-1] == {"done": True}
    assert len(list((root / "repository").glob("d*/f*.py"))) == 150


@pytest.mark.usefixtures("few")
def test_a_part_that_fails_leaves_the_others(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "packages").write_text("in the way")
    said = ran("measure", tmp_path / "root", 10, 1)
    failed = {message["figure"]: message["failed"] for message in said if "failed" in message}
    assert failed == {"import": f"[Errno 20] Not a directory: '{tmp_path}/root/packages/tree/p0'"}
    assert {message["figure"] for message in said if "value" in message} == MEASURED_BY_THE_GUEST - {"import"}


def test_the_repository_is_one_that_git_takes(tmp_path: Path) -> None:
    small = workload.SmallFiles(tmp_path, 120)
    small.create()
    small.commit()
    small.status()
    git = ["git", "-C", str(small.root)]
    subprocess.run([*git, "fsck", "--strict"], check=True, capture_output=True)
    listed = subprocess.run([*git, "ls-tree", "-r", "--name-only", "HEAD"], check=True, capture_output=True, text=True)
    assert len(listed.stdout.split()) == 120
    (small.root / "d000" / "f00007.py").write_text("another\n")
    with pytest.raises(ValueError, match=r"git sees a change where none is:  M d000/f00007\.py"):
        small.status()


def test_git_trusts_the_index_and_reads_no_file(tmp_path: Path) -> None:
    """Else `git status` would be timed reading, not looking; what it had to read it writes into a new index."""
    small = workload.SmallFiles(tmp_path, 50)
    small.create()
    small.commit()
    index = small.root / ".git" / "index"
    before = index.read_bytes()
    small.status()
    assert index.read_bytes() == before
    os.utime(small.root / "d000" / "f00007.py", (0, 0))
    small.status()
    assert index.read_bytes() != before


def test_the_guest_sees_a_change_or_says_that_it_does_not(tmp_path: Path) -> None:
    watched = tmp_path / "watched"
    watched.write_text("before\n")
    said = ran("watch", watched, 0.1)
    assert said == [{"watching": True}, {"figure": "edit_seen", "failed": "not within 0 s"}, {"done": True}]
    argv = [sys.executable, workload.__file__, "watch", str(watched), "30"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == {"watching": True}
        watched.write_text("behind\n")
        seen = json.loads(process.stdout.readline())
    assert seen["figure"] == "edit_seen"
    assert 0 < seen["value"] < 30


def names(settings: list[Setting]) -> list[str]:
    return [setting.name for setting in settings]


def test_a_setting_of_limas_that_is_ours_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "DEFAULT_OPTIONS", MountOptions())
    plain = plan.first_settings(MountType.NINEP)
    assert "9p, Lima's default" not in names(plain)
    assert [setting.name for setting in plain if setting.limas_default] == ["9p, our default"]
    monkeypatch.setattr(plan, "DEFAULT_OPTIONS", MountOptions(ninep=NinepOptions(msize="500KiB")))
    tuned = plan.first_settings(MountType.NINEP)
    assert "9p, msize 500KiB" not in names(tuned)
    assert [setting.name for setting in tuned if setting.limas_default] == ["9p, Lima's default"]
    assert names(tuned)[0] == "guest's disk"
    assert names(tuned)[-1] == "added (sshfs)"


def test_every_setting_has_a_name_of_its_own() -> None:
    found = [*plan.first_settings(MountType.NINEP), *plan.first_settings(MountType.VIRTIOFS)[1:-1]]
    found += plan.other_settings(MountType.REVERSE_SSHFS)
    assert len(set(names(found))) == len(found)


def measured(name: str, origin: Origin, figures: Mapping[str, float], **marks: bool) -> Measured:
    return Measured(Setting(name, origin, MountOptions(), **marks), figures, {})


PLACE = Place(
    cpu="A <CPU>",
    system="Linux 6.1",
    accelerator="kvm",
    lima="2.2.0",
    qemu="QEMU emulator version 7.2",
    guest_kernel="6.1.0",
    guest_cpus=4,
    guest_memory=4 * 1024**3,
    caches_emptied=False,
)
RESULT = Result(
    PLACE,
    Size(files=100, mebibytes=8, limit=60),
    [
        measured("guest's disk", Origin.DISK, {"large_write": 2000, "large_read": 2000, "git_status": 0.125}),
        measured(
            "9p, our default",
            Origin.DEFAULT,
            {"large_write": 400, "large_read": 600, "git_status": 2.5, "edit_seen": 0.02},
            limas=True,
        ),
        measured(
            "9p, Lima's default",
            Origin.LIMA,
            {"large_write": 200, "large_read": 300, "git_status": 10},
            limas=True,
            limas_default=True,
        ),
        Measured(
            Setting("9p, cache loose", Origin.LIMA, limas=True),
            {"large_write": 500, "large_read": 750, "git_status": 1.0},
            {"edit_seen": "not within 5 s", "import": "[Errno 5] Input/output error"},
        ),
    ],
)


def test_ratios_compare_our_default_with_limas_settings() -> None:
    assert ratios(RESULT) == {"large_vs_best": 0.8, "git_status_vs_default": 0.25}
    assert ratios(Result(PLACE, RESULT.size, [])) == {"large_vs_best": None, "git_status_vs_default": None}


def test_the_file_has_a_row_for_each_setting_and_figure() -> None:
    document = json.loads(encoded(RESULT))
    assert document["ratios"] == {"large_vs_best": 0.8, "git_status_vs_default": 0.25}
    assert document["machine"]["cpu"] == "A <CPU>"
    assert (document["files"], document["large_file"]) == (100, "8 MiB")
    rows = {(row["setting"], row["figure"]): row for row in document["rows"]}
    assert len(rows) == len(document["rows"]) == 3 + 4 + 3 + 5
    assert rows["9p, our default", "git_status"] == {
        "setting": "9p, our default",
        "figure": "git_status",
        "unit": "s",
        "value": 2.5,
    }
    assert rows["9p, cache loose", "edit_seen"] == {
        "setting": "9p, cache loose",
        "figure": "edit_seen",
        "unit": "s",
        "failed": "not within 5 s",
    }


def test_the_table_is_read_by_people() -> None:
    text = io.StringIO()
    Console(file=text, width=200).print(report.table(RESULT))
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    ours = next(line for line in lines if line.startswith("9p, our default"))
    loose = next(line for line in lines if line.startswith("9p, cache loose"))
    assert ours.split()[3:] == ["400", "600", "-", "-", "-", "-", "2.50", "-", "0.02"]
    assert loose.split()[3:] == ["500", "750", "-", "-", "-", "-", "1.00", "failed", "failed"]
    assert report.machine(RESULT) == (
        "A <CPU>; Linux 6.1; accelerator kvm; Lima 2.2.0; QEMU emulator version 7.2; guest: Linux 6.1.0, 4 CPUs, 4 GiB"
    )
    assert report.reasons(RESULT) == [
        "9p, cache loose: import: [Errno 5] Input/output error",
        "9p, cache loose: host's edit seen: not within 5 s",
    ]
    assert report.verdicts(RESULT) == [
        "Large files, our default: 0.80 x the best of Lima's settings.",
        "git status, our default: 0.25 x the time of Lima's default.",
        "The guest's caches could not be emptied: what is read again is read from them.",
    ]


def test_the_table_in_the_documentation_is_that_of_its_file() -> None:
    document = mounts_table.read(mounts_table.COMMITTED)
    assert mounts_table.in_page() == mounts_table.rendered(document)
    assert document["machine"]["caches_emptied"]
    assert document["ratios"]["large_vs_best"] > 0


def test_a_result_as_a_table_for_the_documentation() -> None:
    lines = mounts_table.rendered(json.loads(encoded(RESULT))).splitlines()
    assert lines[0].startswith("| | write large, MiB/s | read large, MiB/s | random reads, MiB/s | create files, s |")
    assert "| 9p, our default | 400 | 600 | - | - | - | - | 2.50 | - | 0.02 |" in lines
    assert "| 9p, cache loose | 500 | 750 | - | - | - | - | 1.00 | failed | failed |" in lines
    assert "Ratios: `large_vs_best` 0.8, `git_status_vs_default` 0.25." in lines


def test_the_picture_is_xml_with_a_bar_for_each_figure() -> None:
    picture = ET.fromstring(report.picture(RESULT))
    space = "{http://www.w3.org/2000/svg}"
    bars = [rect for rect in picture.iter(f"{space}rect") if rect.get("x")]
    assert len(bars) == 3 + 4 + 3 + 3
    texts = [text.text for text in picture.iter(f"{space}text")]
    assert {
        "9p, our default",
        "git status, later",
        "MiB/s, more is better",
        "s, less is better",
        "2.50",
        "failed",
    } <= set(texts)
    assert any((text or "").startswith("A <CPU>; Linux 6.1") for text in texts)
    widest = max(float(bar.get("width", 0)) for bar in bars)
    assert [float(bar.get("width", 0)) for bar in bars[:4]] == [widest, widest * 0.2, widest * 0.1, widest * 0.25]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of seconds: two mount types, few settings, little work."""
    monkeypatch.setattr(plan, "QUICK", Size(files=10, mebibytes=1, limit=60))
    variants = {kind: dict(list(named.items())[:1]) for kind, named in plan._VARIANTS.items()}
    loose = {"cache loose": plan._VARIANTS[MountType.NINEP]["cache loose"]}
    monkeypatch.setattr(plan, "_VARIANTS", variants | {MountType.NINEP: variants[MountType.NINEP] | loose})
    monkeypatch.setattr("sys.platform", "linux")


@pytest.mark.usefixtures("small")
def test_the_whole_run(machine: Machine, added: Added, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    output, picture = machine.root / "mounts.json", machine.root / "mounts.svg"
    assert main(["mount", "benchmark", "--quick", "--output", str(output), "--picture", str(picture)]) == 0
    said = capsys.readouterr()
    document = json.loads(output.read_text())
    settings = list(dict.fromkeys(row["setting"] for row in document["rows"]))
    assert settings[0] == "guest's disk"
    assert {"9p, our default", "9p, cache loose", "added (sshfs)", "reverse-sshfs, Lima's default"} <= set(settings)
    assert [row for row in document["rows"] if "failed" in row] == []
    assert set(document["ratios"]) == {"large_vs_best", "git_status_vs_default"}
    assert all(value > 0 for value in document["ratios"].values())
    assert ET.fromstring(picture.read_text()).tag.endswith("svg")
    assert "9p, our default" in said.out
    assert "git status, our default: " in said.out
    assert "  edit_seen: " in said.err
    # One VM, two boots, and nothing of it is left.
    (created,) = machine.calls("create")
    assert created[1].startswith("--name=lk-benchmark-")
    assert len(machine.calls("start")) == 2
    assert machine.instances() == []
    assert list((paths.lima_home() / "_lima-kernels").glob("lk-benchmark*")) == []
    assert list(paths.data_directory().glob("mounts-*")) == []


@pytest.mark.usefixtures("small")
def test_a_guest_in_which_nothing_can_be_measured(
    machine: Machine,
    added: Added,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    timeout = machine.root / "guest-bin" / "timeout"
    timeout.write_text("#!/bin/sh\necho 'Killed \033[31m'\nexit 137\n")
    timeout.chmod(0o755)
    assert main(["mount", "benchmark", "--quick"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "lima-kernels: Nothing could be measured in the VM: The benchmark in the guest did not come to its end: Killed"
    )
    assert machine.instances() == []


@pytest.mark.usefixtures("image_files")
def test_a_vm_that_does_not_start_is_removed(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.tell(fail={"start": "the driver has no mood"})
    assert main(["mount", "benchmark", "--quick"]) == 1
    assert "the driver has no mood" in capsys.readouterr().err.splitlines()[-1]
    assert len(machine.calls("start")) == 1
    assert machine.instances() == []
    assert list(paths.data_directory().glob("mounts-*")) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.usefixtures("image_files")
def test_ctrl_c_and_its_like_remove_the_vm(machine: Machine, number: signal.Signals) -> None:
    machine.tell(hang=["ready"])
    argv = [sys.executable, "-m", "lima_kernels", "mount", "benchmark", "--quick"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "waiting for SSH" in line or "booting the VM" in line:
                break
        process.send_signal(number)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert rest.splitlines()[-1] == "lima-kernels: interrupted"
    assert len(machine.calls("create")) == 1
    assert machine.instances() == []


def test_only_some_settings_are_measured_and_a_boot_without_any_is_not_made() -> None:
    first = plan.Boot(MountType.NINEP, plan.first_settings(MountType.NINEP))
    boots = [first, plan.Boot(MountType.REVERSE_SSHFS, plan.other_settings(MountType.REVERSE_SSHFS))]
    chosen = plan.selected(boots, ["disk", "9p, our default"])
    assert [[setting.name for setting in boot.settings] for boot in chosen] == [["guest's disk", "9p, our default"]]
    assert len(plan.selected(boots, ["Lima's default"])) == 2


def test_a_setting_that_is_not_there_is_one_line_that_names_them(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["mount", "benchmark", "--only", "nine"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lima-kernels: No setting here has 'nine' in its name: there are guest's disk, ")
    assert machine.calls("create") == []


def test_a_file_that_cannot_be_written_is_refused_before_any_work(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["mount", "benchmark", "--output", str(machine.root / "none" / "a.json")]) == 1
    assert capsys.readouterr().err == (
        f"lima-kernels: The file {machine.root}/none/a.json cannot be written: its directory must exist.\n"
    )
    assert machine.calls("create") == []


@pytest.mark.usefixtures("image_files")
def test_a_full_disk_is_told_before_any_work(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(paths, "free_space", lambda _path: 100 * 1024**2)
    assert main(["mount", "benchmark"]) == 1
    assert capsys.readouterr().err == (
        f"lima-kernels: The benchmark needs 3406 MiB in {machine.lima_home}, and 100 are free. "
        "Free some space there, or try --quick.\n"
    )
    assert machine.calls("create") == []
