"""The client of the guest's forkserver: spawn, hold, signal and remove kernels."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec

from ..errors import ConnectionFailed, GuestError
from .events import GuestEvent, Idle, JoinRequest, KernelExit, PowerOff, Unmounted
from .readiness import Identity

T = TypeVar("T")
# A guest is hostile input: no more of a line than this is read.
LINE_LIMIT = 1 << 20
REQUEST_TIMEOUT = 30.0
# Longer than a guest waits for whoever woke it (forkserver.sleep.PATIENCE).
READY_TIMEOUT = 90.0
# Before its first answer it imports what kernels need, maybe beside all else that a guest does while it boots.
FIRST_TIMEOUT = 120.0
# Operations whose name does not say what was attempted.
_ATTEMPTS = {
    "mount": "mount a directory of this host",
    "unmount": "unmount a directory of this host",
    "mounts": "list what it has mounted of this host",
    "claim": "let this host serve a mount",
    "list": "list its kernels",
    "specs": "list its kernel specs",
    "settings": "take its settings",
    "ready": "say whether it is ready",
    "usage": "say how much memory it has in use",
    "environment": "find an environment",
    "leave": "let go of this host's directories",
    "return": "take up this host's directories again",
}


class KernelFacts(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the host has to say of a kernel; kept in the guest for whoever asks, and of no meaning there.

    ``session`` is the notebook as the Jupyter server names it (``JPY_SESSION_NAME``); ``encrypted`` tells of CurveZMQ.
    """

    session: str = ""
    spec: str = ""
    encrypted: bool = False


class KernelState(msgspec.Struct, frozen=True):
    """What the forkserver knows of one kernel.

    ``code`` is None while it runs, negative for a signal; ``busy`` is None when the kernel does not say; ``held`` tells
    whether its owner is connected; ``started`` is the guest's clock, in seconds since the epoch.
    """

    pid: int
    code: int | None = None
    reason: str = ""
    busy: bool | None = None
    held: bool = False
    facts: KernelFacts = KernelFacts()
    started: float = 0.0


class MemoryUse(msgspec.Struct, frozen=True):
    """The guest's memory, and how much of it nobody could have now; bytes."""

    total: Annotated[int, msgspec.Meta(ge=0)]
    used: Annotated[int, msgspec.Meta(ge=0)]


class MountState(msgspec.Struct, frozen=True):
    """What the forkserver knows of a directory that was added; ``users`` are kernels, and KEPT."""

    point: str
    state: str
    users: tuple[str, ...] = ()
    read_only: bool = False


# Uses a mount that somebody wants to have, kernel or no kernel.
KEPT = ""


class MountRequest(NamedTuple):
    """A directory of the host that the guest is to mount.

    :param point: its path in the guest.
    :param options: of sshfs, each as after ``-o``.
    """

    point: str
    read_only: bool
    options: Sequence[str]


class Conduct(NamedTuple):
    """What a guest does by itself.

    :param idle_timeout: seconds after which a guest that nobody uses does what ``on_idle`` says; 0 for never.
    :param on_idle: ``hibernate``, ``stop`` or ``nothing``.
    :param standby_kernels: how many kernels are kept ready.
    """

    idle_timeout: float = 0.0
    on_idle: str = "stop"
    standby_kernels: int = 0


class _Left(msgspec.Struct, frozen=True):
    users: tuple[str, ...]


class _Claimed(msgspec.Struct, frozen=True):
    joining: bool


class Held(msgspec.Struct, frozen=True):
    """A kernel that is ours: its connection file's content; ``lost`` tells that its output had to wait too long."""

    connection: dict[str, Any]
    lost: bool = False


class GuestSpec(msgspec.Struct, frozen=True):
    """One of the guest's own kernel specs."""

    argv: tuple[str, ...] = ()
    display_name: str = ""
    language: str = ""
    interrupt_mode: str = "signal"


