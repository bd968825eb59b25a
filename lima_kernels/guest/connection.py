"""One SSH connection to a guest; the one place that knows asyncssh."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import asyncssh

from ..errors import ConnectionFailed, GuestError, HostError, HostKeyChanged
from .ends import Peer, Receiver
from .host_keys import KeyStore
from .knocking import answered
from .packets import without_ignored

# As Lima itself prefers: AES in hardware, and the fastest of all in an emulated guest.
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes128-ctr")
RETRY_INTERVAL = 0.2
LOGIN_TIMEOUT = 60.0
# Between sshd's start and the user's creation lies little; a refusal that lasts longer is meant.
REFUSAL_LIMIT = 60.0
KEEPALIVE_INTERVAL = 15
KEEPALIVE_COUNT = 8
# Bytes. A packet of SSH is 32 KiB; what is handed on at once bounds how long one stream keeps the others waiting.
CHUNK = 256 * 1024

T = TypeVar("T")
Channel = asyncssh.SSHUNIXChannel[bytes] | asyncssh.SSHTCPChannel[bytes]


class Endpoint(NamedTuple):
    """Where and as whom to log in to a guest."""

    host: str
    port: int
    user: str
    identity: Path


class _Client(asyncssh.SSHClient):
    """Accepts the pinned key only, or any at first contact."""

    def __init__(self, pinned: str | None) -> None:
        self._pinned = pinned

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        return self._pinned is None or _openssh(key) == self._pinned


def _openssh(key: asyncssh.SSHKey) -> str:
    return " ".join(key.export_public_key("openssh").decode().split()[:2])


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn what asyncssh raises into our errors.

    ChannelListenError is no ``asyncssh.Error``, forwards raise OSError, and a key that cannot be used ValueError.
    """
    try:
        yield
    except (asyncssh.Error, asyncssh.ChannelListenError, OSError, ValueError) as error:
        reason = getattr(error, "reason", "") or str(error) or type(error).__name__
        raise ConnectionFailed(f"{what} failed: {reason}.") from error


class Result(NamedTuple):
    """What a command in the guest said."""

    status: int
    stdout: str
    stderr: str


class Ended(NamedTuple):
    """How a program in the guest ended: with an exit code, or by a signal, named without ``SIG``."""

    code: int | None
    signal: str | None


class _Session(asyncssh.SSHUNIXSession[bytes]):
    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        self._receiver.data_received(data)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._receiver.connection_lost()

    def pause_writing(self) -> None:
        self._receiver.pause_writing()

    def resume_writing(self) -> None:
        self._receiver.resume_writing()


class _PeerSession(_Session, asyncssh.SSHTCPSession[bytes]):
    def __init__(self, peer: Peer) -> None:
        super().__init__(peer)
        self._peer = peer

    def connection_made(self, chan: Channel) -> None:
        self._peer.connected(Pipe(chan))

    def eof_received(self) -> bool:
        return self._peer.eof_received()


class Pipe:
    """The sending half of a byte stream to a socket in the guest."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def write(self, data: bytes) -> None:
        """Send; nothing happens once the pipe is closed."""
        if data and not self._channel.is_closing():
            self._channel.write(data)

    def read(self, wanted: bool) -> None:
        """Let data come, or let the guest wait."""
        if wanted:
            self._channel.resume_reading()
        else:
            self._channel.pause_reading()

    def write_eof(self) -> None:
        """Send what is left, and that nothing more comes."""
        if not self._channel.is_closing():
            self._channel.write_eof()

    def close(self) -> None:
        """Send what is left and close; may be called twice."""
        self._channel.close()


class _ClientProcess(asyncssh.SSHClientProcess[bytes]):
    """Tells of the program's end at once: what that left running may keep its output open."""

    def __init__(self) -> None:
        super().__init__()
        self.exited = asyncio.Event()

    def exit_status_received(self, status: int) -> None:
        self.exited.set()

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:
        self.exited.set()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.exited.set()


