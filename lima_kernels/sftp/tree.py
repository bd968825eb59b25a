"""The files below one directory of the host, and nothing else.

Nothing here ever follows a symbolic link. A path is walked one component at a time from a descriptor of the directory:
each is opened relative to the one before with O_NOFOLLOW, and the last is used only by calls that do not follow it. So
there is no moment between a check and a use; what another process puts in the way is refused by the kernel. A guest
needs none followed: its own kernel reads them (READLINK), and asks us for where they lead below the directory.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator

from .wire import Wanted

# A descriptor for walking only needs no permission to read, where the system has such.
_PASS = getattr(os, "O_PATH", os.O_RDONLY)
_WALK = _PASS | os.O_DIRECTORY | os.O_NOFOLLOW
_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
# A FIFO that came in the way after we looked must not block us, nor a terminal become ours.
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
# What nobody's files are shown as.
_NOBODY = 65534
# What chown(2) calls -1: the user or the group that is not to be changed.
_SAME = 0xFFFFFFFF
_PERMISSIONS = 0o777
# Bytes of a path.
_LONGEST = 4096
_NANOSECONDS = 1_000_000_000


def failure(code: int) -> OSError:
    """Return the error that the system would raise with this number."""
    return OSError(code, os.strerror(code))


def _check_length(path: bytes) -> None:
    if len(path) > _LONGEST:
        raise failure(errno.ENAMETOOLONG)


def _components(path: bytes) -> list[bytes]:
    """Split a path.

    :raises OSError: when it is longer than Linux has any, or goes up. The guest's kernel resolves ``..`` before anybody
        asks us, so no guest needs it, and without it no path has to be shown to stay inside.
    """
    _check_length(path)
    names = [name for name in path.split(b"/") if name not in (b"", b".")]
    if b".." in names:
        raise failure(errno.EACCES)
    return names


def absolute(path: bytes) -> bytes:
    """Return a path from the root, with ``..`` taken as text; nothing is looked up, and nothing is above the root."""
    _check_length(path)
    names: list[bytes] = []
    for name in path.split(b"/"):
        if name == b"..":
            del names[-1:]
        elif name not in (b"", b"."):
            names.append(name)
    return b"/" + b"/".join(names)


class Owners:
    """Whose the guest sees files as: our user's are its own user's, root's are root's, all others' are nobody's."""

    def __init__(self, uid: int, gid: int) -> None:
        self._users = {0: 0, os.geteuid(): uid}
        self._groups = {0: 0} | dict.fromkeys((*os.getgroups(), os.getegid()), gid)

    def shown(self, found: os.stat_result) -> tuple[int, int]:
        """Return the user and the group that a file is shown with."""
        return self._users.get(found.st_uid, _NOBODY), self._groups.get(found.st_gid, _NOBODY)


class _Place:
    """Where a path's last component lies: a directory's descriptor and a name in it."""

    __slots__ = ("_is_ours", "fd", "name")

    def __init__(self, fd: int, name: bytes, is_ours: bool) -> None:
        self.fd = fd
        self.name = name
        self._is_ours = is_ours

    def __enter__(self) -> _Place:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_ours:
            os.close(self.fd)

    def status(self) -> os.stat_result:
        return os.stat(self.name, dir_fd=self.fd, follow_symlinks=False)


class Directory:
    """An open directory; its entries come once."""

    def __init__(self, fd: int) -> None:
        # One that may be read but not searched would seem to be empty.
        os.stat(b".", dir_fd=fd)
        self.fd = fd
        self._entries = os.scandir(fd)
        self.entries = self._read()

    def _read(self) -> Iterator[tuple[bytes, os.stat_result]]:
        here = os.fstat(self.fd)
        yield b".", here
        # At the root its own would tell of what is outside.
        yield b"..", here
        for entry in self._entries:
            try:
                found = entry.stat(follow_symlinks=False)
            except OSError:
                # Gone meanwhile, or a mount that is broken or not for us: the others are still to be seen.
                continue
            yield os.fsencode(entry.name), found

    def close(self) -> None:
        self._entries.close()
        os.close(self.fd)


class File:
    """An open regular file."""

    def __init__(self, fd: int, appends: bool) -> None:
        self.fd = fd
        self._appends = appends

    def read(self, offset: int, room: memoryview) -> int:
        """Read what there is, as far as there is room, and return how much it was; 0 at the end."""
        return os.preadv(self.fd, [room], offset)

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of it there, or at the end of a file that was opened for appending."""
        while data:
            # Linux's pwrite appends, too, but POSIX's goes by the offset.
            written = os.write(self.fd, data) if self._appends else os.pwrite(self.fd, data, offset)
            offset += written
            data = data[written:]

    def close(self) -> None:
        os.close(self.fd)


