"""Each test has a `jupyter lab` of its own over the fake limactl and the fake guest, and a real browser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.fake_guest import FakeGuest
from tests.unit.conftest import Machine, guest, image_files, machine, spec

from .lab import Lab, paged, serving, settings, started_browser

__all__ = ["guest", "image_files", "machine", "spec"]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright, started_browser(playwright) as launched:
        yield launched


@pytest.fixture
def theme() -> str:
    """JupyterLab's theme; a test may be parametrized over it."""
    return "JupyterLab Light"


@pytest.fixture
def lab(machine: Machine, guest: FakeGuest, spec: str, theme: str) -> Iterator[Lab]:
    settings(machine.root / "config", theme)
    with serving(machine.root, machine.notebooks) as running:
        yield running


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with paged(browser) as made:
        yield made
