"""Programs for the guest's shell that are sent to it: its arguments and environment anybody in the guest could read.

The shell reads one line, decodes it and obeys it; what comes after that line on its stdin is the program's.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import shlex
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from ..errors import ConfigurationError, GuestError

T = TypeVar("T")

# The user's login shell may be any: what it has to understand is this.
_READER = """exec sh -c 'IFS= read -r code && eval "$(printf %b "$code")"'"""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Bytes that the login shell's own files may print before the program's first word.
_NOISE_LIMIT = 64 * 1024

# One word to us on stderr, where the program prints too: a token that it cannot guess tells them apart.
_WORDS = r"""
say() { printf '%%s %%s\n' %(token)s "$*" >&2; }
fail() { say "$@"; exit 126; }
"""


def command(user: str = "") -> str:
    """Return the command of a shell that reads its program, as another user of the guest where one is named."""
    return f"exec sudo -n -u {shlex.quote(user)} -- sh -c {shlex.quote(_READER)}" if user else _READER


def encoded(program: str) -> bytes:
    """Return a program as the one line that :func:`command` reads.

    :raises ConfigurationError: when it holds a NUL, which no shell can, or what is no character.
    """
    if "\0" in program:
        raise ConfigurationError("A script cannot hold a NUL character.")
    try:
        raw = program.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ConfigurationError(f"A script cannot hold the lone surrogate at its character {error.start}.") from error
    # All but plain ASCII in octal: nothing on the way then depends on the guest's locale.
    data = raw.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
    return b"".join(bytes([byte]) if 32 <= byte < 127 else b"\\0%03o" % byte for byte in data) + b"\n"


def quoted_path(path: str) -> str:
    """Return a path in the guest for a program; ``~`` is the home of whoever runs it, an empty path the present one."""
    if path == "~" or path.startswith("~/"):
        return f'"$HOME"{shlex.quote(path[1:])}' if path != "~" else '"$HOME"'
    return shlex.quote(path or ".")


def exports(env: Mapping[str, str]) -> str:
    """Return a program that sets variables.

    :raises ConfigurationError: for a name that no variable can have.
    """
    for name in env:
        if not _NAME.fullmatch(name):
            raise ConfigurationError(f"{name!r} cannot be an environment variable's name.")
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in env.items())


class Words:
    """The words of a program to us, told from what else comes on its stderr; ``first`` is set when one has come."""

    def __init__(self) -> None:
        self.token = f"lk-{secrets.token_hex(12)}"
        self.first: asyncio.Future[Sequence[str]] = asyncio.get_running_loop().create_future()
        self._held = b""

    @property
    def prelude(self) -> str:
        """The functions ``say`` and ``fail`` for the program."""
        return _WORDS % {"token": self.token}

    def take(self, data: bytes) -> bytes:
        """Return what of the data is not for us.

        :raises GuestError: when there is no word in more than any login shell prints.
        """
        if self.first.done():
            return data
        self._held += data
        before, _, rest = self._held.partition(self.token.encode() + b" ")
        line, newline, rest = rest.partition(b"\n")
        if newline:
            self._held = b""
            self.first.set_result(line.decode(errors="replace").split(" "))
            return before + rest
        if len(self._held) > _NOISE_LIMIT:
            raise GuestError("The guest's shell prints without end before it does anything.")
        return b""

    def flush(self) -> bytes:
        """Return what was held back for a word that has not come."""
        held, self._held = self._held, b""
        return held


async def undisturbed(work: Coroutine[Any, Any, T]) -> T:
    """Bring work with a limit of its own to its end; a cancellation that comes meanwhile is obeyed after it."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return task.result()
