"""A guest's kernel with `%lima`, from its cell to this host and back, over a real connection."""

from __future__ import annotations

import pytest

from tests.client import CellError, Notebook
from tests.fake_guest import FakeGuest

from .conftest import Machine
from .test_kernel import started, until

pytestmark = pytest.mark.usefixtures("guest", "spec")
STATUS = "print([row['name'] for row in get_ipython().run_line_magic('lima', 'status')])"


def answered(notebook: Notebook) -> bool:
    """Tell whether the host answers the kernel: it listens soon after the kernel has started."""
    try:
        return notebook.run(STATUS) == "['lima-kernels']"
    except CellError:
        return False


def test_a_cell_runs_in_the_kernels_own_vm(machine: Machine) -> None:
    with started(machine) as notebook:
        said = notebook.outputs("%%lima\npwd; echo err >&2\n")
        assert said == {"stdout": f"{machine.notebooks}\n", "stderr": "err\n"}
        with pytest.raises(CellError, match="ended with exit code 3"):
            notebook.run("%%lima\nexit 3\n")
        notebook.run("%%lima --capture said\necho kept\n")
        assert notebook.run("print(said.stdout, said.code)") == "kept\n 0"


def test_a_kernel_asks_its_host(machine: Machine) -> None:
    with started(machine) as notebook:
        until(lambda: answered(notebook))
        with pytest.raises(CellError, match="may ask for nothing of 'theirs'"):
            notebook.run("%lima stop theirs")
        with pytest.raises(CellError, match="would end with it"):
            notebook.run("%lima stop")
        # No forged message without the key that this kernel alone has.
        assert "does not know who asks" in notebook.run(
            "import json, os, socket\n"
            "sock = socket.socket(socket.AF_UNIX); sock.connect(os.environ['LIMA_KERNELS_CONTROL'])\n"
            "sock.sendall(json.dumps({'version': 1, 'token': 'x', 'verb': 'status'}).encode() + b'\\n')\n"
            "print(sock.recv(4096)); sock.close()\n"
        )


def test_it_still_does_after_a_lost_connection_and_a_restart(machine: Machine, guest: FakeGuest) -> None:
    with started(machine) as notebook:
        until(lambda: answered(notebook))
        guest.drop_connections()
        until(lambda: answered(notebook))
        notebook.manager.restart_kernel(now=True)
        notebook.client.wait_for_ready(timeout=60)
        until(lambda: answered(notebook))


def test_a_socket_that_somebody_replaced_is_ours_again(machine: Machine, guest: FakeGuest) -> None:
    with started(machine) as notebook:
        until(lambda: answered(notebook))
        notebook.run("import os, socket; path = os.environ['LIMA_KERNELS_CONTROL']; os.unlink(path)")
        notebook.run("fake = socket.socket(socket.AF_UNIX); fake.bind(path); fake.close()")
        assert not answered(notebook)
        guest.drop_connections()
        until(lambda: answered(notebook))


def test_a_kernel_can_end_its_own_vm(machine: Machine) -> None:
    with started(machine) as notebook:
        until(lambda: answered(notebook))
        # No reply can come any more.
        notebook.client.execute("%lima stop --yes")
        until(lambda: len(machine.calls("stop")) == 1)


def test_where_control_is_off_cells_still_run(machine: Machine) -> None:
    with started(machine, control="off") as notebook:
        with pytest.raises(CellError, match="host could not be asked"):
            notebook.run("%lima status")
        assert notebook.run("%%lima\necho here\n") == "here"


def test_the_extension_can_be_loaded_again_by_hand(machine: Machine) -> None:
    with started(machine) as notebook:
        assert "No module" not in notebook.run("%load_ext lima_kernels")
        assert notebook.run("%%lima\necho here\n") == "here"
        assert notebook.run("import lima_kernels, sys; print([p for p in sys.path if 'kit' in p])") == "[]"


ATTACK = """
import os, socket
def connected():
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(os.environ["LIMA_KERNELS_CONTROL"])
    return sock
flood = connected()
sent = 0
try:
    for _ in range(160):
        sent += flood.send(b"x" * 65536)
except OSError as error:
    print(type(error).__name__)
flood.close()
many = [connected() for _ in range(200)]
for sock in many:
    sock.close()
"""


def test_a_guest_that_floods_its_host_is_cut_off_and_the_host_is_well(machine: Machine) -> None:
    with started(machine) as notebook:
        until(lambda: answered(notebook))
        assert notebook.run(ATTACK) in ("BrokenPipeError", "ConnectionResetError")
        until(lambda: answered(notebook))
