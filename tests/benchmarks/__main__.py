"""`python -m tests.benchmarks`: measure, or show what an earlier run has measured."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from pathlib import Path

from .document import Document, decoded, document, encoded, examine
from .machine_room import room
from .parts import NAMES, Results, chosen
from .report import markdown, picture
from .samples import COSTS, RATIOS

BUILD = Path("build")
JSON, PICTURE = "bench.json", "bench.svg"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--only", default="", metavar="PART,...", help=f"run these parts only, of {', '.join(NAMES)}")
    parser.add_argument("--output", type=Path, default=BUILD, metavar="DIR", help="where the results go")
    parser.add_argument("--show", type=Path, metavar="FILE", help="show a bench.json as Markdown; nothing is measured")
    return parser


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _shown(made: Document) -> str:
    return markdown(made, [comparison.name for comparison in (*RATIOS, *COSTS) if comparison.more_is_better])


def main() -> int:
    """Run what the command line says; returns 1 when a part failed, 130 when it was interrupted."""
    arguments = _parser().parse_args()
    if arguments.show:
        print(_shown(decoded(arguments.show.read_bytes())))
        return 0
    try:
        parts = chosen(arguments.only)
    except ValueError as error:
        _parser().error(str(error))
    signal.signal(signal.SIGTERM, _interrupt)
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {text}", file=sys.stderr, flush=True)

    machine = asyncio.run(examine())
    results, status = Results(), 0
    try:
        with room(say) as made:
            results.run(parts, made)
    except KeyboardInterrupt:
        status = 130
    done = document(machine, results.outcomes, results.samples)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / JSON).write_bytes(encoded(done))
    (arguments.output / PICTURE).write_text(picture(done), encoding="utf-8")
    print(_shown(done))
    return status or int(done.failed)


if __name__ == "__main__":
    sys.exit(main())
