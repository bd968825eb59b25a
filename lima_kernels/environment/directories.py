"""A look at a host directory that answers in a limited time, whatever has become of the drive that it is on."""

from __future__ import annotations

import enum
import subprocess
import threading
from pathlib import Path

# Seconds; a directory on a network drive that is gone may never answer.
LIMIT = 5.0
SHELL = "/bin/sh"


class _Access(enum.IntEnum):
    """What this user may do with a directory; the exit codes of the script."""

    WRITE = 0
    READ = 10
    NOTHING = 11
    NO_DIRECTORY = 12
    MISSING = 13

    @classmethod
    def _missing_(cls, value: object) -> _Access:
        # The shell itself was ended; the next look tells.
        return cls.MISSING


_SCRIPT = f"""
[ -e "$1" ] || exit {_Access.MISSING}
[ -d "$1" ] || exit {_Access.NO_DIRECTORY}
[ -r "$1" ] && [ -x "$1" ] || exit {_Access.NOTHING}
[ -w "$1" ] || exit {_Access.READ}
"""


def fault(directory: Path, *, writable: bool) -> str:
    """Return why a directory cannot be shown to a guest, in words that follow its name, or an empty string.

    :param writable: the guest is to change it.
    """
    access = _look(directory)
    if access is None:
        return f"it did not answer within {LIMIT:.0f} s (is it on a network drive that is gone?)"
    if access is _Access.MISSING:
        return _why_missing(directory)
    if access is _Access.READ:
        return "you may not write to it, and it is to be writable" if writable else ""
    return {_Access.NO_DIRECTORY: "it is not a directory", _Access.NOTHING: "you may not read it"}.get(access, "")


def _look(directory: Path) -> _Access | None:
    """Ask in a process of its own: one that waits for a dead drive cannot be ended, nor can a thread of ours."""
    child = subprocess.Popen(
        [SHELL, "-c", _SCRIPT, SHELL, str(directory)],
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return _Access(child.wait(LIMIT))
    except subprocess.TimeoutExpired:
        child.kill()
        # It ends when the drive lets it; nobody waits for that but this thread, which nobody waits for.
        threading.Thread(target=child.wait, daemon=True).start()
        return None


def _why_missing(directory: Path) -> str:
    """It has answered, so asking once more holds nobody up."""
    try:
        directory.stat()
    except PermissionError:
        return "you may not read it"
    except (FileNotFoundError, NotADirectoryError):
        return "it does not exist"
    except OSError as error:
        return f"{error.strerror}"
    return "it could not be looked at"
