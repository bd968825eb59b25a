"""Files and directories that change, told in the I/O thread: by inotify on Linux, by kqueue elsewhere; no thread waits.

A directory is told of when an entry comes or goes, or on Linux was written and closed, but not while one is being
written: a VM writes its disk all the time. What changed is not told, since kqueue does not know: who is told looks.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

from ..errors import HostError

if sys.platform == "linux":
    from asyncinotify import Inotify, Mask, Watch

    _DIRECTORY = Mask.CREATE | Mask.DELETE | Mask.MOVED_FROM | Mask.MOVED_TO | Mask.CLOSE_WRITE | Mask.ONLYDIR
    _FILE = Mask.MODIFY | Mask.DELETE_SELF | Mask.MOVE_SELF

    class _Notifier:
        def __init__(self, changed: Callable[[Path], None]) -> None:
            self._inotify = Inotify(sync_timeout=0)
            self._changed = changed
            self._watches: dict[Path, Watch] = {}
            asyncio.get_running_loop().add_reader(self._inotify.fd, self._read)

        def __contains__(self, path: Path) -> bool:
            return path in self._watches

        def add(self, path: Path) -> None:
            self._watches[path] = self._inotify.add_watch(path, _DIRECTORY if path.is_dir() else _FILE)

        def remove(self, path: Path) -> None:
            # The system has forgotten one whose file is gone.
            with contextlib.suppress(OSError):
                self._inotify.rm_watch(self._watches.pop(path))

        def _read(self) -> None:
            while (event := self._inotify.sync_get()) is not None:
                if event.mask & Mask.Q_OVERFLOW:
                    for path in tuple(self._watches):
                        self._changed(path)
                elif event.watch is not None and self._watches.get(event.watch.path) is event.watch:
                    if event.mask & Mask.IGNORED:
                        del self._watches[event.watch.path]
                    self._changed(event.watch.path)

        def close(self) -> None:
            asyncio.get_running_loop().remove_reader(self._inotify.fd)
            self._inotify.close()

else:
    import select

    _EVENTS = select.KQ_NOTE_WRITE | select.KQ_NOTE_EXTEND
    _ENDS = select.KQ_NOTE_DELETE | select.KQ_NOTE_RENAME | select.KQ_NOTE_REVOKE

    class _Notifier:
        def __init__(self, changed: Callable[[Path], None]) -> None:
            self._queue = select.kqueue()
            self._changed = changed
            self._paths: dict[int, Path] = {}
            asyncio.get_running_loop().add_reader(self._queue.fileno(), self._read)

        def __contains__(self, path: Path) -> bool:
            return path in self._paths.values()

        def add(self, path: Path) -> None:
            fd = os.open(path, getattr(os, "O_EVTONLY", os.O_RDONLY) | os.O_CLOEXEC)
            self._paths[fd] = path
            flags = select.KQ_EV_ADD | select.KQ_EV_CLEAR
            self._queue.control([select.kevent(fd, select.KQ_FILTER_VNODE, flags, _EVENTS | _ENDS)], 0, 0)

        def remove(self, path: Path) -> None:
            for fd in [fd for fd, watched in self._paths.items() if watched == path]:
                del self._paths[fd]
                os.close(fd)

        def _read(self) -> None:
            for event in self._queue.control(None, 64, 0):
                if path := self._paths.get(event.ident):
                    if event.fflags & _ENDS:
                        self.remove(path)
                    self._changed(path)

        def close(self) -> None:
            asyncio.get_running_loop().remove_reader(self._queue.fileno())
            for fd in self._paths:
                os.close(fd)
            self._queue.close()


class Files:
    """What is watched; to be made and used in the I/O thread, and closed there.

    :param changed: called with a path that was added, when what is there changed or is gone; a path that is gone is
        watched no longer.
    :raises HostError: when this host watches nothing more for this user.
    """

    def __init__(self, changed: Callable[[Path], None]) -> None:
        try:
            self._notifier = _Notifier(changed)
        except OSError as error:
            raise _refused("Lima's directory", error) from error
        self._inodes: dict[Path, int] = {}

    def add(self, path: Path) -> bool:
        """Watch what is at a path, if it is not watched already.

        :return: whether it is new; False also when there is nothing.
        :raises HostError: when this host watches nothing more for this user.
        """
        try:
            inode = path.stat().st_ino
            if path in self._notifier and self._inodes.get(path) == inode:
                return False
            # Of a file that is gone from there while somebody has it open, the system says nothing.
            self.remove(path)
            self._notifier.add(path)
            self._inodes[path] = inode
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return False
        except OSError as error:
            raise _refused(str(path), error) from error
        return True

    def remove(self, path: Path) -> None:
        """Watch a path no longer."""
        self._inodes.pop(path, None)
        if path in self._notifier:
            self._notifier.remove(path)

    def close(self) -> None:
        """Watch nothing any more."""
        self._notifier.close()


def _refused(what: str, error: OSError) -> HostError:
    hint = ""
    if error.errno in (errno.ENOSPC, errno.EMFILE, errno.ENFILE):
        hint = "See the limits: sysctl fs.inotify; ulimit -n"
    return HostError(f"Changes of {what} cannot be watched: {error.strerror}.", hint=hint)
