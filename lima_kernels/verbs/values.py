"""push, pull: variables between a kernel of this host and one that lives in a VM.

The kernel in the VM writes or reads files there when it is asked to by a message, as any of its clients may; the files
come and go over the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import shlex
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.connect import KernelConnectionInfo
from jupyter_core.paths import jupyter_runtime_dir

from .. import paths
from ..errors import ConfigurationError, GuestError, InstanceError
from ..guest.copying import Listener
from ..guest.download import download
from ..guest.forkserver.kernels import CONNECTION_FILE
from ..guest.forwards import CHANNELS
from ..guest.startup import Layout
from ..guest.upload import upload
from ..magics.backend import Transfer
from ..magics.values import FORMATS, PICKLE
from ..vm import VM
from .context import Context
from .files import progress_bar
from .kernels import Living, survey
from .reach import reached

# Seconds for the guest to make and remove a directory.
_SHORT = 20.0
_MODULE = "lima_kernels.magics.values"
# What the kernel is asked to evaluate: names of ours are in no cell, no history and no namespace of the user.
_FORMATS = "','.join(__import__({module!r}, fromlist=['x']).formats())"
_EXPORT = (
    "__import__({module!r}, fromlist=['x']).export(get_ipython().user_ns, {names!r}, "
    "__import__('pathlib').Path({directory!r}), {known!r})"
)
_TAKE = (
    "get_ipython().user_ns.update(__import__({module!r}, fromlist=['x']).take("
    "__import__('pathlib').Path({directory!r}), {names!r}, {known!r}))"
)


class _Content(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the guest's connection file of a kernel says of how it is talked to."""

    key: str
    signature_scheme: str = "hmac-sha256"
    curve_publickey: str = ""
    curve_secretkey: str = ""


async def _kernel(context: Context, transfer: Transfer) -> Living:
    """Return the one kernel that is meant.

    :raises ConfigurationError: when there is none, or more than one.
    """
    named = transfer.kernel
    (found,) = await survey(context.limactl, context.vm, transfer.instance)
    if found.problem:
        raise found.problem
    matching = [
        kernel
        for kernel in found.kernels
        if kernel.name.startswith(named) or named in (kernel.title, Path(kernel.state.facts.session).name)
    ]
    if len(matching) == 1:
        return matching[0]
    known = ", ".join(f"{kernel.name} ({kernel.title})" for kernel in found.kernels) or "none"
    raise ConfigurationError(
        f"The kernels in {transfer.instance} that are {named!r} are {len(matching)}, and one is meant.",
        hint=f"There are: {known}.",
    )


async def _connection_info(kernel: Living) -> KernelConnectionInfo:
    """Return by what a client on this host reaches a kernel: its keys are the guest's, the place is its owner's.

    :raises InstanceError: when nobody serves it here, as for a kernel that waits for its server.
    :raises GuestError: when the guest does not say.
    """
    if kernel.owner is None:
        raise InstanceError(
            f"The kernel {kernel.name} waits for its server, and nobody on this host can talk to it.",
            hint=f"Open its notebook, or: lima-kernels kernels attach {kernel.name}",
        )
    path = f"{Layout(kernel.guest.facts).directory(kernel.name)}/{CONNECTION_FILE}"
    done = await kernel.guest.connection.run(f"cat {shlex.quote(path)}", timeout=_SHORT)
    try:
        said = msgspec.json.decode(done.stdout, type=_Content)
    except msgspec.DecodeError as error:
        raise GuestError(f"The guest does not say how its kernel {kernel.name} is talked to.") from error
    if kernel.owner.sockets:
        info = {"transport": "ipc", "ip": f"{kernel.owner.sockets}/c", **CHANNELS, **msgspec.to_builtins(said)}
        return cast(KernelConnectionInfo, info)
    for file in Path(jupyter_runtime_dir()).glob("kernel-*.json"):
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(file.read_bytes())
            if isinstance(found, dict) and found.get("key") == said.key:
                return cast(KernelConnectionInfo, found)
    raise InstanceError(f"The kernel {kernel.name} has no connection file in {jupyter_runtime_dir()}.")


