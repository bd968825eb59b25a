"""The end of a kernel: everything that a program could see of its interpreter's end, and not the rest of it.

An interpreter that ends takes its modules apart, object by object, those of the forkserver too, whose pages are copied
for that. A restart would wait for it. The order is CPython's own (``Py_FinalizeEx``).
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import io
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from types import ModuleType

# What has a buffer of its own.
_WRITERS = (io.BufferedWriter, io.BufferedRandom, io.TextIOWrapper)
# The modules that were there before the fork: nothing that a notebook made ends with them.
_kept: frozenset[str] = frozenset()


def keep_modules() -> None:
    """Let all modules that are imported by now be none that :func:`leave` takes apart."""
    global _kept
    # What is to be the notebook's own has its name already.
    _kept = frozenset(sys.modules) - {"__main__"}


def leave() -> None:
    """End this process with exit code 0, as a Python program that has come to its end.

    Threads are waited for, what was registered for the end is called, what the notebook and its modules made is
    finalized, buffers are written, and the C library's own end runs. Returns where a thread goes on that only the
    interpreter's own end stops: the caller then lets that come.
    """
    # Both are what the interpreter calls first, and does not mind to call again (threading.py, atexit's module).
    _do(threading._shutdown)  # type: ignore[attr-defined]
    _do(atexit._run_exitfuncs)
    if _is_notebook_running():
        return
    _do(_take_apart)
    _do(_write_buffers)
    # CDLL lets go of the interpreter's lock: a library that waits for its threads would never see them end otherwise.
    ctypes.CDLL(None).exit(0)


def _do(step: Callable[[], object]) -> None:
    """Take a step; an interrupt that comes now ends nothing more than what it hits, as at an interpreter's end."""
    with contextlib.suppress(BaseException):
        step()


def _is_notebook_running() -> bool:
    """Tell whether another thread is in code that came after the fork; those of ipykernel wait for what never comes."""
    others = (frame for thread, frame in sys._current_frames().items() if thread != threading.get_ident())
    stacks = map(traceback.walk_stack, others)
    return any(frame.f_globals.get("__name__") not in _kept for stack in stacks for frame, _ in stack)


def _take_apart() -> None:
    """Finalize what hangs on modules that came after the fork, the latest first."""
    sys.last_type = sys.last_value = sys.last_traceback = None
    late = [name for name in sys.modules if name not in _kept]
    modules = [module for name in reversed(late) if issubclass(type(module := sys.modules.pop(name)), ModuleType)]
    gc.collect()
    for module in modules:
        with contextlib.suppress(BaseException):
            # Not vars(), which has a module that is loaded lazily loaded.
            _clear(object.__getattribute__(module, "__dict__"))
    gc.collect()


def _clear(names: dict[str, object]) -> None:
    """Let go of a module's names, private ones first."""
    private = [name for name in names if name.startswith("_") and not name.startswith("__")]
    for name in [*private, *(name for name in names if name != "__builtins__" and name not in private)]:
        names[name] = None


def _write_buffers() -> None:
    """Write what others still hold: a program's C library would not know of it."""
    for writer in _open_writers():
        with contextlib.suppress(Exception):
            writer.flush()


def _open_writers() -> Iterator[io.BufferedWriter | io.BufferedRandom | io.TextIOWrapper]:
    # Not isinstance(), which asks an object what it wants to be taken for.
    yield from (found for found in gc.get_objects() if issubclass(type(found), _WRITERS))
    yield from (stream for stream in (sys.__stdout__, sys.__stderr__) if stream is not None)
