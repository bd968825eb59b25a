"""What a verb returns: shown well in a notebook and in a terminal, and of use in code. Standard library only."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

Scalar = str | int | float | bool | None

_STYLE = "text-align: left; white-space: pre-wrap"


def _shown(value: Scalar) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def plain(text: str) -> str:
    """Return text that does nothing to a terminal and stays on its line."""
    return "".join(
        character if character == " " or unicodedata.category(character)[0] not in "CZ" else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )


def _width(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    wide = sum(unicodedata.east_asian_width(character) in "FW" for character in text)
    marks = sum(unicodedata.combining(character) > 0 for character in text)
    return len(text) + wide - marks


class Table(list[dict[str, Scalar]]):
    """Rows by their columns' names: a list of dictionaries, as pandas takes it.

    :param columns: names, as code uses them; people read them with spaces for underscores.
    :param rows: values in the order of the columns.
    :param title: a line above the table.
    """

    def __init__(self, columns: Sequence[str], rows: Iterable[Sequence[Scalar]], title: str = "") -> None:
        super().__init__(dict(zip(columns, row, strict=True)) for row in rows)
        self.columns = tuple(columns)
        self.title = title

    @property
    def _heads(self) -> list[str]:
        return [column.replace("_", " ") for column in self.columns]

    def _cells(self) -> list[list[str]]:
        return [[plain(_shown(row.get(column))) for column in self.columns] for row in self]

    def __repr__(self) -> str:
        cells = self._cells()
        lines = [self._heads, *cells]
        widths = [max(_width(line[number]) for line in lines) for number in range(len(self.columns))]

        def line(texts: Sequence[str]) -> str:
            padded = (text + " " * (width - _width(text)) for text, width in zip(texts, widths, strict=True))
            return "  ".join(padded).rstrip()

        body = [line(texts) for texts in lines] if cells else ["(none)"]
        return "\n".join([plain(self.title), *body] if self.title else body)

    def _repr_html_(self) -> str:
        title = f"<caption>{html.escape(plain(self.title))}</caption>" if self.title else ""
        if not self:
            return f"<table>{title}<tr><td>(none)</td></tr></table>"
        heads = "".join(f'<th scope="col" style="{_STYLE}">{html.escape(head)}</th>' for head in self._heads)
        rows = "".join(
            "<tr>" + "".join(f'<td style="{_STYLE}">{html.escape(cell)}</td>' for cell in cells) + "</tr>"
            for cells in self._cells()
        )
        return f"<table>{title}<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"

    def __reduce__(self) -> Any:
        rows = [tuple(row.get(column) for column in self.columns) for row in self]
        return Table, (self.columns, rows, self.title)


class Note(str):
    """What a verb says when there is nothing to count: shown as text, not as a quoted string."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "\n".join(plain(line) for line in self.splitlines())


Result = Table | Note
