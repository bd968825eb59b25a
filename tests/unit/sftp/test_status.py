"""What the guest's programs are told: sshfs has few words for errors, and the nearest is chosen."""

from __future__ import annotations

import errno

import pytest

from lima_kernels.sftp.server import status_of

from .peer import (
    BAD_MESSAGE,
    FAILURE,
    MKDIR,
    NO_SUCH_FILE,
    OP_UNSUPPORTED,
    OPEN,
    PERMISSION_DENIED,
    REMOVE,
    RENAME,
    RMDIR,
    SETSTAT,
    SYMLINK,
)


def in_the_guest(status: int, kind: int) -> int:
    """The error that a program in the guest sees (sshfs 3.7.3: ``sftp_request_wait``, ``sshfs_mkdir``)."""
    if status == FAILURE:
        return {RMDIR: errno.ENOTEMPTY, MKDIR: errno.EEXIST}.get(kind, errno.EPERM)
    return {
        NO_SUCH_FILE: errno.ENOENT,
        PERMISSION_DENIED: errno.EACCES,
        BAD_MESSAGE: errno.EBADMSG,
        OP_UNSUPPORTED: errno.EOPNOTSUPP,
    }.get(status, errno.EIO)


@pytest.mark.parametrize(
    ("kind", "on_the_host", "told"),
    [
        (OPEN, errno.ENOENT, errno.ENOENT),
        (OPEN, errno.ENOTDIR, errno.ENOENT),
        (OPEN, errno.ELOOP, errno.ENOENT),
        (OPEN, errno.EACCES, errno.EACCES),
        (OPEN, errno.EROFS, errno.EACCES),
        (OPEN, errno.ENOSPC, errno.EIO),
        (OPEN, errno.EDQUOT, errno.EIO),
        (OPEN, errno.EFBIG, errno.EIO),
        (OPEN, errno.EIO, errno.EIO),
        (OPEN, errno.ESTALE, errno.EIO),
        (OPEN, errno.EMFILE, errno.EIO),
        (OPEN, errno.EISDIR, errno.EPERM),
        (OPEN, errno.ENAMETOOLONG, errno.EBADMSG),
        (SETSTAT, errno.EPERM, errno.EPERM),
        (SETSTAT, errno.EOPNOTSUPP, errno.EOPNOTSUPP),
        (SETSTAT, errno.EINVAL, errno.EBADMSG),
        (REMOVE, errno.EPERM, errno.EPERM),
        (RENAME, errno.EXDEV, errno.EPERM),
        (RENAME, errno.ENOTEMPTY, errno.EPERM),
        (SYMLINK, errno.EEXIST, errno.EPERM),
        (MKDIR, errno.EEXIST, errno.EEXIST),
        (MKDIR, errno.EPERM, errno.EACCES),
        (MKDIR, errno.EMLINK, errno.EACCES),
        (MKDIR, errno.ENOSPC, errno.EIO),
        (RMDIR, errno.ENOTEMPTY, errno.ENOTEMPTY),
        # POSIX allows it for the same.
        (RMDIR, errno.EEXIST, errno.ENOTEMPTY),
        (RMDIR, errno.EBUSY, errno.EACCES),
        (RMDIR, errno.EPERM, errno.EACCES),
    ],
    ids=lambda value: errno.errorcode.get(value, str(value)),
)
def test_the_nearest_error(kind: int, on_the_host: int, told: int) -> None:
    assert in_the_guest(status_of(OSError(on_the_host, ""), kind), kind) == told