class Tree:
    """The operations of the protocol on one directory's files.

    Paths are bytes, with or without a leading slash. OSError is what the system says, and also how a path that leads
    outside or a file of a special kind is refused.

    :raises OSError: when the directory cannot be opened or searched.
    """

    def __init__(self, directory: str, owners: Owners) -> None:
        self.owners = owners
        # Held for good: when the directory is deleted or another takes its name, this one stays what is served.
        self._root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        os.stat(b".", dir_fd=self._root)

    def _place(self, path: bytes) -> _Place:
        names = _components(path)
        # "." is no symbolic link, and refuses by itself what nobody may do to the root.
        last = names.pop() if names else b"."
        fd = self._root
        for name in names:
            try:
                deeper = os.open(name, _WALK, dir_fd=fd)
            finally:
                if fd != self._root:
                    os.close(fd)
            fd = deeper
        return _Place(fd, last, fd != self._root)

    def status(self, path: bytes) -> os.stat_result:
        """Return a file's attributes, a symbolic link's own too."""
        with self._place(path) as place:
            return place.status()

    def open_file(self, path: bytes, flags: int, mode: int) -> File:
        """Open a regular file.

        :param flags: those of ``os.open``.
        :param mode: for a file that is created, as it is: the guest has applied its own umask.
        """
        with self._place(path) as place:
            return File(_open_regular(place, flags, mode), bool(flags & os.O_APPEND))

    def open_directory(self, path: bytes) -> Directory:
        with self._place(path) as place:
            fd = os.open(place.name, _LIST, dir_fd=place.fd)
        try:
            return Directory(fd)
        except BaseException:
            os.close(fd)
            raise

    def remove(self, path: bytes) -> None:
        with self._place(path) as place:
            os.unlink(place.name, dir_fd=place.fd)

    def make_directory(self, path: bytes, mode: int) -> None:
        with self._place(path) as place:
            os.mkdir(place.name, mode & _PERMISSIONS, dir_fd=place.fd)

    def remove_directory(self, path: bytes) -> None:
        with self._place(path) as place:
            os.rmdir(place.name, dir_fd=place.fd)

    def rename(self, old: bytes, new: bytes) -> None:
        """Rename to a name that is free. Python has no call that does both in one; sshfs asks for ``replace``."""
        with self._place(old) as source, self._place(new) as target:
            try:
                target.status()
            except FileNotFoundError:
                os.rename(source.name, target.name, src_dir_fd=source.fd, dst_dir_fd=target.fd)
            else:
                raise failure(errno.EEXIST)

    def replace(self, old: bytes, new: bytes) -> None:
        """Rename, in one step, over what may have the new name."""
        with self._place(old) as source, self._place(new) as target:
            os.replace(source.name, target.name, src_dir_fd=source.fd, dst_dir_fd=target.fd)

    def link(self, old: bytes, new: bytes) -> None:
        """Give a file a second name; a symbolic link gets one itself."""
        with self._place(old) as source, self._place(new) as target:
            os.link(source.name, target.name, src_dir_fd=source.fd, dst_dir_fd=target.fd, follow_symlinks=False)

    def make_symlink(self, target: bytes, path: bytes) -> None:
        """Make a symbolic link; where it leads is text that nobody here follows."""
        with self._place(path) as place:
            os.symlink(target, place.name, dir_fd=place.fd)

    def read_symlink(self, path: bytes) -> bytes:
        with self._place(path) as place:
            return os.readlink(place.name, dir_fd=place.fd)

    def file_system(self, path: bytes) -> os.statvfs_result:
        """Return the numbers of the file system that holds a file or directory."""
        with self._place(path) as place:
            if not stat.S_ISDIR(place.status().st_mode):
                return os.statvfs(place.fd)
            fd = os.open(place.name, _WALK, dir_fd=place.fd)
        try:
            return os.statvfs(fd)
        finally:
            os.close(fd)

    def change(self, path: bytes, wanted: Wanted) -> None:
        """Change a file's attributes, a symbolic link's own where it has them; see :meth:`change_open`."""
        with self._place(path) as place:
            self._check_owner(place.status(), wanted)
            if wanted.size is not None:
                fd = _open_regular(place, os.O_WRONLY, 0)
                try:
                    os.ftruncate(fd, wanted.size)
                finally:
                    os.close(fd)
            if wanted.mode is not None:
                _change_mode(place, wanted.mode)
            if wanted.times is not None:
                os.utime(place.name, ns=_nanoseconds(wanted.times), dir_fd=place.fd, follow_symlinks=False)

    def change_open(self, fd: int, wanted: Wanted) -> None:
        """Change the attributes of an open file or directory: size, permissions, times.

        :raises OSError: also when another owner is wanted than the one shown. It is told before anything is changed.
        """
        found = os.fstat(fd)
        self._check_owner(found, wanted)
        if wanted.size is not None:
            os.ftruncate(fd, wanted.size)
        if wanted.mode is not None:
            os.fchmod(fd, _mode(found, wanted.mode))
        if wanted.times is not None:
            os.utime(fd, ns=_nanoseconds(wanted.times))

    def _check_owner(self, found: os.stat_result, wanted: Wanted) -> None:
        if wanted.owner is None:
            return
        for new, shown in zip(wanted.owner, self.owners.shown(found), strict=True):
            if new not in (shown, _SAME):
                # And no other error: for this one `cp -p` of an ordinary user goes on without a word.
                raise failure(errno.EPERM)


