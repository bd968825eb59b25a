"""The JupyterLab extension in a real browser, over the fake limactl and the fake guest."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.unit.conftest import Machine
from tests.unit.test_kernel import until

from .lab import LIMIT, LOST_KERNEL, Lab, card, paged, picture, run_cell, serious_faults, show_vms, toast

TEMPLATE = "images:\n- location: x\ncpus: 2\nmemory: 4GiB\n"
SLOW = LIMIT * 1000
BOTH_THEMES = pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"], ids=["light", "dark"])


def vm(machine: Machine, name: str) -> None:
    """Make a stopped VM as another program of Lima's would."""
    directory = machine.lima_home / name
    directory.mkdir()
    (directory / "lima.yaml").write_text(TEMPLATE)


def press(within: Locator | Page, name: str) -> None:
    within.get_by_role("button", name=name, exact=True).click()


def begin_notebook(page: Page) -> None:
    page.locator(".jp-LauncherCard[data-category=Notebook]").filter(has_text="Linux (Lima)").click()


def test_the_sidebar_shows_vms_and_starts_and_stops_them(lab: Lab, machine: Machine, page: Page) -> None:
    vm(machine, "web")
    lab.open(page)
    show_vms(page)
    web = card(page, "web")
    expect(web).to_contain_text("Stopped")
    press(web, "Start web")
    expect(web).to_contain_text("Running", timeout=SLOW)
    expect(toast(page, "The VM web is running.")).to_be_visible(timeout=SLOW)
    picture(page, "lab-sidebar")
    press(web, "Stop web")
    expect(web).to_contain_text("Stopped", timeout=SLOW)
    assert [call[1] for call in machine.calls("stop")] == ["web"]
    # Another program of Lima's makes one: nobody asks for it, it is told.
    vm(machine, "other")
    expect(card(page, "other")).to_contain_text("Stopped")


def test_two_tabs_agree(lab: Lab, machine: Machine, page: Page, browser: Browser) -> None:
    vm(machine, "web")
    lab.open(page)
    show_vms(page)
    with paged(browser) as second:
        show_vms(lab.open(second, "b"))
        press(card(page, "web"), "Start web")
        for tab in (page, second):
            expect(card(tab, "web")).to_contain_text("Running", timeout=SLOW)
            expect(toast(tab, "The VM web is running.")).to_be_visible(timeout=SLOW)
        press(card(second, "web"), "Stop web")
        for tab in (page, second):
            expect(card(tab, "web")).to_contain_text("Stopped", timeout=SLOW)
    assert len(machine.calls("start")) == 1


def test_a_kernels_vm_is_made_in_sight_and_a_cell_runs(lab: Lab, machine: Machine, page: Page) -> None:
    machine.tell(delay={"start": 3})
    lab.open(page)
    show_vms(page)
    begin_notebook(page)
    expect(toast(page, "lima-kernels: ")).to_be_visible(timeout=SLOW)
    expect(card(page, "lima-kernels")).to_contain_text("Starting", timeout=SLOW)
    expect(toast(page, "booting the VM")).to_be_visible(timeout=SLOW)
    picture(page, "lab-progress")
    expect(toast(page, "The VM lima-kernels is ready for its kernel.")).to_be_visible(timeout=SLOW)
    expect(page.locator(".jp-Notebook-ExecutionIndicator")).to_have_attribute("data-status", "idle", timeout=SLOW)
    run_cell(page, 0, "print(6 * 7, 'in the guest')")
    expect(page.locator(".jp-OutputArea-output")).to_contain_text("42 in the guest", timeout=SLOW)
    status = page.locator(".lk-status")
    expect(status).to_contain_text("lima-kernels: Running")
    expect(status).to_contain_text("GiB", timeout=SLOW)
    # It leads to the card, from wherever the user is.
    page.locator('.jp-SideBar .lm-TabBar-tab[data-id="filebrowser"]').click()
    status.click()
    expect(card(page, "lima-kernels").get_by_role("heading", name="lima-kernels")).to_be_focused()
    expect(card(page, "lima-kernels")).to_contain_text("Running")
    picture(page, "lab-notebook")


