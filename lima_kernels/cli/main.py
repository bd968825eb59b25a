"""`lima-kernels`: the commands, and the one place that turns errors into text and exit codes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.console import Console

from .. import __version__
from ..errors import LimaKernelsError
from . import doctor, environments, image, kernels, kernelspecs, mounts, notebooks, vms

FAILED = 1
INTERRUPTED = 130


def make_parser() -> argparse.ArgumentParser:
    """Return the parser with every command."""
    parser = argparse.ArgumentParser(prog="lima-kernels", description="Jupyter kernels in Lima VMs.")
    parser.add_argument("--version", action="version", version=f"lima-kernels {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for group in (kernelspecs, environments, notebooks, kernels, mounts, vms, image, doctor):
        group.add_commands(commands)
    return parser


def report(error: LimaKernelsError, console: Console) -> None:
    """Print an error: its context first, for the last line is what is read."""
    for line in error.context:
        console.print(f"  {line}", style="dim", markup=False, highlight=False, soft_wrap=True)
    console.print(f"lima-kernels: {error}", style="red", markup=False, highlight=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 when it failed, 2 for a wrong command line, 130 when interrupted."""
    options = make_parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except LimaKernelsError as error:
        report(error, Console(stderr=True))
        return FAILED
    except KeyboardInterrupt:
        Console(stderr=True).print("lima-kernels: interrupted", style="red")
        return INTERRUPTED
