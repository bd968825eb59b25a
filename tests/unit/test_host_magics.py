"""`%lima` in a kernel of this host, over real connections to a guest."""

from __future__ import annotations

import asyncio
import http.server
import os
import shutil
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell

from lima_kernels import runtime
from lima_kernels.magics.backend import LimaError
from lima_kernels.magics.results import Table
from tests.fake_guest import FakeGuest

from .conftest import Machine
from .test_kernel import started, until

NAME = "lima-kernels"
MAIN = threading.main_thread().ident or 0


@pytest.fixture
def shell(machine: Machine, guest: FakeGuest, spec: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[InteractiveShell]:
    for name in ("LIMA_INSTANCE", "LIMA_SHELL", "LIMA_WORKDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("IPYTHONDIR", str(machine.root / "ipython"))
    monkeypatch.chdir(machine.notebooks)
    made = InteractiveShell.instance()
    made.run_line_magic("load_ext", "lima_kernels")
    yield made
    made.history_manager.end_session()
    InteractiveShell.clear_instance()


@pytest.fixture
def lima(shell: InteractiveShell) -> Any:
    """The magic, with a VM that runs."""

    def run(line: str) -> Any:
        return shell.run_line_magic("lima", line)

    assert run("start") == f"The VM {NAME} is ready."
    return run


def test_a_vm_is_made_looked_at_and_stopped(shell: InteractiveShell, machine: Machine) -> None:
    assert shell.run_line_magic("lima", "list") == []
    shell.run_line_magic("lima", "start")
    (status,) = shell.run_line_magic("lima", "status")
    assert (status["name"], status["status"], status["kernels"], status["memory"]) == (NAME, "Running", 0, "4 GiB")
    assert shell.run_line_magic("lima", "stop") == f"The VM {NAME} is stopped."
    assert shell.run_line_magic("lima", "stop") == f"The VM {NAME} is stopped already."
    assert shell.run_line_magic("lima", f"delete {NAME}") == f"The VM {NAME} is deleted."
    assert machine.instances() == []


def test_a_status_costs_no_subprocess(lima: Any, machine: Machine) -> None:
    before = len(machine.calls("list"))
    for _ in range(5):
        lima("status")
    assert len(machine.calls("list")) == before


def test_a_vm_in_use_is_not_stopped(lima: Any, machine: Machine) -> None:
    with started(machine):
        with pytest.raises(LimaError, match="is in use"):
            lima("stop")
        (kernel,) = lima("kernels")
        assert kernel["state"] in ("idle", "busy")
    assert machine.calls("stop") == []


@pytest.mark.parametrize("line", ["start nosuch", "status lima-kernel", "stop lima-kernel", "copy a lima-kernel:b"])
def test_an_unknown_instance_is_one_line_with_the_nearest(lima: Any, machine: Machine, line: str) -> None:
    (machine.notebooks / "a").touch()
    with pytest.raises(LimaError, match="There is no Lima instance") as caught:
        lima(line)
    assert caught.value.hint == ("" if "nosuch" in line else f"Did you mean {NAME!r}?")


def test_a_cell_runs_in_the_guest(
    lima: Any, shell: InteractiveShell, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.run_cell_magic("lima", "--env A='x y'", 'pwd; echo "$A" >&2\n')
    said = capsys.readouterr()
    assert (said.out, said.err) == (f"{machine.notebooks}\n", "x y\n")
    shell.run_cell_magic("lima", "--capture said --no-check", "exit 7")
    assert shell.user_ns["said"].code == 7


def test_100_mb_of_output_are_taken(lima: Any, shell: InteractiveShell, machine: Machine, monkeypatch: Any) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(machine.root))
    shell.run_cell_magic("lima", "", "head -c 100000000 /dev/zero")
    (file,) = machine.root.glob("lima-stdout-*.log")
    assert file.stat().st_size == 99_000_000


def test_an_interrupt_ends_the_script(lima: Any, shell: InteractiveShell, machine: Machine) -> None:
    begun = machine.notebooks / "begun"

    def interrupt() -> None:
        until(begun.exists)
        signal.pthread_kill(MAIN, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        shell.run_cell_magic("lima", "", "trap 'touch ended; exit' INT; touch begun; sleep 600 & wait\n")
    until((machine.notebooks / "ended").exists)
    shell.run_cell_magic("lima", "", "true")


def test_an_interrupt_ends_a_start(shell: InteractiveShell, machine: Machine) -> None:
    machine.tell(hang=["create"])

    def interrupt() -> None:
        until(lambda: bool(machine.calls("create")))
        signal.pthread_kill(MAIN, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        shell.run_line_magic("lima", "start")
    assert machine.instances() == []
    machine.tell(hang=[])
    shell.run_line_magic("lima", "start")


def test_files_are_copied_both_ways(lima: Any, machine: Machine) -> None:
    source = machine.notebooks / "a b"
    source.write_text("content")
    lima("copy 'a b' :sub")
    assert (machine.guest_home / "sub").read_text() == "content"
    lima(f"copy {NAME}:sub back")
    assert (machine.notebooks / "back").read_text() == "content"
    with pytest.raises(LimaError, match="exists"):
        lima("copy :sub back")
    (machine.guest_home / "sub").write_text("changed")
    lima("copy :sub back --force")
    assert (machine.notebooks / "back").read_text() == "changed"
    with pytest.raises(LimaError, match="One side of a copy is on this host"):
        lima("copy back other")


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"from the guest")

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    """A web server in the guest, which is this machine."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_a_guests_port_is_forwarded(lima: Any, guest: FakeGuest, port: int) -> None:
    assert port in [row["port"] for row in lima("ports")]
    said = str(lima(f"forward {port}"))
    url = next(word for word in said.replace(",", " ").split() if word.startswith("http"))
    assert fetched(url) == b"from the guest"
    guest.drop_connections()
    until(lambda: fetched(url) == b"from the guest")
    assert [row["on_this_host"] for row in lima("ports") if row["port"] == port] == [url.removeprefix("http://")]
    with pytest.raises(LimaError, match=r"is in use by .* \(pid \d+\)"):
        lima(f"forward {port}:{port}")
    assert "forwarded no longer" in lima(f"unforward {port}")
    with pytest.raises(LimaError, match="is not forwarded"):
        lima(f"unforward {port}")


def test_sockets_are_shared_both_ways(lima: Any, machine: Machine) -> None:
    for source, line in (
        (machine.guest_home / "in.sock", f"socket {machine.guest_home}/in.sock {machine.root}/run/mine/out.sock"),
        (machine.root / "here.sock", f"socket --reverse {machine.root}/here.sock {machine.guest_home}/there.sock"),
    ):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(source))
            listener.listen()
            words = str(lima(line)).split()
            (target,) = (word for word in words if word.endswith(("out.sock", "there.sock")))
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(target)
                client.sendall(b"hello")
                peer, _ = listener.accept()
                with peer:
                    assert peer.recv(100) == b"hello"


def fetched(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.read()
    except OSError:
        return b""


def test_directories_are_shown_and_listed(lima: Any, machine: Machine) -> None:
    rows = lima("mount")
    assert isinstance(rows, Table)
    assert [row["directory"] for row in rows] == [str(machine.notebooks)]
    with pytest.raises(LimaError, match=r"shows .* already"):
        lima(f"mount '{machine.notebooks}'")


def test_what_is_stopped_says_how_it_is_started(lima: Any, shell: InteractiveShell) -> None:
    lima("stop")
    for line in ("kernels", "ports", "copy :a b", "forward 80"):
        if line == "kernels":
            assert lima(line).title == f"The VM {NAME} is Stopped."
        else:
            with pytest.raises(LimaError, match=f"%lima start {NAME}"):
                lima(line)
    with pytest.raises(LimaError, match=f"%lima start {NAME}"):
        shell.run_cell_magic("lima", "", "true")


def test_doctor_and_env(lima: Any, machine: Machine) -> None:
    assert "limactl" in [row["check"] for row in lima("doctor")]
    with pytest.raises(LimaError, match="offers no socket or kubeconfig"):
        lima("env")
    config = machine.lima_home / NAME / "lima.yaml"
    text = config.read_text()
    config.write_text(text + "portForwards:\n- {guestSocket: /run/docker.sock, hostSocket: /h/sock/docker.sock}\n")
    try:
        assert lima("env") == [{"name": "DOCKER_HOST", "value": "unix:///h/sock/docker.sock"}]
        assert os.environ.pop("DOCKER_HOST") == "unix:///h/sock/docker.sock"
    finally:
        config.write_text(text)


def test_nothing_of_a_cell_is_left_in_the_io_thread(lima: Any, shell: InteractiveShell) -> None:
    shell.run_cell_magic("lima", "", "true")
    time.sleep(0.1)
    made = runtime._runtime
    assert made is not None
    names = [task.get_coro().__qualname__ for task in asyncio.all_tasks(made._loop)]
    assert not [name for name in names if "execute" in name or "_Run" in name]


def test_variables_go_to_a_guests_kernel_and_come_back(lima: Any, shell: InteractiveShell, machine: Machine) -> None:
    shell.user_ns["frame"] = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    shell.user_ns["array"] = np.arange(5)
    session = str(machine.notebooks / "analysis.ipynb")
    with started(machine, env={"JPY_SESSION_NAME": session}) as notebook:
        assert lima("push frame array --to analysis.ipynb") == "Copied frame, array to analysis.ipynb."
        notebook.run("frame['a'] += int(array.sum()); text = 'from the guest'")
        lima("pull frame text --from analysis.ipynb")
        assert list(shell.user_ns["frame"]["a"]) == [11, 12]
        assert shell.user_ns["text"] == "from the guest"
        with pytest.raises(LimaError, match="There is no variable 'nothing'"):
            lima("pull nothing --from analysis.ipynb")
        notebook.run("odd = {1, 2}")
        with pytest.raises(LimaError, match="pickle only"):
            lima("pull odd --from analysis.ipynb")
        lima("pull odd --from analysis.ipynb --pickle")
        assert shell.user_ns["odd"] == {1, 2}
        with pytest.raises(LimaError, match="one is meant"):
            lima("pull x --from other.ipynb")
        notebook.begin("import time; time.sleep(3)")
        with pytest.raises(LimaError, match=r"did not answer within 0\.5 s"):
            lima("pull text --from analysis.ipynb --timeout 0.5")
        notebook.reply()
    assert not list(machine.guest_home.glob(".lima-kernels/values-*"))


def test_variables_reach_a_kernel_behind_ports(lima: Any, shell: InteractiveShell, machine: Machine) -> None:
    shell.user_ns["x"] = [1, 2]
    with started(machine, transport="tcp") as notebook:
        (kernel,) = lima("kernels")
        with pytest.raises(LimaError, match="has no connection file in"):
            lima(f"push x --to {kernel['kernel'][:6]}")
        # Where a Jupyter server keeps it.
        (machine.root / "run").mkdir(exist_ok=True)
        shutil.copy(notebook.manager.connection_file, machine.root / "run" / "kernel-x.json")
        lima(f"push x --to {kernel['kernel'][:6]}")
        assert notebook.run("print(x)") == "[1, 2]"
