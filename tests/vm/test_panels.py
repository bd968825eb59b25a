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
from typing import Any, NamedTuple

import nbformat
import psutil
import pytest
from nbclient import NotebookClient
from playwright.sync_api import Locator, Page, expect, sync_playwright

from lima_kernels import paths
from lima_kernels.kernelspec import make_request, write
from lima_kernels.runtime import runtime
from lima_kernels.watch.cards import CardChanged, Message, State, UsageTaken
from lima_kernels.watch.shared import watcher
from tests.browser.lab import (
    LOST_KERNEL,
    Lab,
    card,
    paged,
    picture,
    run_cell,
    serious_faults,
    serving,
    settings,
    show_vms,
    started_browser,
    toast,
)

from .conftest import INSTANCE, Figures, Start, until

pytestmark = pytest.mark.timeout(900)
EXAMPLE = Path(__file__).parents[2] / "notebooks" / "03-widgets.ipynb"
# Milliseconds, against hanging only: an emulated VM boots.
BOOT = 300_000
SLOW = 60_000
# Seconds that a panel is left alone for, and the share of one CPU that it may take meanwhile.
IDLE = 20
IDLE_SHARE = 0.005


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


class Spent(NamedTuple):
    """CPU seconds: of the thread that asks, of its process, and of the programs that this has run."""

    thread: float
    process: float
    programs: float

    @classmethod
    def now(cls) -> Spent:
        times = psutil.Process().cpu_times()
        return cls(time.thread_time(), times.user + times.system, times.children_user + times.children_system)


def _events(name: str) -> list[dict[str, Any]]:
    """Return what Lima has told of a VM since it was last started."""
    whole, _, _ = paths.host_agent_events(paths.lima_home() / name).read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


async def _idle(name: str) -> Spent:
    """Show the panel of a VM with which nothing is done, and return what this takes, as shares of one CPU."""
    looks: asyncio.Queue[Message] = asyncio.Queue()
    subscription = await watcher().subscribe(looks.put_nowait)
    try:
        subscription.show([name])
        async with asyncio.timeout(60):
            while not isinstance(await looks.get(), UsageTaken):
                pass
        before, began = Spent.now(), time.monotonic()
        await asyncio.sleep(IDLE)
        after, seconds = Spent.now(), time.monotonic() - began
        shown = [looks.get_nowait() for _ in range(looks.qsize())]
        # It was looked at meanwhile, and no more often than it should.
        assert IDLE / 4 < sum(isinstance(message, UsageTaken) for message in shown) <= IDLE / 2 + 1
        return Spent(*((now - then) / seconds for then, now in zip(before, after, strict=True)))
    finally:
        await subscription.close()


def test_an_idle_panel_costs_next_to_nothing(start: Start, figures: Figures) -> None:
    start().manager.shutdown_kernel(now=True)
    # A boot goes on after its first kernel, whoever began it; a panel has Lima asked when it ends.
    until(
        lambda: any(event["status"].get("running") for event in _events(INSTANCE)), "Lima does not call it ready", 300
    )
    until(lambda: "limactl" not in [child.name() for child in psutil.Process().children()], "limactl still runs", 300)
    # All that a panel makes us do is done in the one thread that this runs in; the rest is pytest's and its threads'.
    spent = runtime().run_blocking(_idle(INSTANCE), 240)
    figures.seconds["an idle open panel, CPU seconds in a second"] = round(spent.thread, 5)
    figures.seconds["an idle open panel, with all of its process"] = round(spent.process, 5)
    assert spent.thread < IDLE_SHARE
    # Not even limactl was run.
    assert spent.programs == 0


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
    exiting = next(event for event in reversed(_events(name)) if event["status"].get("exiting"))
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
        paged(browser, known=LOST_KERNEL) as made,
    ):
        yield made


def press(within: Locator | Page, name: str) -> None:
    within.get_by_role("button", name=name, exact=True).click()


def cell(page: Page, number: int, code: str) -> Locator:
    """Run a cell, and return its output."""
    return run_cell(page, number, code).locator(".jp-OutputArea")


def jobs(lab: Lab) -> list[tuple[str, str, str]]:
    """Return VM, verb and state of each job that the server tells of."""
    return [(job["vm"], job["verb"], job["state"]) for job in lab.get("jobs")[1]["jobs"]]


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
    # JupyterLab says that it died, and the server, after some tries, that it is no more.
    press(page.locator(".jp-Dialog"), "Ok")
    until(lambda: "removing from map" in lab.log.read_text(), "the server waits for it")
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
        show_vms(lab.opened(second))
        expect(card(second, INSTANCE)).to_contain_text("Starting", timeout=SLOW)
        for tab in (page, second):
            expect(card(tab, INSTANCE)).to_contain_text("Running", timeout=BOOT)
    # What is said of it goes away by itself after a while, as it should; the job is kept longer.
    until(lambda: (INSTANCE, "start", "done") in jobs(lab), "its job is not done")


