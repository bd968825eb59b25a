"""Why a kernel ended, as far as the guest can tell."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess

_KILLED = re.compile(r"Killed process (\d+) .*?anon-rss:(\d+)kB")
# Less than this is no disk to work with, in bytes.
_DISK_FULL = 16 << 20
_DMESG_TIMEOUT = 10.0


def oom_kills() -> int:
    """Return how many processes of our control group the kernel has killed for want of memory (cgroups(7))."""
    try:
        with open("/proc/self/cgroup", encoding="utf-8") as file:
            group = next(line.rstrip("\n")[3:] for line in file if line.startswith("0::"))
        with open("/sys/fs/cgroup%s/memory.events" % group, encoding="utf-8") as file:
            return int(next(line.split()[1] for line in file if line.startswith("oom_kill ")))
    except (OSError, StopIteration, ValueError, IndexError):
        return 0


def explain(pid: int, code: int, oom_kills_before: int) -> str:
    """Return why a process ended beyond its exit code, or nothing."""
    if code == -signal.SIGKILL and oom_kills() > oom_kills_before:
        used = _resident(pid)
        # Another of our control group may have been the one.
        if used != 0:
            return "out of memory: %s" % _memory(used)
    if code:
        return disk_full()
    return ""


def disk_full() -> str:
    """Say that the guest's disk is full, or nothing."""
    usage = shutil.disk_usage(os.path.expanduser("~"))
    if usage.free >= _DISK_FULL:
        return ""
    return "the guest's disk is full: %d MiB of %s are free" % (usage.free >> 20, _gib(usage.total))


def of_failed_call(error: OSError) -> str:
    """Return why a call of the system failed: because the disk is full, or in its own words."""
    return disk_full() or "%s: %s" % (type(error).__name__, error)


def _memory(used: int | None) -> str:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return "%sthe VM has %s" % ("it had %s, " % _gib(used) if used else "", _gib(total))


def _resident(pid: int) -> int | None:
    """Return the memory of a process that was killed for it, from the kernel's log: 0 when it was not, None when that
    log cannot be read."""
    for command in (["dmesg"], ["sudo", "-n", "dmesg"]):
        try:
            done = subprocess.run(command, capture_output=True, timeout=_DMESG_TIMEOUT, check=True)
        except (OSError, subprocess.SubprocessError):
            continue
        found = [
            int(kib) for killed, kib in _KILLED.findall(done.stdout.decode(errors="replace")) if int(killed) == pid
        ]
        return found[-1] << 10 if found else 0
    return None


def _gib(size: int) -> str:
    return "%.1f GiB" % (size / (1 << 30))
