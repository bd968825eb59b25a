"""What a process imports before it forks kernels: they share it, and need not wait for it."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
from collections.abc import Iterable, Iterator

from . import kit
from .leaving import keep_modules

DEBUGGER_VARIABLES = ("DEBUGPY", "GEVENT", "PYDEVD")
# A third of what a kernel imports: each would do that by itself.
_DEBUGGER = ("ipykernel.debugger", "debugpy.server.api", "pydevd")
_MODULES = (
    "ipykernel.kernelapp",
    "ipykernel.ipkernel",
    "ipykernel.zmqshell",
    "IPython.core.completer",
    "IPython.core.completerlib",
    "IPython.core.debugger",
    # The one extension that IPython itself has loaded.
    "IPython.extensions.storemagic",
    "psutil",
)


def preload() -> str:
    """Import what every kernel needs; returns why that failed, or nothing."""
    try:
        importlib.import_module(_MODULES[0])
    except ImportError as error:
        return "ipykernel cannot be imported by %s: %s" % (sys.executable, error)
    _import(_MODULES[1:])
    with _silence():
        _import(_DEBUGGER)
    kit.preload()
    # What was imported stays shared with the children: their collectors must not touch its pages, not at their ends
    # either, where a kernel was seen to take twice as long.
    gc.collect()
    gc.freeze()
    keep_modules()
    return ""


def _import(names: Iterable[str]) -> None:
    for name in names:
        # A kernel that needs it says what is wrong with it.
        with contextlib.suppress(Exception):
            importlib.import_module(name)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Let nothing be said on stderr for a while: pydevd warns of Python's frozen modules, which nobody can help."""
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)


def forget_debugger() -> None:
    """Let the debugger be imported anew where a kernel has variables at which it looks when that happens."""
    if any(name.startswith(DEBUGGER_VARIABLES) for name in os.environ):
        for name in list(sys.modules):
            if name in _DEBUGGER or name.lstrip("_").startswith(("debugpy", "pydev")):
                del sys.modules[name]
