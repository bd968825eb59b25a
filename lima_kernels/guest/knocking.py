"""Waits for a booting guest's sshd.

A port that QEMU forwards accepts at once, long before the guest does: only what sshd says first tells that it is
there. And what QEMU could not hand on yet it tries again after ever longer times, so that a new connection comes
through sooner than one that has waited.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

# Seconds: for how long a connection waits for sshd, and after how long the next one is tried beside it.
PATIENCE = 3.0
INTERVAL = 1.0
# Where there is no port yet, the next one is tried sooner.
REFUSED_INTERVAL = 0.2
_BANNER = b"SSH-"


async def answered(host: str, port: int) -> socket.socket:
    """Return a connection to an sshd that has begun to speak, as soon as there is one; nothing was read from it."""
    knocks: set[asyncio.Task[socket.socket | None]] = set()
    try:
        while True:
            knocks.add(asyncio.ensure_future(_knock(host, port)))
            done, knocks = await asyncio.wait(knocks, timeout=INTERVAL, return_when=asyncio.FIRST_COMPLETED)
            found = [sock for knock in done if (sock := knock.result())]
            for sock in found[1:]:
                sock.close()
            if found:
                return found[0]
            if done:
                await asyncio.sleep(REFUSED_INTERVAL)
    finally:
        for knock in knocks:
            knock.cancel()
        for outcome in await asyncio.gather(*knocks, return_exceptions=True):
            if isinstance(outcome, socket.socket):
                # It came in this very moment.
                outcome.close()


async def _knock(host: str, port: int) -> socket.socket | None:
    """Return a connection on which sshd speaks, or None when it does not in time."""
    with contextlib.ExitStack() as stack:
        try:
            async with asyncio.timeout(PATIENCE):
                sock = stack.enter_context(await _connected(host, port))
                await _readable(sock)
                start = sock.recv(len(_BANNER), socket.MSG_PEEK)
        except OSError:
            # Also the time's end.
            return None
        if not start or not _BANNER.startswith(start):
            return None
        stack.pop_all()
        return sock


async def _connected(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    (family, kind, protocol, _, address), *_ = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        await loop.sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(sock, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(sock)
