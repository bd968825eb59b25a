"""What a guest's kernel may ask of its host: a few verbs, and to watch, for its own VM only.

All that comes from a guest is hostile: a request is short, comes soon, proves by its kernel's key who asks, and names a
verb of the allowlist. Nothing here opens a file of the host by a name that a guest said.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hmac
import logging
import shlex
from collections.abc import Callable, Mapping, Sequence

import msgspec

from .errors import LimaKernelsError, nearest, printable
from .guest.calls import Line
from .lima.limactl import Limactl
from .magics import protocol
from .magics.arguments import UsageError, parser_of
from .magics.backend import LimaError
from .magics.results import Result
from .settings import Policy
from .verbs.context import Context
from .verbs.table import FUNCTIONS
from .vm import VM
from .watch import shared
from .watch.actions import Call
from .watch.guests import Panels
from .watch.watcher import Watcher

logger = logging.getLogger(__name__)

# Conversations that one kernel may have at a time.
CONVERSATIONS = 8
# Of these, as many may go on for as long as there are panels.
WATCHES = 4
# Seconds that a guest has to say what it wants.
REQUEST_TIMEOUT = 10.0
# Characters of a request that a log shows.
_LOGGED = 200


# Of its own VM a kernel may know everything, and end it. What would show it more of the host, or give it more of the
# host's memory and disk, is not for it to decide.
OWN = frozenset(
    ("status", "start", "stop", "restart", "kernels", "info", "logs", "ports", "forward", "unforward", "env")
)
# These end the kernel that asks.
_FATAL = frozenset(("stop", "restart"))
# What goes on without the kernel that asked for it.
_under_way: set[asyncio.Future[Mapping[str, object]]] = set()


class _Request(msgspec.Struct, frozen=True):
    version: int
    token: str
    verb: str
    arguments: tuple[str, ...] = ()


class Control:
    """Answers one kernel.

    :param kernel: its name in the guest, for the log and for who else uses the VM.
    :param key: the key that it signs its messages with.
    :param vm: returns the handle of an instance.
    :param watcher: returns what tells panels of VMs.
    """

    def __init__(
        self,
        policy: Policy,
        instance: str,
        kernel: str,
        key: bytes,
        vm: Callable[[str], VM],
        *,
        watcher: Callable[[], Watcher] = shared.watcher,
    ) -> None:
        self._policy = policy
        self._instance = instance
        self._kernel = kernel
        self._token = protocol.token(key) if key else ""
        self._vm = vm
        self._watcher = watcher
        self._conversations = 0
        self._watches = 0

    async def answer(self, reader: asyncio.StreamReader, line: Line | asyncio.StreamWriter) -> None:
        """Have one conversation; whatever comes, it ends and nobody else notices."""
        if self._conversations >= CONVERSATIONS:
            self._log("has too many conversations")
            line.close()
            return
        self._conversations += 1
        try:
            request = await self._request(reader)
            if request.verb == protocol.WATCH:
                await self._watched(request, reader, line)
            else:
                line.write(protocol.line(await self._result(request, reader, line)))
            await line.drain()
        except LimaError as error:
            with contextlib.suppress(OSError):
                line.write(protocol.line(protocol.failed(error)))
                await line.drain()
        except OSError:
            # It hung up.
            pass
        finally:
            self._conversations -= 1
            line.close()

    async def _result(
        self, request: _Request, reader: asyncio.StreamReader, line: Line | asyncio.StreamWriter
    ) -> Mapping[str, object]:
        """Do what a verb says.

        :raises LimaError: when it may not be.
        """
        options = self._permitted(request.verb, request.arguments)

        def say(text: str) -> None:
            with contextlib.suppress(OSError):
                line.write(protocol.line({"step": text}))

        self._log(f"asks: {request.verb} {shlex.join(request.arguments)}")
        work = asyncio.ensure_future(self._done(request.verb, options, say))
        if request.verb in _FATAL:
            # It costs us the connection, and this kernel its life: nobody will be there to wait for its end.
            _under_way.add(work)
            work.add_done_callback(_under_way.discard)
            return await asyncio.shield(work)
        # A guest that hangs up, as an interrupted cell does, wants it no longer.
        gone = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise ConnectionResetError
            return work.result()
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _request(self, reader: asyncio.StreamReader) -> _Request:
        """Read what a guest wants.

        :raises LimaError: when that is nothing we know, or not from our kernel.
        """
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT):
                said = await reader.readline()
            request = msgspec.json.decode(said, type=_Request)
        except (TimeoutError, ValueError, msgspec.DecodeError):
            # Also a line that is longer than the reader's limit.
            self._log("sent what is no request")
            raise LimaError("The host was sent what is no request.") from None
        if not self._token or not hmac.compare_digest(request.token.encode(), self._token.encode()):
            self._log("sent a wrong token")
            raise LimaError("The host does not know who asks.")
        if request.version != protocol.VERSION:
            raise LimaError(
                f"This kernel speaks version {request.version} with a host that speaks {protocol.VERSION}.",
                "Restart the kernel.",
            )
        return request

    def _permitted(self, verb: str, arguments: Sequence[str]) -> argparse.Namespace:
        """Return the arguments of a verb that may be obeyed.

        :raises LimaError: when it may not.
        """
        allowed = frozenset(FUNCTIONS) if self._policy is Policy.ALL else OWN
        if verb not in allowed:
            self._log(f"was refused {verb!r}")
            raise LimaError(
                f"A kernel in a VM may not ask for {verb!r}." if verb in FUNCTIONS else f"There is no verb {verb!r}.",
                nearest(verb, sorted(allowed)) or f"It may: {', '.join(sorted(allowed))}.",
            )
        try:
            options = parser_of(verb).parse_args(list(arguments))
        except UsageError as error:
            raise LimaError(f"%lima {verb}: {error}") from None
        named = getattr(options, "name", None) or self._instance
        self._check_own(verb, named)
        if self._policy is not Policy.ALL and verb == "forward" and options.ports[1]:
            # It could take the place of what people expect at that port.
            self._log(f"was refused port {options.ports[1]} of this host")
            raise LimaError("A kernel in a VM may not choose its host's port.", f"%lima forward {options.ports[0]}")
        if hasattr(options, "name"):
            # What is not said of an instance is said of Lima itself.
            options.name = named
        if verb in _FATAL and named == self._instance and not options.yes:
            raise LimaError(
                f"This kernel lives in the VM {named!r}, and would end with it.",
                f"If it shall: %lima {verb} --yes, or in a panel {verb}(yes=True).",
            )
        return options

    def _check_own(self, verb: str, named: str) -> None:
        """See that what is asked concerns the kernel's own VM, unless it may ask for all.

        :raises LimaError: when it does not.
        """
        if self._policy is not Policy.ALL and named != self._instance:
            self._log(f"was refused {verb!r} of {named!r}")
            raise LimaError(f"A kernel in the VM {self._instance!r} may ask for nothing of {named!r}.")

    async def _done(self, verb: str, options: argparse.Namespace, say: Callable[[str], None]) -> Mapping[str, object]:
        context = Context(Limactl(), self._vm, say, self._instance, asked_by=self._kernel)
        try:
            result: Result = await FUNCTIONS[verb](context, options)
        except LimaKernelsError as error:
            self._log(f"could not have {verb!r}: {error}")
            return protocol.failed(LimaError(error.message, error.hint, error.context))
        return protocol.encoded(result)

    # Panels

    async def _watched(
        self, request: _Request, reader: asyncio.StreamReader, line: Line | asyncio.StreamWriter
    ) -> None:
        """Tell a kernel's panels how VMs are, and do what they ask for, until the kernel hangs up.

        :raises LimaError: when they may not know.
        """
        only = self._watchable(request.arguments)
        if self._watches >= WATCHES:
            self._log("has too many panels")
            raise LimaError(f"A kernel in a VM may watch {WATCHES} times at once.", "Close panels of other VMs.")
        self._watches += 1
        self._log(f"watches {only or 'all VMs'}")
        try:
            panels = Panels(self._may_act, self._kernel, self._log)
            await panels.talk(self._watcher(), only, reader, line)
        except LimaKernelsError as error:
            raise LimaError(error.message, error.hint, error.context) from None
        finally:
            self._watches -= 1

    def _watchable(self, arguments: Sequence[str]) -> str:
        """Return the VM that a kernel wants to watch and may; empty for all.

        :raises LimaError: when it may not.
        """
        if len(arguments) > 1:
            raise LimaError("A panel shows one VM, or all that its kernel may know of.")
        named = arguments[0] if arguments else ""
        if named or self._policy is Policy.ALL:
            self._check_own(protocol.WATCH, named)
            return named
        return self._instance

    def _may_act(self, call: Call, is_confirmed: bool) -> None:
        """See that a panel may ask for something, as a cell may.

        :raises LimaError: when it may not.
        """
        confirmed = ("--yes",) if is_confirmed and call.verb in _FATAL else ()
        self._permitted(call.verb, (*call.arguments, *confirmed))
        self._log(f"asks: {call.verb} {shlex.join(call.arguments)}")

    def _log(self, what: str) -> None:
        logger.warning("The kernel %s in the VM %r %s", self._kernel, self._instance, printable(what)[:_LOGGED])
