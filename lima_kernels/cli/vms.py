"""start, stop, delete: the VM of a kernel spec."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import wishes
from ..errors import InstanceError, nearest
from ..guest.mounts import directory_to_share
from ..hibernation.saving import described, discard
from ..kernelspec import installed
from ..lima.limactl import Limactl
from ..runtime import runtime
from ..settings import DEFAULT_INSTANCE, Settings
from ..verbs.usage import users
from .progress import watching


def add_commands(commands: Any) -> None:
    """Add this group's commands."""
    for name, help_, command in (
        ("start", "start the VM of a kernel spec, and make it when it is missing", _start),
        ("stop", "shut a VM down; its kernels end", _stop),
        ("delete", "delete a VM that lima-kernels made, with its disk", _delete),
    ):
        parser = commands.add_parser(name, help=help_)
        parser.add_argument("instance", nargs="?", default=DEFAULT_INSTANCE, help="the Lima instance")
        parser.set_defaults(command=command)
        if command is _start:
            parser.add_argument(
                "--directory", type=Path, metavar="DIR", default=Path(), help="what a new VM shows (default: this one)"
            )
        else:
            parser.add_argument(
                "--force", action="store_true", help="also while it is in use, and without waiting for the guest"
            )

    parser = commands.add_parser(
        "hibernate", help="save a VM's memory and end it; its kernels live on when it is started again"
    )
    parser.add_argument("instance", nargs="?", default=DEFAULT_INSTANCE, help="the Lima instance")
    parser.add_argument("--force", action="store_true", help="also while cells run; they go on when it wakes")
    parser.add_argument("--discard", action="store_true", help="remove what was saved, and the kernels with it")
    parser.set_defaults(command=_hibernate)


def _start(options: argparse.Namespace) -> int:
    settings = wishes.settings_of(options.instance)
    if settings is None and options.instance != DEFAULT_INSTANCE:
        raise InstanceError(
            f"No kernel spec names the VM {options.instance!r}.",
            hint=nearest(options.instance, [found.instance for found in installed()])
            or "Write one: lima-kernels install --instance NAME",
        )
    wish = wishes.wish_of(settings or Settings(), directory=None)
    shown = directory_to_share(options.directory, server_root=None, asked=wish.environment.mounts)
    wish = wish._replace(directory=shown)
    with watching():
        runtime().run_blocking(wishes.ready_guest(options.instance, wish))
    print(f"The VM {options.instance} is ready.")
    return 0


def _stop(options: argparse.Namespace) -> int:
    if not options.force and not _may_end(options.instance, runtime().run_blocking(_users(options.instance))):
        return 1

    async def stop() -> None:
        await runtime().vm(options.instance).stop(force=options.force)

    with watching():
        runtime().run_blocking(stop())
    print(f"The VM {options.instance} is stopped.")
    return 0


async def _users(name: str) -> Sequence[str]:
    return await users(runtime().vm(name), await Limactl().get(name))


def _may_end(instance: str, users: Sequence[str]) -> bool:
    """Tell whether a VM that these use may be stopped: a person at a terminal is asked.

    :raises InstanceError: when there is nobody to ask.
    """
    if not users:
        return True
    if not sys.stdin.isatty():
        raise InstanceError(
            f"The VM {instance!r} is in use.",
            hint=f"To end its kernels all the same: lima-kernels stop --force {instance}",
            context=users,
        )
    for user in users:
        print(f"  {user}")
    try:
        answer = input(f"The VM {instance} is in use. Stop it all the same, which ends its kernels? [y/N] ")
    except EOFError:
        answer = ""
    return answer.strip().lower() in ("y", "yes")


def _hibernate(options: argparse.Namespace) -> int:
    async def hibernate() -> str:
        vm = runtime().vm(options.instance)
        if options.discard:
            return await discard(Limactl(), vm.progress)
        return described(options.instance, await vm.hibernate(force=options.force))

    with watching():
        print(runtime().run_blocking(hibernate()))
    return 0


def _delete(options: argparse.Namespace) -> int:
    async def delete() -> None:
        await runtime().vm(options.instance).delete(force=options.force)

    with watching():
        runtime().run_blocking(delete())
    print(f"The VM {options.instance} is deleted.")
    return 0
