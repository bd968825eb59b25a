"""The panel in Notebook 7, whose page has no sidebar: over the fake limactl and the fake guest."""

from __future__ import annotations

from collections.abc import Iterator

import nbformat
import pytest
from playwright.sync_api import Browser, Page, expect

from lima_kernels import paths
from tests.child import CONSTANTS
from tests.unit.conftest import Machine

from .lab import LIMIT, TOKEN, Lab, paged, picture, serious_faults
from .test_lab import vm

SLOW = LIMIT * 1000
# What Notebook 7.6 fails with when it loads its settings, with and without us.
SETTINGS_OF_NOTHING = "Cannot read properties of undefined (reading 'schema')"


@pytest.fixture
def notebook(machine: Machine) -> str:
    """A notebook of a kernel of this host that shows a panel."""
    # The kernel is a process of its own: what stands for the guest's paths here has to be told it, too.
    told = {name: getattr(paths, name) for name in CONSTANTS}
    cells = [
        f"from lima_kernels import VMPanel, paths\nvars(paths).update({told!r})",
        "panel = VMPanel('web')\npanel",
    ]
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    made.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(made, machine.notebooks / "panel.ipynb")
    return "panel.ipynb"


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with paged(browser, known=[SETTINGS_OF_NOTHING]) as made:
        yield made


def test_a_panel_works_in_notebook_7(lab: Lab, machine: Machine, page: Page, notebook: str) -> None:
    vm(machine, "web")
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    with page.expect_websocket(lambda made: "/channels" in made.url, timeout=SLOW) as channels:
        page.goto(f"{lab.url}/notebooks/{notebook}?token={TOKEN}")
    # Its kernel's first word: what is run before it goes nowhere.
    channels.value.wait_for_event("framereceived", timeout=SLOW)
    # It is Notebook's own page, and not JupyterLab's.
    assert page.locator("#jp-main-dock-panel").count() == 0
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    panel = page.get_by_role("article", name="web")
    expect(panel).to_contain_text("Stopped", timeout=SLOW)
    panel.get_by_role("button", name="Start web", exact=True).click()
    expect(panel).to_contain_text("Running", timeout=SLOW)
    assert [call[-1] for call in machine.calls("start")] == ["web"]
    picture(page, "notebook-panel")
    assert serious_faults(page, ".jp-OutputArea") == []
    # What it lacks of JupyterLab is no failure of ours.
    assert [text for text in said if "lima-kernels" in text and "fail" in text] == []