class Process:
    """A program that runs in the guest; made by :meth:`Connection.process`.

    ``exited`` is set when it has ended, or can no longer be heard of; ``stdout`` and ``stderr`` may go on for longer.
    What is not read lets the guest wait: at most 2 MiB are kept here.
    """

    def __init__(self, process: _ClientProcess) -> None:
        self._process = process
        self.exited = process.exited
        self.stdout, self.stderr = Output(process.stdout), Output(process.stderr)

    @property
    def ended(self) -> Ended | None:
        """How it ended, or None when that is not known."""
        if self._process.exit_signal:
            return Ended(None, self._process.exit_signal[0])
        return None if self._process.exit_status is None else Ended(self._process.exit_status, None)

    async def write(self, data: bytes) -> None:
        """Send to its stdin, and wait for as long as it takes no more.

        :raises ConnectionFailed: when nobody takes it any longer.
        """
        with translated("Writing to the guest"):
            self._process.stdin.write(data)
            await self._process.stdin.drain()

    def write_eof(self) -> None:
        """End its stdin."""
        self._process.stdin.write_eof()

    async def closed(self) -> None:
        """Wait until it and its output have ended; what nobody reads is in the way of that."""
        await self._process.wait_closed()


class Output(NamedTuple):
    """What a program in the guest prints."""

    reader: asyncssh.SSHReader[bytes]

    async def read(self, limit: int = CHUNK) -> bytes:
        """Return what has come, at least a byte; nothing when it has ended.

        :raises ConnectionFailed: when the connection is lost.
        """
        with translated("Reading from the guest"):
            return await self.reader.read(limit)


async def _opened(opening: Coroutine[Any, Any, tuple[Any, T]]) -> tuple[Any, T]:
    """Open a channel. One whose caller is cancelled meanwhile is closed when it opens: asyncssh would forget it."""
    task = asyncio.ensure_future(opening)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(lambda done: done.cancelled() or done.exception() or done.result()[0].abort())
        raise


class Connection:
    """An open connection to a guest.

    Made by :func:`open_connection`; ``closed`` is set when it ends, whoever ended it.
    """

    def __init__(self, ssh: asyncssh.SSHClientConnection) -> None:
        self._ssh = ssh
        ssh.send_packet = without_ignored(ssh.send_packet)  # type: ignore[method-assign]
        self.closed = asyncio.Event()
        self._watcher = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        try:
            await self._ssh.wait_closed()
        finally:
            self.closed.set()

    async def run(self, command: str, *, stdin: str = "", timeout: float) -> Result:
        """Run a shell command in the guest to its end.

        :param timeout: seconds.
        :raises GuestError: when it does not end in time.
        :raises ConnectionFailed: when the connection does not hold.
        """
        with translated("Running a command in the guest"):
            try:
                done = await self._ssh.run(command, input=stdin, timeout=timeout, encoding="utf-8", errors="replace")
            except asyncssh.TimeoutError as error:
                raise GuestError(f"A command in the guest did not end within {timeout:.0f} s.") from error
        return Result(done.returncode or 0, str(done.stdout or ""), str(done.stderr or ""))

    @contextlib.asynccontextmanager
    async def lines(self, command: str, *, stdin: str) -> AsyncIterator[AsyncIterator[str]]:
        """Run a shell command in the guest and hand out its output line by line."""
        with translated("Running a command in the guest"):
            async with self._ssh.create_process(command, encoding="utf-8", errors="replace") as running:
                running.stdin.write(stdin)
                running.stdin.write_eof()
                yield aiter(running.stdout)

    @contextlib.asynccontextmanager
    async def process(self, command: str) -> AsyncIterator[Process]:
        """Run a shell command in the guest, and hang up on it when the block is left.

        :raises ConnectionFailed: when it cannot be started.
        """
        with translated("Running a command in the guest"):
            channel, session = await _opened(self._ssh.create_session(_ClientProcess, command, encoding=None))
        assert isinstance(session, _ClientProcess)
        try:
            yield Process(session)
        finally:
            channel.abort()

    async def open_unix(self, path: str) -> tuple[asyncssh.SSHReader[str], asyncssh.SSHWriter[str]]:
        """Open a stream to a unix socket in the guest.

        :raises ConnectionFailed: when nobody listens there.
        """
        with translated(f"Connecting to {path} in the guest"):
            return await self._ssh.open_unix_connection(path, encoding="utf-8", errors="replace")

    async def open_pipe(self, path: str, receiver: Receiver) -> Pipe:
        """Open a byte stream to a unix socket in the guest, for a receiver that is called as data comes.

        :raises ConnectionFailed: when nobody listens there.
        """
        with translated(f"Connecting to {path} in the guest"):
            channel, _ = await _opened(self._ssh.create_unix_connection(lambda: _Session(receiver), path))
        return Pipe(channel)

    async def join(self, target: int | str, peer: Peer) -> None:
        """Connect a peer to a TCP port or a unix socket in the guest.

        :raises ConnectionFailed: when nobody listens there.
        """
        with translated(f"Connecting to {target} in the guest"):
            if isinstance(target, int):
                await _opened(self._ssh.create_connection(lambda: _PeerSession(peer), "localhost", target))
            else:
                await _opened(self._ssh.create_unix_connection(lambda: _PeerSession(peer), target))

    async def listen_unix(self, path: str, accept: Callable[[], Peer]) -> Callable[[], None]:
        """Listen on a unix socket in the guest, for its user only; returns what ends that.

        :param accept: called for each client.
        :raises ConnectionFailed: when the guest refuses, as it does when the path exists.
        """
        with translated(f"Listening on {path} in the guest"):
            return (await self._ssh.create_unix_server(lambda: _PeerSession(accept()), path)).close

    async def close(self) -> None:
        """Close the connection; may be called twice."""
        self._ssh.close()
        await self._watcher