class Found(msgspec.Struct, frozen=True):
    """An environment in the guest: its Python, empty when there is none; the digest of the lock that it was made from;
    and whether packages were changed since. ``system`` is the lock that the guest's Debian packages are of."""

    python: str
    lock: str
    system: str
    drifted: bool


class Ownership(NamedTuple):
    """Who owns a kernel: a token that no other knows, and for how many seconds the kernel lives without.

    ``keep`` is None to leave that as an earlier owner said.
    """

    token: str
    keep: float | None


class _Message(msgspec.Struct, frozen=True):
    id: int | None = None
    ok: msgspec.Raw = msgspec.Raw(b"")
    error: str | None = None
    log: tuple[str, ...] = ()
    event: str = ""
    kernel: str = ""
    mount: str = ""
    code: int = 0
    reason: str = ""
    idle: float = 0.0


class _Spawned(msgspec.Struct, frozen=True):
    pid: int


class Birth(NamedTuple):
    """What the guest needs to start a kernel.

    :param connection: the connection file's content; it goes through the encrypted connection, never an argv.
    :param spec: one of the guest's kernel specs; ipykernel of the guest's environment when empty.
    :param notes: lines for the stderr of the first cell.
    :param python: that of an environment, as :meth:`Forkserver.environment` has it; the guest's usual one when empty.
    """

    cwd: str
    env: Mapping[str, str]
    connection: Mapping[str, object]
    arguments: Sequence[str]
    ownership: Ownership
    facts: KernelFacts
    spec: str = ""
    notes: Sequence[str] = ()
    python: str = ""


