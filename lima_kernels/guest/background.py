"""Scripts in the guest that go on when nobody is connected: started, looked at, ended."""

from __future__ import annotations

import asyncio
import enum
import re
import shlex
from typing import NamedTuple

from .. import paths
from ..errors import GuestError
from .connection import Connection, Process
from .execution import Script, preparation, refusal
from .shell import Words, command, encoded

# Seconds; starting a shell in an emulated guest takes a fraction of one.
TIMEOUT = 30.0

# The runner is the leader of a session of its own, so its pid names the script's whole process group. When it started
# is kept with the pid: another process may get that pid later.
_START = r"""
%(prepare)s
umask 077
directory=$HOME/%(directory)s
mkdir -p -- "$directory" || fail directory
base=$directory/%(token)s
true >"$base.log" || fail directory
setsid sh -c '
  read -r stat </proc/self/stat
  set -- "${stat##*) }" "$@"
  start=$(set -- $1; printf %%s "${20}")
  shift
  printf "%%s %%s\n" "$$" "$start" >"$0.pid" || exit
  printf "%%s started %%s %%s\n" "${0##*/}" "$$" "$0.log" >&4
  "$@" 4>&-
  code=$?
  printf "%%s\n" "$code" >"$0.code"
' "$base" %(shell)s /dev/fd/3 3<<'%(token)s' 4>&2 </dev/null >"$base.log" 2>&1 &
%(text)s
%(token)s
"""

_KNOWN = r"""
base=%(base)s
alive() {
  read -r pid start <"$base.pid" && [ -r "/proc/$pid/stat" ] && read -r stat <"/proc/$pid/stat" || return 1
  set -- ${stat##*) }
  [ "${20}" = "$start" ] && [ "$1" != Z ]
} 2>/dev/null
"""

_STATE = (
    _KNOWN
    + r"""
if alive; then say running
elif { read -r code <"$base.code"; } 2>/dev/null; then say ended "$code"
else say lost; fi
"""
)

_END = (
    _KNOWN
    + r"""
while_it_lasts() { left=%(tries)d; while "$@" 2>/dev/null && [ $left -gt 0 ]; do left=$((left - 1)); sleep 0.1; done; }
if alive; then
  kill -s TERM -- "-$pid"
  while_it_lasts kill -s 0 -- "-$pid"
  kill -s KILL -- "-$pid" 2>/dev/null
  while_it_lasts alive
fi
say done
"""
)
# Tenths of a second that the script has after TERM, and the guest's kernel after KILL.
_TRIES = 20


class Background(NamedTuple):
    """A script that goes on by itself: the pid of its process group, and the guest's file of all that it prints."""

    pid: int
    log: str
    user: str = ""


class State(enum.Enum):
    """What became of a script in the background."""

    RUNNING = "running"
    ENDED = "ended"
    # It was killed, or the guest was started anew.
    LOST = "lost"


class Status(NamedTuple):
    """A script's state, and its exit code once it has ended."""

    state: State
    code: int | None = None


async def _asked(connection: Connection, user: str, words: Words, program: str) -> list[str]:
    """Run a program to its first word."""
    try:
        async with asyncio.timeout(TIMEOUT), connection.process(command(user)) as process:
            await process.write(encoded(words.prelude + program))
            noise = await _listen(process, words)
    except TimeoutError as error:
        raise GuestError(f"The guest's shell did not answer within {TIMEOUT:.0f} s.") from error
    if not words.first.done():
        raise GuestError("The guest's shell ended without an answer.", context=noise.splitlines()[-5:])
    return list(words.first.result())


async def _listen(process: Process, words: Words) -> str:
    noise = b""
    while not words.first.done() and (data := await process.stderr.read()):
        noise += words.take(data)
    return (noise + words.flush()).decode(errors="replace")


async def start_in_background(connection: Connection, script: Script) -> Background:
    """Start a script that goes on when the connection ends; its timeout is not looked at.

    :raises GuestError: when it cannot be started.
    """
    words = Words()
    program = _START % {
        "prepare": preparation(script),
        "directory": f"{paths.GUEST_STATE}/background",
        "shell": shlex.join(script.shell),
        "text": script.text,
        "token": words.token,
    }
    word, *rest = await _asked(connection, script.user, words, program)
    if word == "directory":
        raise GuestError(
            "The script was not started: its log cannot be written in the guest.", hint="Is the guest's disk full?"
        )
    if word != "started" or len(rest) < 2 or not rest[0].isdigit():
        raise refusal(script, word)
    return Background(int(rest[0]), " ".join(rest[1:]), script.user)


def _base(script: Background) -> str:
    return shlex.quote(script.log.removesuffix(".log"))


async def background_status(connection: Connection, script: Background) -> Status:
    """Return what became of a script.

    :raises GuestError: when the guest does not say.
    """
    word, *rest = await _asked(connection, script.user, Words(), _STATE % {"base": _base(script)})
    if word not in (state.value for state in State):
        raise GuestError(f"The guest does not say what became of the script: {word[:40]!r}.")
    return Status(State(word), int(rest[0]) if rest and re.fullmatch(r"\d{1,3}", rest[0]) else None)


async def end_background(connection: Connection, script: Background) -> None:
    """End a script with all in its process group; nothing happens when it has ended.

    :raises GuestError: when the guest does not answer.
    """
    await _asked(connection, script.user, Words(), _END % {"base": _base(script), "tries": _TRIES})
