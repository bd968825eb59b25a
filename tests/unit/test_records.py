"""Records on disk: written whole or not at all, and never believed when they are read."""

from __future__ import annotations

import logging
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest

from lima_kernels import paths, records
from lima_kernels.errors import ConfigurationError, HostError

from .conftest import Machine


class Note(records.Record, frozen=True, kw_only=True):
    VERSION: ClassVar[int] = 2
    version: int = VERSION
    text: str
    pid: int = 0


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "note.json"


def aside(file: Path) -> list[Path]:
    return sorted(file.parent.glob("note.json.set-aside-*"))


def test_what_is_written_is_read(file: Path) -> None:
    records.write(file, Note(text="grüße", pid=7))
    assert records.read(file, Note) == Note(version=2, text="grüße", pid=7)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert os.listdir(file.parent) == ["note.json"]


def test_nothing_there_is_no_record(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert records.read(file, Note) is None
    assert records.read(file.parent / "no" / "directory.json", Note) is None
    assert caplog.records == []


def test_fields_of_tomorrow_are_ignored(file: Path) -> None:
    file.write_text('{"version": 2, "text": "a", "colour": {"deep": [1, 2]}}')
    assert records.read(file, Note) == Note(text="a")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Input data was truncated"),
        (b'{"version": 2, "text": "a', "Input data was truncated"),
        (b"\x00" * 100, "JSON is malformed"),
        (b"no json", "JSON is malformed"),
        (b"[]", "Expected `object`, got `array`"),
        (b"[" * 500_000, "Expected `object`, got `array`"),
        (b'{"version": 2, "x": ' + b"[" * 500_000, "recursion"),
        (b'{"text": "a"}', "missing required field `version`"),
        (b'{"version": 2}', "missing required field `text`"),
        (b'{"version": 2, "text": 5}', "Expected `str`, got `int` - at `$.text`"),
        (b'{"version": 2, "text": "\xff"}', "can't decode byte 0xff"),
        (b'{"version": "2", "text": "a"}', "Expected `int`, got `str` - at `$.version`"),
        (b'{"version": 1, "text": "a"}', "its version is 1, and version 2 is understood"),
        (b'{"version": 3, "completely": "different"}', "its version is 3, and version 2 is understood"),
        (b" " * (records.SIZE_LIMIT + 1), "it has more than 1048576 bytes"),
    ],
)
def test_bad_content_is_set_aside_with_one_warning(
    file: Path, content: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_bytes(content)
    assert records.read(file, Note) is None
    (kept,) = aside(file)
    assert kept.read_bytes() == content
    assert not file.exists()
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    assert warning.getMessage().startswith(f"The file {file} is not used: ")
    assert reason.lower() in warning.getMessage().lower()
    assert warning.getMessage().endswith(f"It was set aside as {kept.name}.")
    assert records.read(file, Note) is None
    assert len(caplog.records) == 1


def test_a_directory_in_its_place_is_set_aside(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.mkdir()
    assert records.read(file, Note) is None
    assert len(aside(file)) == len(caplog.records) == 1


def test_a_pipe_in_its_place_hangs_nobody(file: Path) -> None:
    os.mkfifo(file)
    assert records.read(file, Note) is None
    assert len(aside(file)) == 1


def test_what_cannot_be_read_is_set_aside(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    records.write(file, Note(text="a"))
    file.chmod(0)
    assert records.read(file, Note) is None
    assert len(aside(file)) == 1
    assert "it cannot be read: Permission denied" in caplog.text


def test_what_cannot_be_renamed_either_is_left(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    records.write(file, Note(text="a"))
    file.chmod(0)
    file.parent.chmod(0o500)
    try:
        assert records.read(file, Note) is None
    finally:
        file.parent.chmod(0o700)
    assert file.exists()
    assert "It was left there (Permission denied)." in caplog.text
    assert len(caplog.records) == 1


def test_what_was_replaced_meanwhile_is_not_set_aside(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("bad")

    def decoded(_data: bytes, _kind: type[Note]) -> Note:
        records.write(file, Note(text="good"))
        raise ValueError("bad")

    with monkeypatch.context() as patched:
        patched.setattr(records, "_decoded", decoded)
        assert records.read(file, Note) is None
    assert aside(file) == []
    assert records.read(file, Note) == Note(text="good")


def test_a_write_that_fails_leaves_the_older_record(file: Path) -> None:
    records.write(file, Note(text="older"))
    file.parent.chmod(0o500)
    try:
        with pytest.raises(HostError) as caught:
            records.write(file, Note(text="newer"))
    finally:
        file.parent.chmod(0o700)
    assert str(caught.value) == f"The file {file} cannot be written: Permission denied."
    assert records.read(file, Note) == Note(text="older")


def test_a_full_disk_is_one_clear_line_and_no_litter(file: Path) -> None:
    records.write(file, Note(text="older"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores SIGXFSZ: what goes beyond is an OSError while writing, as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(HostError) as caught:
            records.write(file, Note(text="x" * 5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(caught.value) == f"The file {file} cannot be written: File too large."
    assert os.listdir(file.parent) == ["note.json"]
    assert records.read(file, Note) == Note(text="older")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_no_space_left_says_what_to_do(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(dir: Path, prefix: str) -> tuple[int, str]:  # noqa: A002
        name = dir / f"{prefix}x"
        name.touch()
        return os.open("/dev/full", os.O_WRONLY), str(name)

    monkeypatch.setattr("lima_kernels.paths.tempfile.mkstemp", make)
    with pytest.raises(HostError) as caught:
        records.write(file, Note(text="a"))
    assert str(caught.value) == (f"The file {file} cannot be written: No space left on device. Free some space there.")
    assert os.listdir(file.parent) == []


def test_readers_never_see_half_a_record(file: Path) -> None:
    """Another process writes without a pause, small and large records in turn."""
    program = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from pathlib import Path\n"
        "from lima_kernels import records\n"
        "from lima_kernels.progress import Shared\n"
        "print('go', flush=True)\n"
        "while True:\n"
        "    for size in (1, 200_000):\n"
        "        records.write(Path(sys.argv[1]), Shared(pid=size, phase='x' * size))\n"
    )
    from lima_kernels.progress import Shared  # noqa: PLC0415

    argv = [sys.executable, "-c", program, str(file), *filter(None, sys.path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        try:
            seen = set()
            for _ in range(3000):
                if (found := records.read(file, Shared)) is not None:
                    assert len(found.phase) == found.pid
                    seen.add(found.pid)
        finally:
            writer.kill()
    assert seen <= {1, 200_000}
    assert aside(file) == []


def test_removing_what_is_not_there(file: Path) -> None:
    records.remove(file)
    records.write(file, Note(text="a"))
    records.remove(file)
    assert not file.exists()


def test_the_state_of_an_instance_is_private_and_beside_it(machine: Machine) -> None:
    leases = paths.leases_directory("one")
    assert leases == machine.lima_home / "_lima-kernels" / "one" / "kernels"
    for directory in (leases, *list(leases.parents)[:2]):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert paths.lock_file("one").parent == paths.instance_state("one") == leases.parent


def test_missing_parents_are_private_too(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMA_HOME", str(machine.root / "new" / "lima"))
    paths.instance_state("one")
    for name in ("new", "new/lima"):
        assert stat.S_IMODE((machine.root / name).stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b"])
def test_a_path_is_no_instances_name(machine: Machine, name: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be a Lima instance's name"):
        paths.instance_state(name)


def test_a_state_that_cannot_be_made_is_one_line(machine: Machine) -> None:
    (machine.lima_home / "_lima-kernels").write_text("a file")
    with pytest.raises(HostError) as caught:
        paths.instance_state("one")
    assert str(caught.value) == (
        f"The directory {machine.lima_home / '_lima-kernels'} cannot be made and kept private: File exists."
    )


def test_free_space_of_what_does_not_exist_yet(tmp_path: Path) -> None:
    assert paths.free_space(tmp_path / "not" / "there") > 0
