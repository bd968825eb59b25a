"""Ports and sockets of a guest on this host, and sockets of this host in a guest, across lost connections."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import errno
import os
import shlex
import stat
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NamedTuple

from .. import paths
from ..errors import ConfigurationError, ConnectionFailed, GuestError, HostError, LimaKernelsError
from .connection import Connection
from .listeners import host_listener
from .relay import Relay, Side
from .shell import quoted_path

LOOPBACK = "127.0.0.1"
# Seconds that a client waits for a connection to the guest.
WAITING = 20.0
TIMEOUT = 20.0

# A socket is the one thing that is taken away from its path, and only the guest's user's own.
_LOOK = r"""
path=%s
umask 077
mkdir -p -- "$(dirname -- "$path")" 2>/dev/null || { echo parent; exit; }
what=free
if [ -L "$path" ] || [ -e "$path" ]; then
  if [ -L "$path" ] || [ ! -S "$path" ]; then what=file
  elif [ -O "$path" ]; then what=socket
  else what=other; fi
fi
printf '%%s %%s\n' "$what" "$path"
"""


class Direction(enum.Enum):
    """Where clients connect: on this host to reach the guest, or in the guest to reach this host."""

    TO_GUEST = "to the guest"
    TO_HOST = "to this host"


class Forward(NamedTuple):
    """One forward: a TCP port (on the loopback) or the path of a unix socket on each side."""

    direction: Direction
    guest: int | str
    host: int | str


class PortForwards:
    """The forwards of one VM; those who connect while it cannot be reached wait for a while.

    Made without a connection; :meth:`attach` gives it one, again after each loss.
    """

    def __init__(self) -> None:
        self._stops: dict[Forward, Callable[[], None]] = {}
        self._relays: set[Relay] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._connection: Connection | None = None
        self._news = asyncio.Event()
        self._turn = asyncio.Lock()

    def all(self) -> tuple[Forward, ...]:
        """Return the forwards in the order in which they were made."""
        return tuple(self._stops)

    # From this host to the guest

    async def forward(self, guest: int | str, host: int | str = 0) -> Forward:
        """Forward a port or socket of this host to one of the guest; port 0 takes a free one, and the result names it.

        :raises HostError: when this host does not give it: the port is in use, the path is taken.
        :raises ConfigurationError: for what cannot be a port or a path.
        """
        _check(guest, least=1)
        _check(host, least=0)

        def protocol() -> asyncio.Protocol:
            return self._relay(lambda relay: self._begin(self._reach(relay, guest))).here

        loop = asyncio.get_running_loop()
        async with self._turn:
            if isinstance(host, int):
                server = await self._listen_on_port(loop, protocol, host)
                host = server.sockets[0].getsockname()[1]
            else:
                server = await _listen_on_path(loop, protocol, Path(host))
            made = Forward(Direction.TO_GUEST, guest, host)
            self._stops[made] = lambda: _close(server, host)
        return made

    async def _listen_on_port(
        self, loop: asyncio.AbstractEventLoop, protocol: Callable[[], asyncio.Protocol], port: int
    ) -> asyncio.Server:
        try:
            return await loop.create_server(protocol, LOOPBACK, port)
        except OSError as error:
            hint = "Choose another port, or 0 for any that is free."
            if error.errno == errno.EADDRINUSE:
                owner = await host_listener(port)
                who = f" by {owner}" if owner else ""
                raise HostError(f"Port {port} of this host is in use{who}.", hint=hint) from error
            why = os.strerror(error.errno) if error.errno else str(error)
            raise HostError(f"Port {port} of this host cannot be listened on: {why}.", hint=hint) from error

    async def _reach(self, relay: Relay, guest: int | str) -> None:
        try:
            async with asyncio.timeout(WAITING):
                await (await self._present()).join(guest, relay.there)
        except (TimeoutError, ConnectionFailed):
            # A client that nobody answers learns it as from any port: it is hung up on.
            relay.close()

    async def _present(self) -> Connection:
        while self._connection is None or self._connection.closed.is_set():
            self._news.clear()
            await self._news.wait()
        return self._connection

    # From the guest to this host

    async def share(self, host: int | str, guest: str) -> Forward:
        """Let the guest's user reach a port or socket of this host by a unix socket in the guest.

        :param guest: its path; directories that are missing are made, for the guest's user only.
        :raises GuestError: when something else is at the path.
        :raises ConnectionFailed: when there is no connection.
        """
        _check(host, least=1)
        _check(guest, least=1)
        async with self._turn:
            connection = self._connection
            if connection is None or connection.closed.is_set():
                raise ConnectionFailed(f"{host} cannot be shared with the guest: there is no connection to it.")
            path = await _cleared(connection, guest, is_ours=False)
            made = Forward(Direction.TO_HOST, path, host)
            if made in self._stops or any(other.guest == path for other in self._stops):
                raise GuestError(f"Something is shared with the guest at {path} already.")
            self._stops[made] = await self._listen_in_guest(connection, made)
        return made

    async def _listen_in_guest(self, connection: Connection, forward: Forward) -> Callable[[], None]:
        def accept() -> Side:
            relay = self._relay(lambda _relay: None)
            self._begin(_join_host(relay, forward.host))
            return relay.there

        assert isinstance(forward.guest, str)
        return await connection.listen_unix(forward.guest, accept)

    # All of them

    async def attach(self, connection: Connection) -> list[LimaKernelsError]:
        """Go on over a new connection; returns why what is shared with the guest could not be shared again."""
        failures = []
        async with self._turn:
            self._connection = connection
            self._news.set()
            for forward in self.all():
                if forward.direction is Direction.TO_HOST:
                    try:
                        await _cleared(connection, str(forward.guest), is_ours=True)
                        self._stops[forward] = await self._listen_in_guest(connection, forward)
                    except LimaKernelsError as error:
                        failures.append(error)
        return failures

    async def remove(self, forward: Forward) -> None:
        """End a forward; those whom it carries just now go on.

        :raises ConfigurationError: when there is none such.
        """
        async with self._turn:
            if forward not in self._stops:
                raise ConfigurationError(f"Nothing is forwarded between {forward.guest} and {forward.host}.")
            self._stops.pop(forward)()
            if forward.direction is Direction.TO_HOST:
                await self._unlink_in_guest(str(forward.guest))

    async def _unlink_in_guest(self, path: str) -> None:
        # sshd leaves the socket of a listener behind. A guest that is gone has nothing to be removed from.
        if self._connection is not None and not self._connection.closed.is_set():
            with contextlib.suppress(LimaKernelsError):
                await self._connection.run(f"rm -f -- {shlex.quote(path)}", timeout=TIMEOUT)

    async def close(self) -> None:
        """End all forwards, and hang up on all whom they carry; may be called twice."""
        for forward in self.all():
            await self.remove(forward)
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for relay in tuple(self._relays):
            relay.close()

    def _relay(self, on_host: Callable[[Relay], None]) -> Relay:
        relay = Relay(on_host, self._relays.discard)
        self._relays.add(relay)
        return relay

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _join_host(relay: Relay, host: int | str) -> None:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(WAITING):
            if isinstance(host, int):
                await loop.create_connection(lambda: relay.here, LOOPBACK, host)
            else:
                await loop.create_unix_connection(lambda: relay.here, host)
    except (OSError, TimeoutError):
        relay.close()


def _check(end: int | str, *, least: int) -> None:
    if isinstance(end, int):
        if not least <= end <= 65535:
            raise ConfigurationError(f"{end} is no TCP port.")
    elif not end or any(ord(character) < 32 for character in end):
        raise ConfigurationError(f"{end!r} cannot be a unix socket's path.")


async def _cleared(connection: Connection, guest: str, *, is_ours: bool) -> str:
    """Return a path in the guest where nothing is any more, with the home directory resolved.

    :param is_ours: a socket there is that of our own forward, over a connection that is lost.
    """
    program = f"sh -c {shlex.quote(_LOOK % quoted_path(guest))}"
    what, _, path = (await connection.run(program, timeout=TIMEOUT)).stdout.rstrip("\n").partition(" ")
    if what == "parent":
        raise GuestError(f"The guest's user cannot make the directory of {guest}.")
    if not path.startswith("/") or "\n" in path:
        raise GuestError(f"{guest} is no absolute path in the guest.")
    if len(os.fsencode(path)) > paths.UNIX_PATH_MAX_GUEST:
        raise GuestError(f"{path} is too long for a unix socket: at most {paths.UNIX_PATH_MAX_GUEST} bytes.")
    if what in ("file", "other"):
        kind = "somebody else's socket" if what == "other" else "no socket"
        raise GuestError(f"{path} exists in the guest and is {kind}.", hint="Choose another path.")
    if what == "socket":
        if not is_ours and await _answers(connection, path):
            raise GuestError(f"Somebody listens on {path} in the guest.", hint="Choose another path.")
        await connection.run(f"rm -f -- {shlex.quote(path)}", timeout=TIMEOUT)
    return path


async def _answers(connection: Connection, path: str) -> bool:
    relay = Relay(lambda _relay: None, lambda _relay: None)
    try:
        async with asyncio.timeout(TIMEOUT):
            await connection.join(path, relay.there)
    except ConnectionFailed:
        return False
    finally:
        relay.close()
    return True


async def _listen_on_path(
    loop: asyncio.AbstractEventLoop, protocol: Callable[[], asyncio.Protocol], path: Path
) -> asyncio.Server:
    """Listen on a unix socket that only this user can reach.

    :raises HostError: when the path cannot be had.
    """
    if len(os.fsencode(path)) > paths.UNIX_PATH_MAX_HOST:
        raise HostError(f"{path} is too long for a unix socket: at most {paths.UNIX_PATH_MAX_HOST} bytes.")
    if not path.parent.exists():
        paths.private_directory(path.parent)
    parent = path.parent.stat()
    if parent.st_uid != os.getuid() or parent.st_mode & 0o077:
        raise HostError(
            f"Others could reach a socket in {path.parent}.",
            hint=f"Take a directory of your own: chmod 700 {path.parent}",
        )
    if os.path.lexists(path):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise HostError(f"{path} exists and is no socket.", hint="Choose another path.")
        if await _is_listened_on(path):
            raise HostError(f"Somebody listens on {path}.", hint="Choose another path.")
        path.unlink()
    try:
        server = await loop.create_unix_server(protocol, str(path))
        path.chmod(0o600)
    except OSError as error:
        raise HostError(f"{path} cannot be listened on: {error.strerror or error}.") from error
    return server


async def _is_listened_on(path: Path) -> bool:
    try:
        async with asyncio.timeout(TIMEOUT):
            _, writer = await asyncio.open_unix_connection(str(path))
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


def _close(server: asyncio.Server, host: int | str) -> None:
    server.close()
    if isinstance(host, str):
        Path(host).unlink(missing_ok=True)
