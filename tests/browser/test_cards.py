"""The VM card in all its states, by a real browser: without a server, so that every state can be had at once."""

from __future__ import annotations

import subprocess

import pytest
from playwright.sync_api import Page, expect

from .lab import AXE, LIMIT, PICTURES, ROOT

CARDS = ROOT / "build" / "cards" / "page.html"
FAULTS = """async () => (await axe.run(document)).violations.flatMap(
    fault => fault.nodes.map(node => `${fault.id}: ${node.html}`))"""
# What sticks out of a card, but not what scrolls in it.
WIDE = """() => [...document.querySelectorAll('.lk-card')].filter(card => card.scrollWidth > card.clientWidth)
    .map(card => card.querySelector('.lk-name').textContent)"""


@pytest.fixture(scope="module", autouse=True)
def demo() -> None:
    subprocess.run(["npm", "--prefix", str(ROOT / "widgets"), "run", "--silent", "demo"], check=True, timeout=LIMIT)


def opened(page: Page, query: str) -> Page:
    page.goto(f"{CARDS.as_uri()}?{query}")
    expect(page.locator(".lk-card")).to_have_count(7)
    return page


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [240, 640])
def test_cards_are_in_order_in_each_theme_and_width(page: Page, theme: str, width: int) -> None:
    opened(page, f"theme={theme}&width={width}&open=1")
    page.add_script_tag(path=AXE)
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.locator("main").screenshot(path=PICTURES / f"cards-{theme}-{width}.png")
    assert page.evaluate(WIDE) == []
    assert page.evaluate(FAULTS) == []


def test_a_card_is_worked_by_keys_alone(page: Page) -> None:
    opened(page, "")
    stop = page.get_by_role("button", name="Stop analysis")
    stop.focus()
    page.keyboard.press("Enter")
    question = page.get_by_role("alertdialog")
    expect(question).to_be_visible()
    expect(question.get_by_role("button", name="Cancel")).to_be_focused()
    page.keyboard.press("Escape")
    expect(question).to_have_count(0)
    expect(stop).to_be_focused()
    edit = page.get_by_role("button", name="Edit stopped-vm")
    edit.focus()
    page.keyboard.press("Space")
    cpus = page.get_by_role("form", name="Edit stopped-vm").get_by_label("CPUs")
    expect(cpus).to_be_focused()
    page.keyboard.type("none")
    page.keyboard.press("Enter")
    expect(cpus).to_be_focused()
    expect(cpus).to_have_accessible_description("A whole number of at least 1.")
    page.keyboard.press("Escape")
    expect(edit).to_be_focused()
