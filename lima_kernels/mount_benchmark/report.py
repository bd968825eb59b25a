"""A run's result for people: a table for the terminal, and the same as a picture."""

from __future__ import annotations

from collections.abc import Iterator
from xml.sax.saxutils import escape

from rich.markup import escape as plain
from rich.table import Table

from .plan import FIGURES, Figure, Origin
from .result import Measured, Result, ratios

FAILED = "failed"
# Pixels.
_LEFT, _COLUMN, _ROW, _TOP, _MARGIN, _BAR, _TEXT = 210, 128, 24, 96, 16, 60, 12
_COLOURS = {
    Origin.DISK: "#9aa5b1",
    Origin.DEFAULT: "#d9622b",
    Origin.LIMA: "#4a7fb5",
    Origin.ADDED: "#5a9a68",
}


def number(value: float) -> str:
    """Return a figure with as many digits as it is worth."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _cell(measured: Measured, figure: Figure) -> str:
    value = measured.figures.get(figure.name)
    if value is not None:
        return number(value)
    return FAILED if figure.name in measured.failures else "-"


def headline(result: Result) -> str:
    """Return what was measured, in a line."""
    size = result.size
    return (
        f"A file of {size.mebibytes} MiB written and read, {size.files} small files, "
        "and when the guest sees what the host changed"
    )


def machine(result: Result) -> str:
    """Return where it was measured, in a line."""
    found = result.machine
    parts = [
        found.cpu,
        found.system,
        f"accelerator {found.accelerator}",
        f"Lima {found.lima}",
        found.qemu,
        f"guest: Linux {found.guest_kernel}, {found.guest_cpus} CPUs, {found.guest_memory / 1024**3:.3g} GiB",
    ]
    return "; ".join(part for part in parts if part)


def verdicts(result: Result) -> list[str]:
    """Return the ratios that our default is judged by, and what else a reader has to know, each as a sentence."""
    found = ratios(result)
    lines = []
    if (large := found["large_vs_best"]) is not None:
        lines.append(f"Large files, our default: {large:.2f} x the best of Lima's settings.")
    if (git := found["git_status_vs_default"]) is not None:
        lines.append(f"git status, our default: {git:.2f} x the time of Lima's default.")
    if not result.machine.caches_emptied:
        lines.append("The guest's caches could not be emptied: what is read again is read from them.")
    return lines


def reasons(result: Result) -> list[str]:
    """Return why figures are missing, a line for each setting and reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for measured in result.measured:
        for figure in FIGURES:
            if reason := measured.failures.get(figure.name):
                found.setdefault((measured.setting.name, reason), []).append(figure.title)
    return [f"{setting}: {', '.join(titles)}: {reason}" for (setting, reason), titles in found.items()]


def table(result: Result) -> Table:
    """Return the table of all settings and figures."""
    made = Table(box=None, pad_edge=False, title_justify="left")
    made.add_column("", no_wrap=True)
    for figure in FIGURES:
        made.add_column("\n".join((*figure.title.split(), figure.unit)), justify="right", vertical="bottom")
    for measured in result.measured:
        style = "bold" if measured.setting.origin is Origin.DEFAULT else None
        made.add_row(plain(measured.setting.name), *(_cell(measured, figure) for figure in FIGURES), style=style)
    return made


def _text(x: float, y: float, words: str, style: str = "") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}"{f" {style}" if style else ""}>{escape(words)}</text>'


def _column(result: Result, column: int, figure: Figure) -> Iterator[str]:
    """Yield one figure's bars, each as long as its share of the greatest."""
    left = _LEFT + column * _COLUMN
    better = "more" if figure.more_is_better else "less"
    yield _text(left, _TOP - 26, figure.title, 'font-weight="bold"')
    yield _text(left, _TOP - 10, f"{figure.unit}, {better} is better", 'fill="#666"')
    greatest = max((found.figures.get(figure.name, 0) for found in result.measured), default=0) or 1
    for row, found in enumerate(result.measured):
        top = _TOP + row * _ROW
        value = found.figures.get(figure.name)
        width = max(1, _BAR * (value or 0) / greatest)
        if value is not None:
            colour = _COLOURS[found.setting.origin]
            yield f'<rect x="{left}" y="{top}" width="{width:.1f}" height="{_ROW - 8}" fill="{colour}"/>'
        yield _text(left + (width + 4 if value is not None else 0), top + _TEXT, _cell(found, figure))


def picture(result: Result) -> str:
    """Return the same as an SVG picture: a row for each setting, a column of bars for each figure."""
    width = _LEFT + len(FIGURES) * _COLUMN + _MARGIN
    height = _TOP + len(result.measured) * _ROW + 2 * _MARGIN
    frame = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {frame} font-family="sans-serif" font-size="12" fill="#222">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        _text(_MARGIN, 24, headline(result), 'font-size="15" font-weight="bold"'),
        _text(_MARGIN, 44, machine(result), 'fill="#666"'),
    ]
    for row, found in enumerate(result.measured):
        weight = 'font-weight="bold"' if found.setting.origin is Origin.DEFAULT else ""
        parts.append(_text(_MARGIN, _TOP + row * _ROW + _TEXT, found.setting.name, weight))
    for column, figure in enumerate(FIGURES):
        parts += _column(result, column, figure)
    return "\n".join([*parts, "</svg>\n"])
