"""run, verify: what their command lines may say; what they do is imported when they are run."""

from __future__ import annotations

import argparse
import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import kernelspec


def add_commands(commands: Any) -> None:
    """Add this group's commands."""
    _add_run(commands)
    _add_verify(commands)


def _later(module: str, name: str) -> Callable[[argparse.Namespace], int]:
    """Return a command of a module that is not imported before: nbformat takes longer than most commands do."""

    def command(options: argparse.Namespace) -> int:
        return int(getattr(importlib.import_module(f".{module}", __package__), name)(options))

    return command


def _add_run(commands: Any) -> None:
    parser = commands.add_parser(
        "run",
        help="execute notebooks on Lima kernels",
        description="Execute notebooks on Lima kernels. Exit code 3: a cell failed, and the result says which; "
        "4: the VM is not what the lock says.",
    )
    parser.add_argument("notebooks", type=Path, nargs="+", metavar="NOTEBOOK")
    parser.add_argument("--kernel", help=f"the kernel spec's name (default: {kernelspec.DEFAULT_NAME})")
    parser.add_argument(
        "--locked",
        action="store_true",
        help="only in a VM that is what its lima-env.lock says; the result tells it",
    )
    parser.add_argument(
        "--environment",
        type=Path,
        metavar="FILE",
        help="with --locked: the environment file (default: lima-env.yaml, from the notebook's directory upwards)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="where to write; a directory for several notebooks (default: in place)",
    )
    for option, what in (("-p", "set a parameter"), ("-r", "set a parameter to a text, whatever that looks like")):
        parser.add_argument(option, nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help=what)
    parser.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="for each cell (default: none)")
    parser.add_argument("--allow-errors", action="store_true", help="go on after a cell that fails")
    parser.add_argument("--parallel", type=_count, default=1, metavar="N", help="notebooks at once (default: 1)")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write there what came of each cell, as JUnit does")
    parser.add_argument("--html", type=Path, metavar="DIR", help="write the results there as pages, too")
    parser.set_defaults(command=_later("run", "run"))


def _add_verify(commands: Any) -> None:
    parser = commands.add_parser(
        "verify",
        help="tell whether the environment is the one that notebooks were run in",
        description="Tell whether the environment is the one that `run --locked` wrote into notebooks. Exit code 4: it "
        "is another.",
    )
    parser.add_argument("notebooks", type=Path, nargs="+", metavar="NOTEBOOK")
    parser.add_argument(
        "--environment",
        type=Path,
        metavar="FILE",
        help="the environment file (default: lima-env.yaml, from the notebook's directory upwards)",
    )
    parser.set_defaults(command=_later("proving", "verify"))


def _seconds(text: str) -> float:
    seconds = float(text)
    if not (seconds > 0 and math.isfinite(seconds)):
        raise argparse.ArgumentTypeError(f"expected seconds above 0, got {text}")
    return seconds


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return count
