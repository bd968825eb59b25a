"""mount add, list, remove, benchmark: which directories of this host a VM shows, and how fast."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..errors import printable
from ..lima.limactl import Limactl
from ..runtime import runtime
from ..settings import DEFAULT_INSTANCE
from ..verbs import mounts
from ..verbs.mounts import absolute
from . import benchmark


def add_commands(commands: Any) -> None:
    """Add this group's commands."""
    parser = commands.add_parser("mount", help="show directories of this host to a VM that runs")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add = verbs.add_parser("add", help="show a directory at its own path, until it is removed or the VM stops")
    add.add_argument("--read-only", action="store_true", help="the VM may not change it")
    add.set_defaults(command=_add)
    listing = verbs.add_parser("list", help="list the directories of this host that a VM shows")
    listing.add_argument("--json", action="store_true", help="for programs")
    listing.set_defaults(command=_list)
    remove = verbs.add_parser("remove", help="show a directory no longer that was added")
    remove.set_defaults(command=_remove)
    benchmark.add_command(verbs)
    for verb in (add, remove):
        verb.add_argument("directory", type=Path, metavar="DIR")
    for verb in (add, listing, remove):
        verb.add_argument("--instance", metavar="NAME", default=DEFAULT_INSTANCE, help="the Lima instance")


def _add(options: argparse.Namespace) -> int:
    directory = absolute(options.directory)

    async def add() -> None:
        await mounts.add(Limactl(), runtime().vm(options.instance), directory, read_only=options.read_only)

    runtime().run_blocking(add())
    mode = "read-only" if options.read_only else "writable"
    print(f"The VM {options.instance} shows {directory}, {mode}, until it stops.")
    return 0


def _remove(options: argparse.Namespace) -> int:
    directory = absolute(options.directory)

    async def remove() -> Sequence[str]:
        return await mounts.remove(Limactl(), runtime().vm(options.instance), directory)

    if left := runtime().run_blocking(remove()):
        print(f"The VM {options.instance} shows {directory} for as long as its kernels need it: {', '.join(left)}.")
    else:
        print(f"The VM {options.instance} shows {directory} no longer.")
    return 0


async def _survey(name: str) -> list[mounts.Shown]:
    return await mounts.survey(Limactl(), runtime().vm(name))


def _list(options: argparse.Namespace) -> int:
    shown = runtime().run_blocking(_survey(options.instance))
    if options.json:
        print(json.dumps([mount._asdict() for mount in shown], indent=2))
        return 0
    table = Table(box=None, pad_edge=False)
    for column in ("DIRECTORY", "IN THE VM", "TYPE", "MODE", "USED BY"):
        table.add_column(column, overflow="fold")
    for mount in shown:
        point = "at the same path" if mount.point == mount.directory else printable(mount.point)
        used = ", ".join(mount.users) if mount.added else "since the VM was booted"
        mode = "writable" if mount.writable else "read-only"
        table.add_row(*(escape(text) for text in (printable(mount.directory), point, mount.kind, mode, used)))
    Console(soft_wrap=True).print(table if shown else f"The VM {options.instance} shows nothing of this host.")
    return 0
