"""Ports and sockets across the border: both ways, for their owner only, and across a lost connection."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from lima_kernels.errors import ConfigurationError, ConnectionFailed, GuestError, HostError
from lima_kernels.guest.connection import Connection
from lima_kernels.guest.listeners import GuestPort, guest_ports, host_listener, is_forwarded_by_default
from lima_kernels.guest.ports import Direction, Forward, PortForwards
from tests.sshd import Sshd, connected

LIMIT = 30.0


@pytest.fixture
async def connection(sshd: Sshd) -> AsyncIterator[Connection]:
    async with connected(sshd) as made:
        yield made


@pytest.fixture
async def forwards(connection: Connection) -> AsyncIterator[PortForwards]:
    made = PortForwards()
    assert await made.attach(connection) == []
    yield made
    await made.close()


class Echo:
    """A service that answers, once its client sends no more, with what that sent, in capitals."""

    def __init__(self) -> None:
        self.clients = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.clients += 1
        data = await reader.read()
        writer.write(data.upper())
        await writer.drain()
        writer.close()


@pytest.fixture
async def port() -> AsyncIterator[int]:
    server = await asyncio.start_server(Echo(), "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


@pytest.fixture
async def service(sshd: Sshd) -> AsyncIterator[str]:
    path = str(sshd.root / "service")
    server = await asyncio.start_unix_server(Echo(), path)
    yield path
    server.close()


async def asked(end: int | str, data: bytes = b"hello") -> bytes:
    """What a service answers; nothing when it hangs up."""
    async with asyncio.timeout(LIMIT):
        opened = (
            asyncio.open_connection("127.0.0.1", end) if isinstance(end, int) else asyncio.open_unix_connection(end)
        )
        reader, writer = await opened
        try:
            writer.write(data)
            writer.write_eof()
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()


def refused(end: int | str) -> bool:
    family = socket.AF_INET if isinstance(end, int) else socket.AF_UNIX
    with socket.socket(family, socket.SOCK_STREAM) as client:
        try:
            client.connect(("127.0.0.1", end) if isinstance(end, int) else end)
        except OSError:
            return True
    return False


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT):
        while not condition():
            await asyncio.sleep(0.01)


# To the guest


async def test_a_port_of_the_guest(forwards: PortForwards, port: int) -> None:
    made = await forwards.forward(port)
    assert made == Forward(Direction.TO_GUEST, port, made.host)
    assert made.host not in (0, port)
    assert forwards.all() == (made,)
    assert await asked(made.host) == b"HELLO"
    # On the loopback and nowhere else.
    [entry] = await asyncio.to_thread(_sockets, made.host)
    assert entry == "127.0.0.1"
    await forwards.remove(made)
    assert forwards.all() == ()
    assert refused(made.host)
    with pytest.raises(ConfigurationError, match="Nothing is forwarded between"):
        await forwards.remove(made)


def _sockets(port: int | str) -> list[str]:
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:] + Path("/proc/net/tcp6").read_text().splitlines()[1:]
    fields = [line.split() for line in lines]
    found = [field[1].split(":")[0] for field in fields if field[3] == "0A" and int(field[1].split(":")[1], 16) == port]
    return [".".join(str(byte) for byte in reversed(bytes.fromhex(address))) for address in found]


async def test_a_socket_of_the_guest_and_one_of_this_host(forwards: PortForwards, service: str, sshd: Sshd) -> None:
    by_port = await forwards.forward(service)
    assert await asked(by_port.host) == b"HELLO"
    path = sshd.root / "private" / "socket"
    by_path = await forwards.forward(service, str(path))
    assert by_path == Forward(Direction.TO_GUEST, service, str(path))
    assert await asked(str(path)) == b"HELLO"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    await forwards.remove(by_path)
    assert not path.exists()
    assert forwards.all() == (by_port,)


async def test_much_in_both_directions_at_once(forwards: PortForwards, port: int) -> None:
    made = await forwards.forward(port)
    data = os.urandom(5_000_000)
    answers = await asyncio.gather(*(asked(made.host, data) for _ in range(4)))
    assert all(answer == data.upper() for answer in answers)


async def test_who_does_not_read_makes_the_service_wait(forwards: PortForwards) -> None:
    sent = 0

    async def pour(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        with_limit = asyncio.timeout(LIMIT)
        async with with_limit:
            while sent < 200_000_000:
                writer.write(bytes(100_000))
                await writer.drain()
                sent += 100_000
        writer.close()

    server = await asyncio.start_server(pour, "127.0.0.1", 0)
    made = await forwards.forward(server.sockets[0].getsockname()[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", made.host)
    before = -1
    async with asyncio.timeout(LIMIT):
        while before != sent or not sent:
            before = sent
            await asyncio.sleep(0.3)
    assert sent < 100_000_000
    count = 0
    while data := await reader.read(1_000_000):
        count += len(data)
    assert count == 200_000_000
    writer.close()
    server.close()


async def test_nobody_listens_in_the_guest(forwards: PortForwards) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        unused = free.getsockname()[1]
    made = await forwards.forward(unused)
    assert await asked(made.host) == b""
    assert await asked(made.host) == b""


async def test_a_port_in_use_names_who_uses_it(forwards: PortForwards) -> None:
    program = (
        "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"
    )
    holder = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdin is not None
    assert holder.stdout is not None
    taken = int(holder.stdout.readline())
    comm = Path(f"/proc/{holder.pid}/comm").read_text().strip()
    assert await host_listener(taken) == f"{comm} (pid {holder.pid})"
    with pytest.raises(HostError) as caught:
        await forwards.forward(8080, taken)
    assert str(caught.value) == (
        f"Port {taken} of this host is in use by {comm} (pid {holder.pid}). "
        "Choose another port, or 0 for any that is free."
    )
    assert forwards.all() == ()
    holder.communicate("\n", timeout=LIMIT)
    assert await host_listener(taken) == ""
    assert (await forwards.forward(8080, taken)).host == taken


@pytest.mark.parametrize(("guest", "host"), [(0, 0), (65536, 0), (80, -1), (80, 65536), ("", 0), (80, "a\nb")])
async def test_what_is_no_port_and_no_path(forwards: PortForwards, guest: int | str, host: int | str) -> None:
    with pytest.raises(ConfigurationError):
        await forwards.forward(guest, host)


async def test_paths_of_this_host_that_are_refused(forwards: PortForwards, sshd: Sshd, service: str) -> None:
    shared = sshd.root / "shared"
    shared.mkdir(mode=0o755)
    with pytest.raises(HostError, match="Others could reach a socket in"):
        await forwards.forward(80, str(shared / "socket"))
    private = sshd.root / "private"
    private.mkdir(mode=0o700)
    (private / "file").touch()
    with pytest.raises(HostError, match="exists and is no socket"):
        await forwards.forward(80, str(private / "file"))
    with pytest.raises(HostError, match="too long for a unix socket"):
        await forwards.forward(80, str(private / ("x" * 120)))
    used = await asyncio.start_unix_server(Echo(), str(private / "used"))
    with pytest.raises(HostError, match="Somebody listens on"):
        await forwards.forward(80, str(private / "used"))
    assert await asked(str(private / "used")) == b"HELLO"
    used.close()
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(private / "stale"))
    stale.close()
    await forwards.forward(service, str(private / "stale"))
    assert await asked(str(private / "stale")) == b"HELLO"


# To this host


async def test_a_socket_shared_with_the_guest(forwards: PortForwards, service: str, port: int, sshd: Sshd) -> None:
    # Both ends are this machine's; what is made at the path is the guest's sshd's.
    first = await forwards.share(service, "~/of host/socket")
    path = sshd.home / "of host" / "socket"
    assert first == Forward(Direction.TO_HOST, str(path), service)
    assert await asked(str(path)) == b"HELLO"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    second = await forwards.share(port, str(sshd.home / "port"))
    assert await asked(str(sshd.home / "port"), b"x" * 3_000_000) == b"X" * 3_000_000
    assert forwards.all() == (first, second)
    with pytest.raises(GuestError, match="Somebody listens on"):
        await forwards.share(service, str(path))
    await forwards.remove(first)
    assert not path.exists()
    assert forwards.all() == (second,)
    await forwards.close()
    assert not (sshd.home / "port").exists()


async def test_nobody_listens_on_this_host(forwards: PortForwards, sshd: Sshd) -> None:
    await forwards.share(str(sshd.root / "nobody"), "~/socket")
    assert await asked(str(sshd.home / "socket")) == b""


async def test_what_is_in_the_way_in_the_guest(forwards: PortForwards, service: str, sshd: Sshd) -> None:
    (sshd.home / "file").write_text("kept")
    with pytest.raises(GuestError, match="exists in the guest and is no socket"):
        await forwards.share(service, "~/file")
    (sshd.home / "link").symlink_to(service)
    with pytest.raises(GuestError, match="exists in the guest and is no socket"):
        await forwards.share(service, "~/link")
    with pytest.raises(GuestError, match="cannot make the directory of"):
        await forwards.share(service, "~/file/socket")
    with pytest.raises(GuestError, match="no absolute path"):
        await forwards.share(service, "relative")
    with pytest.raises(GuestError, match="too long"):
        await forwards.share(service, "~/" + "x" * 110)
    assert (sshd.home / "file").read_text() == "kept"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(sshd.home / "stale"))
    stale.close()
    await forwards.share(service, "~/stale")
    assert await asked(str(sshd.home / "stale")) == b"HELLO"


async def test_nothing_can_be_shared_without_a_connection(service: str) -> None:
    forwards = PortForwards()
    with pytest.raises(ConnectionFailed, match="there is no connection"):
        await forwards.share(service, "~/socket")
    await forwards.close()


# A lost connection


async def test_forwards_outlive_a_lost_connection(sshd: Sshd, service: str, port: int) -> None:
    forwards = PortForwards()
    async with connected(sshd) as first:
        await forwards.attach(first)
        to_port = await forwards.forward(port)
        to_path = await forwards.forward(service, str(sshd.root / "private" / "socket"))
        await forwards.share(service, "~/shared")
        made = forwards.all()
        reader, writer = await asyncio.open_connection("127.0.0.1", to_port.host)
        writer.write(b"x")
        sshd.drop_connections()
        async with asyncio.timeout(LIMIT):
            await first.closed.wait()
            # Whoever was connected learns it.
            assert await reader.read() == b""
        writer.close()
    # Who comes now waits for the next connection.
    waiting = [asyncio.ensure_future(asked(forward.host)) for forward in (to_port, to_path)]
    await asyncio.sleep(0)
    async with connected(sshd) as second:
        assert await forwards.attach(second) == []
        assert await asyncio.gather(*waiting) == [b"HELLO", b"HELLO"]
        assert forwards.all() == made
        assert await asked(str(sshd.home / "shared")) == b"HELLO"
        await forwards.close()
        assert not (sshd.home / "shared").exists()
    assert refused(to_port.host)
    assert refused(to_path.host)
    await forwards.close()


async def test_what_cannot_be_shared_again_is_said(sshd: Sshd, service: str, port: int) -> None:
    forwards = PortForwards()
    async with connected(sshd) as first:
        await forwards.attach(first)
        await forwards.share(service, "~/taken")
        await forwards.share(service, "~/free")
    (sshd.home / "taken").unlink()
    (sshd.home / "taken").write_text("the guest's own")
    async with connected(sshd) as second:
        [failure] = await forwards.attach(second)
        assert "exists in the guest and is no socket" in str(failure)
        assert await asked(str(sshd.home / "free")) == b"HELLO"
        (sshd.home / "taken").unlink()
        assert await forwards.attach(second) == []
        await forwards.close()


async def test_closing_hangs_up_on_everybody(sshd: Sshd, connection: Connection, port: int) -> None:
    forwards = PortForwards()
    made = await forwards.forward(port)
    # One waits for a connection, another has one.
    first, first_writer = await asyncio.open_connection("127.0.0.1", made.host)
    await until(lambda: len(forwards._tasks) == 1)
    closing = asyncio.ensure_future(forwards.close())
    async with asyncio.timeout(LIMIT):
        assert await first.read() == b""
        await closing
    first_writer.close()
    assert forwards._relays == set()
    assert forwards._tasks == set()


# Who listens


async def test_the_ports_of_a_guest(connection: Connection, sshd: Sshd, port: int) -> None:
    found = {entry.port: entry for entry in await guest_ports(connection)}
    assert found[port] == GuestPort(port, "127.0.0.1", os.getpid(), found[port].process)
    assert found[port].process == Path("/proc/self/comm").read_text().strip()
    assert found[sshd.port].process == "sshd"
    with socket.socket(socket.AF_INET6) as everywhere:
        everywhere.bind(("::", 0))
        everywhere.listen()
        number = everywhere.getsockname()[1]
        [entry] = [entry for entry in await guest_ports(connection) if entry.port == number]
        assert entry.address == "::"


async def test_a_guest_that_tells_nonsense(connection: Connection, sshd: Sshd) -> None:
    (sshd.bin / "cat").write_text(
        "#!/bin/sh\necho 'sl local_address'\necho ' 0: ZZ:QQ 0:0 0A x x x x x x x'\n"
        "echo ' 1: 0100007F:1F90 00000000:0000 0A 0:0 0:0 0 0 0 77 1'\necho ' 2: 01:1 : 0A'\n"
    )
    (sshd.bin / "cat").chmod(0o755)
    (sshd.bin / "ls").write_text("#!/bin/sh\necho '/proc/99999/fd:'\necho 'l 0 -> socket:[77]'\n")
    (sshd.bin / "ls").chmod(0o755)
    (sshd.bin / "grep").write_text(
        '#!/bin/sh\n[ "$1" != -s ] || printf \'/proc/99999/comm:\\033[31mevil\\n\'\n[ "$1" = -s ] || /bin/cat\n'
    )
    (sshd.bin / "grep").chmod(0o755)
    assert await guest_ports(connection) == (GuestPort(8080, "127.0.0.1", 99999, "evil"),)
    (sshd.bin / "cat").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(GuestError, match="does not say which ports"):
        await guest_ports(connection)


@pytest.mark.parametrize(
    ("port", "address", "expected"),
    [
        (8080, "127.0.0.1", True),
        (8080, "0.0.0.0", True),
        (8080, "::", True),
        (8080, "::1", True),
        (8080, "127.0.0.53", False),
        (8080, "192.168.5.15", False),
        (22, "0.0.0.0", False),
    ],
)
def test_which_ports_lima_forwards_by_itself(port: int, address: str, expected: bool) -> None:
    assert is_forwarded_by_default(GuestPort(port, address)) is expected