class Forkserver:
    """A conversation with the guest's forkserver, made by :func:`startup.connect`.

    :param socket: its path in the guest.
    :param on_event: called in the I/O thread for each kernel that ends.
    """

    def __init__(self, reader: Any, writer: Any, socket: str, on_event: Callable[[GuestEvent], None]) -> None:
        self.socket = socket
        self._reader = reader
        self._writer = writer
        self._on_event = on_event
        self._pending: dict[int, asyncio.Future[_Message]] = {}
        self._number = 0
        self._has_answered = False
        self._obeyed: Conduct | None = None
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
        self._has_answered = self._has_answered or message.id is not None
        if message.event == "exit":
            self._on_event(KernelExit(message.kernel, message.code, message.log, message.reason))
        elif message.event == "power off":
            self._on_event(PowerOff(message.idle))
        elif message.event == "idle":
            self._on_event(Idle(message.idle))
        elif message.event == "join":
            self._on_event(JoinRequest(message.mount))
        elif message.event == "unmounted":
            self._on_event(Unmounted(message.mount))
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
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            raise ConnectionFailed(f"The connection to the guest's forkserver ended: {error}.") from error
        finally:
            del self._pending[number]
        if message.error is not None or not bytes(message.ok):
            what = _ATTEMPTS.get(operation, f"{operation} a kernel")
            raise GuestError(f"The guest could not {what}: {message.error}.", context=message.log)
        return message.ok

    async def ask(self, operation: str, *, timeout: float = REQUEST_TIMEOUT, **fields: Any) -> msgspec.Raw:
        """Have an operation done, and return the answer; a GuestError when it fails, or does not come in time."""
        limit = timeout if self._has_answered else max(timeout, FIRST_TIMEOUT)
        try:
            return await self._request(operation, timeout=limit, **fields)
        except TimeoutError as error:
            raise GuestError(f"The guest's forkserver did not answer {operation!r} within {limit:.0f} s.") from error

    async def spawn(self, kernel: str, birth: Birth, *, timeout: float) -> int:
        """Start a kernel and return its process id once its sockets are bound.

        :param timeout: seconds.
        :raises TimeoutError: when it takes longer.
        :raises GuestError: when it ends before, with the last lines of its output.
        """
        reply = await self._request(
            "spawn",
            timeout=timeout,
            kernel=kernel,
            cwd=birth.cwd,
            env=dict(birth.env),
            connection=dict(birth.connection),
            arguments=list(birth.arguments),
            owner=birth.ownership.token,
            keep=birth.ownership.keep,
            facts=birth.facts,
            spec=birth.spec,
            notes=list(birth.notes),
            python=birth.python,
        )
        return decoded(reply, _Spawned).pid

    async def hold(self, kernel: str, ownership: Ownership) -> Held:
        """Be a kernel's owner from now on, or again; the caller knows that no other owner lives."""
        reply = await self.ask("hold", kernel=kernel, owner=ownership.token, keep=ownership.keep)
        return decoded(reply, Held)

    async def release(self, kernel: str) -> None:
        """Be a kernel's owner no longer; it lives on for as long as its owner said."""
        await self.ask("release", kernel=kernel)

    async def signal(self, kernel: str, signum: int) -> None:
        """Send a signal to a kernel's process group; nothing happens when it has ended."""
        await self.ask("signal", kernel=kernel, signum=signum)

    async def note(self, kernel: str, text: str) -> None:
        """Show a line on the stderr of the cell that runs, or of the next; other kernels than ipykernel show none."""
        await self.ask("note", kernel=kernel, text=text)

    async def list(self) -> dict[str, KernelState]:
        """Return the kernels that the forkserver knows, ended ones until they are removed."""
        return decoded(await self.ask("list"), dict[str, KernelState])

    async def ready(self, question: Mapping[str, Any]) -> Identity:
        """Return whether the guest has what :func:`.readiness.question` names; one that just wakes has it first."""
        return decoded(await self.ask("ready", timeout=READY_TIMEOUT, **question), Identity)

    async def usage(self) -> MemoryUse:
        """Return how much memory the guest has in use."""
        return decoded(await self.ask("usage"), MemoryUse)

    async def specs(self, python: str = "") -> dict[str, GuestSpec]:
        """Return the guest's own kernel specs, and those of an environment's Python or of the guest's usual one."""
        return decoded(await self.ask("specs", python=python), dict[str, GuestSpec])

    async def environment(self, name: str) -> Found:
        """Return what the guest has of an environment."""
        return decoded(await self.ask("environment", name=name), Found)

    async def mount(self, mount: str, user: str, wanted: MountRequest, *, timeout: float) -> None:
        """Mount a directory of the host, or be one more user of it; the host has to serve it meanwhile.

        :param timeout: seconds.
        :raises TimeoutError: when it takes longer.
        :raises GuestError: when it cannot be mounted, with what sshfs said.
        """
        await self._request("mount", timeout=timeout, mount=mount, user=user, **wanted._asdict())

    async def unmount(self, mount: str, user: str) -> Sequence[str]:
        """Be a mount's user no longer, and return who is left; it is unmounted when nobody is."""
        return decoded(await self.ask("unmount", mount=mount, user=user), _Left).users

    async def mounts(self) -> dict[str, MountState]:
        """Return the directories of the host that were added to the guest."""
        return decoded(await self.ask("mounts"), dict[str, MountState])

    async def claim(self, mount: str, owner: str) -> bool:
        """Serve a mount from now on, or still, and return whether its sshfs waits for that just now."""
        return decoded(await self.ask("claim", mount=mount, owner=owner), _Claimed).joining

    async def obey(self, conduct: Conduct) -> None:
        """Say for all kernels what the guest does by itself."""
        if conduct != self._obeyed:
            await self.ask("settings", **conduct._asdict())
            self._obeyed = conduct

    async def remove(self, kernel: str) -> None:
        """Kill whatever is left of a kernel's session and remove its directory."""
        await self.ask("remove", kernel=kernel)

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


def decoded(reply: msgspec.Raw, kind: type[T]) -> T:
    """Return an answer as what it has to be; a GuestError when it is not."""
    try:
        return msgspec.json.decode(reply, type=kind)
    except msgspec.DecodeError as error:
        raise GuestError(f"The guest's forkserver gave an answer that is none: {error}.") from error
