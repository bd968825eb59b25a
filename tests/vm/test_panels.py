"""Panels and JupyterLab over the real VM: the notebook of the panels, and a real browser."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from playwright.sync_api import Locator, Page, expect, sync_playwright

from lima_kernels import paths
from lima_kernels.runtime import runtime
from lima_kernels.watch.cards import CardChanged, Message, State
from lima_kernels.watch.shared import watcher
from tests.browser.lab import (
    Lab,
    card,
    paged,
    picture,
    serious_faults,
    serving,
    settings,
    show_vms,
    started_browser,
    toast,
)

from .conftest import INSTANCE, Figures, Start
from .test_survival import until

pytestmark = pytest.mark.timeout(900)
EXAMPLE = Path(__file__).parents[2] / "notebooks" / "03-widgets.ipynb"
# Milliseconds, against hanging only: an emulated VM boots.
BOOT = 300_000
SLOW = 60_000
# What JupyterLab's own promises fail with when a kernel goes, as here with its VM.
LOST_KERNEL = "Kernel connection disconnected"


def test_the_notebook_of_the_panels(
    start: Start, notebooks: Path, figures: Figures, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The notebook stops the VM, which it may while nobody uses it.
    start().manager.shutdown_kernel(now=True)
    monkeypatch.setenv("LIMA_INSTANCE", INSTANCE)
    example = nbformat.read(EXAMPLE, as_version=4)
    with figures.timed("the notebook of the panels"):
        NotebookClient(example, timeout=600, resources={"metadata": {"path": str(notebooks)}}).execute()
    # Saved, it shows the last state without a kernel.
    states = example.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"].values()
    saved = [state["state"]["vms"] for state in states if "vms" in state["state"]]
    assert [vm["name"] for vms in saved for vm in vms if vm["state"] == "running"].count(INSTANCE) >= 1


async def _delay(name: str) -> float:
    """Stop a VM by limactl, and return how many seconds after Lima's last event of it a watcher was told."""
    told: list[tuple[float, State]] = []
    is_stopped = asyncio.Event()

    def send(message: Message) -> None:
        if isinstance(message, CardChanged) and message.vm.name == name:
            told.append((time.time(), message.vm.state))
            if message.vm.state is State.STOPPED:
                is_stopped.set()

    subscription = await watcher().subscribe(send)
    try:
        stop = await asyncio.create_subprocess_exec("limactl", "--tty=false", "stop", name, stderr=subprocess.DEVNULL)
        async with asyncio.timeout(120):
            await is_stopped.wait()
            await stop.wait()
    finally:
        await subscription.close()
    log = paths.host_agent_events(paths.lima_home() / name).read_text().splitlines()
    exiting = next(event for event in map(json.loads, reversed(log)) if event["status"].get("exiting"))
    at = datetime.fromisoformat(exiting["time"]).timestamp()
    return min(when for when, state in told if state is State.STOPPED) - at


def test_what_another_program_does_is_told_soon(start: Start, figures: Figures) -> None:
    start().manager.shutdown_kernel(now=True)
    delay = runtime().run_blocking(_delay(INSTANCE), 240)
    assert delay > 0
    figures.seconds["stop by limactl, from its last event to the news"] = round(delay, 3)


@pytest.fixture(scope="module")
def lab(vm: str, directories: Path, notebooks: Path) -> Iterator[Lab]:
    """A real `jupyter lab`; the VM is stopped when it begins."""
    settings(directories / "config", "JupyterLab Light")
    with serving(directories, notebooks) as running:
        yield running


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    # Only as long as these tests last: others run event loops in this thread.
    with (
        sync_playwright() as playwright,
        started_browser(playwright) as browser,
        paged(browser, known=[LOST_KERNEL]) as made,
    ):
        yield made


def press(within: Locator | Page, name: str) -> None:
    within.get_by_role("button", name=name, exact=True).click()


