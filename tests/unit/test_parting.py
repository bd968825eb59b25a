"""What becomes of VMs when the Jupyter server that started them has ended."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import sys
from pathlib import Path

import pytest

from lima_kernels import parting
from lima_kernels.guest import sleeping
from lima_kernels.guest.forkserver import use as use_of_guest
from lima_kernels.hibernation import state
from lima_kernels.lima.limactl import Limactl
from lima_kernels.lima.models import Status
from lima_kernels.runtime import runtime
from lima_kernels.settings import OnIdle
from lima_kernels.vm import VM
from tests.child import child

from .conftest import Machine, configure
from .test_forkserver import Place, place, spawned  # noqa: F401
from .test_hibernate import NAME, Sleeper, hold_kernel, sleeper  # noqa: F401
from .test_idle import NOBODY
from .test_jupyter_server import opened, serve
from .test_kernel import started, until

# Nobody listens, nothing computes: this machine is no guest.
ALONE = f"{NOBODY}\nserver.use._TABLES = ()\nserver.use.has_terminals = lambda: False\nserver.use._LOAD = 1e9"
TABLE = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 {state} 00000000:00000000 00:00000000 00000000  1000        0 1 1 0 100 0 0 10 0
   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1 0 100 0 0 10 0
"""


def use(place: Place, statements: str) -> str:  # noqa: F811
    talk = place.serve(f"{ALONE}\n{statements}")
    return str(talk.ask("use")["ok"]["by"])


def test_nobody_uses_a_guest_where_nothing_happens(place: Place, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "tcp").write_text(TABLE.format(state="01"))
    assert use(place, f"server.use._TABLES = ({str(tmp_path / 'tcp')!r}, '/nonexistent')") == ""


def test_a_kernel_uses_it(place: Place) -> None:  # noqa: F811
    talk = place.serve(ALONE)
    spawned(talk, place.birth("a"))
    assert talk.ask("use")["ok"] == {"by": "a kernel"}
    talk.ask("remove", kernel="a")
    until(lambda: talk.ask("use")["ok"] == {"by": ""})


def test_a_terminal_uses_it(place: Place) -> None:  # noqa: F811
    assert use(place, "server.use.has_terminals = lambda: True") == "a terminal"


def test_what_listens_uses_it(place: Place, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "tcp").write_text(TABLE.format(state="0A"))
    assert use(place, f"server.use._TABLES = ({str(tmp_path / 'tcp')!r},)") == "what listens at port 8080"


def test_what_a_standby_listens_at_is_nobodys_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert port in use_of_guest._ports(())
        assert port not in use_of_guest._ports(set(use_of_guest._sockets(os.getpid())))
        # Another's sockets cannot be looked at, and nobody has that number.
        assert set(use_of_guest._sockets(1 << 30)) == set()


def test_what_computes_uses_it(place: Place) -> None:  # noqa: F811
    assert use(place, "server.use._LOAD = 0.0") == "programs that compute"


def part(on_idle: OnIdle) -> None:
    runtime().run_blocking(parting.part(runtime().vm(NAME), on_idle), 60)


def tell(monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    async def used_by(_forkserver: object) -> str:
        return by

    monkeypatch.setattr(sleeping, "used_by", used_by)


def test_an_unused_vm_is_put_to_sleep(sleeper: Sleeper, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    tell(monkeypatch, "")
    part(OnIdle.HIBERNATE)
    assert state.is_asleep(NAME)
    # Once is enough.
    part(OnIdle.HIBERNATE)
    assert sleeper.starts() == 1


def test_an_unused_vm_is_stopped_where_that_is_wanted(
    sleeper: Sleeper,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tell(monkeypatch, "")
    part(OnIdle.STOP)
    assert asyncio.run(Limactl().get(NAME)).status is Status.STOPPED
    assert not state.is_asleep(NAME)


def test_a_vm_that_somebody_uses_goes_on(
    sleeper: Sleeper,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tell(monkeypatch, "a terminal")
    part(OnIdle.HIBERNATE)
    assert not state.is_asleep(NAME)
    assert "goes on: it is used by a terminal" in caplog.text


class Begun:
    """What would part with VMs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[str, str]] = []
        monkeypatch.setattr(parting, "_begin", lambda *wanted: self.seen.append(wanted))


@pytest.mark.usefixtures("guest", "spec")
def test_only_what_was_started_here_is_parted_with(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = Begun(monkeypatch)
    configure(machine, on_idle="hibernate")
    with child(hold_kernel, machine) as other:
        assert other.line() == "ready"
        with started(machine):
            parting.leave_vms()
    assert begun.seen == []


@pytest.mark.usefixtures("guest", "spec")
@pytest.mark.parametrize(
    ("on_idle", "seen"), [("hibernate", [(NAME, "hibernate")]), ("stop", [(NAME, "stop")]), ("nothing", [])]
)
def test_what_was_started_here_is_parted_with_as_its_kernel_spec_says(
    machine: Machine,
    on_idle: str,
    seen: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun = Begun(monkeypatch)
    configure(machine, on_idle=on_idle)
    with started(machine):
        parting.leave_vms()
    assert begun.seen == seen


PROGRAM = """
import sys
sys.stdin.buffer.read()
with open({file!r}, "a") as file:
    print(*sys.argv[1:], file=file)
"""


def serve_and_part(machine: Machine) -> None:
    program = PROGRAM.format(file=str(machine.root / "parted"))
    parting.PROGRAM = (sys.executable, "-c", program)  # type: ignore[assignment]
    serve(machine, "ServerApp.jpserver_extensions=lima_kernels=True")


@pytest.mark.usefixtures("guest", "spec")
def test_a_server_that_ends_parts_with_what_it_started(
    machine: Machine,
) -> None:
    configure(machine, on_idle="hibernate")
    file = machine.root / "parted"
    with child(serve_and_part, machine) as server:
        opened(server)
        assert not file.exists()
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(60)
    until(lambda: file.exists() and file.read_text() == f"{NAME} hibernate\n", 60)


def wait_and_say(_machine: Machine) -> None:
    used = iter((True, False, False))

    async def part(vm: VM, on_idle: OnIdle) -> bool:
        is_used = next(used)
        print("used" if is_used else f"{vm.name} {on_idle.value}", flush=True)
        return not is_used

    parting.part = part
    parting.GRACE = 0.0
    print("waits", flush=True)
    parting.main(NAME, "stop")


def test_the_program_waits_for_its_servers_end(machine: Machine) -> None:
    with child(wait_and_say, machine) as waiting:
        assert waiting.line() == "waits"
        assert not select.select([waiting.process.stdout], [], [], 0.5)[0]
        assert waiting.process.stdin is not None
        waiting.process.stdin.close()
        # It looks again as long as somebody uses it, and no longer.
        assert waiting.line() == "used"
        assert waiting.line() == f"{NAME} stop"
        assert waiting.process.wait(30) == 0
