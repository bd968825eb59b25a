"""Panels in a kernel of this host, over the real watcher of its process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from nbclient import NotebookClient

import lima_kernels
from lima_kernels.magics.backend import LimaError
from lima_kernels.runtime import runtime
from lima_kernels.watch import shared
from lima_kernels.widget import panel
from tests.fake_guest import FakeGuest

from .conftest import Machine
from .front_end import TEXT, package_with_front_end

NAME = "lima-kernels"
EXAMPLE = Path(__file__).parents[2] / "notebooks" / "03-widgets.ipynb"
pytestmark = pytest.mark.usefixtures("guest", "spec")


@pytest.fixture
def shown(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Make panels in a notebook's directory, and close them at the end."""
    monkeypatch.chdir(machine.notebooks)
    (tmp_path / "panel.js").write_text(TEXT)
    monkeypatch.setattr(panel, "FRONT_END", tmp_path / "panel.js")
    made: list[panel.Panel] = []

    def make(*name: str, kind: str = "VMPanel") -> Any:
        made.append(getattr(lima_kernels, kind)(*name))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def stopped(machine: Machine) -> None:
    """A VM that is there, and stopped."""
    made_by_others(machine, "theirs")


def made_by_others(machine: Machine, name: str) -> None:
    (machine.lima_home / name).mkdir()
    (machine.lima_home / name / "lima.yaml").write_text("images: []\n")


async def until(made: Any, trait: str, wanted: Callable[[Any], bool]) -> None:
    """Wait until a trait is as wanted."""
    changed = asyncio.Event()

    def look(_change: object = None) -> None:
        if wanted(getattr(made, trait)):
            changed.set()

    made.observe(look, trait)
    try:
        look()
        await asyncio.wait_for(changed.wait(), 60)
    finally:
        made.unobserve(look, trait)


async def subscriptions() -> int:
    async def count() -> int:
        return len(shared.watcher()._subscriptions)

    return await runtime().run(count())


@pytest.mark.usefixtures("stopped")
async def test_a_vm_is_started_and_stopped_through_its_panel(shown: Any, machine: Machine) -> None:
    made = shown("theirs")
    assert (made.state, made.ours, made.cpus, made.connected) == ("stopped", False, 2, True)
    states, phases = [], []
    made.observe(lambda change: states.append(change["new"]), "state")
    made.observe(lambda change: phases.append(change["new"]), "phase")
    assert await made.start() == "The VM theirs is ready."
    assert made.state == "running"
    assert states[0] == "starting"
    assert any("booting" in phase for phase in phases)
    assert await made.stop() == "The VM theirs is stopped."
    assert made.state == "stopped"
    assert [call[1] for call in machine.calls("stop")] == ["theirs"]


@pytest.mark.usefixtures("stopped")
async def test_what_cannot_be_is_one_line(shown: Any) -> None:
    made = shown("theirs")
    with pytest.raises(LimaError, match="expected a size such as 4GiB, got 'much' at --memory"):
        await made.edit(memory="much")
    with pytest.raises(LimaError, match=r"There is no Lima instance 'their'\. Did you mean 'theirs'\?"):
        shown("their")
    assert await subscriptions() == 1


@pytest.mark.usefixtures("stopped")
async def test_a_vm_is_edited_and_deleted(shown: Any) -> None:
    made, everything = shown("theirs"), shown(kind="VMList")
    await made.edit(cpus=3)
    await until(made, "cpus", (3).__eq__)
    with pytest.raises(LimaError, match="theirs"):
        await made.delete()
    await made.delete(force=True)
    assert made.state == "gone"
    await until(everything, "vms", ([]).__eq__)
    assert made.vms[0]["cpus"] == 3


async def test_a_vm_that_somebody_makes_appears(shown: Any, machine: Machine) -> None:
    everything = shown(kind="VMList")
    assert everything.vms == []
    made_by_others(machine, "new")
    await until(everything, "vms", lambda vms: [vm["name"] for vm in vms] == ["new"])


@pytest.mark.usefixtures("stopped")
async def test_panels_of_one_vm_share_a_subscription_and_the_last_ends_it(shown: Any) -> None:
    first, second, everything = shown("theirs"), shown("theirs"), shown(kind="VMList")
    assert await subscriptions() == 2
    first.close()
    everything.close()
    await gone(1)
    second.close()
    await gone(0)

    async def census() -> object:
        return shared.watcher()._census

    assert await runtime().run(census()) is None
    assert shown("theirs").state == "stopped"


async def gone(count: int) -> None:
    async with asyncio.timeout(30):
        while await subscriptions() != count:
            await asyncio.sleep(0.02)


