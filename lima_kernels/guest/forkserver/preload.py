"""What a process imports before it forks kernels: they share it, and need not wait for it."""

from __future__ import annotations

import contextlib
import gc
import importlib
import sys

from . import kit
from .leaving import keep_modules

_MODULES = (
    "ipykernel.kernelapp",
    "ipykernel.ipkernel",
    "ipykernel.zmqshell",
    "IPython.core.completer",
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
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    kit.preload()
    # What was imported stays shared with the children: their collectors must not touch its pages, not at their ends
    # either, where a kernel was seen to take twice as long.
    gc.collect()
    gc.freeze()
    keep_modules()
    return ""
