"""What was measured to hold on which mount, as it is committed; run as a program, it puts that into the README."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
COMMITTED = ROOT / "docs" / "mount-properties.json"
# What `make test` measures, in the same form.
MEASURED = ROOT / "build" / "mount-properties.json"
BEGIN, END = "<!-- mount properties: begin -->\n", "<!-- mount properties: end -->\n"
_WORDS = {True: "yes", False: "**no**", None: "-"}

# For each group of properties, and each property, on which mounts it holds.
Table = dict[str, dict[str, dict[str, bool]]]


def read(file: Path) -> Table:
    """Return a table; an empty one where there is no file."""
    table: Table = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return table


def write(file: Path, table: Table) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def column(table: Table, mount: str) -> dict[str, bool]:
    """Return what is known of one mount."""
    return {name: row[mount] for rows in table.values() for name, row in rows.items() if mount in row}


def rendered(table: Table) -> str:
    """Return the table as Markdown."""
    columns = list(dict.fromkeys(mount for rows in table.values() for row in rows.values() for mount in row))
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for group, rows in table.items():
        lines.append(f"| **{group}** |" + " |" * len(columns))
        lines += [
            f"| {name} | {' | '.join(_WORDS[row.get(mount)] for mount in columns)} |" for name, row in rows.items()
        ]
    return "\n".join(lines) + "\n"


def in_readme() -> str:
    """Return the table that stands in the README."""
    return README.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]


def main() -> None:
    text = README.read_text(encoding="utf-8")
    README.write_text(
        text.replace(BEGIN + in_readme() + END, BEGIN + rendered(read(COMMITTED)) + END), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
