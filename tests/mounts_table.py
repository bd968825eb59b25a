"""What the mounts cost, as it is committed; run as a program, it puts that into docs/mounts.md.

To measure anew: `lima-kernels mount benchmark --output docs/mounts.json --picture docs/mounts.svg`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lima_kernels.mount_benchmark.plan import FIGURES
from lima_kernels.mount_benchmark.report import FAILED, number

DOCS = Path(__file__).parents[1] / "docs"
COMMITTED = DOCS / "mounts.json"
PAGE = DOCS / "mounts.md"
BEGIN, END = "<!-- mount benchmark: begin -->\n", "<!-- mount benchmark: end -->\n"


def read(file: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return document


def rendered(document: dict[str, Any]) -> str:
    """Return a result as Markdown: the table, the machine and the ratios."""
    cells: dict[str, dict[str, str]] = {}
    for row in document["rows"]:
        cells.setdefault(row["setting"], {})[row["figure"]] = number(row["value"]) if "value" in row else FAILED
    lines = [f"| | {' | '.join(f'{figure.title}, {figure.unit}' for figure in FIGURES)} |"]
    lines.append("|---|" + "---:|" * len(FIGURES))
    for name, row in cells.items():
        lines.append(f"| {name} | {' | '.join(row.get(figure.name, '-') for figure in FIGURES)} |")
    machine = document["machine"]
    memory = machine["guest_memory"] / 1024**3
    ratios = ", ".join(f"`{name}` {value}" for name, value in document["ratios"].items())
    place = (
        f"A file of {document['large_file']}, {document['files']} small files. {machine['cpu']}, {machine['system']}, "
        f"accelerator {machine['accelerator']}, Lima {machine['lima']}, {machine['qemu'] or 'no QEMU'}; guest: "
        f"Linux {machine['guest_kernel']}, {machine['guest_cpus']} CPUs, {memory:.3g} GiB."
    )
    lines += ["", place, "", f"Ratios: {ratios}."]
    return "\n".join(lines) + "\n"


def in_page() -> str:
    """Return the table that stands in the page."""
    return PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(text.replace(BEGIN + in_page() + END, BEGIN + rendered(read(COMMITTED)) + END), encoding="utf-8")


if __name__ == "__main__":
    main()