def test_a_reload_in_mid_boot_keeps_the_progress_and_cancel_cancels(lab: Lab, machine: Machine, page: Page) -> None:
    machine.tell(hang=["start"])
    lab.open(page)
    begin_notebook(page)
    expect(toast(page, "booting the VM")).to_be_visible(timeout=SLOW)
    # The notebook's session is not known before its kernel is, so JupyterLab asks for another one.
    page.add_locator_handler(page.locator(".jp-Dialog"), lambda dialog: press(dialog, "No Kernel"))
    page.reload()
    shown = toast(page, "booting the VM")
    expect(shown).to_be_visible(timeout=SLOW)
    expect(page.locator(".Toastify__toast").filter(has_text="lima-kernels: ")).to_have_count(1)
    press(shown, "Cancel")
    expect(toast(page, "lima-kernels: cancelled.")).to_be_visible(timeout=SLOW)
    assert lab.get("jobs")[1]["jobs"][0]["state"] == "cancelled"


def test_a_kernel_whose_vm_was_stopped_is_no_more_and_restart_boots_it(
    lab: Lab, machine: Machine, browser: Browser
) -> None:
    machine.tell(delay={"start": 3})
    with paged(browser, known=LOST_KERNEL) as page:
        lab.open(page)
        show_vms(page)
        begin_notebook(page)
        expect(toast(page, "The VM lima-kernels is ready for its kernel.")).to_be_visible(timeout=SLOW)
        kernel = page.locator(".jp-Notebook-ExecutionIndicator")
        expect(kernel).to_have_attribute("data-status", "idle", timeout=SLOW)
        # The question before a stop names the kernels that it ends.
        expect(card(page, "lima-kernels")).to_contain_text("Untitled.ipynb", timeout=SLOW)
        press(card(page, "lima-kernels"), "Stop lima-kernels")
        press(page.locator(".jp-Dialog"), "Stop")
        # JupyterLab says that the kernel died; the server tries to have another one, and gives up.
        press(page.locator(".jp-Dialog"), "Ok")
        expect(page.locator(".jp-Toolbar-kernelName")).to_have_text("No Kernel", timeout=SLOW)
        assert lab.log.read_text().count("is not started again by itself") == 1
        assert len(machine.calls("start")) == 1
        page.locator(".jp-Toolbar [data-command='notebook:restart-kernel']").click()
        expect(card(page, "lima-kernels")).to_contain_text("Running", timeout=SLOW)
        expect(kernel).to_have_attribute("data-status", "idle", timeout=SLOW)
        run_cell(page, 0, "print(6 * 7, 'again')")
        expect(page.locator(".jp-OutputArea-output")).to_contain_text("42 again", timeout=SLOW)
        assert len(machine.calls("start")) == 2


def test_the_dialog_checks_what_is_typed_and_makes_a_vm(lab: Lab, machine: Machine, page: Page) -> None:
    vm(machine, "debian-13")
    lab.open(page)
    press(show_vms(page), "New VM")
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Made of").select_option("debian-13")
    name = dialog.get_by_label("Name")
    # The nearest free name is there already.
    expect(name).to_have_value("debian-13-2")
    name.fill("debian-13")
    expect(dialog).to_contain_text("There is a VM of this name already.")
    name.fill("no spaces")
    expect(name).to_have_attribute("aria-invalid", "true")
    dialog.get_by_label("Memory").fill("plenty")
    press(dialog, "Create")
    expect(name).to_be_focused()
    expect(dialog).to_contain_text("Give a size such as 4GiB.")
    picture(page, "lab-dialog")
    assert serious_faults(page, ".jp-Dialog") == []
    name.fill("mine")
    dialog.get_by_label("Memory").fill("2")
    dialog.get_by_label("Start it at once").uncheck()
    press(dialog, "Create")
    expect(dialog).to_be_hidden(timeout=SLOW)
    expect(card(page, "mine")).to_contain_text("Stopped", timeout=SLOW)
    expect(card(page, "mine")).to_contain_text("2 GiB")
    expect(toast(page, "The VM mine is made.")).to_be_visible(timeout=SLOW)
    assert "start" not in [call[0] for call in machine.calls("start")]


def test_what_the_server_refuses_is_said_in_the_dialog(lab: Lab, machine: Machine, page: Page) -> None:
    lab.open(page)
    press(show_vms(page), "New VM")
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Made of").select_option("debian-13")
    dialog.get_by_label("Name").fill("mine")
    machine.tell(fail={"list": "the disk of Lima's home is away"})
    press(dialog, "Create")
    expect(dialog.get_by_role("alert")).to_contain_text("the disk of Lima's home is away", timeout=SLOW)
    # Nothing that was typed is lost.
    machine.tell(fail={})
    press(dialog, "Create")
    expect(dialog).to_be_hidden(timeout=SLOW)
    expect(card(page, "mine")).to_contain_text("Running", timeout=SLOW)


