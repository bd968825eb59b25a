"""doctor: what this host needs."""

from __future__ import annotations

import argparse

from ..doctor import examine
from ..magics.results import Table
from .context import Context


async def doctor(_context: Context, _options: argparse.Namespace) -> Table:
    """Check what this machine needs, each row with what mends it."""
    rows = [(row.check, row.outcome.value, row.detail, row.fix) for row in await examine()]
    return Table(("check", "outcome", "found", "what_mends_it"), rows)
