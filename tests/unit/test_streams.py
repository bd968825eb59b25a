"""Channels across lost connections: no byte is lost or doubled, and neither end of a ZMQ connection notices."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import queue
import random
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq
from jupyter_client import BlockingKernelClient

from lima_kernels.session import LOST_OUTPUT, Session
from tests.client import Notebook
from tests.fake_guest import FakeGuest

from .conftest import Machine
from .test_kernel import lives, started, until

LIMIT = 30.0
BOTH = pytest.mark.parametrize("transport", ["ipc", "tcp"])
# The fake guest's asyncssh forgets a channel that is asked for while its connection is cut.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine 'SSHConnection.forward_unix_connection':RuntimeWarning")
NOTE = f"[lima-kernels] {LOST_OUTPUT}\n"


@pytest.fixture(autouse=True)
def _ready(guest: FakeGuest, spec: str) -> Iterator[None]:
    """Every test here has a guest and the kernel spec."""
    yield

    async def close_all() -> None:
        for transport in list(guest._loop._transports.values()):  # type: ignore[attr-defined]
            transport.abort()

    # An sshd that is cut off ends with what it has open; the fake guest's asyncssh leaves what it was just opening.
    guest._do(close_all())


@contextmanager
def cut_off(guest: FakeGuest) -> Iterator[None]:
    """Nobody reaches the guest while the block runs."""
    guest.stop_listening()
    guest.drop_connections()
    try:
        yield
    finally:
        guest.listen()


def session_of(notebook: Notebook) -> Session:
    provisioner: Any = notebook.manager.provisioner
    found: Session = provisioner._session
    return found


def forkserver_of(notebook: Notebook) -> psutil.Process:
    pid = int(notebook.run("import os; print(os.getppid())"))
    process = psutil.Process(pid)
    assert "--root" in process.cmdline()
    return process


def can_be_interrupted(notebook: Notebook) -> bool:
    return bool(notebook.interrupted()["ename"] == "KeyboardInterrupt")


class Seen:
    """What came of a cell: its texts by stream, and how often its end and its reply came."""

    def __init__(self, client: BlockingKernelClient, request: str) -> None:
        self.texts = {"stdout": "", "stderr": ""}
        self.ends = 0
        self.replies: list[dict[str, Any]] = []
        while not self.ends:
            message = client.get_iopub_msg(timeout=LIMIT)
            if message["parent_header"].get("msg_id") != request:
                continue
            if message["msg_type"] == "stream":
                self.texts[message["content"]["name"]] += message["content"]["text"]
            elif message["msg_type"] == "status":
                self.ends += message["content"]["execution_state"] == "idle"
        while not self.replies:
            message = client.get_shell_msg(timeout=LIMIT)
            if message["parent_header"].get("msg_id") == request:
                self.replies.append(message["content"])
        assert self.replies[0]["status"] == "ok"


def quiet(client: BlockingKernelClient) -> bool:
    """Tell whether nothing more comes: what was doubled would have come with the answer to another request."""
    request = client.kernel_info()
    messages = []
    while not any(message["msg_type"] == "kernel_info_reply" for message in messages):
        messages.append(client.get_shell_msg(timeout=LIMIT))
    ours = [message for message in messages if message["parent_header"].get("msg_id") == request]
    return len(messages) == len(ours) == 1


def waiting_cell(machine: Machine, code: str) -> tuple[str, Path, Path]:
    """Return a cell that waits for a file before its code, and makes another after it."""
    go, done = machine.root / "go", machine.root / "done"
    text = (
        f"import os, sys, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\n{code}\n"
        f"sys.stdout.flush(); open({str(done)!r}, 'w').close()"
    )
    return text, go, done


# Cut while something is under way


@BOTH
def test_output_and_reply_of_the_time_without_connection_arrive_once(
    machine: Machine, guest: FakeGuest, transport: str
) -> None:
    with started(machine, transport=transport) as notebook:
        cell, go, done = waiting_cell(
            machine, "for number in range(200):\n    print('line', number, flush=True)\ny = 'computed'"
        )
        request = notebook.client.execute(cell)
        until(lambda: notebook.client.get_iopub_msg(timeout=LIMIT)["msg_type"] == "execute_input")
        with cut_off(guest):
            go.touch()
            until(done.exists)
            assert notebook.manager.is_alive()
        seen = Seen(notebook.client, request)
        assert seen.texts["stdout"] == "".join(f"line {number}\n" for number in range(200))
        assert seen.texts["stderr"] == ""
        assert quiet(notebook.client)
        # Nothing was lost, so nothing is said.
        assert notebook.outputs("print(y)") == {"stdout": "computed\n"}


@BOTH
def test_a_request_of_the_time_without_connection_is_executed_once(
    machine: Machine, guest: FakeGuest, transport: str
) -> None:
    file = machine.root / "executed"
    with started(machine, transport=transport) as notebook:
        notebook.run("import time")
        with cut_off(guest):
            requests = [
                notebook.client.execute(f"with open({str(file)!r}, 'a') as file: _ = file.write('{number} ')")
                for number in range(20)
            ]
            assert not file.exists()
        for request in requests:
            Seen(notebook.client, request)
        assert file.read_text() == "".join(f"{number} " for number in range(20))
        assert quiet(notebook.client)


def test_an_answer_to_a_prompt_goes_in_and_a_prompt_comes_out(machine: Machine, guest: FakeGuest) -> None:
    with started(machine) as notebook:
        cell, go, _ = waiting_cell(machine, "print(input('first? '), input('second? '))")
        request = notebook.client.execute(cell, allow_stdin=True)
        with cut_off(guest):
            # The prompt itself is made in the time without connection.
            go.touch()
            with pytest.raises(queue.Empty):
                notebook.client.get_stdin_msg(timeout=0.3)
        assert notebook.client.get_stdin_msg(timeout=LIMIT)["content"]["prompt"] == "first? "
        with cut_off(guest):
            notebook.client.input("one")
        assert notebook.client.get_stdin_msg(timeout=LIMIT)["content"]["prompt"] == "second? "
        notebook.client.input("two")
        assert Seen(notebook.client, request).texts["stdout"] == "one two\n"


def test_much_output_arrives_whole_and_in_order_however_often_it_is_cut(machine: Machine, guest: FakeGuest) -> None:
    count, width = 500, 100_000
    with started(machine) as notebook:
        request = notebook.client.execute(
            f"for number in range({count}):\n    print(f'{{number:08}}' + 'x' * {width - 9}, flush=True)"
        )
        got = hashlib.sha256()
        size = cuts = ends = 0
        while not ends:
            message = notebook.client.get_iopub_msg(timeout=LIMIT)
            assert message["parent_header"].get("msg_id") == request
            # A note on stderr may say that some could have been lost: the cell is quicker than a connection is made.
            if message["msg_type"] == "stream" and message["content"]["name"] == "stdout":
                data = message["content"]["text"].encode()
                got.update(data)
                size += len(data)
            elif message["msg_type"] == "status":
                ends += message["content"]["execution_state"] == "idle"
            if cuts < 5 and size > (cuts + 1) * count * width / 7:
                cuts += guest.drop_connections()
        expected = hashlib.sha256()
        for number in range(count):
            expected.update(f"{number:08}".encode() + b"x" * (width - 9) + b"\n")
        assert (size, cuts) == (count * width, 5)
        assert got.hexdigest() == expected.hexdigest()
        assert notebook.outputs("print(1)")["stdout"] == "1\n"


def test_whatever_is_echoed_across_many_cuts_comes_back_once_and_in_order(machine: Machine, guest: FakeGuest) -> None:
    chance = random.Random(1)
    with started(machine) as notebook, zmq.Context() as context, context.socket(zmq.DEALER) as echo:
        echo.linger = 0
        echo.rcvtimeo = int(LIMIT * 1000)
        echo.connect(notebook.client._make_url("hb"))
        sent: list[bytes] = []
        got: list[bytes] = []
        for turn in range(200):
            sent.append(turn.to_bytes(4, "big") + chance.randbytes(chance.choice((1, 100, 10_000, 300_000))))
            echo.send(sent[-1])
            if turn % 20 == 10:
                guest.drop_connections()
            while len(sent) - len(got) > 30:
                got.append(echo.recv())
        while len(got) < len(sent):
            got.append(echo.recv())
        assert got == sent
        assert echo.poll(0) == 0


def test_a_connection_that_only_stalls_loses_nothing(machine: Machine, guest: FakeGuest) -> None:
    """As a network does that is silent for a while before it is known to be lost."""
    with started(machine) as notebook:
        cell, go, done = waiting_cell(
            machine, "for number in range(300):\n    print(f'{number:04}' + 'x' * 9995, flush=True)"
        )
        request = notebook.client.execute(cell)
        until(lambda: notebook.client.get_iopub_msg(timeout=LIMIT)["msg_type"] == "execute_input")
        moving = threading.Event()
        guest._loop.call_soon_threadsafe(moving.wait, LIMIT)
        go.touch()
        until(done.exists)
        moving.set()
        guest.drop_connections()
        seen = Seen(notebook.client, request)
        assert seen.texts["stdout"] == "".join(f"{number:04}{'x' * 9995}\n" for number in range(300))
        assert notebook.outputs("print(1)") == {"stdout": "1\n"}


# The forkserver's end


def heard(notebook: Notebook) -> None:
    """Wait until the client hears the kernel's iopub again, also while a cell runs."""
    client = notebook.client

    def answered() -> bool:
        client.control_channel.send(client.session.msg("kernel_info_request", {}))
        try:
            while client.get_iopub_msg(timeout=0.5)["parent_header"].get("msg_type") != "kernel_info_request":
                pass
        except queue.Empty:
            return False
        return True

    until(answered, LIMIT)


