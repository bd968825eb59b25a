"""Why a VM no longer runs, from what was left of it: our record of a stop, and the log of Lima's host agent."""

from __future__ import annotations

import getpass
import logging
import os
import re
import time
from datetime import UTC, date, datetime
from pathlib import Path
from typing import ClassVar

from .. import paths, records
from ..errors import HostError, printable
from .logs import tail
from .models import AgentLine, decode_agent_line

logger = logging.getLogger(__name__)

NO_REASON = "Lima gives no reason"
STOP_COMMAND = "lima-kernels stop"
RESTART_COMMAND = "lima-kernels restart"
# No more of a log is read than this many bytes from its end, and as many from its beginning.
_TAIL = 64 * 1024
# What Lima's host agent says (lima ``pkg/hostagent/hostagent.go`` and ``pkg/driver/qemu/qemu_driver.go``).
_ASKED = re.compile(r"^Received (\w+), shutting down the host agent$")
_DRIVER = re.compile(r"^Driver stopped due to error: (.*)$")
# What QEMU itself said; lost more often than not, for Lima reads it no further than to QEMU's end.
_QEMU = re.compile(r"^qemu\[stderr\]: (?:qemu-system-\w+: )?(.*)$")
_FORCED = re.compile(r"^(QEMU did not exit in .*), forcibly killing QEMU$")
# Go's rendering of "no error".
_NO_ERROR = "%!q(<nil>)"


class Stopped(records.Record, frozen=True, kw_only=True):
    """Who stopped an instance, and when (seconds since the epoch); ``boot`` is the boot that it ended."""

    VERSION: ClassVar[int] = 1
    version: int = VERSION
    user: str
    pid: int
    command: str
    at: float
    boot: str


def _boot(instance_dir: Path) -> str:
    """Name the instance's last boot: by the first line of its log, which Lima makes anew at every start."""
    try:
        with paths.host_agent_log(instance_dir).open("rb") as file:
            return decode_agent_line(file.readline(_TAIL)).time
    except OSError:
        return ""


def _log(instance_dir: Path) -> list[AgentLine]:
    """Return the last lines of the host agent's log; none when there is no log."""
    return [decode_agent_line(raw) for raw in tail(paths.host_agent_log(instance_dir), _TAIL)]


def note_stop(instance_dir: Path, command: str = STOP_COMMAND) -> None:
    """Record that this process is about to stop an instance; a record that cannot be written hinders no stop."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    record = Stopped(user=user, pid=os.getpid(), command=command, at=time.time(), boot=_boot(instance_dir))
    try:
        records.write(paths.stopped_file(instance_dir.name), record)
    except HostError as error:
        logger.warning("%s", error)


def forget_stop(instance_dir: Path) -> None:
    """Remove the record of a stop that did not come about."""
    records.remove(paths.stopped_file(instance_dir.name))


def is_stopping(instance_dir: Path) -> bool:
    """Tell whether the host agent, if it lives, is on its way out; `limactl list` calls the instance running then."""
    return any(map(says_stopping, _log(instance_dir)))


def says_stopping(line: AgentLine) -> bool:
    """Tell whether a host agent says by a line that it is on its way out."""
    return bool(_ASKED.match(line.msg) or _DRIVER.match(line.msg))


def driver_failure(instance_dir: Path) -> str:
    """Return in words how the VM's own process failed when it ended by itself with an error; else nothing."""
    lines = _log(instance_dir)
    error = next((found[1].strip("`") for line in lines if (found := _DRIVER.match(line.msg))), "")
    return _failure(error, lines) if error.startswith("exit status") else ""


def _failure(error: str, lines: list[AgentLine]) -> str:
    """Return what ended QEMU: its own words where they are known."""
    said = next((found[1] for line in reversed(lines) if (found := _QEMU.match(line.msg))), error)
    return printable(said)


def how_it_ended(instance_dir: Path) -> str:
    """Return in words why an instance that ran no longer does, such as ``it was powered off from inside at 14:02``."""
    stop = records.read(paths.stopped_file(instance_dir.name), Stopped)
    if stop is not None and stop.boot == _boot(instance_dir):
        return f"it was shut down by `{printable(stop.command)}` of user {printable(stop.user)}{_at(stop.at)}"
    lines = _log(instance_dir)
    for line in lines:
        if found := _ASKED.match(line.msg):
            return _when_asked(found[1], line, lines)
        if found := _DRIVER.match(line.msg):
            return _when_the_driver_ended(found[1].strip("`"), line, lines)
    if lines:
        return (
            "Lima's host agent ended without a word: it was killed, as `limactl stop --force` does, "
            "or this host went down"
        )
    return NO_REASON


def is_to_stay_down(instance_dir: Path) -> bool:
    """Tell whether somebody ended an instance's last boot, and not to start it again: that it is down is no fault."""
    stop = records.read(paths.stopped_file(instance_dir.name), Stopped)
    if stop is not None and stop.boot == _boot(instance_dir):
        return stop.command != RESTART_COMMAND
    for line in _log(instance_dir):
        if found := _ASKED.match(line.msg):
            return found[1] == "SIGINT"
        if found := _DRIVER.match(line.msg):
            return found[1].strip("`") == _NO_ERROR
    return False


def _when_asked(signal: str, line: AgentLine, lines: list[AgentLine]) -> str:
    forced = next((found[1] for later in lines if (found := _FORCED.match(later.msg))), "")
    end = f", and killed because {forced}" if forced else ""
    if signal == "SIGINT":
        return f"it was shut down by `limactl stop`{_at(seconds(line.time))}{end}"
    return f"it was shut down by {signal} to Lima's host agent{_at(seconds(line.time))}{end}"


def _when_the_driver_ended(error: str, line: AgentLine, lines: list[AgentLine]) -> str:
    if error == _NO_ERROR:
        return f"it was powered off from inside{_at(seconds(line.time))}"
    if error == "signal: killed":
        return f"its process was killed{_at(seconds(line.time))}, by somebody or because this host had no memory left"
    return f"its process ended{_at(seconds(line.time))} with {_failure(error, lines)!r}"


def seconds(time: str) -> float | None:
    """Return a time of a host agent's log in seconds since the epoch, or None when it is none."""
    try:
        return datetime.fromisoformat(time).timestamp()
    except (ValueError, OverflowError):
        return None


def _today() -> date:
    return datetime.now(UTC).astimezone().date()


def _at(seconds: float | None) -> str:
    """Return when it was, in this host's time; the day too when that was another."""
    if seconds is None:
        return ""
    try:
        when = datetime.fromtimestamp(seconds, UTC).astimezone()
    except (OverflowError, OSError, ValueError):
        return ""
    day = "" if when.date() == _today() else f" on {when:%Y-%m-%d}"
    return f"{day} at {when:%H:%M}"