def cell(page: Page, number: int, code: str) -> Locator:
    """Run a cell, and return its output."""
    page.locator(".jp-Notebook .jp-CodeCell .cm-content").nth(number).fill(code)
    page.keyboard.press("Shift+Enter")
    return page.locator(".jp-Notebook .jp-CodeCell").nth(number).locator(".jp-OutputArea")


def test_a_notebook_in_the_browser_from_a_cold_vm(lab: Lab, page: Page, figures: Figures) -> None:
    limactl = ["limactl", "--tty=false", "stop", INSTANCE]
    subprocess.run(limactl, check=False, timeout=120, stdin=subprocess.DEVNULL, capture_output=True)
    lab.open(page)
    show_vms(page)
    expect(card(page, INSTANCE)).to_contain_text("Stopped", timeout=SLOW)
    with figures.timed("browser: click to the first cell's output, cold VM"):
        page.locator(".jp-LauncherCard[data-category=Notebook]").filter(has_text="Linux (Lima)").first.click()
        # What it says changes within the first second, from the boot to the wait for SSH.
        expect(toast(page, re.compile(f"{INSTANCE}: (booting|waiting)"))).to_be_visible(timeout=SLOW)
        expect(card(page, INSTANCE)).to_contain_text("Starting", timeout=SLOW)
        picture(page, "vm-booting")
        expect(page.locator(".jp-Notebook-ExecutionIndicator")).to_have_attribute("data-status", "idle", timeout=BOOT)
        output = cell(page, 0, "import platform; print(6 * 7, platform.node())")
        expect(output).to_contain_text(f"42 lima-{INSTANCE}", timeout=SLOW)
    expect(card(page, INSTANCE)).to_contain_text("Running", timeout=SLOW)
    expect(page.locator(".lk-status")).to_contain_text(re.compile(rf"{INSTANCE}: Running.*GiB"), timeout=SLOW)


def test_a_guests_panel_steers_its_own_vm(lab: Lab, page: Page) -> None:
    output = cell(page, 1, "from lima_kernels import VMPanel; panel = VMPanel(); panel")
    panel = output.get_by_role("article", name=INSTANCE)
    expect(panel).to_contain_text("Running", timeout=SLOW)
    expect(panel.get_by_role("button", name=f"Stop {INSTANCE}")).to_be_enabled(timeout=SLOW)
    picture(page, "vm-notebook")
    assert serious_faults(page, ".jp-OutputArea") == []
    press(panel, f"Stop {INSTANCE}")
    press(page.get_by_role("alertdialog"), "Stop")
    # Its kernel ends with it: the panel says so, and the sidebar knows.
    expect(output).to_contain_text("and with it the kernel of this panel", timeout=SLOW)
    expect(card(page, INSTANCE)).to_contain_text("Stopped", timeout=BOOT)
    # The server sees a dead kernel, and would have another one; that is no reason to boot the VM again.
    until(lambda: "is not started again by itself" in lab.log.read_text(), "the server has not tried to")
    expect(card(page, INSTANCE)).to_contain_text("Stopped")


def test_the_sidebar_starts_it_again_and_two_pages_agree(lab: Lab, page: Page) -> None:
    browser = page.context.browser
    assert browser is not None
    with paged(browser) as second:
        show_vms(lab.open(second, "b"))
        press(card(second, INSTANCE), f"Start {INSTANCE}")
        for tab in (page, second):
            expect(card(tab, INSTANCE)).to_contain_text("Starting", timeout=SLOW)
        second.reload()
        show_vms(second)
        expect(card(second, INSTANCE)).to_contain_text("Starting", timeout=SLOW)
        for tab in (page, second):
            expect(card(tab, INSTANCE)).to_contain_text("Running", timeout=BOOT)
    # What is said of it goes away by itself after a while, as it should; the job is kept longer.
    ended = ("start", "done")
    until(lambda: ended in [(job["verb"], job["state"]) for job in lab.get("jobs")[1]["jobs"]], "its job is not done")
