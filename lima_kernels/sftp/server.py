"""Requests of the protocol become operations on the tree, and what comes of them replies."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable
from itertools import count

from . import wire
from .link import Link
from .tree import Directory, File, Tree, absolute, failure
from .wire import Kind, Status, Wanted, Wish

# A guest's programs have no more open at once; each of ours may cost two descriptors, a directory's.
MAX_HANDLES = 1024
# For those who name none; their umask is not known here.
_FILE_MODE = 0o644
_DIRECTORY_MODE = 0o755
_HANDLE = struct.Struct(">Q")
_READ_ONLY = 1

_ACCESS = {Wish.READ: os.O_RDONLY, Wish.WRITE: os.O_WRONLY, Wish.READ | Wish.WRITE: os.O_RDWR}
_FLAGS = {Wish.APPEND: os.O_APPEND, Wish.CREAT: os.O_CREAT, Wish.TRUNC: os.O_TRUNC, Wish.EXCL: os.O_EXCL}

# The status from which sshfs makes the nearest errno; FAILURE, which all others get, is EPERM there.
_STATUS = {
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.ELOOP), Status.NO_SUCH_FILE),
    **dict.fromkeys((errno.EACCES, errno.EROFS), Status.PERMISSION_DENIED),
    **dict.fromkeys((errno.EINVAL, errno.ENAMETOOLONG), Status.BAD_MESSAGE),
    **dict.fromkeys((errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP), Status.OP_UNSUPPORTED),
    # EIO there, as it has no other name for them: "no permission" on a full disk would lead astray.
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), Status.NO_SPACE),
    **dict.fromkeys((errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE), Status.NO_MEDIA),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE, errno.ENOMEM), Status.NO_MEDIA),
}
# Where sshfs takes FAILURE for one error alone, that one only may be called so: EEXIST, and ENOTEMPTY.
_FAILURE_IS: dict[int | bytes, tuple[int, ...]] = {
    Kind.MKDIR: (errno.EEXIST,),
    Kind.RMDIR: (errno.ENOTEMPTY, errno.EEXIST),
}
_OK = wire.status(Status.OK, "")
_END = wire.status(Status.EOF, "End of file")
_UNKNOWN = wire.status(Status.OP_UNSUPPORTED, "No such request")

# A kind and a body.
_Reply = tuple[int, "bytes | memoryview"]
_Handler = Callable[..., "_Reply | None"]


def status_of(error: OSError, kind: int | bytes) -> int:
    """Return the status that tells the client of a request of this kind best what went wrong."""
    code = error.errno or errno.EIO
    status = _STATUS.get(code, Status.FAILURE)
    if status == Status.FAILURE and code not in _FAILURE_IS.get(kind, (code,)):
        return Status.PERMISSION_DENIED
    return status


class Server:
    """One client's requests on one tree, with what it has open."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._open: dict[bytes, File | Directory] = {}
        self._numbers = count()
        self._data = wire.Data()
        self._handlers: dict[int | bytes, _Handler] = {
            Kind.CLOSE: self._close,
            Kind.READ: self._read,
            Kind.LSTAT: self._lstat,
            # A link's own attributes here, too: only who follows none is safe from all of them.
            Kind.STAT: self._lstat,
            Kind.FSTAT: self._fstat,
            Kind.OPEN: self._open_file,
            Kind.OPENDIR: self._open_directory,
            Kind.READDIR: self._read_directory,
            Kind.REALPATH: self._real_path,
            Kind.READLINK: self._read_link,
            wire.STATVFS: self._statvfs,
            wire.FSTATVFS: self._fstatvfs,
            wire.FSYNC: self._sync,
            **self._changing(),
        }

    def _changing(self) -> dict[int | bytes, _Handler]:
        """Return what handles the requests that change something."""
        return {
            Kind.WRITE: self._write,
            Kind.SETSTAT: self._tree.change,
            wire.LSETSTAT: self._tree.change,
            Kind.FSETSTAT: self._change_open,
            Kind.REMOVE: self._tree.remove,
            Kind.MKDIR: self._make_directory,
            Kind.RMDIR: self._tree.remove_directory,
            Kind.RENAME: self._tree.rename,
            wire.POSIX_RENAME: self._tree.replace,
            wire.HARDLINK: self._tree.link,
            # OpenSSH's order, the opposite of the draft's: where the link leads comes first.
            Kind.SYMLINK: self._tree.make_symlink,
        }

    def answer(self, packet: memoryview) -> tuple[bytes, bytes | memoryview]:
        """Do what a request asks for, and return the reply in two parts, good until the next request.

        :raises wire.Malformed: when it is none.
        """
        try:
            number, kind, fields = wire.read_request(packet)
        except wire.Unknown as unknown:
            return wire.head(Kind.STATUS, unknown.number, len(_UNKNOWN)), _UNKNOWN
        kind_of_reply, body = self._do(kind, fields)
        return wire.head(kind_of_reply, number, len(body)), body

    def _do(self, kind: int | bytes, fields: list[object]) -> _Reply:
        try:
            return self._handlers[kind](*fields) or (Kind.STATUS, _OK)
        except OSError as error:
            return Kind.STATUS, wire.status(status_of(error, kind), error.strerror or "Failure")
        except (ValueError, OverflowError) as error:
            # A zero byte in a name, or a number that the system has no room for.
            return Kind.STATUS, wire.status(Status.BAD_MESSAGE, str(error))

    def close(self) -> None:
        """Close all that is open."""
        while self._open:
            self._open.popitem()[1].close()

    def _hold(self, opened: File | Directory) -> _Reply:
        handle = _HANDLE.pack(next(self._numbers))
        self._open[handle] = opened
        return Kind.HANDLE, wire.string(handle)

    def _check_room(self) -> None:
        if len(self._open) >= MAX_HANDLES:
            raise OSError(errno.EPERM, "Too many open files and directories")

    def _held(self, handle: bytes) -> File | Directory:
        try:
            return self._open[handle]
        except KeyError:
            raise failure(errno.EBADF) from None

    def _file(self, handle: bytes) -> File:
        held = self._held(handle)
        if not isinstance(held, File):
            raise failure(errno.EISDIR)
        return held

    def _open_file(self, path: bytes, wishes: int, wanted: Wanted) -> _Reply:
        self._check_room()
        mode = _FILE_MODE if wanted.mode is None else wanted.mode
        return self._hold(self._tree.open_file(path, _flags(wishes), mode))

    def _open_directory(self, path: bytes) -> _Reply:
        self._check_room()
        return self._hold(self._tree.open_directory(path))

    def _close(self, handle: bytes) -> None:
        held = self._held(handle)
        del self._open[handle]
        held.close()

    def _read(self, handle: bytes, offset: int, length: int) -> _Reply:
        found = self._file(handle).read(offset, self._data.room(length))
        return (Kind.DATA, self._data.filled(found)) if found or not length else (Kind.STATUS, _END)

    def _write(self, handle: bytes, offset: int, data: memoryview) -> None:
        self._file(handle).write(offset, data)

    def _sync(self, handle: bytes) -> None:
        os.fsync(self._file(handle).fd)

    def _attributes(self, found: os.stat_result) -> bytes:
        # The tuple's are whole seconds already.
        times = int(found[stat.ST_ATIME]), int(found[stat.ST_MTIME])
        return wire.attributes(found.st_size, self._tree.owners.shown(found), found.st_mode, times)

    def _lstat(self, path: bytes) -> _Reply:
        return Kind.ATTRS, self._attributes(self._tree.status(path))

    def _fstat(self, handle: bytes) -> _Reply:
        return Kind.ATTRS, self._attributes(os.fstat(self._held(handle).fd))

    def _change_open(self, handle: bytes, wanted: Wanted) -> None:
        self._tree.change_open(self._held(handle).fd, wanted)

    def _make_directory(self, path: bytes, wanted: Wanted) -> None:
        self._tree.make_directory(path, _DIRECTORY_MODE if wanted.mode is None else wanted.mode)

    def _read_directory(self, handle: bytes) -> _Reply:
        held = self._held(handle)
        if not isinstance(held, Directory):
            raise failure(errno.ENOTDIR)
        batch: list[bytes] = []
        size = 0
        for name, found in held.entries:
            entry = wire.name(name, self._attributes(found))
            batch.append(entry)
            size += len(entry)
            if size > wire.MAX_NAMES:
                break
        return (Kind.NAME, wire.names(batch)) if batch else (Kind.STATUS, _END)

    def _real_path(self, path: bytes) -> _Reply:
        return Kind.NAME, wire.names([wire.name(absolute(path))])

    def _read_link(self, path: bytes) -> _Reply:
        return Kind.NAME, wire.names([wire.name(self._tree.read_symlink(path))])

    def _statvfs(self, path: bytes) -> _Reply:
        return self._file_system(self._tree.file_system(path))

    def _fstatvfs(self, handle: bytes) -> _Reply:
        return self._file_system(os.statvfs(self._held(handle).fd))

    def _file_system(self, found: os.statvfs_result) -> _Reply:
        sizes = (found.f_bsize, found.f_frsize, found.f_blocks, found.f_bfree, found.f_bavail)
        files = (found.f_files, found.f_ffree, found.f_favail)
        # The host's number of the file system is no business of a guest.
        return Kind.EXTENDED_REPLY, wire.statvfs((*sizes, *files, 0, self._mount_flags(found), found.f_namemax))

    def _mount_flags(self, found: os.statvfs_result) -> int:
        return found.f_flag & _READ_ONLY


