"""Why a kernel ended: what the guest finds out, and how it is said on the host."""

from __future__ import annotations

import asyncio
import builtins
import io
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from jupyter_client.ioloop import AsyncIOLoopKernelManager

from lima_kernels import paths
from lima_kernels.guest.events import KernelExit
from lima_kernels.guest.forkserver import deaths
from lima_kernels.session import Session
from tests.fake_guest import FakeGuest

from .conftest import Machine
from .test_kernel import started, until

GIB = 1 << 30
EVENTS = "/sys/fs/cgroup/system.slice/lima-kernels.service/memory.events"
KILLED = -signal.SIGKILL
OUT_OF_MEMORY = (
    "The kernel in 'vm' was ended by SIGKILL: out of memory: it had 3.9 GiB, the VM has 4.0 GiB. "
    "Give the VM more: memory in its environment file."
)
LOG = """
[    1.000000] Linux version 6.1.0
[  901.000000] Memory cgroup out of memory: Killed process 4711 (python3) total-vm:943718kB, anon-rss:1048576kB
[  903.000000] Out of memory: Killed process 812 (python) total-vm:9437184kB, anon-rss:4089446kB, file-rss:0kB
[  904.000000] oom_reaper: reaped process 812 (python), now anon-rss:0kB, file-rss:0kB, shmem-rss:0kB
"""


