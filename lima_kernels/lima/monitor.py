"""QEMU's monitor of a VM, through the socket that Lima has QEMU listen at; the one place that knows its protocol (QMP).

https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from .. import paths
from ..errors import InstanceError

T = TypeVar("T")
# Seconds: until QEMU listens, and for each answer of its own; between looks at what takes longer.
LISTEN_TIMEOUT = 30.0
ANSWER_TIMEOUT = 30.0
LOOK_INTERVAL = 0.05
_LINE_LIMIT = 1 << 20
# Bytes per second: as much as the disk takes. QEMU's own limit is for networks.
_UNLIMITED = 1 << 40


class _Error(msgspec.Struct, frozen=True):
    desc: str = ""


class _Reply(msgspec.Struct, frozen=True):
    returned: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="return")
    error: _Error | None = None


class Migration(msgspec.Struct, frozen=True):
    """How far the memory is on its way; ``blocked`` says why it could not go at all."""

    status: str = ""
    error: str = msgspec.field(default="", name="error-desc")
    blocked: tuple[str, ...] = msgspec.field(default=(), name="blocked-reasons")


class _Number(msgspec.Struct, frozen=True):
    major: int
    minor: int
    micro: int


class _Version(msgspec.Struct, frozen=True):
    qemu: _Number
    package: str = ""


class _Status(msgspec.Struct, frozen=True):
    status: str


class Monitor:
    """A conversation with QEMU; made by :func:`monitor`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def begin(self) -> None:
        """Take the greeting, and say that commands will come."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await self._line()
        except TimeoutError as error:
            raise InstanceError(
                f"QEMU did not answer within {ANSWER_TIMEOUT:.0f} s: somebody else talks to its monitor."
            ) from error
        await self.execute("qmp_capabilities")

    async def _line(self) -> bytes:
        line = await self._reader.readline()
        if not line:
            raise InstanceError("QEMU closed its monitor.")
        return line

    async def execute(self, command: str, **arguments: Any) -> msgspec.Raw:
        """Have a command done, and return what it returns.

        :raises InstanceError: when QEMU refuses, ends, or does not answer.
        """
        request: dict[str, Any] = {"execute": command}
        if arguments:
            request["arguments"] = arguments
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                self._writer.write(msgspec.json.encode(request) + b"\n")
                await self._writer.drain()
                while True:
                    reply = msgspec.json.decode(await self._line(), type=_Reply)
                    if reply.error is not None:
                        raise InstanceError(f"QEMU refused {command}: {reply.error.desc}")
                    # Events come in between.
                    if bytes(reply.returned):
                        return reply.returned
        except TimeoutError as error:
            raise InstanceError(f"QEMU did not answer {command} within {ANSWER_TIMEOUT:.0f} s.") from error
        except (OSError, ValueError) as error:
            raise InstanceError(f"QEMU's monitor failed at {command}: {error}.") from error

    async def _ask(self, command: str, kind: type[T]) -> T:
        reply = await self.execute(command)
        try:
            return msgspec.json.decode(reply, type=kind)
        except msgspec.DecodeError as error:
            raise InstanceError(f"QEMU's answer to {command} is none: {error}.") from error

    async def version(self) -> str:
        """Return QEMU's version, with that of its package."""
        found = await self._ask("query-version", _Version)
        return f"{found.qemu.major}.{found.qemu.minor}.{found.qemu.micro}{found.package}"

    async def status(self) -> str:
        """Return whether the VM runs, in QEMU's word (``running``, ``paused``, ``postmigrate`` ...)."""
        return (await self._ask("query-status", _Status)).status

    async def migration(self) -> Migration:
        """Return how far the memory is on its way."""
        return await self._ask("query-migrate", Migration)

    async def save(self, file: Path, *, timeout: float) -> None:
        """Write the memory of a VM that is paused into a file, which exists and is empty.

        :param timeout: seconds.
        :raises InstanceError: when that fails, or takes longer; it is given up then.
        """
        await self.execute("migrate-set-parameters", **{"max-bandwidth": _UNLIMITED})
        await self.execute("migrate", uri=f"exec:cat >{shlex.quote(str(file))}")
        try:
            await self._migrated(timeout)
        except BaseException:
            with contextlib.suppress(InstanceError):
                await asyncio.shield(self.execute("migrate_cancel"))
            raise

    async def load(self, file: Path, *, timeout: float) -> None:
        """Read the memory of a VM that waits for it (``-incoming defer``) from a file.

        :param timeout: seconds.
        :raises InstanceError: when it is not for this VM, or damaged; QEMU ends then.
        """
        await self.execute("migrate-incoming", uri=f"exec:cat {shlex.quote(str(file))}")
        await self._migrated(timeout)

    async def _migrated(self, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                while (state := await self.migration()).status != "completed":
                    if state.status in ("failed", "cancelled"):
                        raise InstanceError(f"QEMU could not do that: {state.error or 'it gives no reason'}.")
                    # It tells of each step by an event, but of the last bytes by none.
                    await asyncio.sleep(LOOK_INTERVAL)
        except TimeoutError as error:
            raise InstanceError(f"QEMU did not end that within {timeout:.0f} s.") from error


@contextlib.asynccontextmanager
async def monitor(instance_dir: Path) -> AsyncIterator[Monitor]:
    """Talk to the QEMU of an instance, which may just be starting; nobody else can meanwhile.

    :raises InstanceError: when it does not listen.
    """
    path = paths.monitor_socket(instance_dir)
    try:
        async with asyncio.timeout(LISTEN_TIMEOUT):
            reader, writer = await _connected(path)
    except TimeoutError as error:
        raise InstanceError(f"QEMU did not listen at {path} within {LISTEN_TIMEOUT:.0f} s.") from error
    try:
        talk = Monitor(reader, writer)
        await talk.begin()
        yield talk
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _connected(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    while True:
        try:
            return await asyncio.open_unix_connection(str(path), limit=_LINE_LIMIT)
        except (FileNotFoundError, ConnectionRefusedError):
            # The system does not tell when somebody begins to listen.
            await asyncio.sleep(LOOK_INTERVAL)
