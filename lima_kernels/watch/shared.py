"""The process's one watcher."""

from __future__ import annotations

from ..lima.limactl import Limactl
from ..runtime import Runtime, runtime
from .watcher import Watcher

_watchers: dict[Runtime, Watcher] = {}


def watcher() -> Watcher:
    """Return the watcher of this process, made at first use; to be called in the I/O thread.

    :raises HostError: when there is no limactl.
    """
    of = runtime()
    if of not in _watchers:
        made = Watcher(Limactl(), of.vm)
        _watchers.clear()
        # Also while nobody watches: who comes in the middle of a start wants to see it.
        of.listen(made.on_step)
        _watchers[of] = made
    return _watchers[of]
