"""A Jupyter server in a process of its own, which finds the extension by the file that the wheel has for it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from jupyter_server.serverapp import ServerApp
from tornado.websocket import websocket_connect

from lima_kernels.lima.limactl import Limactl
from tests.child import Child, child
from tests.unit.conftest import Machine
from tests.unit.test_kernel import until
from tests.unit.verbs import CONFIG

ROOT = Path(__file__).parents[3]
TOKEN = "of-this-test"


def serve(machine: Machine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = ServerApp()
    options = [f"ServerApp.port={port}", f"IdentityProvider.token={TOKEN}", f"ServerApp.root_dir={machine.notebooks}"]
    server.initialize([f"--{option}" for option in options])
    print(port, flush=True)
    server.start()


@pytest.fixture
def server(machine: Machine) -> Iterator[tuple[Child, int]]:
    configs = machine.root / "config" / "jupyter_server_config.d"
    configs.mkdir(parents=True)
    shutil.copy(ROOT / "jupyter-config" / "lima_kernels.json", configs)
    with child(serve, machine) as process:
        port = int(process.line())
        until(lambda: reached(port), 60)
        yield process, port


def reached(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def got(port: int, route: str) -> Any:
    url = f"http://127.0.0.1:{port}/lima-kernels/api/{route}"
    request = urllib.request.Request(url, headers={"Authorization": f"token {TOKEN}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


async def test_a_server_that_is_told_to_end_does_so_with_a_page_open(
    server: tuple[Child, int], machine: Machine
) -> None:
    process, port = server
    await Limactl().create("one", CONFIG)
    (machine.lima_home / "one" / "running").touch()
    assert [vm["name"] for vm in got(port, "vms")["vms"]] == ["one"]
    page = await websocket_connect(f"ws://127.0.0.1:{port}/lima-kernels/api/events?token={TOKEN}")
    first = await page.read_message()
    assert first is not None
    assert json.loads(first)["type"] == "snapshot"
    os.kill(process.pid, signal.SIGTERM)
    assert await page.read_message() is None
    assert page.close_code == 1001
    page.close()
    process.finish(30)
    # The VM is as it was, and nobody works for the server any more.
    assert (machine.lima_home / "one" / "running").exists()
    ours = [other.cmdline() for other in psutil.process_iter(["environ"]) if str(machine.root) in str(other.info)]
    assert [command for command in ours if any("limactl" in part for part in command)] == []


def test_jupyter_lists_the_extension_as_sound(machine: Machine) -> None:
    configs = machine.root / "config" / "jupyter_server_config.d"
    configs.mkdir(parents=True)
    shutil.copy(ROOT / "jupyter-config" / "lima_kernels.json", configs)
    command = [sys.executable, "-m", "jupyter", "server", "extension", "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env={**os.environ})
    said = done.stdout + done.stderr
    assert "lima_kernels" in said
    assert "OK" in said.partition("lima_kernels")[2]
