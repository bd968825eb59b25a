"""start, stop, delete: the VM of a kernel spec."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import Any

from ..environment import spec
from ..errors import InstanceError, nearest
from ..guest.mounts import directory_to_share
from ..instances import Wish, owner_mark
from ..kernelspec import installed
from ..lima.limactl import Limactl
from ..lima.models import Status
from ..provisioner import DEFAULT_INSTANCE
from ..runtime import runtime
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
            parser.add_argument("--force", action="store_true", help="do not wait for the guest")


def _start(options: argparse.Namespace) -> int:
    config = next((found.config for found in installed() if found.config.get("instance") == options.instance), None)
    if config is None and options.instance != DEFAULT_INSTANCE:
        known = [str(found.config.get("instance")) for found in installed()]
        raise InstanceError(
            f"No kernel spec names the VM {options.instance!r}.",
            hint=nearest(options.instance, known) or "Write one: lima-kernels install --instance NAME",
        )
    config = config or {}
    file = config.get("environment")
    limits = {name: float(config[name]) for name in ("create_timeout", "boot_timeout") if name in config}
    wish = Wish(
        environment=spec.load(Path(file)) if file else spec.DEFAULT,
        attach=bool(config.get("attach")),
        directory=directory_to_share(options.directory, server_root=None),
        **limits,
    )

    async def start() -> None:
        await runtime().vm(options.instance).ensure(wish)

    with watching():
        runtime().run_blocking(start())
    print(f"The VM {options.instance} is ready.")
    return 0


def _stop(options: argparse.Namespace) -> int:
    async def stop() -> None:
        limactl = Limactl()
        instance = await limactl.get(options.instance)
        if options.force:
            await limactl.stop_forcibly(options.instance)
        elif instance.status is not Status.STOPPED:
            await limactl.stop(options.instance)

    asyncio.run(stop())
    print(f"The VM {options.instance} is stopped.")
    return 0


def _delete(options: argparse.Namespace) -> int:
    async def delete() -> None:
        limactl = Limactl()
        instance = await limactl.get(options.instance)
        if owner_mark(instance) is None:
            raise InstanceError(
                f"The VM {options.instance!r} was not made by lima-kernels.", hint=f"limactl delete {options.instance}"
            )
        if instance.status is Status.RUNNING and not options.force:
            raise InstanceError(
                f"The VM {options.instance!r} runs.", hint=f"lima-kernels stop {options.instance}, or --force"
            )
        await limactl.delete(options.instance)

    asyncio.run(delete())
    print(f"The VM {options.instance} is deleted.")
    return 0
