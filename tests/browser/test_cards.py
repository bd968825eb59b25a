"""The VM card in all its states, by a real browser: without a server, so that every state can be had at once."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from .lab import AXE, LIMIT, PICTURES, ROOT

FAULTS = """async () => (await axe.run(document)).violations.flatMap(
    fault => fault.nodes.map(node => `${fault.id}: ${node.html}`))"""
# What sticks out of a card, but not what scrolls in it.
WIDE = """() => [...document.querySelectorAll('.lk-card')].filter(card => card.scrollWidth > card.clientWidth)
    .map(card => card.querySelector('.lk-name').textContent)"""


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of all cards; each process of a run makes its own."""
    made = tmp_path_factory.mktemp("cards")
    argv = ["npm", "--prefix", str(ROOT / "widgets"), "run", "--silent", "demo"]
    subprocess.run(argv, env={**os.environ, "DEMO": str(made)}, check=True, timeout=LIMIT)
    return made / "page.html"


def opened(page: Page, cards: Path, query: str) -> Page:
    page.goto(f"{cards.as_uri()}?{query}")
    expect(page.locator(".lk-card")).to_have_count(7)
    return page


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [240, 640])
def test_cards_are_in_order_in_each_theme_and_width(page: Page, cards: Path, theme: str, width: int) -> None:
    opened(page, cards, f"theme={theme}&width={width}&open=1")
    page.add_script_tag(path=AXE)
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.locator("main").screenshot(path=PICTURES / f"cards-{theme}-{width}.png")
    assert page.evaluate(WIDE) == []
    assert page.evaluate(FAULTS) == []


def test_a_card_is_worked_by_keys_alone(page: Page, cards: Path) -> None:
    opened(page, cards, "")
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
