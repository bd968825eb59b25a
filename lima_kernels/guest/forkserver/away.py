"""In a kernel: it leaves directories of the host that are about to be unmounted, and comes back to them.

The forkserver cannot change another process's directory; a signal asks the kernel to do so itself, also while a cell
runs. What it is to leave stands in a file of its directory: there while it is to stay away.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Sequence

FILE = "away"
# One of those that mean nothing to anybody (signal(7)); asked for by the file, so that a stray one does nothing.
SIGNAL = signal.SIGRTMIN + 9


def is_below(path: str, points: Sequence[str]) -> bool:
    """Tell whether a path is, or lies below, one of these."""
    return any(path == point or path.startswith(point.rstrip("/") + "/") for point in points)


def directory_of(pid: int | str) -> str:
    """Return where a process is, without a look at that place itself; nothing when that cannot be told."""
    try:
        return os.readlink("/proc/%s/cwd" % pid).removesuffix(" (deleted)")
    except OSError:
        return ""


class Away:
    """What this process left.

    :param directory: the kernel's, in which the file is.
    """

    def __init__(self, directory: str) -> None:
        self._file = os.path.join(directory, FILE)
        self._left = ""

    def attend(self) -> None:
        """Follow the signal from now on."""
        signal.signal(SIGNAL, lambda *_: self._move())

    def _move(self) -> None:
        try:
            with open(self._file, encoding="utf-8", errors="surrogateescape") as file:
                points = file.read().split("\0")
        except FileNotFoundError:
            self._come_back()
        else:
            self._leave(points)

    def _leave(self, points: Sequence[str]) -> None:
        where = directory_of("self")
        if is_below(where, points):
            os.chdir("/")
            self._left = where

    def _come_back(self) -> None:
        left, self._left = self._left, ""
        # A cell may have gone elsewhere meanwhile, and the directory may be no more.
        if left and os.getcwd() == "/":
            with contextlib.suppress(OSError):
                os.chdir(left)