def test_the_palette_shows_what_lima_says_of_it(lab: Lab, page: Page) -> None:
    page.keyboard.press("Control+Shift+C")
    page.get_by_role("textbox", name="SEARCH").fill("Show Log of VM")
    page.locator(".lm-CommandPalette-itemLabel").get_by_text("Show Log of VM", exact=True).click()
    log = page.get_by_role("log", name=f"Log of {INSTANCE}")
    # What is long past, and what came while it booted.
    expect(log).to_contain_text(f"Creating iso file {paths.lima_home() / INSTANCE / 'cidata.iso'}", timeout=SLOW)
    expect(log).to_contain_text(re.compile(r"The essential requirement 1 of \d+ is satisfied"), timeout=SLOW)


def test_the_sidebar_stops_it(page: Page) -> None:
    press(card(page, INSTANCE), f"Stop {INSTANCE}")
    expect(card(page, INSTANCE)).to_contain_text("Stopping", timeout=SLOW)
    expect(card(page, INSTANCE)).to_contain_text("Stopped", timeout=BOOT)


def test_a_hosts_panel_starts_and_stops_it(lab: Lab, page: Page) -> None:
    lab.open(page, "host")
    show_vms(page)
    page.locator(".jp-LauncherCard[data-category=Notebook]").filter(has_text="Python 3").first.click()
    expect(page.locator(".jp-Notebook-ExecutionIndicator")).to_have_attribute("data-status", "idle", timeout=SLOW)
    output = cell(page, 0, f"from lima_kernels import VMPanel; panel = VMPanel({INSTANCE!r}); panel")
    panel = output.get_by_role("article", name=INSTANCE)
    expect(panel).to_contain_text("Stopped", timeout=SLOW)
    press(panel, f"Start {INSTANCE}")
    # What the kernel's process begins the server knows, and the reverse.
    for shown in (panel, card(page, INSTANCE)):
        expect(shown).to_contain_text("Starting", timeout=SLOW)
    # The kernel is free meanwhile.
    expect(cell(page, 1, "print(6 * 7, panel.state)")).to_contain_text("42 starting", timeout=SLOW)
    for shown in (panel, card(page, INSTANCE)):
        expect(shown).to_contain_text("Running", timeout=BOOT)
    press(panel, f"Stop {INSTANCE}")
    for shown in (panel, card(page, INSTANCE)):
        expect(shown).to_contain_text("Stopped", timeout=BOOT)


def test_a_vm_is_made_fails_and_is_deleted_in_the_sidebar(lab: Lab, page: Page, directories: Path) -> None:
    environment = directories / "small.yaml"
    environment.write_text("cpus: 1\nmemory: 1GiB\n")
    spec = make_request("small", "Small", environment=environment, instance="lk-small", attach=False)
    write(spec, user=True, prefix=None)
    press(show_vms(page), "New VM")
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Made of").select_option("Small")
    expect(dialog.get_by_label("Name")).to_have_value("lk-small")
    dialog.get_by_label("Start it at once").uncheck()
    press(dialog, "Create")
    expect(dialog).to_be_hidden(timeout=SLOW)
    small = card(page, "lk-small")
    expect(small).to_contain_text("Stopped", timeout=BOOT)
    expect(small).to_contain_text("1 GiB")
    # A disk that QEMU cannot open ends it at once.
    (paths.lima_home() / "lk-small" / "disk").chmod(0)
    press(small, "Start lk-small")
    until(lambda: ("lk-small", "start", "failed") in jobs(lab), "its job has not failed")
    job = next(job for job in lab.get("jobs")[1]["jobs"] if job["state"] == "failed")
    expect(toast(page, job["message"][:40])).to_be_visible(timeout=SLOW)
    expect(small).to_contain_text("Stopped", timeout=SLOW)
    picture(page, "vm-failure")
    press(small, "Delete lk-small")
    press(page.get_by_role("dialog"), "Delete")
    expect(small).to_have_count(0, timeout=SLOW)
    assert not (paths.lima_home() / "lk-small").exists()


def test_who_has_no_token_gets_nothing_of_it(lab: Lab) -> None:
    status, answer = lab.get("vms", token="")
    assert status == 403
    assert INSTANCE not in str(answer)
    assert lab.get("vms")[0] == 200
