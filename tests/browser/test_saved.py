"""A panel in a saved notebook without a kernel, by Jupyter's own manager of widgets for plain pages.

nbconvert, nbviewer and VS Code show it so: by the notebook's saved state, html-manager, and anywidget's AMD module.
"""

from __future__ import annotations

import re
import sysconfig
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from playwright.sync_api import Page, Route, expect

from tests.unit.conftest import Machine

from .lab import LIMIT, ROOT, picture, serious_faults
from .test_lab import vm

MODULES = ROOT / "widgets" / "node_modules"
# What such pages load from elsewhere, by a part of its address; here from where npm and pip have put it.
SCRIPTS = {
    "/require.js/": MODULES / "requirejs" / "require.js",
    "/@jupyter-widgets/html-manager@": MODULES / "@jupyter-widgets" / "html-manager" / "dist" / "embed-amd.js",
    "/anywidget@": Path(sysconfig.get_path("data")) / "share" / "jupyter" / "nbextensions" / "anywidget" / "index.js",
}


def load(route: Route) -> None:
    """Give a page what it loads from elsewhere, and nothing else."""
    found = [file for part, file in SCRIPTS.items() if part in route.request.url]
    if found:
        route.fulfill(path=found[0], content_type="text/javascript")
    else:
        route.abort()


@pytest.fixture
def saved(machine: Machine) -> Path:
    """The page of a notebook that was run when there was a stopped VM."""
    vm(machine, "web")
    cell = nbformat.v4.new_code_cell("from lima_kernels import VMPanel\nVMPanel('web')")
    notebook = nbformat.v4.new_notebook(cells=[cell])
    NotebookClient(notebook, kernel_name="python3", timeout=LIMIT).execute()
    page = machine.root / "saved.html"
    page.write_text(HTMLExporter().from_notebook_node(notebook)[0])
    return page


def test_a_saved_panel_shows_its_last_state_without_a_kernel(saved: Path, page: Page) -> None:
    page.route(re.compile("^https:"), load)
    page.goto(saved.as_uri())
    panel = page.get_by_role("article", name="web")
    expect(panel).to_contain_text("Stopped", timeout=LIMIT * 1000)
    expect(page.get_by_role("status").first).to_have_text("No kernel answers: this is the last state that was known.")
    # There is nobody who could do it.
    expect(panel.get_by_role("button", name="Start web", exact=True)).to_have_attribute("aria-disabled", "true")
    picture(page, "saved-panel")
    assert serious_faults(page, ".lk-panel") == []
