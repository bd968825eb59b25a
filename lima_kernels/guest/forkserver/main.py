"""Start the forkserver: one for each directory, in the foreground of systemd or detached."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import socket

from .child import Spawned
from .preload import preload
from .server import Server
from .standby import begin


def notify_started() -> int:
    """Tell systemd, where it started us, that the socket is there (sd_notify(3)); returns the exit code for that."""
    address = os.environ.pop("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect("\0" + address[1:] if address.startswith("@") else address)
            sock.send(b"READY=1")
    return 0


def detach() -> int:
    """Go on in a process of a session of its own; the first process ends when the socket is there."""
    started_r, started_w = os.pipe()
    if os.fork():
        os.close(started_w)
        os._exit(0 if os.read(started_r, 1) else 1)
    os.close(started_r)
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    return started_w


def listen(path: str) -> socket.socket:
    """Listen on a socket of ours alone, in the place of one that an earlier server left."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    os.chmod(path, 0o600)
    # A client that finds no room is refused, and its stream would wait for the next connection.
    listener.listen(1024)
    return listener


def main() -> int:
    """Serve until the guest ends; a forked kernel returns from here when it ends."""
    parser = argparse.ArgumentParser(description="Fork kernels in a guest.")
    parser.add_argument("--root", required=True, help="our 0700 directory")
    parser.add_argument("--socket", required=True, help="where to listen")
    parser.add_argument("--environments", required=True, help="where environments are")
    parser.add_argument("--detach", action="store_true", help="return when the socket is there")
    options = parser.parse_args()
    os.umask(0o077)
    lock = os.open(options.socket + ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        # Another server was started at the same moment, and serves.
        return notify_started()
    os.makedirs(os.path.join(options.root, "k"), exist_ok=True)
    started = detach() if options.detach else None
    server = Server(options.root, listen(options.socket), options.environments)
    notify_started()
    if started is not None:
        os.write(started, b"1")
        os.close(started)
    os.umask(0o022)
    server.registry.failure = preload()
    try:
        server.serve()
    except Spawned as caught:
        start = caught.start
    os.close(lock)
    server.close_in_child()
    # What it raises goes to the kernel's log, as an interpreter's own.
    begin(start)
    return 0
