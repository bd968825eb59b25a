"""What is written about an instance while it runs: by Lima's host agent, and by the guest on its serial console."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .. import paths
from ..errors import printable
from .models import LimaStatus, decode_agent_line, decode_event

# No more of a file is read than this many bytes from its end.
LIMIT = 4 * 1024 * 1024
# Characters of one line for people; a guest may bring about any.
LONGEST_LINE = 2000


class LogSource(enum.Enum):
    """Whose words are meant."""

    HOST_AGENT = "hostagent"
    SERIAL = "serial"
    BOOT = "boot"


class LogEntry(NamedTuple):
    """One thing that was said; time and level are empty where nobody wrote them down."""

    time: str
    level: str
    message: str

    @property
    def line(self) -> str:
        """What was said in one line that is not too long, and how bad it is when it is bad."""
        level = "" if self.level in ("", "info") else f"{self.level}: "
        return f"{level}{self.message}"[:LONGEST_LINE]


def tail(file: Path, limit: int) -> list[bytes]:
    """Return the lines at a file's end that are not blank, from at most so many bytes; none when it cannot be read."""
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, file.stat().st_size - limit))
            return [line for line in opened.read(limit).splitlines() if line.strip()]
    except OSError:
        return []


def host_agent(instance_dir: Path) -> list[LogEntry]:
    """Return what the host agent logged since the instance was last started."""
    lines = map(decode_agent_line, tail(paths.host_agent_log(instance_dir), LIMIT))
    return [LogEntry(printable(line.time), printable(line.level), printable(line.msg)) for line in lines]


def serial(instance_dir: Path) -> list[LogEntry]:
    """Return what the guest wrote to the first of its serial consoles that it uses."""
    for file in paths.serial_logs(instance_dir):
        lines = [printable(raw.decode(errors="replace")).rstrip() for raw in tail(file, LIMIT)]
        if found := [LogEntry("", "", line) for line in lines if line]:
            return found
    return []


def events(instance_dir: Path) -> list[LogEntry]:
    """Return the steps of the instance's last start and end, as the host agent told them to limactl."""
    found: list[LogEntry] = []
    before = LimaStatus()
    for raw in tail(paths.host_agent_events(instance_dir), LIMIT):
        event = decode_event(raw)
        # Every port that the guest opens is an event, too.
        if event is not None and event.status != before:
            said = _said(event.status, before)
            found += [LogEntry(printable(event.time), level, printable(message)) for level, message in said]
            before = event.status
    return found


def _said(status: LimaStatus, before: LimaStatus) -> Iterator[tuple[str, str]]:
    if status.ssh_local_port not in (0, before.ssh_local_port):
        yield "info", f"SSH is on port {status.ssh_local_port} of this host"
    for error in status.errors:
        yield "error", error
    if status.exiting:
        yield "info", "the VM ended"
    elif status.degraded:
        yield "warning", "the VM runs, though not all is as it should be"
    elif status.running and (before.degraded or not before.running):
        yield "info", "the VM runs as it should"