class _Peer:
    """A kernel in a VM as a client of it."""

    def __init__(self, client: AsyncKernelClient, timeout: float) -> None:
        self._client = client
        self._timeout = timeout

    async def evaluate(self, expression: str) -> str:
        """Have it evaluate an expression, and return its plain text.

        :raises GuestError: when that fails, or is not done in time.
        """
        asked = self._client.execute(
            "", silent=True, store_history=False, user_expressions={"it": expression}, allow_stdin=False
        )
        try:
            async with asyncio.timeout(self._timeout):
                while True:
                    reply: dict[str, Any] = await self._client.get_shell_msg()
                    if reply["parent_header"].get("msg_id") == asked:
                        break
        except TimeoutError as error:
            raise GuestError(
                f"The kernel did not answer within {self._timeout:g} s.",
                hint="It may be busy with a cell: wait for that, or give it more with --timeout.",
            ) from error
        found = reply["content"].get("user_expressions", {}).get("it", {})
        if found.get("status") != "ok":
            raise GuestError(f"The kernel refused: {found.get('evalue', 'it says nothing')}")
        return str(found["data"].get("text/plain", ""))


@contextlib.asynccontextmanager
async def _talk(kernel: Living, timeout: float) -> AsyncIterator[_Peer]:
    client = AsyncKernelClient()
    client.load_connection_info(await _connection_info(kernel))
    client.start_channels(iopub=False, stdin=False, hb=False, control=False)
    try:
        yield _Peer(client, timeout)
    finally:
        client.stop_channels()


@contextlib.asynccontextmanager
async def _directory(vm: VM) -> AsyncIterator[str]:
    """A directory in the guest that its user alone can enter, for as long as the block lasts."""
    guest = await reached(vm)
    connection = guest.connection
    # Not in memory, as /tmp may be.
    path = f"{guest.facts.home}/{paths.GUEST_STATE}/values-{secrets.token_hex(8)}"
    done = await connection.run(f"mkdir -m 700 {shlex.quote(path)}", timeout=_SHORT)
    if done.status:
        raise GuestError(f"No directory could be made in the guest: {done.stderr.strip()}")
    try:
        yield path
    finally:
        await asyncio.shield(connection.run(f"rm -rf {shlex.quote(path)}", timeout=_SHORT))


async def formats(context: Context, transfer: Transfer) -> list[str]:
    """Return what a kernel can read, pickle among it where that is wanted.

    :raises LimaKernelsError: when it cannot be asked.
    """
    vm = context.vm(transfer.instance)
    await reached(vm)
    async with _talk(await _kernel(context, transfer), transfer.timeout) as peer:
        said = await peer.evaluate(_FORMATS.format(module=_MODULE))
    return [name for name in said.strip("'").split(",") if name in FORMATS] + [PICKLE] * transfer.pickle


def _progress(context: Context) -> Listener:
    return lambda progress: context.say(progress_bar(progress._replace(source="variables")))


async def push(context: Context, transfer: Transfer, written: Path, known: Sequence[str]) -> None:
    """Have a kernel take the variables that were written into a directory of this host.

    :param known: the formats that it may read.
    :raises LimaKernelsError: when it does not take them.
    """
    vm = context.vm(transfer.instance)
    connection = (await reached(vm)).connection
    kernel = await _kernel(context, transfer)
    async with _directory(vm) as directory, _talk(kernel, transfer.timeout) as peer:
        await upload(connection, [written], directory, force=False, on_progress=_progress(context))
        place, names = f"{directory}/{written.name}", list(transfer.variables)
        await peer.evaluate(_TAKE.format(module=_MODULE, directory=place, names=names, known=list(known)))


async def pull(context: Context, transfer: Transfer, into: Path, known: Sequence[str]) -> None:
    """Have a kernel write variables, and copy them into a directory of this host that does not exist yet.

    :param known: the formats that this host may read.
    :raises LimaKernelsError: when they cannot be had.
    """
    vm = context.vm(transfer.instance)
    connection = (await reached(vm)).connection
    kernel = await _kernel(context, transfer)
    async with _directory(vm) as directory, _talk(kernel, transfer.timeout) as peer:
        names = list(transfer.variables)
        await peer.evaluate(_EXPORT.format(module=_MODULE, directory=directory, names=names, known=list(known)))
        await download(connection, [directory], str(into), force=False, on_progress=_progress(context))
