"""Who uses the guest, beside those who say so."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from .idle import has_terminals

# Of sshd and of the name service: every guest has them.
_OF_THE_SYSTEM = (22, 53, 5355)
_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
_LISTENS = "0A"
# Of the last minute: something that computes all the time is at 0.6 by then, and what ended then is at 0.4.
_LOAD = 0.5


def by_whom(has_kernels: bool) -> str:
    """Return in words who uses the guest, or nothing when nobody does."""
    if has_kernels:
        return "a kernel"
    if has_terminals():
        return "a terminal"
    for port in _ports():
        return "what listens at port %d" % port
    with contextlib.suppress(OSError):
        if os.getloadavg()[0] >= _LOAD:
            return "programs that compute"
    return ""


def _ports() -> Iterator[int]:
    """Yield the TCP ports that somebody listens at for others (proc_net_tcp of the kernel's documentation)."""
    for table in _TABLES:
        with contextlib.suppress(OSError), open(table, encoding="ascii") as file:
            for line in list(file)[1:]:
                _, address, _, state = line.split()[:4]
                port = int(address.rpartition(":")[2], 16)
                if state == _LISTENS and port not in _OF_THE_SYSTEM:
                    yield port
