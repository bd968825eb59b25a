"""The WebSocket: what clients are told, and what they cannot do to each other."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from typing import Any

import pytest
from jupyter_server.serverapp import ServerApp
from tornado.websocket import WebSocketClosedError

from lima_kernels import paths
from lima_kernels.lima.limactl import Limactl
from lima_kernels.server import stream
from lima_kernels.server.base import LONGEST
from tests.unit.conftest import Machine
from tests.unit.verbs import CONFIG, log_line

from .conftest import LIMIT, Ask, Open


async def make(machine: Machine, name: str, config: str = CONFIG, *, running: bool = False) -> None:
    await Limactl().create(name, config)
    if running:
        (machine.lima_home / name / "running").touch()


def streams(server: ServerApp) -> set[Any]:
    return set(server.web_app.settings[stream.SETTING])


async def no_stream(server: ServerApp) -> None:
    async with asyncio.timeout(LIMIT):
        while streams(server):
            await asyncio.sleep(0.01)


async def test_all_there_is_comes_first_and_then_what_changes(page: Open, machine: Machine) -> None:
    await make(machine, "one")
    async with page() as here:
        first = await here.message()
        assert first is not None
        assert (first["type"], [vm["name"] for vm in first["vms"]], first["jobs"]) == ("snapshot", ["one"], [])
        await make(machine, "two")
        told = await here.until(lambda said: said["type"] == "vm" and said["vm"]["name"] == "two")
        assert told["vm"]["state"] in ("stopped", "creating")
        await Limactl().delete("one")
        await here.until(lambda said: said == {"type": "gone", "name": "one"})


async def test_two_pages_agree(page: Open, machine: Machine, ask: Ask) -> None:
    await make(machine, "one", running=True)
    async with page() as here, page() as there:
        firsts = [await each.message() for each in (here, there)]
        assert firsts[0] == firsts[1]
        assert (await ask("POST", "vms", "one", "stop")).code == 202
        last = []
        for each in (here, there):
            job = await each.until(lambda said: said["type"] == "job" and said["job"]["state"] == "done")
            last.append(job)
        assert last[0] == last[1]
        stopped = (
            [
                await each.until(lambda said: said["type"] == "vm" and said["vm"]["state"] == "stopped")
                for each in (here, there)
            ]
            if (await ask("GET", "vms", "one")).said["state"] != "stopped"
            else []
        )
        assert all(said == stopped[0] for said in stopped)


async def test_the_log_of_whom_a_page_follows(page: Open, machine: Machine) -> None:
    await make(machine, "one")
    file = paths.host_agent_log(machine.lima_home / "one")
    file.write_text(log_line("info", "before"))
    async with page() as here, page() as other:
        await here.told("snapshot")
        await here.say(type="follow", name="one")
        assert await here.told("log") == {"type": "log", "name": "one", "lines": ["before"]}
        with file.open("a") as log:
            log.write(log_line("warning", "after"))
        assert await here.told("log") == {"type": "log", "name": "one", "lines": ["warning: after"]}
        await here.say(type="follow", name=None)
        # Only who asked is told.
        await make(machine, "two")
        kinds = set()
        async with asyncio.timeout(LIMIT):
            while (said := await other.message()) is not None:
                kinds.add(said["type"])
                if said["type"] == "vm" and said["vm"]["name"] == "two":
                    break
        assert "log" not in kinds


GARBAGE: dict[str, str | bytes] = {
    "no JSON": "hello",
    "nothing": "",
    "bytes": b"\x00\xff\xfe",
    "null": "null",
    "a list": "[]",
    "no type": "{}",
    "unknown": '{"type": "tomorrow", "names": []}',
    "a wrong type": '{"type": "visible", "names": "one"}',
    "numbers": '{"type": "visible", "names": [1]}',
    "missing": '{"type": "follow"}',
    "a path": '{"type": "follow", "name": "../../etc"}',
    "paths": '{"type": "visible", "names": ["..", "/etc"]}',
    "nested": '{"type": "visible", "names": null, "x": ' + "[" * 30_000 + "]" * 30_000 + "}",
    "a type of its own": '{"type": {"visible": 1}}',
    "a snapshot": '{"type": "snapshot", "vms": [], "jobs": []}',
}


@pytest.mark.parametrize("said", GARBAGE)
async def test_what_is_not_understood_is_ignored(
    page: Open, machine: Machine, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    await make(machine, "one")
    paths.host_agent_log(machine.lima_home / "one").write_text(log_line("info", "before"))
    async with page() as here, page() as other:
        for _ in range(3):
            await here.connection.write_message(GARBAGE[said], binary=isinstance(GARBAGE[said], bytes))
        # The page itself goes on, and so do others.
        for each in (here, other):
            await each.say(type="follow", name="one", more="of tomorrow")
            assert (await each.told("log"))["lines"] == ["before"]
    warned = [record for record in caplog.records if "is not understood" in record.getMessage()]
    assert len(warned) == 1


async def test_a_message_that_is_too_long_ends_that_connection_alone(page: Open, machine: Machine) -> None:
    await make(machine, "one")
    async with page() as here, page() as other:
        await here.told("snapshot")
        try:
            await here.connection.write_message(json.dumps({"type": "visible", "names": ["x" * 10_000_000]}))
        except WebSocketClosedError:
            # It hangs up while that is being sent.
            pass
        async with asyncio.timeout(LIMIT):
            while await here.message() is not None:
                pass
        await other.told("snapshot")
        await other.say(type="visible", names=["one"])
        await make(machine, "two")
        await other.until(lambda said: said["type"] == "vm" and said["vm"]["name"] == "two")


async def test_the_longest_message_that_is_taken(page: Open, machine: Machine) -> None:
    await make(machine, "one")
    paths.host_agent_log(machine.lima_home / "one").write_text(log_line("info", "before"))
    text = json.dumps({"type": "follow", "name": "one"})
    async with page() as here:
        await here.connection.write_message(text + " " * (LONGEST - len(text)))
        assert (await here.told("log"))["lines"] == ["before"]


async def handshake(server: ServerApp, port: int) -> socket.socket:
    """A client that says what it must, and then reads nothing."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, ("127.0.0.1", port))
    request = (
        f"GET {server.base_url}lima-kernels/api/events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        f"Authorization: token {server.identity_provider.token}\r\n\r\n"
    )
    await loop.sock_sendall(sock, request.encode())
    answer = await loop.sock_recv(sock, 12)
    assert answer == b"HTTP/1.1 101"
    # Masked by zeros, as a client has to mask.
    text = json.dumps({"type": "follow", "name": "one"}).encode()
    await loop.sock_sendall(sock, struct.pack("!BB4x", 0x81, 0x80 | len(text)) + text)
    return sock


