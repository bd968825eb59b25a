"""install, uninstall, list: the kernel specs, and the state of their VMs."""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .. import kernelspec, wishes
from ..environment import locked
from ..errors import ConfigurationError, MountError, printable
from ..guest.kernels import GuestSpec
from ..guest.mounts import directory_to_share
from ..lima.limactl import Limactl
from ..reproduce import syncing
from ..runtime import runtime
from ..settings import Settings
from .progress import watching

# The environment's own Python, whatever is named beside it.
_IPYKERNEL = "python3"
# What says of a VM what it is and how long it takes: the same for all kernel specs that name it.
_OF_THE_VM = ("environment", "attach", "create_timeout", "boot_timeout", "idle_timeout", "on_idle", "standby_kernels")


def add_commands(commands: Any) -> None:
    """Add this group's commands."""
    install = commands.add_parser("install", help="write a kernel spec", description="Write a kernel spec.")
    install.add_argument(
        "--name", help=f"the kernel spec's name (default: {kernelspec.DEFAULT_NAME}, or with --kernel lima-KERNEL)"
    )
    install.add_argument(
        "--display-name", help="what Jupyter shows (default: Linux (Lima), or with --kernel the guest's own word)"
    )
    install.add_argument(
        "--environment", type=Path, metavar="FILE", help="the environment file that says what the VM is"
    )
    what = install.add_mutually_exclusive_group()
    what.add_argument(
        "--kernel", help="a kernel that the guest itself has, by its name there; the VM is started for a look"
    )
    what.add_argument(
        "--list-kernels", action="store_true", help="list the kernels that the guest itself has, and install nothing"
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
    request = _request(options)
    if options.list_kernels:
        return _list_kernels(request)
    requests = [_for_guest_kernel(request, options.kernel)] if options.kernel else _with_others(request)
    in_virtual_environment = sys.prefix != sys.base_prefix
    prefix = options.prefix
    if options.sys_prefix or (prefix is None and not options.user and in_virtual_environment):
        prefix = sys.prefix
    for request in requests:
        directory = kernelspec.write(request, user=prefix is None, prefix=prefix)
        print(f"Installed the kernel {request.display_name!r} ({request.name}) in {directory}")
    return 0


def _with_others(request: kernelspec.Request) -> list[kernelspec.Request]:
    """Return a request, and those for the other kernels that its environment names where that has a lock."""
    described = wishes.described(Settings(**request.config))
    kernels = [kernel for kernel in described.environment.kernels if kernel != _IPYKERNEL] if described.locked else []
    if not kernels:
        return [request]
    name, specs = locked.name_of(Path(request.config["environment"]), described.environment), _ask_guest(request)
    return [request, *(_of_environment(request, kernel, specs, name) for kernel in kernels)]


def _of_environment(
    request: kernelspec.Request, kernel: str, specs: Mapping[str, GuestSpec], name: str
) -> kernelspec.Request:
    other = request._replace(name=f"{request.name}-{kernel.lower()}", display_name="")
    return kernelspec.for_guest_kernel(other, kernel, _spec_of(request, kernel, specs), name)


def _request(options: argparse.Namespace) -> kernelspec.Request:
    """Return what to install as far as it is known without the guest."""
    of_guest = options.kernel or options.list_kernels
    instance, environment = options.attach or options.instance, options.environment
    if of_guest and environment and not instance:
        file = str(environment.resolve())
        instance = next(
            (spec.instance for spec in kernelspec.installed() if spec.config.get("environment") == file), None
        )
    request = kernelspec.make_request(
        options.name or (f"lima-{options.kernel}" if options.kernel else kernelspec.DEFAULT_NAME),
        options.display_name or ("" if of_guest else kernelspec.DEFAULT_DISPLAY_NAME),
        environment=environment,
        instance=instance,
        attach=bool(options.attach),
    )
    if not of_guest or environment or options.attach:
        return request
    # Another environment than that of the VM's other kernels would change the VM.
    named = request.config["instance"]
    known: dict[str, Any] = next((spec.config for spec in kernelspec.installed() if spec.instance == named), {})
    return request._replace(config={"instance": named, **{key: known[key] for key in _OF_THE_VM if key in known}})


def _for_guest_kernel(request: kernelspec.Request, kernel: str) -> kernelspec.Request:
    return kernelspec.for_guest_kernel(request, kernel, _spec_of(request, kernel, _ask_guest(request)))


def _spec_of(request: kernelspec.Request, kernel: str, specs: Mapping[str, GuestSpec]) -> GuestSpec:
    if kernel not in specs:
        raise ConfigurationError(
            f"The VM {request.config['instance']!r} has no kernel {printable(kernel)!r}.",
            hint=f"It has: {printable(', '.join(sorted(specs))) or 'none'}.",
        )
    return specs[kernel]


def _list_kernels(request: kernelspec.Request) -> int:
    specs = _ask_guest(request)
    table = Table("kernel", "display name", "language")
    table.columns[0].no_wrap = True
    for name, spec in sorted(specs.items()):
        table.add_row(*(escape(printable(text)) for text in (name, spec.display_name, spec.language)))
    config = request.config
    Console().print(table if specs else f"The VM {config['instance']} has no kernel.", highlight=False)
    which = ["--attach" if config.get("attach") else "--instance", config["instance"]]
    what = ["--environment", config["environment"]] if "environment" in config else []
    print(f"To install one: lima-kernels install --kernel NAME {shlex.join(which + what)}")
    return 0


def _ask_guest(request: kernelspec.Request) -> dict[str, GuestSpec]:
    """Return the guest's own kernel specs, and a locked environment's; its VM is started for that."""
    settings = Settings(**request.config)

    async def ask() -> dict[str, GuestSpec]:
        wish = wishes.wish_of(settings, await _directory_to_show(settings))
        guest = await wishes.ready_guest(settings.instance, wish)
        if wish.locked is None:
            return await guest.forkserver.specs()
        vm = runtime().vm(settings.instance)
        ready = await syncing.ready(vm, guest, wish.locked, timeout=wish.create_timeout)
        return await guest.forkserver.specs(ready.python)

    with watching():
        return runtime().run_blocking(ask())


async def _directory_to_show(settings: Settings) -> Path | None:
    """Return what a VM that has to be started is to show, as `lima-kernels start` does; a notebook will come."""
    instance = await Limactl().find(settings.instance)
    if settings.attach or (instance is not None and instance.is_up):
        return None
    try:
        return directory_to_share(Path(), server_root=None)
    except MountError:
        # It was not asked for.
        return None


def _uninstall(options: argparse.Namespace) -> int:
    print(f"Removed {kernelspec.remove(options.name)}")
    return 0


def _list(options: argparse.Namespace) -> int:
    states = {instance.name: instance.status.value for instance in asyncio.run(Limactl().list())}
    rows = [
        {
            "name": spec.name,
            "display_name": spec.display_name,
            "instance": spec.instance,
            "status": states.get(spec.instance, "not made yet"),
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
