"""Who listens on which TCP port: in a guest, and on this host."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import shlex
import sys
from collections.abc import Iterator, Set
from pathlib import Path
from typing import NamedTuple

from ..errors import GuestError, printable
from ..lima import process
from .connection import Connection

# Seconds.
TIMEOUT = 20.0
_LSOF_TIMEOUT = 5.0
_SSH_PORT = 22
_LOOPBACK = (ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1"))
# The state of a socket that listens, in /proc/net/tcp.
_LISTEN = "0A"

# What the kernel tells itself: no tool that a guest may lack.
_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
_SCRIPT = r"""
cat /proc/net/tcp /proc/net/tcp6 2>/dev/null
ls -l /proc/[0-9]*/fd 2>/dev/null | grep -e '^/proc/' -e 'socket:'
grep -s . /proc/[0-9]*/comm
true
"""
_FDS = re.compile(r"^/proc/(\d{1,10})/fd:$")
_SOCKET = re.compile(r"-> socket:\[(\d{1,20})\]$")
_COMM = re.compile(r"^/proc/(\d{1,10})/comm:(.*)$")


class GuestPort(NamedTuple):
    """A TCP port that somebody listens on; pid 0 and no process where the guest's user may not know."""

    port: int
    address: str
    pid: int = 0
    process: str = ""


class _Socket(NamedTuple):
    address: str
    port: int
    inode: int


def _address(text: str) -> str:
    """Return an address of the kernel's tables: words of four bytes, each in the machine's own order."""
    raw = bytes.fromhex(text)
    words = [raw[start : start + 4] for start in range(0, len(raw), 4)]
    if sys.byteorder == "little":
        words = [word[::-1] for word in words]
    return str(ipaddress.ip_address(b"".join(words)))


def _listening(table: str) -> Iterator[_Socket]:
    """Yield the sockets of the kernel's tables that listen; a line that is none is passed over."""
    for line in table.splitlines():
        fields = line.split()
        if len(fields) < 10 or fields[3] != _LISTEN:
            continue
        address, _, port = fields[1].partition(":")
        with contextlib.suppress(ValueError):
            yield _Socket(_address(address), int(port, 16) & 0xFFFF, int(fields[9]))


def _owners(said: str) -> tuple[dict[int, int], dict[int, str]]:
    """Return which process has which socket, and the processes' names."""
    pids: dict[int, int] = {}
    names: dict[int, str] = {}
    pid = 0
    for line in said.splitlines():
        if found := _FDS.match(line):
            pid = int(found[1])
        elif found := _SOCKET.search(line):
            pids.setdefault(int(found[1]), pid)
        elif found := _COMM.match(line):
            names[int(found[1])] = printable(found[2])[:64]
    return pids, names


async def guest_ports(connection: Connection) -> tuple[GuestPort, ...]:
    """Return the TCP ports that somebody in the guest listens on, by number.

    :raises GuestError: when the guest does not say.
    :raises ConnectionFailed: when the connection does not hold.
    """
    done = await connection.run(f"sh -c {shlex.quote(_SCRIPT)}", timeout=TIMEOUT)
    if "local_address" not in done.stdout:
        raise GuestError("The guest does not say which ports it listens on.", context=done.stderr.splitlines()[-5:])
    pids, names = _owners(done.stdout)
    found = set()
    for socket in _listening(done.stdout):
        pid = pids.get(socket.inode, 0)
        found.add(GuestPort(socket.port, socket.address, pid, names.get(pid, "")))
    return tuple(sorted(found))


def is_forwarded_by_default(port: GuestPort) -> bool:
    """Tell whether Lima forwards a port by itself, where no rule of lima.yaml speaks of it.

    It does for what listens on 127.0.0.1 or ::1, not on all of loopback, or everywhere; sshd's own port it never
    forwards. The VMs of this package have a rule that ignores all.
    """
    address = ipaddress.ip_address(port.address)
    return port.port != _SSH_PORT and (address in _LOOPBACK or address.is_unspecified)


async def host_listener(port: int) -> str:
    """Return which process listens on a TCP port of this host, as far as this user may know, or nothing."""
    if sys.platform == "darwin":
        return await _by_lsof(port)
    tables = ""
    for table in _TABLES:
        with contextlib.suppress(OSError):
            tables += Path(table).read_text()
    inodes = {socket.inode for socket in _listening(tables) if socket.port == port}
    for directory in Path("/proc").glob("[0-9]*"):
        if _holds(directory, inodes):
            with contextlib.suppress(OSError):
                return f"{printable((directory / 'comm').read_text().strip())} (pid {directory.name})"
    return ""


def _holds(process_directory: Path, inodes: Set[int]) -> bool:
    """Tell whether a process has one of these sockets, as far as this user may know."""
    with contextlib.suppress(OSError):
        for link in (process_directory / "fd").iterdir():
            # Files come and go meanwhile.
            with contextlib.suppress(OSError):
                found = _SOCKET.search(f"-> {link.readlink()}")
                if found and int(found[1]) in inodes:
                    return True
    return False


async def _by_lsof(port: int) -> str:
    with contextlib.suppress(OSError, TimeoutError):
        done = await process.run(["lsof", "-nP", f"-iTCP:{port}", "-sTCP:LISTEN", "-Fpc"], timeout=_LSOF_TIMEOUT)
        fields = {line[0]: printable(line[1:]) for line in done.stdout.splitlines() if line}
        if "p" in fields and "c" in fields:
            return f"{fields['c']} (pid {fields['p']})"
    return ""