async def test_usage_comes_while_the_panel_is_seen(shown: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = shown(kind="VMList")
    click(everything, "create", NAME, name=NAME, template="debian-13", start=True)
    await until(everything, "jobs", lambda jobs: [job["state"] for job in jobs] == ["done"])
    made = shown(NAME)
    await until(made, "state", "running".__eq__)
    sent: list[Any] = []
    monkeypatch.setattr(made, "send", sent.append)
    assert made.cpu_used is None
    made._heard(made, {"type": "visible", "names": [NAME]}, [])
    await until(made, "cpu_used", lambda cpu: cpu is not None)
    made._heard(made, {"type": "visible", "names": []}, [])
    assert {"here", "usage"} <= {message["type"] for message in sent}


def click(made: Any, verb: str, vm: str, **arguments: Any) -> None:
    made._heard(made, {"type": "act", "vm": vm, "verb": verb, "arguments": arguments}, [])


@pytest.mark.usefixtures("stopped")
async def test_a_log_is_followed(shown: Any, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    made = shown("theirs")
    lines: asyncio.Queue[str] = asyncio.Queue()
    monkeypatch.setattr(made, "send", lambda message: [lines.put_nowait(line) for line in message.get("lines", ())])
    made._heard(made, {"type": "follow", "name": "theirs"}, [])
    log = machine.lima_home / "theirs" / "ha.stderr.log"
    log.write_text('{"level":"info","msg":"a line","time":"2026-11-21T14:48:47Z"}\n')
    assert "a line" in await asyncio.wait_for(lines.get(), 60)


@pytest.mark.usefixtures("stopped")
async def test_an_interrupted_cell_cancels_what_it_waits_for(shown: Any, machine: Machine) -> None:
    machine.tell(hang=["ready"])
    made = shown("theirs")
    waiting = made.start()
    await until(made, "state", "starting".__eq__)
    waiting.cancel()
    await until(made, "jobs", lambda jobs: [job["state"] for job in jobs] == ["cancelled"])
    await until(made, "state", "stopped".__eq__)


@pytest.mark.usefixtures("stopped")
async def test_a_loop_that_is_blocked_stops_nobody_else(shown: Any, machine: Machine) -> None:
    made = shown("theirs")
    click(made, "start", "theirs")
    # The loop does not run, and the VM is started all the same.
    while not machine.calls("start"):
        assert made.state == "stopped"
    await until(made, "state", "running".__eq__)


# In a notebook


@pytest.fixture
def shell(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Iterator[InteractiveShell]:
    for name in ("LIMA_INSTANCE", "LIMA_SHELL", "LIMA_WORKDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("IPYTHONDIR", str(machine.root / "ipython"))
    made = InteractiveShell.instance()
    yield made
    made.history_manager.end_session()
    InteractiveShell.clear_instance()


async def test_the_notebook_of_panels_does_what_it_says(
    shown: Any, shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    for cell in nbformat.read(EXAMPLE, as_version=4).cells:
        if cell.cell_type == "code":
            done = await shell.run_cell_async(cell.source, transformed_cell=shell.transform_cell(cell.source))
            done.raise_error()
    assert "got 'much' at --memory" in capsys.readouterr().out
    shell.user_ns["panel"].close()
    await gone(0)


CELLS = (
    "from lima_kernels import VMList, VMPanel\npanel = VMPanel('theirs')\npanel",
    "seen = []\npanel.observe(lambda change: seen.append(change['new']), 'cpus')\nawait panel.edit(cpus=3)",
    "import asyncio\nwhile panel.cpus != 3:\n    await asyncio.sleep(0.02)\nprint(seen, panel.state)",
    "VMList()",
    "await panel.edit(disk='1GiB')",
    "VMPanel('thers')",
)


@pytest.mark.usefixtures("stopped")
def test_a_saved_notebook_shows_the_last_state(
    machine: Machine, guest: FakeGuest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(package_with_front_end(tmp_path).parent))
    monkeypatch.setenv("IPYTHONDIR", str(machine.root / "ipython"))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=100,
        allow_errors=True,
        resources={"metadata": {"path": str(machine.notebooks)}},
    )
    client.execute()
    outputs = [cell.outputs for cell in notebook.cells]
    view = outputs[0][0]["data"]["application/vnd.jupyter.widget-view+json"]
    assert "3 CPUs" in outputs[1][0]["data"]["text/plain"]
    assert outputs[2][0]["text"] == "[3] stopped\n"
    assert "cannot shrink to 1 GiB. A disk can only grow." in outputs[4][0]["traceback"][0]
    assert outputs[5][0]["traceback"] == ["LimaError: There is no Lima instance 'thers'. Did you mean 'theirs'?"]
    saved = notebook.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    state = saved[view["model_id"]]["state"]
    assert [(vm["name"], vm["state"], vm["cpus"]) for vm in state["vms"]] == [("theirs", "stopped", 3)]
    assert (state["only"], state["_esm"]) == ("theirs", TEXT)
    # Two panels, and not the one that could not be.
    assert sum("vms" in other["state"] for other in saved.values()) == 2
