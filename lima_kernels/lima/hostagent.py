"""An instance's host agent, Lima's process beside each VM: whether it lives, and what it wrote."""

from __future__ import annotations

import asyncio
import os
import re

from .. import paths
from .models import Instance

# Seconds between looks at a process that is not our child: the system tells us of no other's end.
INTERVAL = 1.0
_PORT = re.compile(r"^\s*Port (\d+)\s*$", re.MULTILINE)


def is_alive(pid: int) -> bool:
    """Tell whether a process exists; 0 is none."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


async def gone(pid: int, *, interval: float = INTERVAL) -> None:
    """Wait for the end of a process, for as long as the caller does.

    :param interval: seconds between looks.
    """
    while is_alive(pid):  # noqa: ASYNC110
        await asyncio.sleep(interval)


def ssh_port(instance: Instance) -> int:
    """Return the SSH port of an instance that runs, or 0 while it is not known.

    Lima's file knows it too, where the host agent is gone and cannot be asked.
    """
    if not instance.is_up:
        return 0
    if instance.ssh_local_port:
        return instance.ssh_local_port
    try:
        found = _PORT.search(paths.ssh_config(instance.dir).read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return 0
    return int(found[1]) if found else 0
