"""QEMU's monitor for tests, and what its commands do to a fake guest: one that sleeps does nothing."""

from __future__ import annotations

import contextlib
import json
import re
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from tests.fake_guest import FakeGuest

IID = "iid-1795368832"
VERSION = {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": "Debian"}
MEMORY = b"everything that was in its memory " * 1000


class FakeQemu:
    """One VM's QEMU. ``refused`` are commands with what is said of them; ``blocked`` why it cannot be migrated.

    :param directory: the instance's.
    :param tell: tells the fake limactl something.
    """

    def __init__(self, directory: Path, guest: FakeGuest, tell: Any) -> None:
        self.blocked: list[str] = []
        self.refused: dict[str, str] = {}
        self.fails: dict[str, str] = {}
        # The same, but the next time alone.
        self.once: dict[str, str] = {}
        self.version = VERSION
        self.commands: list[str] = []
        self.loaded = b""
        self._directory = directory
        self._guest = guest
        self._tell = tell
        self._status = "running"
        self._migration: dict[str, Any] = {}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._sleepers: list[psutil.Process] = []
        (directory / "cidata.iso").write_bytes(b"\x01CD001 instance-id: x\ninstance-id: " + IID.encode() + b"\n\x00")
        self._new_processes()
        self._server = self._listening()

    def _new_processes(self) -> None:
        self._processes = [subprocess.Popen(["sleep", "1000"]) for _ in range(2)]
        agent, driver = (process.pid for process in self._processes)
        self._tell(host_agent_pid=agent, driver_pid=driver)

    def _listening(self) -> socketserver.ThreadingUnixStreamServer:
        qemu = self

        class Conversation(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                qemu._talk(self)

        path = self._directory / "qmp.sock"
        path.unlink(missing_ok=True)
        server = socketserver.ThreadingUnixStreamServer(str(path), Conversation)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    def _talk(self, line: socketserver.StreamRequestHandler) -> None:
        def say(message: object) -> None:
            line.wfile.write(json.dumps(message).encode() + b"\n")

        say({"QMP": {"version": self.version, "capabilities": []}})
        for request in line.rfile:
            document = json.loads(request)
            command = document["execute"]
            self.commands.append(command)
            say({"event": "SOMETHING", "data": {}})
            if words := self.refused.get(command) or self.once.pop(command, ""):
                say({"error": {"class": "GenericError", "desc": words}})
                continue
            do = getattr(self, f"_{command.replace('-', '_')}", lambda _arguments: {})
            say({"return": do(document.get("arguments", {}))})
            if command == "quit":
                break

    # Commands

    def _query_version(self, _arguments: dict[str, Any]) -> Any:
        return self.version

    def _query_status(self, _arguments: dict[str, Any]) -> Any:
        return {"status": self._status, "running": self._status == "running", "singlestep": False}

    def _query_migrate(self, _arguments: dict[str, Any]) -> Any:
        return {"blocked-reasons": self.blocked} if self.blocked else self._migration

    def _stop(self, _arguments: dict[str, Any]) -> Any:
        self._status = "paused"
        self._sleepers = list(self._guest_processes())
        for process in self._sleepers:
            process.suspend()
        return {}

    def _cont(self, _arguments: dict[str, Any]) -> Any:
        self._status = "running"
        for process in self._sleepers:
            with contextlib.suppress(psutil.Error):
                process.resume()
        if not self._guest.is_listening:
            self._guest.listen()
        return {}

    def _migrate(self, arguments: dict[str, Any]) -> Any:
        if "migrate" in self.fails:
            self._migration = {"status": "failed", "error-desc": self.fails["migrate"]}
            return {}
        found = re.fullmatch(r"exec:cat >'?(.*?)'?", arguments["uri"])
        assert found
        Path(found[1]).write_bytes(MEMORY)
        self._migration = {"status": "completed"}
        self._status = "postmigrate"
        return {}

    def _migrate_incoming(self, arguments: dict[str, Any]) -> Any:
        if "migrate-incoming" in self.fails:
            self._migration = {"status": "failed", "error-desc": self.fails["migrate-incoming"]}
            return {}
        found = re.fullmatch(r"exec:cat '?(.*?)'?", arguments["uri"])
        assert found
        self.loaded = Path(found[1]).read_bytes()
        self._migration = {"status": "completed"}
        self._status = "paused"
        return {}

    def _quit(self, _arguments: dict[str, Any]) -> Any:
        self._guest.stop_listening()
        self._guest.drop_connections()
        (self._directory / "running").unlink()
        for process in self._processes:
            process.kill()
            process.wait()
        self._migration = {}
        # Those of the next start.
        self._new_processes()
        return {}

    def _guest_processes(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if any(str(self._guest.home) in part for part in process.cmdline()):
                    yield process

    def boot(self) -> None:
        """Let the guest be one that has just booted: what slept is no more."""
        for process in self._sleepers:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._sleepers = []
        self._guest.listen()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        for process in self._processes:
            process.kill()
            process.wait()
        for process in self._sleepers:
            with contextlib.suppress(psutil.Error):
                process.resume()
