"""A running `jupyter lab` and its pages, as the tests handle them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Locator, Page, Playwright, expect

from lima_kernels import paths
from tests.child import CONSTANTS

ROOT = Path(__file__).parents[2]
AXE = ROOT / "widgets" / "node_modules" / "axe-core" / "axe.min.js"
PICTURES = ROOT / "build" / "pictures"
TOKEN = "of-this-test"
# Seconds, against hanging only: the browser and the server share two cores with the rest.
LIMIT = 60.0
BROWSER_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# JupyterLab asks the network for news, and its user whether it may.
QUIET = {"fetchNews": "false", "checkForUpdates": False}
# What JupyterLab's own promises, and ipywidgets', fail with when a kernel goes, as it does with its VM.
LOST_KERNEL = ("Kernel connection disconnected", "Cannot send")
SETTINGS = "lab/user-settings/@jupyterlab/apputils-extension"


class Lab:
    """One server, and what its pages are asked."""

    def __init__(self, port: int, log: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.log = log

    def open(self, page: Page, workspace: str = "a") -> Page:
        """Open JupyterLab as its user, and wait until it is there."""
        page.goto(f"{self.url}/lab/workspaces/{workspace}?token={TOKEN}")
        return self.opened(page)

    def opened(self, page: Page) -> Page:
        """Wait until JupyterLab is there, as after a reload."""
        expect(page.locator("#jp-main-dock-panel")).to_be_visible(timeout=LIMIT * 1000)
        expect(page.locator(".jp-Launcher, .jp-NotebookPanel, .lk-logview").first).to_be_visible(timeout=LIMIT * 1000)
        return page

    def get(self, path: str, token: str = TOKEN) -> tuple[int, Any]:
        """Return status and JSON of a GET."""
        headers = {"Authorization": f"token {token}"} if token else {}
        request = urllib.request.Request(f"{self.url}/lima-kernels/api/{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=LIMIT) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode(errors="replace")


def run_cell(page: Page, number: int, code: str) -> Locator:
    """Run a cell of a notebook, and return it."""
    cell = page.locator(".jp-Notebook .jp-CodeCell").nth(number)
    deadline = time.monotonic() + LIMIT
    while True:
        cell.locator(".cm-content").fill(code)
        page.keyboard.press("Shift+Enter")
        # Lab puts another editor in the place of the one that it drew first: what was typed is gone with that, and an
        # empty cell has run, which gets no number.
        with contextlib.suppress(AssertionError):
            expect(cell.locator(".jp-InputPrompt").first).not_to_have_text("[ ]:", timeout=3000)
            return cell
        assert time.monotonic() < deadline, "the cell does not run"


def show_vms(page: Page) -> Locator:
    """Bring the sidebar up by its command, as the palette does, and return it."""
    panel = page.locator(".lk-sidebar")
    # A click on its tab would hide one that JupyterLab is about to show again after a reload.
    page.keyboard.press("Control+Shift+Y")
    page.keyboard.press("v")
    expect(panel).to_be_visible(timeout=LIMIT * 1000)
    return panel


def card(page: Page, name: str) -> Locator:
    """Return the card of a VM in the sidebar."""
    return page.locator(".lk-sidebar").get_by_role("article", name=name, exact=True)


def toast(page: Page, text: str | re.Pattern[str]) -> Locator:
    """Return the notification that says something."""
    return page.locator(".Toastify__toast").filter(has_text=text)


def serious_faults(page: Page, within: str) -> list[str]:
    """Return what axe-core finds of "serious" and "critical" faults in a part of the page."""
    page.add_script_tag(path=AXE)
    found = page.evaluate("within => axe.run(within, {resultTypes: ['violations']})", within)
    return [
        f"{fault['id']}: {fault['help']} at {[node['target'] for node in fault['nodes']]}: {fault['nodes'][0]['html']}"
        for fault in found["violations"]
        if fault["impact"] in ("serious", "critical")
    ]


def picture(page: Page, name: str) -> None:
    """Keep what the page looks like, for people."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"{name}.png")


def settings(config: Path, theme: str) -> None:
    """Say what JupyterLab looks like."""
    directory = config / SETTINGS
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "notification.jupyterlab-settings").write_text(json.dumps(QUIET))
    (directory / "themes.jupyterlab-settings").write_text(json.dumps({"theme": theme}))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def _wait(lab: Lab, process: subprocess.Popen[bytes]) -> None:
    limit = time.monotonic() + LIMIT
    # A server that starts tells nobody but its log.
    while process.poll() is None and time.monotonic() < limit:
        with contextlib.suppress(OSError):
            if lab.get("vms")[0]:
                return
        time.sleep(0.1)
    raise AssertionError(f"jupyter lab did not come up:\n{lab.log.read_text()}")


@contextlib.contextmanager
def serving(root: Path, notebooks: Path) -> Iterator[Lab]:
    """Run `jupyter lab` over the environment of this process until the block ends."""
    port = _free_port()
    options = [
        f"ServerApp.port={port}",
        "ServerApp.port_retries=0",
        "ServerApp.open_browser=False",
        f"ServerApp.root_dir={notebooks}",
        f"IdentityProvider.token={TOKEN}",
        f"LabApp.workspaces_dir={root / 'workspaces'}",
    ]
    order = {"constants": {name: getattr(paths, name) for name in CONSTANTS}, "options": options}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    log = root / "lab.log"
    with log.open("wb") as written:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.browser.serve", json.dumps(order)],
            cwd=notebooks,
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=written,
            start_new_session=True,
        )
    lab = Lab(port, log)
    try:
        _wait(lab, process)
        yield lab
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(30)


@contextlib.contextmanager
def started_browser(playwright: Playwright) -> Iterator[Browser]:
    """Run the distribution's browser."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert found is not None, "the browser tests need the distribution's package chromium"
    browser = playwright.chromium.launch(executable_path=found, args=BROWSER_ARGUMENTS)
    try:
        yield browser
    finally:
        browser.close()


@contextlib.contextmanager
def paged(browser: Browser, width: int = 1280, height: int = 800, known: Collection[str] = ()) -> Iterator[Page]:
    """Give a page in a browser profile of its own; an error of its scripts fails the test.

    :param known: errors of JupyterLab's own that belong to what the test does.
    """
    context = browser.new_context(viewport={"width": width, "height": height}, reduced_motion="reduce")
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    try:
        yield page
    finally:
        context.close()
    unknown = [error for error in errors if error not in known]
    assert unknown == [], unknown
