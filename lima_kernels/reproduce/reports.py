"""What came of a run, for a CI system: JUnit's XML, and notebooks as pages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from nbconvert import HTMLExporter
from nbformat import NotebookNode

from ..errors import HostError
from .running import CellEnd, CellRun, Result

# What XML 1.0 cannot say, and the colours of tracebacks, which begin with one of them.
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_UNSPEAKABLE = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _plain(text: str) -> str:
    return _UNSPEAKABLE.sub("", _COLOURS.sub("", text))


def junit(results: Sequence[Result]) -> bytes:
    """Return JUnit's XML: a suite for each notebook, a case for each code cell."""
    root = ET.Element("testsuites", name="lima-kernels")
    for result in results:
        root.append(_suite(result))
    ET.indent(root)
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _suite(result: Result) -> ET.Element:
    name = _plain(str(result.job.path))
    cases = [_case(name, cell) for cell in result.cells]
    if result.error is not None:
        # A case of its own: no cell is to blame.
        case = ET.Element("testcase", classname=name, name="run")
        ET.SubElement(case, "error", message=_plain(str(result.error)))
        cases.append(case)
    elif result.is_changed:
        case = ET.Element("testcase", classname=name, name="environment")
        ET.SubElement(case, "failure", message="The environment was changed while the notebook ran.")
        cases.append(case)
    counts: dict[str, str] = {
        f"{outcome}s" if outcome != "skipped" else outcome: str(sum(case.find(outcome) is not None for case in cases))
        for outcome in ("failure", "error", "skipped")
    }
    seconds = sum(cell.seconds for cell in result.cells)
    suite = ET.Element("testsuite", {"name": name, "tests": str(len(cases)), "time": f"{seconds:.3f}", **counts})
    suite.extend(cases)
    return suite


def _case(notebook: str, cell: CellRun) -> ET.Element:
    case = ET.Element("testcase", classname=notebook, name=f"cell {cell.number}", time=f"{cell.seconds:.3f}")
    if cell.end is CellEnd.FAILED:
        lines = [line for line in _plain(cell.failure).splitlines() if line.strip()]
        ET.SubElement(case, "failure", message=lines[-1] if lines else "").text = _plain(cell.failure)
    elif cell.end is CellEnd.NOT_RUN:
        ET.SubElement(case, "skipped")
    return case


def html(notebook: NotebookNode) -> bytes:
    """Return a notebook as a page.

    :raises HostError: when nbconvert lacks something.
    """
    try:
        page, _ = HTMLExporter().from_notebook_node(notebook)  # type: ignore[no-untyped-call]
    except (OSError, ImportError) as error:
        raise HostError(f"nbconvert cannot make a page of the notebook: {error}.") from error
    return str(page).encode(errors="replace")