def test_a_failure_is_shown_with_its_hint_and_what_mends_it(lab: Lab, machine: Machine, page: Page) -> None:
    vm(machine, "web")
    machine.tell(fail={"start": "no space left on device"})
    lab.open(page)
    show_vms(page)
    press(card(page, "web"), "Start web")
    shown = toast(page, "no space left on device")
    expect(shown).to_be_visible(timeout=SLOW)
    picture(page, "lab-failure")
    assert serious_faults(page, ".Toastify__toast") == []
    machine.tell(fail={})
    press(shown, "Start VM")
    expect(card(page, "web")).to_contain_text("Running", timeout=SLOW)


def test_the_log_is_a_tab_that_comes_back_after_a_reload(lab: Lab, machine: Machine, page: Page) -> None:
    vm(machine, "web")
    lab.open(page)
    show_vms(page)
    press(card(page, "web"), "Start web")
    expect(card(page, "web")).to_contain_text("Running", timeout=SLOW)
    card(page, "web").get_by_role("heading", name="web").click(button="right")
    page.get_by_role("menuitem", name="Show Log of VM").click()
    log = page.get_by_role("log", name="Log of web")
    agent = machine.lima_home / "web" / "ha.stderr.log"
    with agent.open("a") as written:
        written.write('{"level":"info","msg":"<b>a line that came later</b>"}\n')
    expect(log).to_contain_text("<b>a line that came later</b>", timeout=SLOW)
    picture(page, "lab-log")
    assert serious_faults(page, ".lk-log-widget") == []
    # JupyterLab writes its layout down a moment after a change.
    until(lambda: any("lima-kernels-logs" in file.read_text() for file in (machine.root / "workspaces").iterdir()))
    page.reload()
    expect(log).to_contain_text("a line that came later", timeout=SLOW)


def test_the_palette_and_the_keys_lead_to_every_action(lab: Lab, machine: Machine, page: Page) -> None:
    vm(machine, "one")
    vm(machine, "two")
    lab.open(page)
    page.keyboard.press("Control+Shift+Y")
    page.keyboard.press("v")
    expect(page.locator(".lk-sidebar")).to_be_visible()
    expect(card(page, "two")).to_be_visible()
    page.keyboard.press("Control+Shift+C")
    page.get_by_role("textbox", name="SEARCH").fill("Start VM")
    page.locator(".lm-CommandPalette-itemLabel").get_by_text("Start VM", exact=True).click()
    # Two may be meant, so it asks.
    dialog = page.get_by_role("dialog")
    dialog.locator("select").select_option("two")
    press(dialog, "OK")
    expect(card(page, "two")).to_contain_text("Running", timeout=SLOW)
    expect(card(page, "one")).to_contain_text("Stopped")


def test_who_has_no_token_gets_nothing(lab: Lab, machine: Machine, page: Page) -> None:
    vm(machine, "web")
    assert lab.get("vms")[0] == 200
    status, answer = lab.get("vms", token="")
    assert status == 403
    assert "web" not in str(answer)
    page.goto(f"{lab.url}/lab")
    expect(page.locator("#password_input")).to_be_visible(timeout=SLOW)
    told = page.evaluate(
        """async url => {
            const socket = new WebSocket(url);
            return await new Promise(resolve => {
                socket.onmessage = event => resolve("told " + event.data);
                socket.onopen = () => undefined;
                socket.onclose = event => resolve("closed");
            });
        }""",
        f"{lab.url.replace('http', 'ws')}/lima-kernels/api/events",
    )
    assert told == "closed"


@BOTH_THEMES
def test_axe_finds_no_serious_fault(lab: Lab, machine: Machine, browser: Browser, theme: str) -> None:
    vm(machine, "stopped")
    vm(machine, "web")
    with paged(browser, width=760, height=620) as page:
        lab.open(page)
        show_vms(page)
        press(card(page, "web"), "Start web")
        expect(card(page, "web")).to_contain_text("Running", timeout=SLOW)
        expect(toast(page, "The VM web is running.")).to_be_visible(timeout=SLOW)
        card(page, "web").get_by_text("Details").click()
        picture(page, f"lab-narrow-{theme.rsplit(maxsplit=1)[-1].lower()}")
        assert serious_faults(page, ".lk-sidebar") == []
        assert serious_faults(page, ".Toastify__toast") == []
