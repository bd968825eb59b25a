"""The process that serves this host's directories to one VM: `python -m lima_kernels.mount_server INSTANCE`.

It is started by whoever adds the first directory, serves those of all, and ends when there is none left or the VM has
stopped. Each sshfs in the guest gets an SFTP server of its own (:mod:`sftp`) that can reach nothing but its directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from . import added_mounts, paths
from .errors import ConnectionFailed, InstanceError, LimaKernelsError
from .guest.events import JoinRequest, MountEvent
from .guest.streams import Claim, Stream
from .hibernation.state import awake, is_asleep
from .instances import REACH
from .runtime import runtime
from .vm import VM, Guest

logger = logging.getLogger(__name__)

# Seconds: between tries to reach a VM, and between looks whether anything is left to be served.
RETRY_INTERVAL = 2.0
LOOK_INTERVAL = 15.0
CLOSE_TIMEOUT = 2.0
LOCK_TIMEOUT = 1.0
# The one channel that a mount has.
_CHANNEL = 1
# What an SFTP server is given of our environment.
_VARIABLES = ("HOME", "LANG", "LC_ALL", "PATH", "PYTHONPATH", "TMPDIR")


class Share:
    """One conversation of an sshfs in the guest with an SFTP server here; it outlives the SSH connection below it."""

    def __init__(
        self, name: str, owner: str, process: asyncio.subprocess.Process, on_end: Callable[[Share], None]
    ) -> None:
        self.name = name
        self._owner = owner
        self._process = process
        self._on_end = on_end
        self.stream: Stream | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def connect(self, sock: socket.socket) -> None:
        """Take our end of the SFTP server's socket."""
        loop = asyncio.get_running_loop()
        _, self.stream = await loop.create_connection(
            lambda: Stream(_CHANNEL, lambda _stream: None, lambda _stream: self._ended()), sock=sock
        )

    def carry(self, guest: Guest) -> None:
        """Go on over a connection to the guest."""
        task = asyncio.ensure_future(self._carried(guest))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carried(self, guest: Guest) -> None:
        assert self.stream is not None
        try:
            claim = Claim({"mount": self.name}, self._owner, guest.forkserver.socket)
            await self.stream.carry(guest.connection, claim)
        except ConnectionFailed as error:
            # A connection that is lost is made anew, and then we are carried again.
            if not guest.is_lost():
                logger.warning("%s", error)
                self.stream.close()

    def _ended(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._on_end(self)

    async def close(self) -> None:
        """End the conversation and its server; may be called twice."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.stream is not None:
            self.stream.close()
        # One that waits for a drive that is gone cannot even be killed.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._process.wait()


class MountServer:
    """Serves directories to one VM for as long as there are any."""

    def __init__(self, vm: VM, lock: FileLock) -> None:
        self._vm = vm
        self._lock = lock
        self._owner = secrets.token_hex(16)
        self._guest: Guest | None = None
        self._shares: set[Share] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Serve until nothing is left to be served, or the VM has stopped.

        :param on_ready: called when the VM was reached for the first time.
        :raises LimaKernelsError: when it never was.
        """
        self._vm.on_mount_event = self._on_event
        try:
            while not self._may_end():
                try:
                    await self._attend()
                except InstanceError as error:
                    logger.warning("%s", error)
                    if self._guest is None:
                        raise
                    if is_asleep(self._vm.name):
                        # What the guest has open of us it will want again.
                        await awake(self._vm.name)
                        continue
                    self._forget_all()
                    return
                except LimaKernelsError as error:
                    logger.warning("%s", error)
                    if self._guest is None:
                        raise
                    await asyncio.sleep(RETRY_INTERVAL)
                    continue
                on_ready()
                await self._until_lost()
        finally:
            self._vm.on_mount_event = None
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await asyncio.gather(*(share.close() for share in tuple(self._shares)))

    def _owner_of(self, name: str) -> str:
        """What tells that we serve a mount; of each its own, for what is served to one ends without the others."""
        return f"{self._owner}-{name}"

    def _may_end(self) -> bool:
        """Tell whether nothing is left; who adds a directory after that finds that nobody serves."""
        if not paths.has_instance_state(self._vm.name):
            # The instance was deleted, with all that was Lima's.
            return True
        with added_mounts.guarded(self._vm.name):
            if added_mounts.served(self._vm.name):
                return False
            self._lock.release()
            return True

    def _forget_all(self) -> None:
        for name in added_mounts.served(self._vm.name):
            added_mounts.forget(self._vm.name, name)

    async def _attend(self) -> None:
        """Reach the guest, go on with what is under way, and serve what waits."""
        guest = self._guest = await self._vm.reconnect(REACH)
        known = await guest.forkserver.mounts()
        for name in added_mounts.served(self._vm.name):
            if name in known and await guest.forkserver.claim(name, self._owner_of(name)):
                self._serve(name)
        for share in tuple(self._shares):
            share.carry(guest)

    async def _until_lost(self) -> None:
        assert self._guest is not None
        waits = [
            asyncio.ensure_future(wait)
            for wait in (self._guest.connection.closed.wait(), self._guest.forkserver.wait_closed())
        ]
        try:
            while not any(wait.done() for wait in waits):
                self._changed.clear()
                changed = asyncio.ensure_future(self._changed.wait())
                # Other processes write down what is served: of that there is no event.
                await asyncio.wait((*waits, changed), return_when=asyncio.FIRST_COMPLETED, timeout=LOOK_INTERVAL)
                changed.cancel()
                await self._forget_unknown(self._guest)
                if not added_mounts.served(self._vm.name):
                    return
        finally:
            for wait in waits:
                wait.cancel()

    async def _forget_unknown(self, guest: Guest) -> None:
        """Serve no longer what the guest does not have: who added it may have been killed before the guest did."""
        with contextlib.suppress(LimaKernelsError):
            served = added_mounts.served(self._vm.name)
            for name in served.keys() - (await guest.forkserver.mounts()).keys():
                added_mounts.forget(self._vm.name, name)

    def _on_event(self, event: MountEvent) -> None:
        if isinstance(event, JoinRequest):
            self._serve(event.mount)
        else:
            added_mounts.forget(self._vm.name, event.mount)
            self._changed.set()

    def _serve(self, name: str) -> None:
        task = asyncio.ensure_future(self._served(name))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _served(self, name: str) -> None:
        record = added_mounts.served(self._vm.name).get(name)
        guest = self._guest
        if record is None or guest is None:
            logger.warning("The guest asks for a directory that it was not given: %r.", name)
            return
        try:
            await guest.forkserver.claim(name, self._owner_of(name))
            share = await self._open(name, record, guest)
        except (LimaKernelsError, OSError) as error:
            logger.warning("The directory %s could not be served: %s", record.directory, error)
            return
        share.carry(guest)

    async def _open(self, name: str, record: added_mounts.ServedDirectory, guest: Guest) -> Share:
        ours, theirs = socket.socketpair()
        with theirs:
            argv = [sys.executable, "-P", "-m", f"{__package__}.sftp", record.directory]
            argv += ["--uid", str(guest.facts.uid), "--gid", str(guest.facts.gid)]
            if record.read_only:
                argv.append("--read-only")
            environment = {name: value for name, value in os.environ.items() if name in _VARIABLES}
            try:
                process = await asyncio.create_subprocess_exec(
                    *argv, stdin=theirs.fileno(), stdout=theirs.fileno(), env=environment, cwd="/"
                )
            except BaseException:
                ours.close()
                raise
        share = Share(name, self._owner_of(name), process, self._shares.discard)
        self._shares.add(share)
        await share.connect(ours)
        return share


def _detached() -> int:
    """Go on in a process of its own, and return what tells the first one that we serve: it ends then.

    What the first one prints until then is what its caller sees.
    """
    ready_r, ready_w = os.pipe()
    if os.fork():
        os.close(ready_w)
        said = b""
        while data := os.read(ready_r, 4096):
            said += data
        sys.stderr.write(said.decode(errors="replace").removesuffix("\n"))
        sys.stderr.flush()
        os._exit(1 if said else 0)
    os.close(ready_r)
    os.setsid()
    return ready_w


def _redirect(log: Path) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for source, target in ((null, 0), (file, 1), (file, 2)):
        os.dup2(source, target)
    os.close(null)
    os.close(file)


def main(instance: str) -> int:
    """Serve an instance's directories, unless another process does; returns when somebody does."""
    ready = os.fdopen(_detached(), "w")
    lock = added_mounts.server_lock(instance)
    try:
        # Who only looks whether it is held has it for a moment.
        lock.acquire(timeout=LOCK_TIMEOUT)
    except Timeout:
        return 0
    _redirect(paths.mount_server_log(instance))
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)

    async def serve() -> None:
        await MountServer(runtime().vm(instance), lock).run(ready.close)

    try:
        runtime().run_blocking(serve())
    except LimaKernelsError as error:
        if not ready.closed:
            ready.write(f"{error}\n")
            ready.close()
        return 1
    finally:
        runtime().close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
