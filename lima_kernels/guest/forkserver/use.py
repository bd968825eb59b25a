"""Who uses the guest, beside those who say so."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Container, Iterable, Iterator

from .idle import has_terminals

# Of sshd and of the name service: every guest has them.
_OF_THE_SYSTEM = (22, 53, 5355)
_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
_LISTENS = "0A"
# Of the last minute: something that computes all the time is at 0.6 by then, and what ended then is at 0.4.
_LOAD = 0.5


def by_whom(has_kernels: bool, standbys: Iterable[int]) -> str:
    """Return in words who uses the guest, or nothing when nobody does.

    :param standbys: the processes of kernels that nobody has yet; they listen for programs that they would start.
    """
    if has_kernels:
        return "a kernel"
    if has_terminals():
        return "a terminal"
    for port in _ports({inode for pid in standbys for inode in _sockets(pid)}):
        return "what listens at port %d" % port
    with contextlib.suppress(OSError):
        if os.getloadavg()[0] >= _LOAD:
            return "programs that compute"
    return ""


def _sockets(pid: int) -> Iterator[str]:
    """Yield the inodes of a process's sockets."""
    directory = "/proc/%d/fd" % pid
    with contextlib.suppress(OSError):
        for fd in os.listdir(directory):
            with contextlib.suppress(OSError):
                yield os.readlink(os.path.join(directory, fd)).partition("socket:[")[2].rstrip("]")


def _ports(ours: Container[str]) -> Iterator[int]:
    """Yield the TCP ports that somebody else listens at (proc_net_tcp of the kernel's documentation)."""
    for table in _TABLES:
        with contextlib.suppress(OSError), open(table, encoding="ascii") as file:
            for line in list(file)[1:]:
                _, address, _, state, _, _, _, _, _, inode = line.split()[:10]
                port = int(address.rpartition(":")[2], 16)
                if state == _LISTENS and port not in _OF_THE_SYSTEM and inode not in ours:
                    yield port
