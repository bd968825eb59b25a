"""install, uninstall, list: the kernel specs, and the state of their VMs."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .. import kernelspec
from ..lima.limactl import Limactl


def add_commands(commands: Any) -> None:
    """Add this group's commands."""
    install = commands.add_parser("install", help="write a kernel spec", description="Write a kernel spec.")
    install.add_argument("--name", default=kernelspec.DEFAULT_NAME, help="the kernel spec's name")
    install.add_argument("--display-name", default=kernelspec.DEFAULT_DISPLAY_NAME, help="what Jupyter shows")
    install.add_argument(
        "--environment", type=Path, metavar="FILE", help="the environment file that says what the VM is"
    )
    which = install.add_mutually_exclusive_group()
    which.add_argument("--instance", metavar="NAME", help="the Lima instance; made when it is missing")
    which.add_argument("--attach", metavar="NAME", help="a Lima instance that you made yourself")
    where = install.add_mutually_exclusive_group()
    where.add_argument("--user", action="store_true", help="for this user (the default outside a virtual environment)")
    where.add_argument("--sys-prefix", action="store_true", help="into this Python's environment")
    where.add_argument("--prefix", metavar="DIR", help="below this directory")
    install.set_defaults(command=_install)

    uninstall = commands.add_parser("uninstall", help="remove a kernel spec; its VM stays")
    uninstall.add_argument("name", nargs="?", default=kernelspec.DEFAULT_NAME)
    uninstall.set_defaults(command=_uninstall)

    listing = commands.add_parser("list", help="list our kernel specs and their VMs")
    listing.add_argument("--json", action="store_true", help="for programs")
    listing.set_defaults(command=_list)


def _install(options: argparse.Namespace) -> int:
    request = kernelspec.make_request(
        options.name,
        options.display_name,
        environment=options.environment,
        instance=options.attach or options.instance,
        attach=bool(options.attach),
    )
    in_virtual_environment = sys.prefix != sys.base_prefix
    prefix = options.prefix
    if options.sys_prefix or (prefix is None and not options.user and in_virtual_environment):
        prefix = sys.prefix
    directory = kernelspec.write(request, user=prefix is None, prefix=prefix)
    print(f"Installed the kernel {request.display_name!r} ({request.name}) in {directory}")
    return 0


def _uninstall(options: argparse.Namespace) -> int:
    print(f"Removed {kernelspec.remove(options.name)}")
    return 0


def _list(options: argparse.Namespace) -> int:
    states = {instance.name: instance.status.value for instance in asyncio.run(Limactl().list())}
    rows = [
        {
            "name": spec.name,
            "display_name": spec.display_name,
            "instance": str(spec.config.get("instance", "")),
            "status": states.get(str(spec.config.get("instance", "")), "not made yet"),
            "directory": str(spec.directory),
        }
        for spec in kernelspec.installed()
    ]
    if options.json:
        print(json.dumps(rows, indent=2))
        return 0
    table = Table("kernel spec", "display name", "VM", "state")
    for row in rows:
        table.add_row(row["name"], row["display_name"], row["instance"], row["status"])
    Console().print(table if rows else "No kernel spec yet: lima-kernels install")
    return 0