async def open_connection(endpoint: Endpoint, keys: KeyStore, sock: socket.socket | None = None) -> Connection:
    """Log in to a guest whose sshd answers; pins its host key at first contact.

    :param sock: a connection to it, which is used up; one is made when None.
    :raises HostKeyChanged: when it shows another key than the pinned one.
    :raises ConnectionFailed: when it cannot be reached or refuses us.
    """
    with contextlib.ExitStack() as unused:
        if sock is not None:
            unused.enter_context(sock)
        pinned = keys.pinned()

        def client() -> _Client:
            # From here on the socket is the connection's, and is closed with it.
            unused.pop_all()
            return _Client(pinned)

        with translated(f"SSH to {endpoint.user}@{endpoint.host}:{endpoint.port}"):
            try:
                ssh = await asyncssh.connect(
                    endpoint.host,
                    endpoint.port,
                    sock=sock,
                    username=endpoint.user,
                    client_keys=[str(endpoint.identity)],
                    client_factory=client,
                    # Nothing is known but what our own validation says; no file or agent of the user is asked.
                    known_hosts=([], [], []),
                    config=None,
                    agent_path=None,
                    password_auth=False,
                    kbdint_auth=False,
                    gss_auth=False,
                    encryption_algs=CIPHERS,
                    login_timeout=LOGIN_TIMEOUT,
                    keepalive_interval=KEEPALIVE_INTERVAL,
                    keepalive_count_max=KEEPALIVE_COUNT,
                )
            except asyncssh.HostKeyNotVerifiable as error:
                raise keys.refuse() from error
    if pinned is None:
        key = ssh.get_server_host_key()
        assert key is not None
        try:
            keys.pin(_openssh(key))
        except HostError:
            ssh.close()
            await ssh.wait_closed()
            raise
    return Connection(ssh)


async def wait_for_connection(endpoint: Endpoint, keys: KeyStore, on_banner: Callable[[], None]) -> Connection:
    """Log in as soon as the guest lets us; tries for as long as it is not cancelled.

    :param on_banner: called when sshd answers for the first time.
    :raises HostKeyChanged: at once.
    :raises ConnectionFailed: when sshd refuses us for longer than a booting guest would.
    """
    refused_since: float | None = None
    clock = asyncio.get_running_loop().time
    while True:
        sock = await answered(endpoint.host, endpoint.port)
        on_banner()
        try:
            return await open_connection(endpoint, keys, sock)
        except HostKeyChanged:
            raise
        except ConnectionFailed as error:
            refused_since = refused_since or clock()
            if clock() - refused_since > REFUSAL_LIMIT:
                raise ConnectionFailed(
                    error.message,
                    hint=f"Does the VM's user accept the key {endpoint.identity}? Try: limactl shell NAME true",
                ) from error
        await asyncio.sleep(RETRY_INTERVAL)
