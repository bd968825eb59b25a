"""A function of a test module in a process of its own, on the test's machine and with its guest.

For what must be able to end without an end of its own (kill -9), for a second server beside the first, and for
MultiKernelManager: it destroys its ZMQ context in the garbage collector, which may wait for ever.
"""

from __future__ import annotations

import asyncio
import faulthandler
import importlib
import inspect
import json
import os
import select
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from lima_kernels import paths, runtime
from tests.unit.conftest import Machine

ROOT = Path(__file__).parents[1]
# What the fixture `guest` says of the guest, in the parent only.
CONSTANTS = ("GUEST_PYTHON", "GUEST_PROVISIONED", "GUEST_PROVISION_FAILED", "LIMA_SSH_READY", "LIMA_BOOT_DONE")
# Seconds, against hanging only.
LIMIT = 90.0


class _There(Machine):
    """A machine that another process has made."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "home"
        self.lima_home = root / "lima"
        self.guest_home = root / "guest"
        self.notebooks = root / "nb"
        self.bin = root / "bin"


class Child:
    """A process that runs one function; made by :func:`child`."""

    def __init__(self, process: subprocess.Popen[bytes], errors: Path) -> None:
        self.process = process
        self._errors = errors

    @property
    def pid(self) -> int:
        return self.process.pid

    def _pipe(self) -> BinaryIO:
        assert self.process.stdout is not None
        return self.process.stdout  # type: ignore[return-value]

    def line(self, limit: float = LIMIT) -> str:
        """Return the next line that the function printed."""
        readable, _, _ = select.select([self._pipe()], [], [], limit)
        line = self._pipe().readline().decode() if readable else ""
        assert line, f"no line came:\n{self._errors.read_text()}"
        return line.strip()

    def say(self, line: str) -> None:
        """Give the function a line to read."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")

    def finish(self, limit: float = LIMIT) -> str:
        """Wait for the function's end and return what else it printed; its traceback is this test's failure."""
        try:
            printed, _ = self.process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end:\n{self._errors.read_text()}") from None
        assert self.process.returncode == 0, f"exit code {self.process.returncode}:\n{self._errors.read_text()}"
        return printed.decode().strip()

    def kill(self) -> None:
        """End it as `kill -9` does: it may do nothing more."""
        self.process.kill()
        self.process.wait(30)


@contextmanager
def child(
    body: Callable[..., Any], machine: Machine, *arguments: str, env: Mapping[str, str] | None = None
) -> Iterator[Child]:
    """Run ``body(machine, *arguments)``, a function or coroutine function of a module, in a process of its own."""
    order = {
        "module": body.__module__,
        "name": body.__name__,
        "root": str(machine.root),
        "constants": {name: getattr(paths, name) for name in CONSTANTS},
        "arguments": arguments,
    }
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    errors = machine.root / f"child-{len(list(machine.root.glob('child-*')))}"
    with errors.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.child", json.dumps(order)],
            cwd=machine.notebooks,
            env={**os.environ, "PYTHONPATH": path, **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            bufsize=0,
            start_new_session=True,
        )
    made = Child(process, errors)
    try:
        yield made
    finally:
        made.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def in_child(body: Callable[..., Any], machine: Machine, *arguments: str, env: Mapping[str, str] | None = None) -> str:
    """Run a function in a process of its own to its end, and return what it printed."""
    with child(body, machine, *arguments, env=env) as made:
        return made.finish()


def _main() -> int:
    order = json.loads(sys.argv[1])
    # A hang shows where it hangs.
    faulthandler.dump_traceback_later(LIMIT - 5, exit=True)
    for name, value in order["constants"].items():
        setattr(paths, name, value)
    try:
        body = getattr(importlib.import_module(order["module"]), order["name"])
        done = body(_There(Path(order["root"])), *order["arguments"])
        if inspect.iscoroutine(done):
            asyncio.run(done)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        if runtime._runtime is not None:
            runtime._runtime.close()
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    # Not by the interpreter's end, whose garbage collector may wait for ever.
    os._exit(_main())
