"""The client of the guest's forkserver: start it where it is missing; spawn, signal and remove kernels."""

from __future__ import annotations

import asyncio
import hashlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any

import msgspec

from .. import paths
from ..errors import ConnectionFailed, GuestError
from .connection import Connection
from .readiness import Facts

# A guest is hostile input: no more of a line than this is read.
LINE_LIMIT = 1 << 20
REQUEST_TIMEOUT = 30.0
# Starting Python in an emulated guest takes seconds; importing ipykernel comes after the socket is there.
START_TIMEOUT = 60.0

_START = r"""
set -eu
umask 077
mkdir -p %(root)s/k
cat > %(program)s.$$
mv %(program)s.$$ %(program)s
set -- %(python)s %(program)s --root %(root)s --socket %(socket)s
# A system service of its own is not ended with the login session that an SSH connection is; and when the kernel's
# memory killer takes one kernel, the others live on.
if [ -d /run/systemd/system ] && sudo -n true 2>/dev/null; then
  exec sudo -n systemd-run --quiet --collect --unit=%(unit)s --uid="$(id -u)" --gid="$(id -g)" \
    --service-type=notify --property=NotifyAccess=all --property=OOMPolicy=continue --property=TasksMax=infinity \
    --property=LimitNOFILE=65536 --property=EnvironmentFile=-/etc/environment --setenv=LANG="${LANG:-C.UTF-8}" \
    --working-directory="$HOME" "$@"
fi
exec setsid "$@" --detach
"""


class KernelState(msgspec.Struct, frozen=True):
    """What the forkserver knows of one kernel; ``code`` is None while it runs, negative for a signal."""

    pid: int
    code: int | None = None


class KernelExit(msgspec.Struct, frozen=True):
    """The end of a kernel, with the last lines of its raw output."""

    kernel: str
    code: int
    log: tuple[str, ...] = ()


class _Message(msgspec.Struct, frozen=True):
    id: int | None = None
    ok: msgspec.Raw = msgspec.Raw(b"")
    error: str | None = None
    log: tuple[str, ...] = ()
    event: str = ""
    kernel: str = ""
    code: int = 0


class _Spawned(msgspec.Struct, frozen=True):
    pid: int


def program() -> str:
    """Return the forkserver's source."""
    return files(__package__).joinpath("forkserver.py").read_text(encoding="utf-8")


class Layout:
    """Where things lie in one guest: absolute paths below its user's home."""

    def __init__(self, facts: Facts) -> None:
        version = hashlib.sha256(f"{facts.python}\0{program()}".encode()).hexdigest()[:12]
        # Each version of the forkserver has a directory of its own, whose kernels are its own to clean up.
        self.root = f"{facts.home}/{paths.GUEST_STATE}/{version}"
        self.program = f"{self.root}/forkserver.py"
        self.socket = f"{self.root}/socket"
        self.unit = f"lima-kernels-{facts.uid}-{version}"

    def channels(self, kernel: str) -> str:
        """Return the prefix of a kernel's five sockets.

        :raises GuestError: when the guest's home is too long a path for unix sockets.
        """
        prefix = f"{self.root}/k/{kernel}/c"
        if len(prefix.encode()) + 2 > paths.UNIX_PATH_MAX_GUEST:
            raise GuestError(
                f"The path {prefix} is too long for a unix socket in the guest: "
                f"at most {paths.UNIX_PATH_MAX_GUEST - 2} bytes.",
                hint="Use a guest user with a shorter home directory.",
            )
        return prefix


