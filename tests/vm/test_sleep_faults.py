"""A VM that sleeps, and what may come over it: its disk and its memory are never put together wrongly."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lima_kernels import paths
from lima_kernels.cli.main import main
from lima_kernels.hibernation import state
from tests.benchmarks.machine_room import ready
from tests.client import Notebook

from .conftest import INSTANCE, Figures, Start, guest_shell, run

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
ROUNDS = 10
# Bytes that a guest's own logs may write in these rounds.
LOGS = 32 << 20


def directory() -> Path:
    return paths.lima_home() / INSTANCE


def memory() -> Path:
    return paths.memory_file(directory())


def limactl(*arguments: str) -> None:
    subprocess.run(["limactl", "--tty=false", *arguments], check=True, capture_output=True, timeout=600)


@pytest.fixture
def asleep(start: Start) -> Iterator[Notebook]:
    """A kernel with a variable, in a VM that sleeps; what the guest had written is on its disk."""
    assert main(["start", INSTANCE]) == 0
    notebook = start()
    notebook.run("import os; x = 'kept'; open(os.path.expanduser('~/before'), 'w').write('before')")
    assert main(["hibernate", INSTANCE]) == 0
    yield notebook
    with contextlib.suppress(Exception):
        notebook.manager.shutdown_kernel(now=True)


def booted_with(warning: str, caplog: pytest.LogCaptureFixture) -> None:
    """See that the VM boots from its disk as it is, and says why."""
    assert main(["start", INSTANCE]) == 0
    assert warning in caplog.text
    assert guest_shell("cat ~/before") == "before"
    assert not memory().exists()
    assert not state.is_asleep(INSTANCE)


def test_ten_rounds_leave_nothing(start: Start, figures: Figures) -> None:
    notebook = start()
    notebook.run("n = 0")
    sizes = []
    for count in range(1, ROUNDS + 1):
        assert main(["hibernate", INSTANCE]) == 0
        with figures.timed(f"wake {count}"):
            assert notebook.run("n += 1; print(n)") == str(count)
        assert not memory().exists()
        sizes.append((directory() / "disk").stat().st_blocks * 512)
    assert sizes[-1] - sizes[0] < LOGS


def test_one_that_lima_started_is_never_given_its_old_memory(
    asleep: Notebook, caplog: pytest.LogCaptureFixture
) -> None:
    run(ready(INSTANCE))
    guest_shell("echo since >~/since; sync")
    assert main(["start", INSTANCE]) == 0
    assert guest_shell("cat ~/before; echo; cat ~/since") == "before\nsince"
    assert not memory().exists()
    assert not state.is_asleep(INSTANCE)


def test_one_that_lima_started_and_stopped_boots(asleep: Notebook, caplog: pytest.LogCaptureFixture) -> None:
    run(ready(INSTANCE))
    guest_shell("echo since >~/since")
    limactl("stop", INSTANCE)
    booted_with("its disk has changed since", caplog)
    assert guest_shell("cat ~/since") == "since"


def test_one_whose_cpus_were_edited_boots(asleep: Notebook, caplog: pytest.LogCaptureFixture) -> None:
    limactl("edit", "--set=.cpus = 1", INSTANCE)
    booted_with("its lima.yaml has changed since", caplog)


def test_a_damaged_memory_is_not_used(asleep: Notebook, caplog: pytest.LogCaptureFixture) -> None:
    with memory().open("r+b") as file:
        file.seek(memory().stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    booted_with("its memory file is damaged", caplog)


def qemu() -> psutil.Process | None:
    name = f"lima-{INSTANCE}"
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if words and "qemu-system" in words[0] and name in words:
                return process
    return None


def test_a_qemu_that_is_killed_as_it_wakes_costs_nothing(asleep: Notebook) -> None:
    killed = []

    def kill() -> None:
        limit = time.monotonic() + 60
        while not killed and time.monotonic() < limit:
            if process := qemu():
                process.send_signal(signal.SIGKILL)
                killed.append(process.pid)
            time.sleep(0.005)

    killer = threading.Thread(target=kill)
    killer.start()
    assert asleep.run("print(x)") == "kept"
    killer.join()
    assert killed


def test_two_processes_wake_it_once(asleep: Notebook) -> None:
    other = subprocess.Popen(["lima-kernels", "start", INSTANCE])
    assert asleep.run("print(x)") == "kept"
    assert other.wait(300) == 0
    assert asleep.run("print(x)") == "kept"
