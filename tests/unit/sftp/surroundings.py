"""What lies outside of the shared directory, and a look at all of a directory."""

from __future__ import annotations

import stat
from pathlib import Path

SECRET = b"what nobody may read"
SECRET_NAME = b"name-that-nobody-may-see"


def everything(directory: Path) -> dict[str, tuple[object, ...]]:
    """All there is to know of a directory's files, but when they were last read by this function."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted([directory, *directory.rglob("*")]):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[str(path)] = (status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns, content)
    return found
