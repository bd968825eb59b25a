"""Kernels on this host behind an sshd on loopback: what the way costs, without an emulated guest that hides it.

Each kernel is reached three ways at once: directly, by our forwards, and by OpenSSH's. The forkserver, the streams and
the forwards are those of a VM; only what makes and boots it is left out.
"""

from __future__ import annotations

import contextlib
import functools
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import zmq

from lima_kernels.guest import startup
from lima_kernels.guest.connection import Connection, open_connection
from lima_kernels.guest.forwards import CHANNELS, Forwards, Transport
from lima_kernels.guest.host_keys import KeyStore
from lima_kernels.guest.kernels import Birth, Forkserver, KernelFacts, Ownership
from lima_kernels.guest.readiness import Facts
from lima_kernels.guest.startup import Layout
from lima_kernels.guest.streams import Claim
from lima_kernels.runtime import Runtime
from tests.sshd import Sshd, running

from .conversation import Conversation, conversation
from .openssh import forwarded, loopback_command, prompt_sshd
from .samples import DIRECT, OURS, ROUND_TRIP, SSH, SSH_LATE, Sample, output_of
from .timing import by_turns

PART = "loopback"
SPAWN_TIMEOUT = 60.0
ROUNDS, BULK_ROUNDS = 400, 5
# So many rounds before it is another's turn.
BLOCK = 10
Connections = Mapping[str, Mapping[str, Any]]
# What is to be timed, of a client; and what is undone behind it.
Prepare = Callable[[Conversation, ExitStack], Callable[[], object]]
MEGABYTE = 1_000_000


class Line(NamedTuple):
    """A connection to the sshd, and the forkserver's end of it."""

    connection: Connection
    forkserver: Forkserver


class Kernel(NamedTuple):
    """A kernel behind the sshd: connection files' contents for each way to it."""

    direct: dict[str, Any]
    ours: dict[str, Any]


class Loopback:
    """An sshd on this host and our forkserver behind it; made by :func:`loopback`."""

    def __init__(self, root: Path, sshd: Sshd, io: Runtime, stack: ExitStack) -> None:
        self.root = root
        self.sshd = sshd
        self._io = io
        self._stack = stack
        home = str(sshd.home)
        self.facts = Facts(home=home, uid=sshd.home.stat().st_uid, gid=sshd.home.stat().st_gid, python=sys.executable)
        self.layout = Layout(self.facts)

    def line(self) -> Line:
        """Connect once more."""

        async def connect() -> Line:
            connection = await open_connection(self.sshd.endpoint, KeyStore(self.root / "pinned.json"))
            return Line(connection, await startup.connect(connection, self.facts, lambda _event: None))

        async def close(line: Line) -> None:
            await line.forkserver.close()
            await line.connection.close()

        line = self._io.run_blocking(connect())
        self._stack.callback(lambda: self._io.run_blocking(close(line)))
        return line

    def kernel(self, line: Line) -> Kernel:
        """Start a kernel and forward its channels over a connection, as a session does."""
        name, token = secrets.token_hex(8), secrets.token_hex(16)
        direct = {
            "transport": "ipc",
            "ip": self.layout.channels(name),
            **CHANNELS,
            "key": secrets.token_hex(16),
            "signature_scheme": "hmac-sha256",
        }
        birth = Birth(
            cwd=str(self.sshd.home),
            env={},
            connection=direct,
            arguments=[],
            ownership=Ownership(token, keep=0.0),
            facts=KernelFacts(),
        )
        forwards = Forwards(Transport.IPC, self.root / f"o{name}")

        async def start() -> str:
            await line.forkserver.spawn(name, birth, timeout=SPAWN_TIMEOUT)
            address = await forwards.listen()
            await forwards.connect(line.connection, Claim({"kernel": name}, token, line.forkserver.socket))
            return address.ip

        async def end() -> None:
            await forwards.close()
            await line.forkserver.remove(name)

        # What failed half-way is undone as well.
        self._stack.callback(lambda: self._io.run_blocking(end()))
        ip = self._io.run_blocking(start())
        return Kernel(direct, {**direct, "ip": ip})

    @contextmanager
    def openssh(self, *kernels: Kernel) -> Iterator[list[dict[str, Any]]]:
        """The same kernels by OpenSSH's forwards, all over one connection, for the time of the block."""
        with prompt_sshd(self.sshd) as port, self._forwarded(loopback_command(self.sshd, port), kernels) as found:
            yield found

    def plain_openssh(self, *kernels: Kernel) -> AbstractContextManager[list[dict[str, Any]]]:
        """The same, but as OpenSSH does it by itself: it keeps small packets back."""
        return self._forwarded(loopback_command(self.sshd), kernels)

    @contextmanager
    def _forwarded(self, command: Sequence[str], kernels: Sequence[Kernel]) -> Iterator[list[dict[str, Any]]]:
        prefixes = [str(self.root / f"s{secrets.token_hex(8)}") for _ in kernels]
        ways = {prefix: kernel.direct["ip"] for prefix, kernel in zip(prefixes, kernels, strict=True)}
        with forwarded(command, ways):
            yield [{**kernel.direct, "ip": prefix} for prefix, kernel in zip(prefixes, kernels, strict=True)]


