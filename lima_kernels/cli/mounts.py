"""mount add, list, remove, benchmark: which directories of this host a VM shows, and how fast."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .. import added_mounts
from ..errors import InstanceError, MountError, printable
from ..guest.kernels import KEPT
from ..guest.mounts import check_directory
from ..instances import REACH, owner_mark
from ..lima.limactl import Limactl
from ..lima.models import Instance
from ..lima.mounting import default_mount_type
from ..provisioner import DEFAULT_INSTANCE
from ..runtime import runtime
from . import benchmark


class Shown(NamedTuple):
    """A directory of this host that a VM shows; ``users`` are words for a person, and ``added`` while it ran."""

    directory: str
    point: str
    kind: str
    writable: bool
    added: bool
    users: Sequence[str]


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


def _absolute(directory: Path) -> Path:
    return Path(os.path.abspath(directory.expanduser()))


async def _running(name: str) -> Instance:
    instance = await Limactl().get(name)
    if not instance.is_up:
        raise InstanceError(
            f"The VM {name!r} does not run.",
            hint=f"Start it, and the directory is shown from the beginning: lima-kernels start {name} --directory DIR",
        )
    return instance


def _add(options: argparse.Namespace) -> int:
    directory = _absolute(options.directory)
    check_directory(directory)

    async def add() -> None:
        instance = await _running(options.instance)
        vm = runtime().vm(options.instance)
        wish = REACH._replace(attach=owner_mark(instance) is None)
        guest = await vm.reconnect(wish)
        if vm.shows(directory):
            raise MountError(f"The VM {vm.name!r} shows {directory} already.")
        await added_mounts.add(vm, guest, wish, directory, read_only=options.read_only)

    runtime().run_blocking(add())
    mode = "read-only" if options.read_only else "writable"
    print(f"The VM {options.instance} shows {directory}, {mode}, until it stops.")
    return 0


def _remove(options: argparse.Namespace) -> int:
    directory = _absolute(options.directory)

    async def remove() -> Sequence[str]:
        await _running(options.instance)
        vm = runtime().vm(options.instance)
        return await added_mounts.remove(vm, await vm.reconnect(REACH), directory)

    if left := runtime().run_blocking(remove()):
        kernels = ", ".join(printable(user) for user in left)
        print(f"The VM {options.instance} shows {directory} for as long as its kernels need it: {kernels}.")
    else:
        print(f"The VM {options.instance} shows {directory} no longer.")
    return 0


async def _survey(name: str) -> list[Shown]:
    instance = await Limactl().get(name)
    kind = instance.config.mount_type or default_mount_type(instance.config.mount_types_unsupported).value
    found = [
        Shown(mount.location, mount.guest_path, kind, mount.writable, added=False, users=())
        for mount in instance.config.mounts
    ]
    if instance.is_up:
        guest = await runtime().vm(name).reconnect(REACH)
        states = await guest.forkserver.list()
        for state in (await guest.forkserver.mounts()).values():
            users = [_title(user, states) for user in state.users]
            found.append(Shown(state.point, state.point, "sshfs", not state.read_only, added=True, users=users))
    return found


def _title(user: str, states: Any) -> str:
    if user == KEPT:
        return "kept"
    facts = states[user].facts if user in states else None
    return printable(Path(facts.session).name or facts.spec if facts else user)


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