class ReadOnlyServer(Server):
    """The same for a directory that the guest may read only."""

    def _changing(self) -> dict[int | bytes, _Handler]:
        return dict.fromkeys(super()._changing(), self._refuse)

    def _refuse(self, *_: object) -> None:
        raise failure(errno.EROFS)

    def _open_file(self, path: bytes, wishes: int, wanted: Wanted) -> _Reply:
        if wishes & (Wish.WRITE | Wish.CREAT | Wish.TRUNC):
            raise failure(errno.EROFS)
        return super()._open_file(path, wishes, wanted)

    def _mount_flags(self, found: os.statvfs_result) -> int:
        return _READ_ONLY


def _flags(wishes: int) -> int:
    """Return the flags of ``os.open`` for those of OPEN."""
    flags = _ACCESS.get(wishes & (Wish.READ | Wish.WRITE))
    if flags is None or wishes & ~Wish.ALL:
        raise failure(errno.EINVAL)
    for wish, flag in _FLAGS.items():
        if wishes & wish:
            flags |= flag
    return flags


def serve(link: Link, server: Server) -> None:
    """Answer a client until it ends.

    :raises wire.Malformed: when it does not speak the protocol.
    """
    first = link.receive()
    if first is None:
        return
    wire.read_init(first)
    link.send(wire.version())
    while (packet := link.receive()) is not None:
        link.send(*server.answer(packet))
