"""Kernels whose Jupyter server died: the next one that opens the same notebook with the same kernel spec gets them."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from jupyter_client import AsyncKernelManager, KernelManager

from lima_kernels import leases
from lima_kernels.kernelspec import make_request, write
from lima_kernels.runtime import runtime
from tests.child import Child, child
from tests.client import Notebook
from tests.fake_guest import FakeGuest

from .conftest import Machine, _end_the_guest
from .test_contract import run
from .test_kernel import lives, started, until
from .test_streams import can_be_interrupted

SESSION = "JPY_SESSION_NAME"
A, B = "/nb/a.ipynb", "/nb/b.ipynb"
PID = "import os; print(os.getpid())"
INSTANCE = "lima-kernels"
# The fake guest's asyncssh forgets a channel that is asked for while its connection is cut.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine 'SSHConnection.forward_unix_connection':RuntimeWarning")


@pytest.fixture(autouse=True)
def _ready(guest: FakeGuest, spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test here has a guest and the kernel spec, and belongs to no notebook unless it says so."""
    monkeypatch.delenv(SESSION, raising=False)


def own(machine: Machine, encryption: str = "disabled", transport: str = "ipc") -> None:
    """Be a server that has a kernel with a variable, and says which."""
    with started(machine, encryption=encryption, transport=transport) as notebook:
        notebook.run("x = 'of the dead'")
        print(notebook.run(PID), flush=True)
        sys.stdin.readline()


@contextmanager
def owner(machine: Machine, session: str = A, **how: str) -> Iterator[tuple[Child, int]]:
    with child(own, machine, *how.values(), env={SESSION: session} if session else {}) as server:
        yield server, int(server.line())


def orphan(machine: Machine, session: str = A, **how: str) -> int:
    """Leave a kernel behind as a server does that is killed; returns its process."""
    with owner(machine, session, **how) as (server, pid):
        server.kill()
    assert lives(pid)
    return pid


def left(machine: Machine) -> list[Path]:
    """The kernels' directories in the guest."""
    return sorted((machine.guest_home / ".lima-kernels").glob("*/k/*"))


def has_x(notebook: Notebook) -> bool:
    return notebook.run("print(globals().get('x'))") == "of the dead"


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_the_same_notebook_gets_its_kernel_back(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    pid = orphan(machine)
    monkeypatch.setenv(SESSION, A)
    with started(machine, transport=transport) as notebook:
        assert int(notebook.run(PID)) == pid
        assert has_x(notebook)
        assert f"The kernel of {A} that an earlier server left in the VM 'lima-kernels' goes on" in caplog.text
        # All channels are those of the connection file.
        assert can_be_interrupted(notebook)
        notebook.client.execute("print(input('what? '))", allow_stdin=True)
        assert notebook.client.get_stdin_msg(timeout=30)["content"]["prompt"] == "what? "
        notebook.client.input("this")
        assert notebook.reply()["status"] == "ok"
        file = json.loads(Path(notebook.manager.connection_file).read_text())
        assert file["key"].encode() == notebook.manager.session.key
        assert [record.session for record in leases.held(INSTANCE).values()] == [A]
        assert len(left(machine)) == 1
    assert not lives(pid)


def other_spec() -> None:
    write(make_request("other", "Other (Lima)", environment=None, instance=None, attach=False), user=True, prefix=None)


@pytest.mark.parametrize(
    ("was", "now", "kernel_spec"),
    [
        pytest.param(A, "", "lima", id="now without a notebook"),
        pytest.param("", A, "lima", id="then without a notebook"),
        pytest.param("", "", "lima", id="never with a notebook"),
        pytest.param(A, B, "lima", id="another notebook"),
        pytest.param(A, A, "other", id="another kernel spec"),
    ],
)
def test_nobody_else_gets_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, was: str, now: str, kernel_spec: str
) -> None:
    pid = orphan(machine, was)
    if now:
        monkeypatch.setenv(SESSION, now)
    other_spec()
    manager = KernelManager(kernel_name=kernel_spec)
    manager.start_kernel(cwd=str(machine.notebooks))
    notebook = Notebook(manager)
    try:
        assert int(notebook.run(PID)) != pid
        assert not has_x(notebook)
        assert lives(pid)
    finally:
        notebook.client.stop_channels()
        manager.shutdown_kernel(now=True)
    # It waits for its own notebook.
    assert lives(pid)
    assert len(left(machine)) == 1


def test_a_kernel_whose_owner_lives_is_nobody_elses(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SESSION, A)
    with owner(machine) as (server, pid), started(machine) as here, started(machine) as again:
        pids = {pid, int(here.run(PID)), int(again.run(PID))}
        assert len(pids) == 3
        assert not has_x(here)
        assert lives(pid)
        server.say("end")
        server.finish()
        assert not lives(pid)
        assert here.run("print(1)") == again.run("print(1)") == "1"


def test_an_owner_that_has_lost_its_connection_still_owns(
    machine: Machine, guest: FakeGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SESSION, A)
    with owner(machine) as (server, pid):
        # Nobody holds it in the guest for a moment; the lease on the host decides.
        assert guest.drop_connections() == 1
        with started(machine) as here:
            assert int(here.run(PID)) != pid
        server.say("end")
        server.finish()
    assert not lives(pid)


