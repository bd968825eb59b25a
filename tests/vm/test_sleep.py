"""A VM that sleeps: everything that lived in it lives on, and what changed meanwhile is seen."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from lima_kernels import paths
from lima_kernels.cli.main import main
from lima_kernels.hibernation import state
from lima_kernels.lima import hostagent
from lima_kernels.lima.limactl import Limactl

from .conftest import INSTANCE, Figures, Start, guest_shell, run, until

EXAMPLE = Path(__file__).parents[2] / "notebooks" / "05-hibernate.ipynb"
# Seconds between the guest's clock and the host's.
APART = 1.0
LIVING = """
import asyncio, os, socket, sqlite3, threading, time
import matplotlib; matplotlib.use('agg')
import matplotlib.pyplot as plt
import numpy as np
x, array = 'kept', np.arange(1000.0)
figure, axes = plt.subplots(); line, = axes.plot([1, 2, 3])
database = sqlite3.connect('/tmp/hibernate.sqlite'); database.execute('create table t (n)')
database.execute('insert into t values (42)'); database.commit()
listener = socket.create_server(('127.0.0.1', 0)); there = socket.create_connection(listener.getsockname())
here, _ = listener.accept()
ticks, beats = [0], [0]
def tick():
    while True:
        time.sleep(0.2); ticks[0] += 1
threading.Thread(target=tick, daemon=True).start()
async def beat():
    while True:
        await asyncio.sleep(0.2); beats[0] += 1
task = asyncio.get_running_loop().create_task(beat())
inside = subprocess = __import__('subprocess').Popen(['sleep', '1000'], cwd='/')
print(os.getcwd(), open('seen').read())
"""
STILL = """
there.sendall(b'over'); before = ticks[0], beats[0]
await asyncio.sleep(1)
print(x, array.sum(), line.get_ydata()[2], here.recv(4).decode(), inside.poll())
print(database.execute('select n from t').fetchone()[0], ticks[0] > before[0], beats[0] > before[1])
figure.savefig('/tmp/hibernate.png')
"""


def hibernate(*options: str) -> int:
    return main(["hibernate", INSTANCE, *options])


def is_up() -> bool:
    return bool(run(Limactl().get(INSTANCE)).is_up)


def test_who_works_and_what_is_held_is_named_and_nothing_is_changed(
    start: Start, notebooks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (notebooks / "held").write_text("content")
    notebook = start()
    notebook.run("import os, time; held = open('held')")
    assert hibernate() == 1
    said = capsys.readouterr().err
    assert f"{notebooks}/held" in said
    assert "is in use there" in said
    assert notebook.run("print(os.getcwd(), held.read())") == f"{notebooks} content"
    notebook.run("held.close()")

    notebook.begin("time.sleep(5); print('done')")
    assert hibernate() == 1
    assert "a cell runs" in capsys.readouterr().err
    assert notebook.reply()["status"] == "ok"
    assert is_up()


def test_everything_lives_on_and_the_host_is_seen_anew(
    start: Start, notebooks: Path, figures: Figures, capsys: pytest.CaptureFixture[str]
) -> None:
    (notebooks / "seen").write_text("before")
    notebook, other = start(), start()
    assert notebook.run(LIVING) == f"{notebooks} before"
    other.run("y = 'too'")
    before = run(Limactl().get(INSTANCE))
    with figures.timed("hibernate"):
        assert hibernate() == 0
    assert "2 kernel(s) live on" in capsys.readouterr().out
    memory = paths.memory_file(before.dir)
    assert memory.stat().st_mode & 0o777 == 0o600
    for pid in (before.driver_pid, before.host_agent_pid):
        assert not hostagent.is_alive(pid)
    assert notebook.manager.is_alive()

    (notebooks / "seen").write_text("after it")
    with figures.timed("wake to first cell"):
        said = notebook.run("print(os.getcwd(), open('seen').read(), time.time())")
    assert said.rpartition(" ")[0] == f"{notebooks} after it"
    assert abs(float(said.rpartition(" ")[2]) - time.time()) < APART
    assert notebook.run(STILL).split() == ["kept", "499500.0", "3", "over", "None", "42", "True", "True"]
    assert other.run("print(y)") == "too"
    assert not memory.exists()
    assert not state.is_asleep(INSTANCE)
    # Lima itself knows it again, and so does a new kernel.
    until(lambda: guest_shell("cat /run/lima-boot-done").startswith("iid-"), "Lima cannot reach it")
    assert start().run("print(open('seen').read())") == "after it"


def test_a_cell_that_runs_goes_on_when_it_is_forced(start: Start) -> None:
    notebook = start()
    notebook.begin("import time\nfor n in range(30): time.sleep(0.2)\nprint('through')")
    assert hibernate("--force") == 0
    time.sleep(2)
    # Nobody has asked for anything: whoever wakes it is another.
    assert not is_up()
    assert main(["start", INSTANCE]) == 0
    assert notebook.reply()["status"] == "ok"


def test_the_notebook_of_the_sleep(start: Start, notebooks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start().manager.shutdown_kernel(now=True)
    monkeypatch.setenv("LIMA_INSTANCE", INSTANCE)
    example = nbformat.read(EXAMPLE, as_version=4)
    NotebookClient(example, timeout=600, resources={"metadata": {"path": str(notebooks)}}).execute()
    said = [str(cell.get("outputs", "")) for cell in example.cells]
    statuses = [text for cell, text in zip(example.cells, said, strict=True) if cell.source == "%lima status"]
    assert ["Asleep" in statuses[0], "Running" in statuses[1]] == [True, True]
    assert "499999500000 True" in "".join(said)


def test_a_vm_that_nobody_uses_falls_asleep_with_its_kernels(start: Start) -> None:
    notebook = start(idle_timeout=3.0, on_idle="hibernate")
    notebook.run("import time; x = 'kept'; time.sleep(4)")
    # Not in the middle of a cell.
    assert is_up()
    until(lambda: not is_up() and state.is_asleep(INSTANCE), "the idle VM is awake")
    assert notebook.manager.is_alive()
    assert notebook.run("print(x)") == "kept"
    # What the next kernel says holds from then on.
    start().run("pass")


def parted() -> str:
    """Do as the process does that a Jupyter server leaves behind when it ends, and return what it says.

    That server has ended at once; then a minute passes.
    """
    program = f"from lima_kernels import parting; parting.LOOKS = 1; exit(parting.main({INSTANCE!r}, 'hibernate'))"
    argv = [sys.executable, "-c", program]
    return subprocess.run(
        argv, check=True, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=180
    ).stderr


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_vm_whose_server_has_ended_falls_asleep_when_nobody_uses_it(start: Start) -> None:
    notebook = start()
    notebook.run("x = 'kept'")
    assert "it is used by a kernel" in parted()
    notebook.manager.shutdown_kernel(now=True)
    guest_shell("setsid -f python3 -m http.server 8099 >/dev/null 2>&1")
    assert "it is used by what listens at port 8099" in parted()
    guest_shell("pkill -f '[h]ttp.server 8099'")
    assert parted() == ""
    assert state.is_asleep(INSTANCE)
    assert not is_up()
    assert start().run("print('awake')") == "awake"
