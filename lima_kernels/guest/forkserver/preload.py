"""What a process imports before it forks kernels: they share it, and need not wait for it."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys

from . import kit
from .leaving import keep_modules

DEBUGGER_VARIABLES = ("DEBUGPY", "GEVENT", "PYDEVD")
_DEBUGGER = ("ipykernel.debugger", "debugpy.server.api", "pydevd")
_MODULES = (
    "ipykernel.kernelapp",
    "ipykernel.ipkernel",
    # A third of what a kernel imports: each would do that by itself.
    *_DEBUGGER,
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
    for name in _MODULES[1:]:
        # A kernel that needs it says what is wrong with it.
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    kit.preload()
    # What was imported stays shared with the children: their collectors must not touch its pages, not at their ends
    # either, where a kernel was seen to take twice as long.
    gc.collect()
    gc.freeze()
    keep_modules()
    return ""


def forget_debugger() -> None:
    """Let the debugger be imported anew where a kernel has variables at which it looks when that happens."""
    if any(name.startswith(DEBUGGER_VARIABLES) for name in os.environ):
        for name in list(sys.modules):
            if name in _DEBUGGER or name.lstrip("_").startswith(("debugpy", "pydev")):
                del sys.modules[name]
