"""Forwards of OpenSSH's own client, which ours are measured against."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from lima_kernels.guest.connection import CIPHERS
from lima_kernels.guest.forwards import CHANNELS
from tests.sshd import PROGRAM, Sshd

# Seconds.
LIMIT = 60.0
# A connection of its own, whatever the configuration says of sharing one.
ALONE = ("-o", "ControlPath=none", "-o", "ControlMaster=no", "-o", "BatchMode=yes")
_PROXY = Path(__file__).with_name("connected.py")
# OpenSSH keeps small packets back (no TCP_NODELAY) where it has no terminal: 40 ms for a message that waits for the
# acknowledgement of another. `ssh -N -L` gives that; only without it OpenSSH is a fair peer of ours.
AT_ONCE = ("-o", "ProxyUseFdpass=yes", "-o", f"ProxyCommand={sys.executable} {_PROXY} %h %p")


def loopback_command(sshd: Sshd, port: int = 0) -> list[str]:
    """Return the command that logs in to an sshd of the tests', or to one of :func:`prompt_sshd`."""
    end = sshd.endpoint
    nothing = ["-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-q"]
    where = ["-i", str(end.identity), "-p", str(port or end.port), f"{end.user}@{end.host}"]
    return ["ssh", *nothing, *ALONE, *(AT_ONCE if port else ()), "-c", ",".join(CIPHERS), *where]


@contextmanager
def prompt_sshd(sshd: Sshd) -> Iterator[int]:
    """The same sshd, but sending small packets at once, on the port that is yielded, for the time of the block."""
    served: list[subprocess.Popen[bytes]] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                        argv = [PROGRAM, "-i", "-f", str(sshd.config)]
                        served.append(subprocess.Popen(argv, stdin=connection, stdout=connection))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            # Who waits in accept() does not notice a close.
            server.shutdown(socket.SHUT_RDWR)
            thread.join(LIMIT)
            for process in served:
                process.terminate()
                process.wait(LIMIT)


def arguments(ways: Mapping[str, str]) -> list[str]:
    """Return the options that forward kernels' sockets.

    :param ways: the prefix of the sockets on this host, and that of the guest's.
    """
    made = ["-o", "ExitOnForwardFailure=yes", "-o", "StreamLocalBindUnlink=yes"]
    for here, there in ways.items():
        for number in CHANNELS.values():
            made += ["-L", f"{here}-{number}:{there}-{number}"]
    return made


@contextmanager
def forwarded(ssh: Sequence[str], ways: Mapping[str, str]) -> Iterator[None]:
    """Forward kernels' sockets over a connection of OpenSSH's for the time of the block.

    :param ssh: a command that logs in.
    :raises TimeoutError: when it does not listen in time.
    """
    command, *options = ssh
    process = subprocess.Popen([command, *arguments(ways), "-N", *options], stdin=subprocess.DEVNULL)
    try:
        wait_for([Path(f"{here}-{number}") for here in ways for number in CHANNELS.values()], process)
        yield
    finally:
        process.terminate()
        process.wait(10)


def wait_for(sockets: Sequence[Path], process: subprocess.Popen[bytes]) -> None:
    """Wait until ssh listens on its sockets: it tells nobody.

    :raises TimeoutError: when it does not, or has ended.
    """
    until = time.monotonic() + LIMIT
    while not all(socket.exists() for socket in sockets):
        if time.monotonic() > until or process.poll() is not None:
            raise TimeoutError(f"ssh does not listen: exit code {process.poll()}.")
        time.sleep(0.01)
