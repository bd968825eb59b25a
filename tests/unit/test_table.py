"""The table in tests/README.md names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
TEXT = (TESTS / "README.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([^`\s]+::[^`\s]+)`", TEXT)))
HEADERS = {"tests", "---", "what it needs"}


def rows() -> list[list[str]]:
    """Return the cells of each row that promises something."""
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines() if line[:1] == "|"]
    return [cells for cells in found if cells[-1] not in HEADERS and not cells[0].startswith("`make")]


def test_the_table_was_read() -> None:
    assert len(NAMED) > 50
    assert [cells[0] for cells in rows() if cells[0].isdigit()] == [str(number) for number in range(1, 15)]


@pytest.mark.parametrize("name", NAMED)
def test_every_test_of_the_table_exists(name: str) -> None:
    file, _, test = name.partition("::")
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    assert test in {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


def test_every_row_names_a_test_or_says_that_there_is_none() -> None:
    assert [cells for cells in rows() if not re.fullmatch(r"TODO|(`[^`\s]+::[^`\s]+`\s?)+", cells[-1])] == []
