"""mount benchmark: what each mount costs on this machine."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ..errors import ConfigurationError, HostError
from ..mount_benchmark import plan, report
from ..mount_benchmark.result import Result, encoded
from ..mount_benchmark.run import run

# What the table takes, in characters.
WIDTH = 120


def add_command(verbs: Any) -> None:
    """Add `benchmark` to the verbs of `mount`."""
    parser = verbs.add_parser("benchmark", help="measure every mount on this machine, in a VM made for it")
    parser.add_argument("--quick", action="store_true", help=f"{plan.QUICK.files} small files, not {plan.FULL.files}")
    parser.add_argument(
        "--only", action="append", metavar="TEXT", help="measure the settings with this in their name (repeatable)"
    )
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the figures there as well")
    parser.add_argument("--picture", type=Path, metavar="FILE.svg", help="draw them there")
    parser.set_defaults(command=_benchmark)


def _benchmark(options: argparse.Namespace) -> int:
    for file in filter(None, (options.output, options.picture)):
        # To be known before an hour has gone.
        if not file.absolute().parent.is_dir() or file.is_dir():
            raise ConfigurationError(f"The file {file} cannot be written: its directory must exist.")
    try:
        result = asyncio.run(_measure(plan.QUICK if options.quick else plan.FULL, options.only))
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    if options.output:
        _write(options.output, encoded(result))
    if options.picture:
        _write(options.picture, report.picture(result).encode())
    _show(result)
    return 0


async def _measure(size: plan.Size, words: Sequence[str] | None) -> Result:
    boots = await plan.boots()
    if words is not None:
        boots = plan.selected(boots, words)
    task = asyncio.current_task()
    assert task is not None
    # A terminal that is closed, or a batch job whose time is over, should leave no VM either.
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await run(boots, size, lambda line: print(line, file=sys.stderr, flush=True))


def _write(file: Path, data: bytes) -> None:
    try:
        file.write_bytes(data)
    except OSError as error:
        raise HostError(f"The file {file} cannot be written: {error.strerror}.") from error


def _show(result: Result) -> None:
    # Cut figures are of no use: a narrow terminal wraps the lines.
    console = Console(soft_wrap=True, highlight=False)
    console.width = max(console.width, WIDTH)
    console.print(report.headline(result), markup=False)
    console.print(report.machine(result), style="dim", markup=False)
    console.print(report.table(result))
    for line in (*report.reasons(result), *report.verdicts(result)):
        console.print(line, markup=False)