def begun(said: dict[str, Any], begins: str) -> bool:
    return said["type"] == "log" and any(line.startswith(begins) for line in said["lines"])


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "STALL_TIMEOUT", 1.0)


@pytest.mark.usefixtures("impatient")
async def test_a_client_that_reads_nothing_holds_nobody_and_is_dropped(
    page: Open, machine: Machine, jp_serverapp: ServerApp, jp_http_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    await make(machine, "one")
    file = paths.host_agent_log(machine.lima_home / "one")
    with await handshake(jp_serverapp, jp_http_port):
        async with page() as here:
            await here.told("snapshot")
            await here.say(type="follow", name="one")
            assert len(streams(jp_serverapp)) == 2
            number = 0
            async with asyncio.timeout(4 * LIMIT):
                # More than the system keeps for a connection; each time the other page has it all.
                while len(streams(jp_serverapp)) == 2:
                    number += 1
                    with file.open("a") as log:
                        log.write("".join(log_line("info", f"{number} " + "x" * 8000) for _ in range(50)))
                    await here.until(lambda said, begins=f"{number} ": begun(said, begins))
            # Who reads is served as before.
            await make(machine, "two")
            await here.until(lambda said: said["type"] == "vm" and said["vm"]["name"] == "two")
    assert "A client of the VMs' events takes none, and is dropped." in caplog.messages


async def test_a_page_that_is_closed_ends_the_watching(page: Open, machine: Machine, jp_serverapp: ServerApp) -> None:
    await make(machine, "one", running=True)
    async with page() as here:
        async with page() as there:
            for each in (here, there):
                await each.told("snapshot")
        async with asyncio.timeout(LIMIT):
            while len(streams(jp_serverapp)) == 2:
                await asyncio.sleep(0.01)
        await make(machine, "two")
        await here.until(lambda said: said["type"] == "vm" and said["vm"]["name"] == "two")
    await no_stream(jp_serverapp)


async def test_a_page_that_closes_before_it_was_told_anything(
    page: Open, machine: Machine, jp_serverapp: ServerApp
) -> None:
    machine.tell(delay={"list": 0.3})
    async with page():
        pass
    await no_stream(jp_serverapp)
    machine.tell(delay={})
    async with page() as here:
        await here.told("snapshot")


async def test_without_limactl(page: Open, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(machine.root))
    async with page() as here:
        assert await here.message() is None
        assert (here.connection.close_code, here.connection.close_reason) == (1011, "limactl was not found on PATH.")


async def test_a_server_that_ends_says_farewell(page: Open, machine: Machine, jp_serverapp: ServerApp) -> None:
    await make(machine, "one", running=True)
    async with page() as here, page() as there:
        for each in (here, there):
            await each.told("snapshot")
        async with asyncio.timeout(LIMIT):
            await jp_serverapp.extension_manager.stop_all_extensions()
        assert streams(jp_serverapp) == set()
        for each in (here, there):
            assert await each.message() is None
            assert each.connection.close_code == 1001
