"""Which environment file is meant: the one beside a notebook, or in a directory above it."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ConfigurationError

FILE_NAME = "lima-env.yaml"


def discover(start: Path) -> Path | None:
    """Return the environment file of a directory: its own, or that of the nearest directory above, or None.

    It looks no higher than the home directory, and not beyond the filesystem that the directory is on.

    :param start: a directory; a notebook's path will do, too.
    :raises ConfigurationError: when the file is another user's, who would say what this user's VM shows.
    """
    start = Path(os.path.abspath(start))
    if not start.is_dir():
        start = start.parent
    home = Path.home()
    for directory in (start, *start.parents):
        if not _is_on_same_filesystem(directory, start):
            return None
        file = directory / FILE_NAME
        if file.is_file():
            _check_owner(file, start)
            return file
        if directory == home:
            return None
    return None


def _is_on_same_filesystem(directory: Path, start: Path) -> bool:
    try:
        return directory.stat().st_dev == start.stat().st_dev
    except OSError:
        return False


def _owner(path: Path) -> int:
    return path.stat().st_uid


def _check_owner(file: Path, start: Path) -> None:
    """Whose notebook somebody opens, his environment he takes; that of a third is one that lies in wait in /tmp."""
    if _owner(file) not in (0, os.getuid(), _owner(start)):
        raise ConfigurationError(
            f"The environment file {file} is another user's, and is not taken unasked.",
            hint=f"Read it; if it is what you want: --environment {file}",
        )


def lock_path(file: Path) -> Path:
    """Return where the lock of an environment file is: beside the file itself, whatever link led to it."""
    return file.resolve().with_suffix(".lock")
