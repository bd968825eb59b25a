"""Why a VM no longer runs: from what Lima 2.2 really leaves; the samples lie in tests/data/limactl-2.2."""

from __future__ import annotations

import getpass
import json
import logging
import os
import time
from datetime import date
from pathlib import Path

import pytest

from lima_kernels import paths
from lima_kernels.lima import ending, hostagent
from lima_kernels.lima.models import Status, decode_instances

from .conftest import Machine

WITHOUT_A_WORD = (
    "Lima's host agent ended without a word: it was killed, as `limactl stop --force` does, or this host went down"
)
DATA = Path(__file__).parents[1] / "data" / "limactl-2.2"


@pytest.fixture
def instance(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An instance's directory, on a host whose clock is UTC's."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    directory = machine.lima_home / "x"
    directory.mkdir()
    return directory


def left(instance: Path, sample: str) -> None:
    (instance / "ha.stderr.log").write_text((DATA / f"ended-{sample}.log").read_text())


@pytest.mark.parametrize(
    ("sample", "words", "stopping"),
    [
        ("stopped", "it was shut down by `limactl stop` on 2026-11-21 at 14:48", True),
        ("poweroff", "it was powered off from inside on 2026-11-21 at 14:46", True),
        (
            "qemu-killed",
            "its process was killed on 2026-11-21 at 14:47, by somebody or because this host had no memory left",
            True,
        ),
        ("qemu-failed", "its process ended on 2026-11-21 at 14:45 with 'exit status 1'", True),
        (
            "forced",
            WITHOUT_A_WORD,
            False,
        ),
        (
            "host-agent-killed",
            WITHOUT_A_WORD,
            False,
        ),
    ],
)
def test_how_it_ended(instance: Path, sample: str, words: str, stopping: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "_today", lambda: date(2030, 1, 1))
    left(instance, sample)
    assert ending.how_it_ended(instance) == words
    assert ending.is_stopping(instance) is stopping


def test_today_needs_no_date(instance: Path) -> None:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = {"level": "info", "msg": "Received SIGTERM, shutting down the host agent", "time": now}
    (instance / "ha.stderr.log").write_text(json.dumps(line) + "\n")
    assert ending.how_it_ended(instance) == f"it was shut down by SIGTERM to Lima's host agent at {now[11:16]}"


def test_a_guest_that_did_not_obey_was_killed(instance: Path) -> None:
    left(instance, "stopped")
    with (instance / "ha.stderr.log").open("a") as file:
        file.write('{"level":"warning","msg":"QEMU did not exit in 3m0s, forcibly killing QEMU","time":""}\n')
    assert ending.how_it_ended(instance).endswith(", and killed because QEMU did not exit in 3m0s")


def test_no_log_is_no_reason(instance: Path) -> None:
    assert ending.how_it_ended(instance) == "Lima gives no reason"
    assert not ending.is_stopping(instance)


def test_a_log_of_garbage_is_survived(instance: Path) -> None:
    (instance / "ha.stderr.log").write_bytes(b"panic: runtime error\n\xff\xfe\n[[[\n\n" + b"x" * 200_000)
    assert ending.how_it_ended(instance).startswith("Lima's host agent ended without a word")


def test_the_end_of_a_long_log_is_enough(instance: Path) -> None:
    noise = '{"level":"debug","msg":"Time sync: drift -20ms within threshold","time":"2026-11-21T14:44:36Z"}\n'
    (instance / "ha.stderr.log").write_text(noise * 5000 + (DATA / "ended-poweroff.log").read_text())
    assert ending.how_it_ended(instance).startswith("it was powered off from inside")


def test_our_own_stop_comes_first(instance: Path) -> None:
    left(instance, "stopped")
    ending.note_stop(instance)
    at = time.strftime("%H:%M", time.gmtime())
    assert (
        ending.how_it_ended(instance) == f"it was shut down by `lima-kernels stop` of user {getpass.getuser()} at {at}"
    )
    assert paths.stopped_file("x").stat().st_mode & 0o777 == 0o600
    ending.forget_stop(instance)
    assert ending.how_it_ended(instance).startswith("it was shut down by `limactl stop`")


def test_our_stop_of_an_earlier_boot_is_no_reason(instance: Path) -> None:
    left(instance, "stopped")
    ending.note_stop(instance)
    left(instance, "qemu-killed")
    assert ending.how_it_ended(instance).startswith("its process was killed")


@pytest.mark.parametrize("content", ["", "[]", '{"version": 9}', '{"version": 1, "user": "\\u001b[2J"}'])
def test_a_record_that_cannot_be_read_is_no_error(
    instance: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    paths.stopped_file("x").write_text(content)
    assert ending.how_it_ended(instance) == "Lima gives no reason"
    assert len(caplog.records) == 1


def test_a_time_that_is_none_is_left_out(instance: Path) -> None:
    record = {"version": 1, "user": "y", "pid": 1, "command": "lima-kernels stop", "at": 1e300, "boot": ""}
    paths.stopped_file("x").write_text(json.dumps(record))
    assert ending.how_it_ended(instance) == "it was shut down by `lima-kernels stop` of user y"


def test_a_stop_that_cannot_be_recorded_is_no_error(instance: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("lima_kernels.records.os.replace", _full)
        ending.note_stop(instance)
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    assert warning.getMessage().endswith("cannot be written: No space left on device. Free some space there.")


def _full(*_: object) -> None:
    raise OSError(28, os.strerror(28))


def test_an_instance_without_its_host_agent_is_up() -> None:
    (found,) = decode_instances((DATA / "list-no-host-agent.json").read_text())
    assert found.status is Status.BROKEN
    assert (found.is_up, found.is_between) == (True, False)
    assert (found.driver_pid, hostagent.ssh_port(found)) == (29943, 45043)
    assert "connection refused" in found.errors[0]


def test_the_port_is_in_limas_file_too(instance: Path) -> None:
    line = json.dumps({"name": "x", "dir": str(instance), "status": "Broken", "driverPID": os.getpid()})
    (found,) = decode_instances(line)
    assert hostagent.ssh_port(found) == 0
    (instance / "ssh.config").write_text((DATA / "ssh.config").read_text())
    assert hostagent.ssh_port(found) == 35219


def test_a_stopped_instance_has_no_port_though_lima_lists_its_last(instance: Path) -> None:
    line = json.dumps({"name": "x", "dir": str(instance), "status": "Stopped", "sshLocalPort": 40191})
    (found,) = decode_instances(line)
    assert (found.is_up, hostagent.ssh_port(found)) == (False, 0)


def test_who_is_alive() -> None:
    assert hostagent.is_alive(os.getpid())
    assert hostagent.is_alive(1)
    assert not hostagent.is_alive(0)
    assert not hostagent.is_alive(-1)
    assert not hostagent.is_alive(2**22 + 1)