class Guest:
    """The files and programs of a guest as far as the death of a process is written there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files: dict[str, str] = {
            "/proc/self/cgroup": "1:name=other:/x\n0::/system.slice/lima-kernels.service\n",
            EVENTS: "low 0\noom 3\noom_kill 2\noom_group_kill 0\n",
        }
        self.log: str | None = LOG
        self.free = 50 * GIB
        self._open = builtins.open
        monkeypatch.setattr(builtins, "open", self._opened)
        monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(100 * GIB, 100 * GIB - self.free, self.free))
        monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1 << 20}.__getitem__)
        monkeypatch.setattr(subprocess, "run", self._run)
        self.commands: list[list[str]] = []

    def _opened(self, path: Any, *arguments: Any, **other: Any) -> Any:
        if str(path).startswith(("/proc/self/cgroup", "/sys/fs/cgroup")):
            if path not in self.files:
                raise FileNotFoundError(path)
            return io.StringIO(self.files[path])
        return self._open(path, *arguments, **other)

    def _run(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        self.commands.append(command)
        # An ordinary user may not read it; sudo can.
        if self.log is None or command[0] != "sudo":
            raise subprocess.CalledProcessError(1, command)
        return subprocess.CompletedProcess(command, 0, self.log.encode() + b"\xff\n", b"")


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Guest:
    return Guest(monkeypatch)


# In the guest


def test_out_of_memory_is_told_with_the_figures(files: Guest) -> None:
    assert deaths.oom_kills() == 2
    assert deaths.explain(812, KILLED, 1) == "out of memory: it had 3.9 GiB, the VM has 4.0 GiB"
    assert files.commands == [["dmesg"], ["sudo", "-n", "dmesg"]]


def test_out_of_memory_without_a_log_that_can_be_read(files: Guest) -> None:
    files.log = None
    assert deaths.explain(812, KILLED, 1) == "out of memory: the VM has 4.0 GiB"


@pytest.mark.parametrize(
    ("pid", "code", "before"),
    [
        pytest.param(812, KILLED, 2, id="no process was killed for memory since"),
        pytest.param(812, -signal.SIGSEGV, 1, id="another signal"),
        pytest.param(812, 1, 1, id="an exit"),
        pytest.param(812, 0, 1, id="an exit without error"),
        pytest.param(813, KILLED, 1, id="another process was killed for memory"),
    ],
)
def test_other_deaths_are_not_for_want_of_memory(files: Guest, pid: int, code: int, before: int) -> None:
    assert deaths.explain(pid, code, before) == ""


def test_the_last_of_two_lives_of_a_process_id_counts(files: Guest) -> None:
    files.log = LOG.replace("4711", "812")
    assert "it had 3.9 GiB" in deaths.explain(812, KILLED, 0)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/proc/self/cgroup", ""),
        ("/proc/self/cgroup", "1:name=systemd:/x\n"),
        (EVENTS, "low 0\n"),
        (EVENTS, "oom_kill many\n"),
        (EVENTS, "oom_kill \n"),
    ],
)
def test_a_guest_that_counts_no_such_deaths(files: Guest, path: str, text: str) -> None:
    files.files[path] = text
    assert deaths.oom_kills() == 0
    del files.files[path]
    assert deaths.oom_kills() == 0


def test_a_full_disk_is_the_reason_of_an_error_and_not_of_an_end(files: Guest) -> None:
    files.free = 3 << 20
    full = "the guest's disk is full: 3 MiB of 100.0 GiB are free"
    assert deaths.disk_full() == full
    assert deaths.explain(1, 1, 2) == full
    assert deaths.explain(1, -signal.SIGBUS, 2) == full
    assert deaths.explain(1, 0, 2) == ""
    files.free = 16 << 20
    assert deaths.disk_full() == ""


# On the host


class Vm:
    name = "vm"


def ended(code: int, reason: str = "", *, wanted: bool = False, log: tuple[str, ...] = ()) -> Session:
    session = Session(Vm(), None, None, "k", 1.0)  # type: ignore[arg-type]
    session._end_is_wanted = wanted
    session._end(KernelExit("k", code, log, reason))
    return session


@pytest.mark.parametrize(
    ("code", "reason", "text"),
    [
        (1, "", "The kernel in 'vm' ended with exit code 1."),
        (KILLED, "", "The kernel in 'vm' was ended by SIGKILL."),
        (-signal.SIGSEGV, "", "The kernel in 'vm' was ended by SIGSEGV."),
        (-200, "", "The kernel in 'vm' was ended by signal 200."),
        (KILLED, "The VM is stopped.", "The kernel in 'vm' was ended by SIGKILL: The VM is stopped."),
        (
            KILLED,
            "out of memory: it had 3.9 GiB, the VM has 4.0 GiB",
            OUT_OF_MEMORY,
        ),
    ],
)
def test_an_obituary_is_one_line(code: int, reason: str, text: str, caplog: pytest.LogCaptureFixture) -> None:
    session = ended(code, reason, log=("Traceback", "MemoryError"))
    assert session.obituary() == text
    assert [record.getMessage() for record in caplog.records] == [f"{text}\n  Traceback\n  MemoryError"]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    # Another report of the same end changes nothing.
    session._end(KernelExit("k", 0))
    assert session.obituary() == text
    assert len(caplog.records) == 1


def test_no_obituary_of_an_end_that_was_wanted_or_in_order(caplog: pytest.LogCaptureFixture) -> None:
    assert ended(KILLED, wanted=True).obituary() == ""
    assert ended(0).obituary() == ""
    assert Session(Vm(), None, None, "k", 1.0).obituary() == ""  # type: ignore[arg-type]
    assert caplog.records == []


# All the way


@pytest.fixture
def ready(guest: FakeGuest, spec: str) -> None:
    """A guest and the kernel spec."""


class Client:
    """An asynchronous client that notes what the cells of a kernel print on stderr."""

    def __init__(self, manager: AsyncIOLoopKernelManager) -> None:
        self._manager = manager

    async def stderr(self, code: str) -> str:
        client = self._manager.client()
        client.start_channels()
        printed: list[str] = []

        def collect(message: dict[str, Any]) -> None:
            if message["msg_type"] == "stream" and message["content"]["name"] == "stderr":
                printed.append(message["content"]["text"])

        try:
            await client.wait_for_ready(timeout=60)
            await client.execute_interactive(code, timeout=60, output_hook=collect)
        finally:
            client.stop_channels()
        return "".join(printed)


def obituaries(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "The kernel in" in record.getMessage()]


@pytest.mark.usefixtures("ready")
async def test_a_kernel_that_crashed_is_mourned_once_by_its_successor(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    manager = AsyncIOLoopKernelManager(kernel_name="lima")
    await manager.start_kernel(cwd=str(machine.notebooks))
    client = Client(manager)
    restarted = asyncio.Event()
    manager.add_restart_callback(restarted.set)
    provisioner: Any = manager.provisioner
    first = provisioner._session
    assert await client.stderr("1") == ""
    crash = manager.client()
    crash.start_channels()
    # What a library in C says on its way out goes past ipykernel, to the kernel's raw output.
    [log] = machine.guest_home.glob(".lima-kernels/*/k/*/output.log")
    crash.execute(f"open({str(log)!r}, 'a').write('last words\\n'); import ctypes; ctypes.string_at(0)")
    await asyncio.wait_for(restarted.wait(), 30)
    crash.stop_channels()
    while provisioner._session is first or not await manager.is_alive():
        await asyncio.sleep(0.02)
    text = "The kernel in 'lima-kernels' was ended by SIGSEGV."
    assert await client.stderr("1") == f"[lima-kernels] {text}\n"
    assert await client.stderr("1") == ""
    [mourned] = obituaries(caplog)
    assert mourned.startswith(text)
    assert "\n  last words\n  Fatal Python error: Segmentation fault\n" in mourned
    # A restart that somebody wanted has nothing to mourn, nor has one after it.
    await manager.restart_kernel(now=True)
    assert await client.stderr("1") == ""
    await manager.shutdown_kernel(now=True)
    assert len(obituaries(caplog)) == 1


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize("now", [True, False])
def test_nobody_mourns_what_was_wanted(machine: Machine, caplog: pytest.LogCaptureFixture, now: bool) -> None:
    with started(machine) as notebook:
        notebook.run("x = 1")
        notebook.manager.restart_kernel(now=now)
        notebook.client.wait_for_ready(timeout=60)
        assert notebook.outputs("print(1)") == {"stdout": "1\n"}
        notebook.client.stop_channels()
        notebook.manager.shutdown_kernel(now=now)
    assert obituaries(caplog) == []


@pytest.mark.usefixtures("ready")
def test_the_reason_that_the_guest_found_is_in_the_obituary(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    launcher = machine.root / "launch-in-guest.py"
    launcher.write_text(
        "import importlib, os, sys\n"
        "sys.argv = sys.argv[1:]\n"
        "sys.path[0], name = os.path.split(sys.argv[0])\n"
        "deaths = importlib.import_module(name + '.deaths')\n"
        "deaths.oom_kills = lambda: os.path.exists(os.path.expanduser('~/oom'))\n"
        "deaths._resident = lambda pid: 3 << 30\n"
        "main = importlib.import_module(name + '.main').main\n"
        "del sys.path[0]\nsys.exit(main())\n"
    )
    python = machine.root / "guest-bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {launcher} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(paths, "GUEST_PYTHON", str(python))
    with started(machine) as notebook:
        pid = int(notebook.run("import os; print(os.getpid())"))
        (machine.guest_home / "oom").touch()
        os.kill(pid, signal.SIGKILL)
        until(lambda: not notebook.manager.is_alive())
        [mourned] = obituaries(caplog)
        assert mourned.startswith("The kernel in 'lima-kernels' was ended by SIGKILL: out of memory: it had 3.0 GiB, ")
        assert "Give the VM more: memory in its environment file." in mourned


@pytest.mark.usefixtures("ready")
def test_a_vm_that_stopped_is_the_reason(machine: Machine, guest: FakeGuest, caplog: pytest.LogCaptureFixture) -> None:
    with started(machine) as notebook:
        notebook.run("x = 1")
        Path(machine.lima_home / "lima-kernels" / "running").unlink()
        guest.drop_connections()
        until(lambda: not notebook.manager.is_alive())
        [mourned] = obituaries(caplog)
        assert "was ended by SIGKILL: The VM 'lima-kernels' is stopped" in mourned
