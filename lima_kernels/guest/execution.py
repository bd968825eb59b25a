"""A shell script in the guest, from its start to the end of all that it started."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

from ..errors import ConnectionFailed, GuestError
from .connection import Connection, Ended, Output, Process
from .shell import Words, command, encoded, exports, quoted_path, undisturbed

# Whoever takes the output; what it awaits lets the guest wait.
Sink = Callable[[bytes], Awaitable[None] | None]

# Seconds that the script has to end after each signal.
_STOPPING = (("INT", 3.0), ("TERM", 2.0), ("KILL", 2.0))
# Seconds. How long output may stay silent after the script's end: what it left running can hold it open for good.
LINGER = 1.0

# sshd has made the shell the leader of a process group of its own, and the script's shell takes its place. The other
# process stays in the group and signals it as it is told on stdin, whose end means that the script or the connection
# has ended: then what is left gets what a terminal sends when it closes, not so soon that a `nohup` has not begun to
# ignore it; after an interrupt it is killed, and our stderr is held open until then. Being nobody's child, that
# process is in the way of no `wait` in the script.
_FOREGROUND = r"""
read -r _lk_pid _lk_name _lk_state _lk_parent _lk_group _lk_rest </proc/self/stat
exec 5<&0
( (
  exec <&5 5<&- >/dev/null 6>&2 2>&1
  trap '' HUP INT TERM
  told=
  while read -r signal; do
    told=1
    kill -s "$signal" -- "-$_lk_group"
  done
  if [ -z "$told" ]; then
    exec 6>&-
    sleep 0.3
    kill -s HUP -- "-$_lk_group"
    kill -s CONT -- "-$_lk_group"
  else
    kill -s TERM -- "-$_lk_group"
    sleep 0.2
    kill -s KILL -- "-$_lk_group"
  fi
) & )
%(prepare)s
say started
exec %(shell)s /dev/fd/3 3<<'%(token)s' </dev/null 5<&-
%(text)s
%(token)s
"""

_PREPARE = r"""
%(exports)s
cd -- %(cwd)s 2>/dev/null || fail cwd
command -v %(program)s >/dev/null || fail shell
"""


class Script(NamedTuple):
    """What to run in the guest.

    :param shell: the program, with its arguments, that gets the script as a file.
    :param cwd: the directory in the guest; empty for the user's home.
    :param env: variables beside the guest's own.
    :param user: who runs it; empty for the guest's user.
    :param timeout: seconds, or None.
    """

    text: str
    shell: Sequence[str] = ("bash",)
    cwd: str = ""
    env: Mapping[str, str] = {}
    user: str = ""
    timeout: float | None = None


def preparation(script: Script) -> str:
    """Return the program that makes the script's surroundings, or says what is missing."""
    return _PREPARE % {
        "exports": exports(script.env),
        "cwd": quoted_path(script.cwd),
        "program": shlex.quote(script.shell[0]),
    }


def refusal(script: Script, word: str) -> GuestError:
    """Return what a script could not be started for."""
    if word == "cwd":
        return GuestError(
            f"The script was not started: the guest has no directory {script.cwd!r} that its user may enter."
        )
    if word == "shell":
        return GuestError(f"The script was not started: the guest has no program {script.shell[0]!r}.")
    return GuestError(f"The script was not started: the guest answered {word[:40]!r}.")


class _Run:
    """A script under way; ``over`` is done when it has ended and all its output has been taken."""

    def __init__(self, process: Process, words: Words, on_stdout: Sink, on_stderr: Sink) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._process = process
        self._words = words
        self._taken = 0
        self._at_work = 0
        self._pumps = [
            asyncio.ensure_future(self._pump(process.stdout, on_stdout, lambda data: data)),
            asyncio.ensure_future(self._pump(process.stderr, on_stderr, words.take)),
        ]
        self._watcher = asyncio.ensure_future(self._watch(on_stderr))

    async def _pump(self, output: Output, sink: Sink, filtered: Callable[[bytes], bytes]) -> None:
        try:
            while data := await output.read():
                await self._give(sink, filtered(data))
        except ConnectionFailed:
            # That there is no exit code says it all.
            pass
        except Exception as error:
            self._fail(error)

    async def _give(self, sink: Sink, data: bytes) -> None:
        if not data:
            return
        self._taken += 1
        self._at_work += 1
        try:
            if (waiting := sink(data)) is not None:
                await waiting
        finally:
            self._at_work -= 1

    def _fail(self, error: Exception) -> None:
        if not self.over.done():
            self.over.set_exception(error)

    async def _watch(self, on_stderr: Sink) -> None:
        try:
            await self._process.exited.wait()
            taken = -1
            while pending := [pump for pump in self._pumps if not pump.done()]:
                if taken == self._taken and not self._at_work:
                    break
                taken = self._taken
                await asyncio.wait(pending, timeout=LINGER)
            await self._give(on_stderr, self._words.flush())
        except Exception as error:
            self._fail(error)
        else:
            if not self.over.done():
                self.over.set_result(None)

    async def stop(self) -> None:
        """End the script and all in its process group; its last words still come."""
        for signal, grace in _STOPPING:
            with contextlib.suppress(TimeoutError, ConnectionFailed):
                async with asyncio.timeout(grace):
                    await self._process.write(f"{signal}\n".encode())
                    await self._process.exited.wait()
            if self._process.exited.is_set():
                break
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                await self._process.closed()

    async def close(self) -> None:
        tasks = [*self._pumps, self._watcher]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def execute(connection: Connection, script: Script, on_stdout: Sink, on_stderr: Sink) -> Ended:
    """Run a script to its end.

    What it leaves in its process group is hung up on, as by a terminal that closes. When the caller is cancelled or
    the time is used up, the whole group is interrupted, then ended, then killed, before this returns.

    :raises GuestError: when it cannot be started, or does not end in time.
    :raises ConnectionFailed: when the connection is lost; how the script ended is then unknown.
    """
    words = Words()
    program = _FOREGROUND % {
        "prepare": preparation(script),
        "shell": shlex.join(script.shell),
        "text": script.text,
        "token": words.token,
    }
    async with connection.process(command(script.user)) as process:
        run = _Run(process, words, on_stdout, on_stderr)
        try:
            async with asyncio.timeout(script.timeout) as timer:
                # A login shell that ends at once does not take it; what it says comes.
                with contextlib.suppress(ConnectionFailed):
                    await process.write(encoded(words.prelude + program))
                await asyncio.shield(run.over)
        except BaseException as error:
            await undisturbed(run.stop())
            if isinstance(error, TimeoutError) and timer.expired():
                raise GuestError(
                    f"The script did not end within {script.timeout:g} s and was ended.",
                    hint="Give it more with --timeout.",
                ) from error
            raise
        finally:
            await undisturbed(run.close())
        return _outcome(process, script, words)


def _outcome(process: Process, script: Script, words: Words) -> Ended:
    if process.ended is None:
        raise ConnectionFailed(
            "The connection to the guest was lost while the script ran: its result is unknown.",
            hint="If the VM still runs, what the script left in its process group was hung up on.",
        )
    if not words.first.done():
        how = process.ended.signal or process.ended.code
        raise GuestError(
            f"The script was not started: the guest's login shell ended with {how}.",
            hint=f"May the guest's user run commands as {script.user!r} by sudo?" if script.user else "",
        )
    if (word := words.first.result()[0]) != "started":
        raise refusal(script, word)
    return process.ended
