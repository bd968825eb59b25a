"""A guest for tests without a VM: a real SSH server in a thread, whose commands and sockets are this machine's."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import threading
from pathlib import Path

import asyncssh


class _Server(asyncssh.SSHServer):
    def __init__(self, guest: FakeGuest) -> None:
        self._guest = guest

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self.is_lost = False

    def auth_completed(self) -> None:
        self._guest.connections.append(self._connection)

    def connection_lost(self, _exc: Exception | None) -> None:
        self.is_lost = True
        if self._connection in self._guest.connections:
            self._guest.connections.remove(self._connection)

    def unix_connection_requested(self, dest_path: str):
        return self._is_ours(dest_path) and _Made(self, lambda: self._connection.forward_unix_connection(dest_path))

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> bool:
        return dest_host == "localhost"

    def unix_server_requested(self, listen_path: str):
        return self._is_ours(listen_path) and _Made(
            self, lambda: self._connection.forward_local_path(listen_path, listen_path)
        )

    def _is_ours(self, path: str) -> bool:
        return Path(path).is_relative_to(self._guest.home)


class _Made:
    """What asyncssh waits for while a client's wish is granted; of a connection that is lost before, it asks nothing.

    A coroutine would be left behind un-awaited then.
    """

    def __init__(self, server: _Server, make) -> None:
        self._server = server
        self._make = make

    def __await__(self):
        return self._made().__await__()

    async def _made(self):
        """Return what asyncssh makes for the client; of a connection that is lost meanwhile it would leave it open."""
        making = asyncio.ensure_future(self._make())
        try:
            made = await asyncio.shield(making)
        except asyncio.CancelledError:
            making.add_done_callback(lambda done: done.cancelled() or done.exception() or done.result().close())
            raise
        if self._server.is_lost:
            made.close()
        return made


class FakeGuest:
    """An SSH server on a free loopback port; its user's home is ``home``, its programs come from ``path`` first."""

    def __init__(self, home: Path, path: str, authorized_key: Path, port: int = 0) -> None:
        self.home = home
        self.connections: list[asyncssh.SSHServerConnection] = []
        self.port = port
        self.path = path
        self._authorized_key = authorized_key
        self._host_key = asyncssh.generate_private_key("ssh-ed25519")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fake-guest", daemon=True)
        self._thread.start()
        self._acceptor: asyncssh.SSHAcceptor | None = None
        self.is_listening = False

    def _do(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def listen(self) -> None:
        self._do(self._listen())

    async def _listen(self) -> None:
        self._acceptor = await asyncssh.listen(
            "127.0.0.1",
            self.port,
            server_factory=lambda: _Server(self),
            server_host_keys=[self._host_key],
            authorized_client_keys=str(self._authorized_key),
            process_factory=self._run,
            encoding=None,
        )
        self.port = self._acceptor.get_port()
        self.is_listening = True

    async def _run(self, process: asyncssh.SSHServerProcess) -> None:
        pipe = subprocess.PIPE
        child = subprocess.Popen(
            ["/bin/sh", "-c", process.command or "true"],
            env={"HOME": str(self.home), "PATH": self.path, "LANG": "C.UTF-8", "USER": "guest"},
            cwd=self.home,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            bufsize=0,
            # As sshd does: a session of its own, which can be signalled as a whole.
            start_new_session=True,
        )
        try:
            await process.redirect(stdin=child.stdin, stdout=child.stdout, stderr=child.stderr)
            process.exit(await self._loop.run_in_executor(None, child.wait))
        finally:
            child.kill()
            child.wait()
            try:
                await process.wait_closed()
            finally:
                # What was cut off in its midst has not taken all of them.
                for ours in (child.stdin, child.stdout, child.stderr):
                    with contextlib.suppress(OSError):
                        ours.close()

    def drop_connections(self) -> int:
        """Cut every connection, as a network does, and return how many there were."""

        async def drop() -> int:
            connections = list(self.connections)
            for connection in connections:
                connection.abort()
            for connection in connections:
                await connection.wait_closed()
            return len(connections)

        return self._do(drop())

    def stop_listening(self) -> None:
        async def stop() -> None:
            if self._acceptor is not None:
                self._acceptor.close()
                await self._acceptor.wait_closed()
            self.is_listening = False

        self._do(stop())

    def change_host_key(self) -> None:
        self._host_key = asyncssh.generate_private_key("ssh-ed25519")
        self.stop_listening()
        self.listen()

    async def _end_tasks(self) -> None:
        await asyncio.sleep(0.05)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def close(self) -> None:
        self.stop_listening()
        self.drop_connections()
        self._do(self._end_tasks())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
