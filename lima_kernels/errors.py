"""The one family of errors: what was attempted, what happened, what to do.

Texts and exit codes are made from these fields by the command line and the provisioner; nothing else formats them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


def printable(line: str) -> str:
    """Return a line without control characters: what a guest wrote must not steer anybody's terminal."""
    return _CONTROL.sub("", line)


class LimaKernelsError(Exception):
    """An error that is meant for a person.

    :param message: what was attempted and what happened, in one line.
    :param hint: what to do about it, in one line; a command where one exists.
    :param context: further lines that help to find the cause, such as the end of a log; never a secret.
    """

    reference = "error"

    def __init__(self, message: str, *, hint: str = "", context: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.context = tuple(printable(line) for line in context)

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()

    def __reduce__(self) -> tuple[object, ...]:
        # Exception.__reduce__ would drop the keyword arguments when the error crosses a process boundary.
        return (_rebuild, (type(self), self.message, self.hint, self.context))


def _rebuild(cls: type[LimaKernelsError], message: str, hint: str, context: tuple[str, ...]) -> LimaKernelsError:
    return cls(message, hint=hint, context=context)


class ConfigurationError(LimaKernelsError):
    """A file, option or kernel spec says something that cannot be obeyed."""

    reference = "configuration"


class HostError(LimaKernelsError):
    """This machine lacks something that is needed."""

    reference = "host"


class LimactlError(LimaKernelsError):
    """A limactl command failed."""

    reference = "limactl"


class InstanceError(LimaKernelsError):
    """A Lima instance is missing, broken, taken or in the wrong state."""

    reference = "instance"


class NotFound(InstanceError):
    """There is no instance, job or kernel of the name that was given."""

    reference = "not-found"


class ImageError(LimaKernelsError):
    """A guest image could not be built, or is not what it should be."""

    reference = "image"


class ConnectionFailed(LimaKernelsError):
    """The guest could not be reached over SSH."""

    reference = "ssh"


class HostKeyChanged(ConnectionFailed):
    """The guest shows another host key than the one pinned at first contact."""

    reference = "host-key"


class GuestError(LimaKernelsError):
    """The guest was reached but cannot do what was asked of it."""

    reference = "guest"


class MountError(LimaKernelsError):
    """A host directory cannot be seen in the guest."""

    reference = "mount"


class PhaseTimeout(LimaKernelsError):
    """A wait reached its limit; the message names the phase that used the time up."""

    reference = "timeout"


class Cancelled(LimaKernelsError):
    """Somebody cancelled what was waited for."""

    reference = "cancelled"


def nearest(name: str, known: Sequence[str]) -> str:
    """Return ``' Did you mean 'x'?'`` for the nearest of the known names, or an empty string."""
    found = get_close_matches(name, known, n=1)
    return f"Did you mean {found[0]!r}?" if found else ""
