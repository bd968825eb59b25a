"""The guest's own timer: a VM that nobody uses shuts itself down, whether or not a process on the host still lives."""

from __future__ import annotations

import os
import subprocess
import time

# While somebody sits at a terminal it is looked again after so many seconds.
_TERMINAL_CHECK = 15.0
_POWER_OFF = ("sudo", "-n", "systemctl", "poweroff")
# Seconds; it only begins.
_PATIENCE = 30.0


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

    def begin_anew(self) -> None:
        """Count from now on."""
        self._since = time.monotonic() if self._since is not None else None
        self._next = 0.0

    def wait(self, seconds: float) -> None:
        """Look again after so many seconds, and not before."""
        self._next = time.monotonic() + seconds

    def deadline(self) -> float | None:
        """Return when to look again, in monotonic seconds; None for never."""
        if self.timeout <= 0 or self._since is None:
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

    def power_off(self) -> bool:
        """Shut the guest down and tell whether that has begun; Lima sees the VM end and calls the instance stopped.

        The time is counted anew: for the next try where this one is not allowed.
        """
        self._since = time.monotonic()
        try:
            subprocess.run(_POWER_OFF, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE, check=True)
        except (OSError, subprocess.SubprocessError):
            return False
        return True
