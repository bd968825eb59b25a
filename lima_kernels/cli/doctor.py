"""doctor: what this host needs, and the command that mends each fault."""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any

from rich.console import Console
from rich.table import Table

from .. import doctor

_STYLES = {doctor.Outcome.OK: "green", doctor.Outcome.WARNING: "yellow", doctor.Outcome.FAILURE: "red"}


def add_commands(commands: Any) -> None:
    """Add this group's commands."""
    parser = commands.add_parser("doctor", help="check what this machine needs, and say how to mend it")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(command=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    rows = asyncio.run(doctor.examine())
    failed = any(row.outcome is doctor.Outcome.FAILURE for row in rows)
    if options.json:
        print(json.dumps([{**row._asdict(), "outcome": row.outcome.value} for row in rows], indent=2))
        return int(failed)
    table = Table("check", "", "found", "what mends it")
    for row in rows:
        table.add_row(row.check, f"[{_STYLES[row.outcome]}]{row.outcome.value}", row.detail, row.fix)
    Console().print(table)
    return int(failed)