@contextmanager
def loopback() -> Iterator[Loopback]:
    """An sshd with our forkserver; nothing is left of it, or of its kernels, after the block."""
    with ExitStack() as stack:
        # Short: sockets lie below it.
        root = Path(tempfile.mkdtemp(prefix="lk"))
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        stack.callback(_end_all, root / "home")
        sshd = stack.enter_context(running(root))
        # Nothing of this host's is changed, even where the account may.
        refusal = sshd.bin / "sudo"
        refusal.write_text("#!/bin/sh\nexit 1\n")
        refusal.chmod(0o755)
        io = Runtime()
        stack.callback(io.close)
        with ExitStack() as made:
            yield Loopback(root, sshd, io, made)


def _end_all(home: Path) -> None:
    """End the forkserver and what it left: it outlives its connections, as it should."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(str(home) in part for part in process.cmdline()):
                process.kill()


def heartbeats(part: str, connections: Connections, rounds: int) -> Iterator[Sample]:
    """Measure the bare way: what is sent to a kernel's heartbeat comes back untouched."""
    with ExitStack() as stack:
        sockets = {}
        for contender, connection in connections.items():
            context = stack.enter_context(zmq.Context())
            socket = stack.enter_context(context.socket(zmq.REQ))
            socket.linger = 0
            socket.rcvtimeo = 60_000
            socket.connect(f"ipc://{connection['ip']}-{connection['hb_port']}")
            sockets[contender] = socket

        def beat(socket: zmq.Socket[bytes]) -> None:
            socket.send(b"beat")
            socket.recv()

        ways = {contender: functools.partial(beat, socket) for contender, socket in sockets.items()}
        yield from by_turns(part, "round trip of a heartbeat", ways, rounds)


def by_blocks(
    part: str, figure: str, connections: Connections, prepare: Prepare, rounds: int, *, of: float = 0.0
) -> Iterator[Sample]:
    """Measure the same of several ways to a kernel, a block of rounds of each by turns.

    A kernel publishes to all its clients, so there is one at a time.

    :param of: as in :func:`by_turns`.
    """
    left = rounds
    while left > 0:
        block = min(left, BLOCK)
        left -= block
        for contender, connection in connections.items():
            with conversation(connection) as client, ExitStack() as stack:
                yield from by_turns(part, figure, {contender: prepare(client, stack)}, block, of)


def _cell(code: str) -> Prepare:
    return lambda client, _stack: functools.partial(client.cell, code)


def _comm(payload: bytes) -> Prepare:
    def prepare(client: Conversation, stack: ExitStack) -> Callable[[], object]:
        return functools.partial(client.there_and_back, stack.enter_context(client.echo()), payload)

    return prepare


def cells(part: str, connections: Connections, rounds: int) -> Iterator[Sample]:
    """Measure empty cells, small outputs and comm messages."""
    yield from by_blocks(part, ROUND_TRIP, connections, _cell("pass"), rounds)
    yield from by_blocks(part, "output of 1 kB", connections, _cell("print('x' * 1000)"), rounds // 2)
    yield from by_blocks(part, "comm message there and back", connections, _comm(b""), rounds // 2)
    large = _comm(bytes(10 * MEGABYTE))
    yield from by_blocks(part, "comm with 10 MB there and back", connections, large, BULK_ROUNDS, of=20)


def outputs(part: str, connections: Connections, megabytes: int, rounds: int) -> Iterator[Sample]:
    """Measure how fast a cell's output comes."""
    code = _cell(f"print('x' * {megabytes * MEGABYTE})")
    yield from by_blocks(part, output_of(megabytes), connections, code, rounds, of=megabytes)


def measure() -> Iterator[Sample]:
    """Measure one kernel on this host by all ways."""
    with loopback() as peer, ExitStack() as stack:
        kernel = peer.kernel(peer.line())
        (theirs,) = stack.enter_context(peer.openssh(kernel))
        connections = {DIRECT: kernel.direct, OURS: kernel.ours, SSH: theirs}
        (late,) = stack.enter_context(peer.plain_openssh(kernel))
        yield from heartbeats(PART, connections, ROUNDS)
        yield from cells(PART, connections, ROUNDS)
        yield from by_blocks(PART, ROUND_TRIP, {SSH_LATE: late}, _cell("pass"), ROUNDS // 10)
        for megabytes in (1, 100):
            yield from outputs(PART, connections, megabytes, BULK_ROUNDS)