class Forkserver:
    """A conversation with the guest's forkserver, made by :func:`connect`.

    :param on_exit: called in the I/O thread for each kernel that ends.
    """

    def __init__(self, reader: Any, writer: Any, on_exit: Callable[[KernelExit], None]) -> None:
        self._reader = reader
        self._writer = writer
        self._on_exit = on_exit
        self._pending: dict[int, asyncio.Future[_Message]] = {}
        self._number = 0
        self._task = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        reason = "it was closed"
        try:
            buffer = ""
            while data := await self._reader.read(65536):
                *lines, buffer = (buffer + data).split("\n")
                if len(buffer) > LINE_LIMIT:
                    break
                for line in lines:
                    self._receive(line)
        except (OSError, msgspec.DecodeError) as error:
            reason = str(error)
        finally:
            self._writer.close()
            for future in self._pending.values():
                if not future.done():
                    future.set_exception(ConnectionFailed(f"The connection to the guest's forkserver ended: {reason}."))

    def _receive(self, line: str) -> None:
        message = msgspec.json.decode(line, type=_Message)
        if message.event == "exit":
            self._on_exit(KernelExit(message.kernel, message.code, message.log))
        elif message.id is not None and (future := self._pending.get(message.id)) and not future.done():
            future.set_result(message)

    async def _request(self, operation: str, *, timeout: float = REQUEST_TIMEOUT, **fields: object) -> msgspec.Raw:
        if self._task.done():
            raise ConnectionFailed("The connection to the guest's forkserver has ended.")
        self._number += 1
        number = self._number
        future: asyncio.Future[_Message] = asyncio.get_running_loop().create_future()
        self._pending[number] = future
        try:
            self._writer.write(msgspec.json.encode({"id": number, "op": operation, **fields}).decode() + "\n")
            async with asyncio.timeout(timeout):
                message = await future
        except TimeoutError as error:
            raise GuestError(f"The guest's forkserver did not answer {operation!r} within {timeout:.0f} s.") from error
        except OSError as error:
            raise ConnectionFailed(f"The connection to the guest's forkserver ended: {error}.") from error
        finally:
            del self._pending[number]
        if message.error is not None or not bytes(message.ok):
            raise GuestError(f"The guest could not {operation} a kernel: {message.error}.", context=message.log)
        return message.ok

    async def spawn(
        self,
        kernel: str,
        *,
        cwd: str,
        env: Mapping[str, str],
        connection: Mapping[str, object],
        arguments: Sequence[str] = (),
        timeout: float,
    ) -> int:
        """Start a kernel and return its process id once its sockets are bound.

        :param connection: the connection file's content; it goes through the encrypted connection, never an argv.
        :param timeout: seconds.
        :raises GuestError: when it ends before, with the last lines of its output.
        """
        reply = await self._request(
            "spawn",
            timeout=timeout,
            kernel=kernel,
            cwd=cwd,
            env=dict(env),
            connection=dict(connection),
            arguments=list(arguments),
        )
        return msgspec.json.decode(reply, type=_Spawned).pid

    async def signal(self, kernel: str, signum: int) -> None:
        """Send a signal to a kernel's process group; nothing happens when it has ended."""
        await self._request("signal", kernel=kernel, signum=signum)

    async def list(self) -> dict[str, KernelState]:
        """Return the kernels that the forkserver knows, ended ones until they are removed."""
        return msgspec.json.decode(await self._request("list"), type=dict[str, KernelState])

    async def remove(self, kernel: str) -> None:
        """Kill whatever is left of a kernel's session and remove its directory."""
        await self._request("remove", kernel=kernel)

    def is_closed(self) -> bool:
        """Tell whether the conversation has ended, whoever ended it."""
        return self._task.done()

    async def wait_closed(self) -> None:
        """Wait until the conversation has ended."""
        await asyncio.wait([self._task])

    async def close(self) -> None:
        """Hang up; the forkserver and its kernels live on. May be called twice."""
        self._writer.close()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def _start(connection: Connection, layout: Layout, python: str) -> None:
    values = {
        "root": shlex.quote(layout.root),
        "program": shlex.quote(layout.program),
        "socket": shlex.quote(layout.socket),
        "python": shlex.quote(python),
        "unit": layout.unit,
    }
    command = f"sh -c {shlex.quote(_START % values)}"
    done = await connection.run(command, stdin=program(), timeout=START_TIMEOUT)
    if done.status:
        raise GuestError(
            f"The guest's forkserver could not be started with {python}: exit code {done.status}.",
            context=done.stderr.splitlines()[-10:],
        )


async def connect(connection: Connection, facts: Facts, on_exit: Callable[[KernelExit], None]) -> Forkserver:
    """Connect to the guest's forkserver, and start it when it does not run.

    :raises GuestError: when it cannot be started.
    """
    layout = Layout(facts)
    try:
        reader, writer = await connection.open_unix(layout.socket)
    except ConnectionFailed:
        await _start(connection, layout, facts.python)
        reader, writer = await connection.open_unix(layout.socket)
    return Forkserver(reader, writer, on_exit)
