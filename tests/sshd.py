"""A guest for tests of what runs in one: OpenSSH's own sshd on loopback, whose commands are this machine's."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import asyncssh
import psutil

from lima_kernels.guest.connection import Connection, Endpoint, open_connection
from lima_kernels.guest.host_keys import KeyStore

PATH = "/usr/bin:/bin"
PROGRAM = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin") or "sshd"

_CONFIG = """
ListenAddress 127.0.0.1:{port}
HostKey {root}/host_key
AuthorizedKeysFile {root}/identity.pub
StrictModes no
UsePAM no
PidFile none
PasswordAuthentication no
KbdInteractiveAuthentication no
Subsystem sftp internal-sftp
SetEnv HOME={home} PATH={path} LANG=C.UTF-8
"""


class Sshd:
    """An sshd that serves this account; ``home`` is its user's home directory, ``bin`` comes before other programs."""

    def __init__(self, root: Path, through: Sequence[str] = ()) -> None:
        self.root = root
        self.home = root / "home"
        self.bin = root / "bin"
        self.config = root / "sshd_config"
        for directory in (self.home, self.bin):
            directory.mkdir()
        for name in ("host_key", "identity"):
            key = asyncssh.generate_private_key("ssh-ed25519")
            key.write_private_key(str(root / name))
            key.write_public_key(str(root / f"{name}.pub"))
            (root / name).chmod(0o600)
        self._process = self._listening(through)

    def _listening(self, through: Sequence[str]) -> subprocess.Popen[str]:
        """Start on a free port: another process may take it first."""
        for _attempt in range(5):
            with socket.create_server(("127.0.0.1", 0)) as free:
                self.port = free.getsockname()[1]
            path = f"{self.bin}:{PATH}"
            self.config.write_text(_CONFIG.format(port=self.port, root=self.root, home=self.home, path=path))
            process = subprocess.Popen(
                [*through, PROGRAM, "-D", "-e", "-f", str(self.config)], stderr=subprocess.PIPE, text=True
            )
            assert process.stderr is not None
            said = []
            for line in process.stderr:
                said.append(line)
                if "Server listening" in line:
                    # Nobody reads what it says from here on: it is to go nowhere, not into a pipe that fills up.
                    process.stderr.close()
                    return process
            process.wait(10)
        raise AssertionError(f"sshd does not listen: {said}")

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint("127.0.0.1", self.port, os.environ.get("USER", "") or os.getlogin(), self.root / "identity")

    def drop_connections(self) -> None:
        """Kill what serves the connections, as the end of a VM would."""
        for child in psutil.Process(self._process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.name() == "sshd":
                    child.kill()

    def close(self) -> None:
        self.drop_connections()
        self._process.kill()
        self._process.wait(10)


@contextlib.contextmanager
def running(root: Path, through: Sequence[str] = ()) -> Iterator[Sshd]:
    """An sshd for the time of the block."""
    sshd = Sshd(root, through)
    try:
        yield sshd
    finally:
        sshd.close()


@contextlib.asynccontextmanager
async def connected(sshd: Sshd) -> AsyncIterator[Connection]:
    """A connection to it for the time of the block."""
    connection = await open_connection(sshd.endpoint, KeyStore(sshd.root / "pinned.json"))
    try:
        yield connection
    finally:
        await connection.close()