def _open_regular(place: _Place, flags: int, mode: int) -> int:
    """Open what a name in a directory is, when that is a regular file, and return its descriptor."""
    try:
        _check_regular(place.status())
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
    fd = os.open(place.name, flags | _FILE, mode & _PERMISSIONS, dir_fd=place.fd)
    try:
        # Looked at again: what came in the way was opened without harm, but is not for use.
        _check_regular(os.fstat(fd))
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_regular(found: os.stat_result) -> None:
    if stat.S_ISREG(found.st_mode):
        return
    if stat.S_ISDIR(found.st_mode):
        raise failure(errno.EISDIR)
    raise failure(errno.ELOOP if stat.S_ISLNK(found.st_mode) else errno.EACCES)


def _mode(found: os.stat_result, wanted: int) -> int:
    """Return the permissions to set: a guest makes no program of ours run as somebody else.

    The set-user-ID and set-group-ID bits are left out without a word, as the kernel itself does with the latter: an
    archive that is unpacked need not fail for them. A directory, where it means something else, keeps the latter.
    """
    kept = _PERMISSIONS
    if stat.S_ISDIR(found.st_mode):
        kept |= stat.S_ISVTX | found.st_mode & stat.S_ISGID
    return wanted & kept


if sys.platform == "linux":

    def _change_mode(place: _Place, wanted: int) -> None:
        # Linux has learned only lately to change a mode by name without following; by this descriptor it always could.
        fd = os.open(place.name, os.O_PATH | os.O_NOFOLLOW, dir_fd=place.fd)
        try:
            found = os.fstat(fd)
            if stat.S_ISLNK(found.st_mode):
                raise failure(errno.EOPNOTSUPP)
            os.chmod(f"/proc/self/fd/{fd}", _mode(found, wanted))  # noqa: PTH101
        finally:
            os.close(fd)

else:

    def _change_mode(place: _Place, wanted: int) -> None:
        os.chmod(place.name, _mode(place.status(), wanted), dir_fd=place.fd, follow_symlinks=False)


def _nanoseconds(times: tuple[int, int]) -> tuple[int, int]:
    accessed, modified = times
    return accessed * _NANOSECONDS, modified * _NANOSECONDS