async def test_of_two_at_once_one_gets_it(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = orphan(machine)
    monkeypatch.setenv(SESSION, A)
    managers = [AsyncKernelManager(kernel_name="lima") for _ in range(2)]
    await asyncio.gather(*(manager.start_kernel(cwd=str(machine.notebooks)) for manager in managers))
    pids = [int(await run(manager, PID)) for manager in managers]
    assert len(set(pids)) == 2
    assert pid in pids
    await asyncio.gather(*(manager.shutdown_kernel(now=True) for manager in managers))
    assert not lives(pid)
    assert left(machine) == []


def test_of_two_servers_at_once_one_gets_it(machine: Machine) -> None:
    pid = orphan(machine)
    env = {SESSION: A}
    with child(own, machine, env=env) as one, child(own, machine, env=env) as two:
        pids = [int(one.line()), int(two.line())]
        assert len(set(pids)) == 2
        assert pid in pids


def test_of_several_the_newest_comes_first(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    with owner(machine) as (one, older), owner(machine) as (two, newer):
        one.kill()
        two.kill()
    monkeypatch.setenv(SESSION, A)
    with started(machine) as first, started(machine) as second, started(machine) as third:
        assert [int(first.run(PID)), int(second.run(PID))] == [newer, older]
        assert int(third.run(PID)) not in (older, newer)
    assert not lives(older)
    assert not lives(newer)


def test_a_restart_gives_a_fresh_kernel(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = orphan(machine)
    monkeypatch.setenv(SESSION, A)
    with started(machine) as notebook:
        assert has_x(notebook)
        notebook.manager.restart_kernel()
        notebook.client.wait_for_ready(timeout=60)
        assert not has_x(notebook)
        assert not lives(pid)
        assert len(left(machine)) == 1
        assert len(machine.calls("start")) == 1


def test_a_shutdown_removes_it(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = orphan(machine)
    monkeypatch.setenv(SESSION, A)
    with started(machine) as notebook:
        assert has_x(notebook)
        notebook.client.stop_channels()
        notebook.manager.shutdown_kernel()
        assert not lives(pid)
        assert left(machine) == []
        assert leases.held(INSTANCE) == {}
    with started(machine) as notebook:
        assert not has_x(notebook)


def test_it_is_adopted_again_and_again(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = orphan(machine)
    assert orphan(machine) == pid
    assert orphan(machine) == pid
    monkeypatch.setenv(SESSION, A)
    with started(machine) as notebook:
        assert int(notebook.run(PID)) == pid


def test_what_the_cell_printed_after_the_owners_death_does_not_come_to_another(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, done = machine.root / "go", machine.root / "done"
    with child(own_busy, machine, str(go), str(done), env={SESSION: A}) as server:
        server.line()
        server.kill()
    monkeypatch.setenv(SESSION, A)
    go.touch()
    until(done.exists)
    with started(machine) as notebook:
        assert notebook.run("print(y)") == "computed alone"


def own_busy(machine: Machine, go: str, done: str) -> None:
    with started(machine) as notebook:
        notebook.begin(
            f"import os, time\nwhile not os.path.exists({go!r}): time.sleep(0.01)\n"
            f"print('for the dead'); y = 'computed alone'; open({done!r}, 'w').close()"
        )
        print("running", flush=True)
        sys.stdin.readline()


@pytest.mark.parametrize(
    ("was", "now"), [("required", "disabled"), ("disabled", "required")], ids=["was encrypted", "was not encrypted"]
)
def test_encryption_must_be_the_same(machine: Machine, monkeypatch: pytest.MonkeyPatch, was: str, now: str) -> None:
    pid = orphan(machine, encryption=was)
    monkeypatch.setenv(SESSION, A)
    with started(machine, encryption=now) as notebook:
        assert not has_x(notebook)
        assert bool(notebook.manager.curve_publickey) == (now == "required")
        assert lives(pid)


def test_an_encrypted_kernel_is_adopted_with_its_keys(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = orphan(machine, encryption="required")
    monkeypatch.setenv(SESSION, A)
    with started(machine, encryption="required") as notebook:
        assert int(notebook.run(PID)) == pid
        assert has_x(notebook)
        [directory] = left(machine)
        keys = json.loads((directory / "connection.json").read_text())
        assert notebook.manager.curve_publickey is not None
        assert notebook.manager.curve_publickey.decode() == keys["curve_publickey"]


def test_one_that_cannot_be_adopted_does_not_hinder_a_new_one(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = orphan(machine)
    [directory] = left(machine)
    (directory / "connection.json").unlink()
    monkeypatch.setenv(SESSION, A)
    with started(machine) as notebook:
        assert not has_x(notebook)
        assert int(notebook.run(PID)) != pid
        # It is not ours: its time without an owner goes on.
        [other] = [entry for entry in kernels(notebook).values() if entry.pid == pid]
        assert not other.held


def kernels(notebook: Notebook) -> dict[str, Any]:
    """What the forkserver says of its kernels."""
    provisioner: Any = notebook.manager.provisioner
    return runtime().run_blocking(provisioner._session._guest.forkserver.list(), 30)


def test_orphans_live_for_as_long_as_their_spec_says(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    with child(own_shortly, machine, env={SESSION: A}) as server:
        pid = int(server.line())
        server.kill()
    # The test's own machine is the guest: the kernel's end is seen without asking, which would adopt it.
    until(lambda: not lives(pid))
    until(lambda: left(machine) == [])


def own_shortly(machine: Machine) -> None:
    with started(machine, orphan_timeout=0.2) as notebook:
        print(notebook.run(PID), flush=True)
        sys.stdin.readline()


def test_the_death_of_the_vm_takes_the_orphans(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = orphan(machine)
    [directory] = left(machine)
    # As after a restart of the guest: there is a record, but no process.
    _end_the_guest(machine)
    until(lambda: not lives(pid))
    assert directory.exists()
    monkeypatch.setenv(SESSION, A)
    with started(machine) as notebook:
        assert not has_x(notebook)
        assert not directory.exists()