def reached_again(caplog: pytest.LogCaptureFixture) -> bool:
    return any("is reached again" in record.getMessage() for record in caplog.records)


def test_a_killed_forkserver_costs_no_kernel_and_a_note_says_what_it_did_cost(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    with started(machine) as notebook:
        notebook.run("x = 'kept'")
        forkserver = forkserver_of(notebook)
        pid = int(notebook.run("print(os.getpid())"))
        forkserver.kill()

        def back() -> bool:
            assert notebook.manager.is_alive()
            return reached_again(caplog)

        until(back, LIMIT)
        heard(notebook)
        assert lives(pid)
        assert notebook.outputs("print(x)") == {"stdout": "kept\n", "stderr": NOTE}
        assert notebook.outputs("print(x)") == {"stdout": "kept\n"}
        # It is in the hands of the new one as it was in those of the old one.
        assert can_be_interrupted(notebook)
        notebook.client.stop_channels()
        notebook.manager.shutdown_kernel(now=True)
        assert not lives(pid)


def test_the_cell_that_runs_when_the_forkserver_is_killed_shows_the_note(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    with started(machine) as notebook:
        forkserver = forkserver_of(notebook)
        cell, go, _ = waiting_cell(machine, "print('result')")
        request = notebook.client.execute(cell)
        until(lambda: notebook.client.get_iopub_msg(timeout=LIMIT)["msg_type"] == "execute_input")
        forkserver.kill()
        until(lambda: reached_again(caplog), LIMIT)
        heard(notebook)
        go.touch()
        seen = Seen.__new__(Seen)
        seen.texts, seen.ends, seen.replies = {"stdout": "", "stderr": ""}, 0, []
        while not seen.ends:
            message = notebook.client.get_iopub_msg(timeout=LIMIT)
            if message["parent_header"].get("msg_id") == request:
                if message["msg_type"] == "stream":
                    seen.texts[message["content"]["name"]] += message["content"]["text"]
                seen.ends += message["content"].get("execution_state") == "idle"
        assert seen.texts == {"stdout": "result\n", "stderr": NOTE}
        assert notebook.outputs("print(1)") == {"stdout": "1\n"}


def test_a_kernel_that_dies_with_the_forkserver_is_known_to_be_dead(machine: Machine) -> None:
    with started(machine) as notebook:
        forkserver = forkserver_of(notebook)
        pid = int(notebook.run("print(os.getpid())"))
        forkserver.suspend()
        os.kill(pid, signal.SIGKILL)
        forkserver.kill()
        until(lambda: not notebook.manager.is_alive(), LIMIT)
        exit_ = session_of(notebook).exit
        assert exit_ is not None
        assert exit_.code == -signal.SIGKILL


def test_output_that_had_to_wait_for_too_long_is_owned_up_to(
    machine: Machine, guest: FakeGuest, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with started(machine) as notebook:
        # More than the guest keeps: the kernel's socket was full, and may have thrown some away.
        cell, go, done = waiting_cell(
            machine, "for number in range(300):\n    print('x' * 100_000, flush=True)\ntime.sleep(0.5)"
        )
        request = notebook.client.execute(cell)
        until(lambda: notebook.client.get_iopub_msg(timeout=LIMIT)["msg_type"] == "execute_input")
        with cut_off(guest):
            go.touch()
            until(done.exists)
        until(lambda: reached_again(caplog), LIMIT)
        until(lambda: any(LOST_OUTPUT in record.getMessage() for record in caplog.records))
        seen = Seen(notebook.client, request)
        later = notebook.outputs("print(1)")
        assert (seen.texts["stderr"] + later.get("stderr", "")) == NOTE
        assert "stderr" not in notebook.outputs("print(1)")


# Clients that come and go


def another(notebook: Notebook) -> BlockingKernelClient:
    """Return a client with a session of its own: of those that share a manager's, the kernel serves the last one."""
    client = BlockingKernelClient(context=notebook.manager.context)
    client.load_connection_info(notebook.manager.get_connection_info())
    return client


def test_a_client_that_comes_while_the_guest_cannot_be_reached_is_served_later(
    machine: Machine, guest: FakeGuest
) -> None:
    with started(machine) as notebook:
        notebook.run("x = 1")
        other = another(notebook)
        try:
            with cut_off(guest):
                other.start_channels()
                request = other.execute("print(x)")
                with pytest.raises(queue.Empty):
                    other.get_shell_msg(timeout=0.2)
            reply = other.get_shell_msg(timeout=LIMIT)
            assert (reply["parent_header"]["msg_id"], reply["content"]["status"]) == (request, "ok")
            other.wait_for_ready(timeout=LIMIT)
        finally:
            other.stop_channels()
        assert notebook.run("print(x)") == "1"


def addresses(notebook: Notebook) -> list[tuple[int, Any]]:
    address = session_of(notebook).address
    assert address is not None
    if address.transport.value == "tcp":
        return [(socket.AF_INET, ("127.0.0.1", port)) for port in address.ports.values()]
    return [(socket.AF_UNIX, f"{address.ip}-{port}") for port in address.ports.values()]


def streams(notebook: Notebook) -> int:
    return len(session_of(notebook)._forwards._streams)


@BOTH
def test_clients_that_come_and_go_leave_nothing(machine: Machine, guest: FakeGuest, transport: str) -> None:
    with started(machine, transport=transport) as notebook:
        forkserver = forkserver_of(notebook)
        before, fds = streams(notebook), forkserver.num_fds()
        for turn in range(20):
            for family, address in addresses(notebook):
                with socket.socket(family) as sock:
                    sock.connect(address)
                    if turn % 3:
                        # Served already, with the kernel's greeting.
                        sock.recv(10 if turn % 3 == 1 else 64)
        other = another(notebook)
        other.start_channels()
        other.wait_for_ready(timeout=LIMIT)
        other.stop_channels()
        until(lambda: streams(notebook) == before, LIMIT)
        until(lambda: forkserver.num_fds() == fds, LIMIT)
        assert notebook.run("print(1)") == "1"


def test_clients_that_leave_while_the_guest_cannot_be_reached_leave_nothing(machine: Machine, guest: FakeGuest) -> None:
    with started(machine) as notebook:
        forkserver = forkserver_of(notebook)
        before, fds = streams(notebook), forkserver.num_fds()
        known = another(notebook)
        known.start_channels()
        known.wait_for_ready(timeout=LIMIT)
        with cut_off(guest):
            known.stop_channels()
            with contextlib.ExitStack() as unknown:
                for family, address in addresses(notebook):
                    sock = unknown.enter_context(socket.socket(family))
                    sock.connect(address)
                    sock.sendall(b"never heard")
                until(lambda: streams(notebook) >= before + 5)
        until(lambda: streams(notebook) == before, LIMIT)
        until(lambda: forkserver.num_fds() == fds, LIMIT)


def test_a_client_that_leaves_in_the_midst_of_much_output_leaves_nothing(machine: Machine, guest: FakeGuest) -> None:
    with started(machine) as notebook:
        forkserver = forkserver_of(notebook)
        before, fds = streams(notebook), forkserver.num_fds()
        stop = machine.root / "stop"
        request = notebook.client.execute(
            f"while not os.path.exists({str(stop)!r}):\n    print('x' * 100_000, flush=True)"
        )
        for _ in range(3):
            other = another(notebook)
            other.start_channels()
            got = 0
            while got < 1_000_000:
                message = other.get_iopub_msg(timeout=LIMIT)
                got += len(message["content"].get("text", ""))
                notebook.client.get_iopub_msg(timeout=LIMIT)
            other.stop_channels()
        stop.touch()
        # Its end on iopub may be lost: ZMQ itself does not keep that much for a client that is slow.
        while notebook.client.get_shell_msg(timeout=LIMIT)["parent_header"]["msg_id"] != request:
            pass
        until(lambda: streams(notebook) == before, LIMIT)
        until(lambda: forkserver.num_fds() == fds, LIMIT)
