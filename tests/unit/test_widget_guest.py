"""Panels in a guest's kernel: from its cells to this host and back, over a real connection."""

from __future__ import annotations

import base64
import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import lima_kernels
from lima_kernels.guest import startup
from tests.client import CellError, Notebook
from tests.fake_guest import FakeGuest

from .conftest import Machine
from .front_end import TEXT, package_with_front_end
from .test_kernel import started, until

pytestmark = pytest.mark.usefixtures("guest", "spec")
NAME = "lima-kernels"
PANEL = "import lima_kernels\npanel = lima_kernels.VMPanel()\nprint(panel.only, panel.state, panel.connected)"
# Waits in the kernel's own loop, in which alone a panel changes.
UNTIL = """
import asyncio
async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)
"""


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What goes to a guest, with a front end in it; returns our package's copy."""
    ours = package_with_front_end(tmp_path)
    monkeypatch.setattr(startup, "files", lambda _name: ours)
    startup.program.cache_clear()
    yield ours
    startup.program.cache_clear()


@pytest.fixture
def notebook(machine: Machine, bundle: Path) -> Iterator[Notebook]:
    with started(machine) as made:
        made.run(UNTIL)
        yield made


def wait_for_comm(notebook: Notebook, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Return the first message of a panel to its front end that is as wanted."""
    while True:
        message = notebook.client.get_iopub_msg(timeout=60)
        if message["msg_type"] == "comm_msg" and wanted(message["content"]["data"]):
            return message["content"]["data"]


def test_a_panel_shows_the_vm_that_its_kernel_lives_in(notebook: Notebook) -> None:
    assert notebook.run("import sys; print('anywidget' in sys.modules, 'lima_kernels.magics' in sys.modules)") == (
        "False True"
    )
    assert notebook.run(PANEL) == f"{NAME} running True"
    assert notebook.run("from lima_kernels import VMList\nprint([vm['name'] for vm in VMList().vms])") == f"['{NAME}']"
    press(notebook, {"type": "visible", "names": None})
    notebook.run("await until(lambda: panel.kernels and panel.memory_used)")
    assert notebook.run("print(panel.get_state()['_esm'])") == TEXT.strip()
    assert notebook.run("import sys; print([path for path in sys.path if 'kit' in path])") == "[]"


def test_of_other_vms_it_learns_nothing(machine: Machine, notebook: Notebook) -> None:
    (machine.lima_home / "theirs").mkdir()
    (machine.lima_home / "theirs" / "lima.yaml").write_text("images: []\n")
    assert notebook.run(PANEL) == f"{NAME} running True"
    assert notebook.run("print([vm['name'] for vm in lima_kernels.VMList().vms])") == f"['{NAME}']"
    with pytest.raises(CellError, match="may ask for nothing of 'theirs'"):
        notebook.run("lima_kernels.VMPanel('theirs')")


def test_what_it_may_not_is_one_line(machine: Machine, notebook: Notebook) -> None:
    notebook.run(PANEL)
    with pytest.raises(CellError, match="may not ask for 'edit'"):
        notebook.run("await panel.edit(cpus=64)")
    with pytest.raises(CellError, match="may not ask for 'delete'"):
        notebook.run("await panel.delete(force=True)")
    with pytest.raises(
        CellError, match=r"would end with it.* If it shall: %lima stop --yes, or in a panel stop\(yes=True\)"
    ):
        notebook.run("await panel.stop()")
    assert notebook.run("print(await panel.start())") == f"The VM {NAME} is ready."
    assert machine.calls("stop") == []


def test_a_button_is_pressed(notebook: Notebook) -> None:
    notebook.run(PANEL)
    press(notebook, {"type": "visible", "names": [NAME]})
    assert wait_for_comm(notebook, lambda data: data.get("content") == {"type": "here"})
    wait_for_comm(notebook, lambda data: (data.get("content") or {}).get("type") == "usage")
    press(notebook, {"type": "act", "vm": NAME, "verb": "edit", "arguments": {"cpus": 64}})
    said = wait_for_comm(notebook, lambda data: (data.get("content") or {}).get("type") == "refused")
    assert said["content"]["message"] == "A kernel in a VM may not ask for 'edit'."


def press(notebook: Notebook, content: dict[str, Any]) -> None:
    """Say something as the panel's front end does."""
    client = notebook.client
    comm = notebook.run("print(panel.comm.comm_id)")
    data = {"method": "custom", "content": content}
    client.shell_channel.send(client.session.msg("comm_msg", {"comm_id": comm, "data": data}))


def test_the_vms_end_is_said_before_it_comes(machine: Machine, notebook: Notebook) -> None:
    notebook.run(PANEL)
    # No reply can come any more.
    notebook.client.execute("panel.stop(yes=True)")
    said = wait_for_comm(notebook, lambda data: data.get("state", {}).get("notice"))
    assert said["state"]["notice"] == f"The VM {NAME} stops, and with it the kernel of this panel."
    until(lambda: len(machine.calls("stop")) == 1)


def test_a_host_that_is_away_is_said_and_comes_back(notebook: Notebook, guest: FakeGuest) -> None:
    notebook.run(PANEL)
    notebook.run("notices = []\npanel.observe(lambda change: notices.append(change['new']), 'notice')")
    guest.drop_connections()
    notebook.run("await until(lambda: notices and panel.connected)")
    assert "host hung up" in notebook.run("print(notices[0], [panel.notice])")
    assert notebook.run("print(panel.state, repr(panel.notice))") == "running ''"


def test_panels_share_one_conversation_and_the_last_ends_it(notebook: Notebook) -> None:
    notebook.run(PANEL)
    notebook.run("import threading\nthreads = lambda: [t for t in threading.enumerate() if t.name == 'lima-panel']")
    notebook.run("other = lima_kernels.VMPanel(panel.only)")
    assert notebook.run("print(len(threads()))") == "1"
    notebook.run("panel.close()\nother.close()\nawait until(lambda: not threads())")
    assert notebook.run(PANEL) == f"{NAME} running True"


def test_where_control_is_off_a_panel_says_why_it_shows_nothing(machine: Machine, bundle: Path) -> None:
    with started(machine, control="off") as notebook:
        said = notebook.run("import lima_kernels\npanel = lima_kernels.VMPanel()\nprint(panel.connected, panel.notice)")
        assert said.startswith("False This VM's host could not be asked")
        with pytest.raises(CellError, match="cannot be asked just now to start lima-kernels"):
            notebook.run("await panel.start()")


def test_sources_without_a_front_end_say_so(machine: Machine, bundle: Path) -> None:
    (bundle / "widget" / "static" / "panel.js").unlink()
    with started(machine) as notebook:
        with pytest.raises(CellError, match=r"front end of panels was not built: this lima_kernels has no panel\.js"):
            notebook.run(PANEL)
        assert notebook.run("%%lima\necho here\n") == "here"


def test_what_goes_to_a_guest_is_small(bundle: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(startup.program()), mode="r:gz") as archive:
        names = set(archive.getnames())
    assert {"kit/lima_kernels/widget/guest.py", "kit/lima_kernels/widget/static/panel.js"} <= names
    assert not [name for name in names if "watch" in name]
    assert len(base64.b64encode(startup.program())) < 120_000
    assert lima_kernels.__name__ == bundle.name
