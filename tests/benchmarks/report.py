"""A run's figures for people: goals and medians as Markdown for a terminal and the documentation, and as a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from xml.sax.saxutils import escape

from lima_kernels.mount_benchmark.report import number

from .document import Document, Goal, Measured
from .samples import OURS, Unit

# Pixels.
_WIDTH, _MARGIN, _LEFT, _BAR, _ROW, _TITLE, _TEXT = 760, 16, 150, 440, 20, 24, 13
_COLOURS = {True: "#d9622b", False: "#4a7fb5"}
_VERDICTS = {True: "met", False: "missed", None: "not measured"}


def machine(made: Document) -> str:
    """Return where it was measured, in a line."""
    found = made.machine
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    memory = f"{found.memory / 1024**3:.0f} GiB"
    return f"{found.cpu}, {found.cores} cores, {memory}; {found.system}; accelerator {found.accelerator}; {versions}"


def _goal(goal: Goal, more: bool) -> str:
    value = "-" if goal.value is None else number(goal.value)
    return f"| `{goal.name}` | {value} | {'>=' if more else '<='} {goal.goal:g} | {_VERDICTS[goal.met]} |"


def _goals(made: Document, more: Sequence[str]) -> Iterator[str]:
    yield "| figure | here | goal | |"
    yield "|---|---|---|---|"
    yield from (_goal(goal, goal.name in more) for goal in made.goals)
    without = made.ratios.keys() - {goal.name for goal in made.goals}
    for name in sorted(without):
        value = made.ratios[name]
        yield f"| `{name}` | {'-' if value is None else number(value)} | | |"


def _rows(made: Document) -> Iterator[str]:
    yield "| part | figure | contender | median | least | most | of |"
    yield "|---|---|---|---|---|---|---|"
    for run in made.runs:
        least, most = number(min(run.values)), number(max(run.values))
        median = f"{number(run.median)} {run.unit}"
        yield f"| {run.part} | {run.figure} | {run.contender} | {median} | {least} | {most} | {len(run.values)} |"


def markdown(made: Document, more: Sequence[str]) -> str:
    """Return a run as Markdown.

    :param more: the figures of which more is better.
    """
    failed = [f"- `{part.name}` failed: {part.failed}" for part in made.parts if part.failed]
    notes = [f"- {part.note}" for part in made.parts if part.note]
    lines = [machine(made) + ".", "", *_goals(made, more), "", *_rows(made)]
    return "\n".join((*lines, *(["", *failed, *notes] if failed or notes else []), ""))


def _text(x: float, y: float, words: str, style: str = "") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}"{f" {style}" if style else ""}>{escape(words)}</text>'


def _bars(runs: Sequence[Measured], top: float) -> Iterator[str]:
    """Yield one figure's bars, each as long as its share of the greatest."""
    greatest = max(run.median for run in runs) or 1.0
    for row, run in enumerate(runs):
        y = top + _TITLE + row * _ROW
        width = max(1.0, _BAR * max(run.median, 0.0) / greatest)
        yield _text(_MARGIN, y + _TEXT, run.contender)
        colour = _COLOURS[run.contender == OURS]
        yield f'<rect x="{_LEFT}" y="{y:.0f}" width="{width:.1f}" height="{_ROW - 4}" fill="{colour}"/>'
        yield _text(_LEFT + width + 6, y + _TEXT, f"{number(run.median)} {run.unit}")


def picture(made: Document) -> str:
    """Return the same as an SVG picture: a group of bars for each figure, one for each contender."""
    parts = [_text(_MARGIN, 24, "lima-kernels, measured beside others", 'font-size="15" font-weight="bold"')]
    parts.append(_text(_MARGIN, 42, machine(made).partition("; lima-kernels")[0], 'fill="#666"'))
    top = 60.0
    for (part, figure), found in groupby(made.runs, key=lambda run: (run.part, run.figure)):
        runs = list(found)
        better = "more" if Unit(runs[0].unit).more_is_better else "less"
        parts.append(_text(_MARGIN, top + 16, f"{part}: {figure} ({better} is better)", 'font-weight="bold"'))
        parts += _bars(runs, top)
        top += _TITLE + len(runs) * _ROW + 6
    frame = f'viewBox="0 0 {_WIDTH} {top:.0f}" width="{_WIDTH}" height="{top:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {frame} font-family="sans-serif" font-size="12" fill="#222">'
    return "\n".join([head, f'<rect width="{_WIDTH}" height="{top:.0f}" fill="#fff"/>', *parts, "</svg>\n"])
