"""The guest's own timer: a VM that nobody uses shuts itself down, whether or not a process on the host still lives."""

from __future__ import annotations

import os
import subprocess
import time

# While somebody sits at a terminal it is looked again after so many seconds.
_TERMINAL_CHECK = 15.0


def has_terminals() -> bool:
    """Tell whether somebody has a terminal in the guest, as `limactl shell` gives one."""
    try:
        return any(entry.isdigit() for entry in os.listdir("/dev/pts"))
    except OSError:
        return False


class IdleTimer:
    """Counts the time without a kernel.

    :param timeout: seconds until the guest shuts down; 0 for never.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._since: float | None = None
        self._next = 0.0

    def look(self, in_use: bool) -> None:
        """Take notice of whether there are kernels; to be called whenever that may have changed."""
        if in_use:
            self._since = None
        elif self._since is None:
            self._since = time.monotonic()

    def deadline(self) -> float | None:
        """Return when to look again, in monotonic seconds; None for never."""
        if not self.timeout or self._since is None:
            return None
        return max(self._since + self.timeout, self._next)

    def has_run_out(self) -> bool:
        """Tell whether the guest is to be shut down now."""
        deadline = self.deadline()
        if deadline is None or time.monotonic() < deadline:
            return False
        if has_terminals():
            self._next = time.monotonic() + _TERMINAL_CHECK
            return False
        return True


def power_off() -> None:
    """Shut the guest down; Lima sees the VM end and calls the instance stopped."""
    subprocess.Popen(["sudo", "-n", "systemctl", "poweroff"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
