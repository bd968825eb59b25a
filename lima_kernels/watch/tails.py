"""Files that grow, read as far as they have grown."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

# No more of a file is read at once than this many bytes: a guest may write a lot to its console.
LIMIT = 1024 * 1024


class Grown(NamedTuple):
    """What is new in a file; ``is_other`` tells that it is another file than before, or none."""

    is_other: bool
    lines: Sequence[bytes]


class Tail:
    """The lines of a file, from near its end on, each once.

    :param backlog: bytes before its end that the first look begins with, at most.
    """

    def __init__(self, path: Path, backlog: int = LIMIT) -> None:
        self.path = path
        self._backlog = backlog
        self._inode = 0
        self._offset = 0
        self._rest = b""

    @property
    def exists(self) -> bool:
        """Whether there was a file in the last look."""
        return self._inode != 0

    def read(self) -> Grown:
        """Return what has come since the last look; blank lines, and one that is not complete, are left out."""
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                is_other = status.st_ino != self._inode or status.st_size < self._offset
                if is_other:
                    self._inode, self._offset, self._rest = status.st_ino, 0, b""
                # Of what came too fast for us, the end only.
                begin = max(self._offset, status.st_size - (self._backlog if is_other else LIMIT))
                file.seek(begin)
                data = file.read(LIMIT)
        except OSError:
            is_other, self._inode, self._offset, self._rest = self._inode != 0, 0, 0, b""
            return Grown(is_other, ())
        if begin > self._offset:
            self._rest, data = b"", data.partition(b"\n")[2]
            self._offset = status.st_size
        else:
            self._offset = begin + len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return Grown(is_other, [line for line in lines if line.strip()])
