"""The programs that do the work, and how what they say becomes one line for people."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

# Lines of a program's output that are kept to explain a failure, and their length.
TAIL = 15
_WIDTH = 500
PIECE = 1 << 15
_NETWORK = re.compile(
    r"error sending request|dns error|failed to lookup|Temporary failure|Could not (connect|resolve)|"
    r"Network is unreachable|Connection (refused|timed out|reset)|tcp connect error|operation timed out|"
    r"Failed to fetch http",
    re.IGNORECASE,
)
_DISK = re.compile(r"No space left on device|os error 28|Disk quota exceeded", re.IGNORECASE)


class Failed(Exception):
    """What could not be done, in one line, with what to do and the end of what a program said."""

    def __init__(self, what: str, hint: str = "", log: Sequence[str] = ()) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint
        self.log = list(log)


def say(**line: Any) -> None:
    """Tell the host something, as long as it listens: one JSON object, one line."""
    try:
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # Who asked has hung up: what was begun is finished all the same, and dpkg must not be torn off in its middle.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def answer(result: object) -> None:
    """Tell the host the result, in pieces: a line is not to be longer than what may be under way."""
    text = json.dumps(result)
    for start in range(0, len(text), PIECE):
        say(part=text[start : start + PIECE])
    say(end=True)


def run(argv: Sequence[str], step: str, *, env: Mapping[str, str] | None = None, text: str = "") -> str:
    """Run a program, show its lines as they come, and return what it said.

    :param step: what it does, for messages.
    :raises Failed: when it ends with another exit code than 0.
    """
    lines: list[str] = []
    try:
        process = subprocess.Popen(
            argv,
            env={**os.environ, **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        raise Failed("%s is not possible: %s cannot be run: %s." % (step, argv[0], error.strerror)) from error
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(text)
            process.stdin.close()
        except BrokenPipeError:
            # It says why.
            pass
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            say(log=lines[-1][:_WIDTH])
    if process.returncode:
        raise explained(step, process.returncode, lines)
    return "\n".join(lines)


def quietly(
    argv: Sequence[str], step: str, *, env: Mapping[str, str] | None = None, directory: str | None = None
) -> str:
    """Run a program that only looks, and return its output.

    :raises Failed: when it fails.
    """
    done = subprocess.run(
        argv,
        cwd=directory,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        raise explained(step, done.returncode, done.stderr.splitlines())
    return done.stdout


def explained(step: str, code: int, lines: Sequence[str]) -> Failed:
    """Return the failure of a program, by what it said."""
    said = "\n".join(lines)
    tail = [line[:_WIDTH] for line in lines if line.strip()][-TAIL:]
    if _DISK.search(said):
        return Failed("%s failed: the guest's disk is full." % step, "Look: limactl shell NAME df -h", tail)
    if _NETWORK.search(said):
        return Failed(
            "%s needs the network, and the guest did not reach it." % step,
            "What the guest has in its caches is used without; see the guest's proxy and certificates.",
            tail,
        )
    return Failed("%s failed with exit code %d." % (step, code), "", tail)
