"""env lock, env sync, env diff: an environment file, its lock, and the VM that is to be what they say."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from rich.console import Console

from .. import places
from ..environment import lock as locks
from ..environment.discovery import lock_path
from ..environment.lock import Lock
from ..errors import ConfigurationError
from ..lima.limactl import is_there
from ..places import Place
from ..reproduce import difference, golden, locking, syncing
from ..runtime import runtime
from .progress import watching

DRIFTED = 4
# What a Python package may be called; lima-env.yaml would be one, too.
_PACKAGE = re.compile(r"(?!.*\.ya?ml$)[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")


def add_verbs(verbs: Any) -> None:
    """Add this group's verbs to `env`."""
    lock = verbs.add_parser("lock", help="resolve the environment in its VM, and write lima-env.lock")
    lock.add_argument(
        "--upgrade",
        nargs="*",
        metavar="NAME",
        help="choose newer versions: of these packages, or of all when none is named",
    )
    lock.add_argument(
        "--from-guest", action="store_true", help="lock what the environment has become, by %%pip in cells for example"
    )
    lock.set_defaults(command=_lock)
    sync = verbs.add_parser("sync", help="make the VM what lima-env.lock says")
    sync.set_defaults(command=_sync)
    diff = verbs.add_parser("diff", help="show how the VM differs from lima-env.lock; exit code 4 when it does")
    diff.set_defaults(command=_diff)
    for parser in (lock, sync, diff):
        add_place(parser)


def add_place(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say which environment is meant, and which VM."""
    parser.add_argument(
        "file",
        nargs="?",
        type=Path,
        metavar="FILE",
        help="the environment file (default: lima-env.yaml, here or above)",
    )
    parser.add_argument("--instance", metavar="NAME", help="the Lima instance (default: that of its kernel spec)")


def place_of(options: argparse.Namespace) -> Place:
    """Return what the arguments mean.

    :raises ConfigurationError: when there is no environment file, or it cannot be obeyed.
    """
    return places.find(options.file, options.instance, Path())


def _lock(options: argparse.Namespace) -> int:
    for name in options.upgrade or ():
        if not _PACKAGE.fullmatch(name):
            raise ConfigurationError(
                f"{name!r} is no package's name.",
                hint="The environment file comes before --upgrade, which takes names.",
            )
    where = place_of(options)
    target = lock_path(where.file)

    async def resolve() -> Lock:
        vm = runtime().vm(where.instance)
        # What is to be locked is no business of lima.yaml's.
        asked = places.wish_of(where)._replace(environment=where.described.environment.machine)
        guest = await vm.ensure(asked)
        before = where.described.locked.lock if where.described.locked else None
        wanted = locking.Wanted(where.described.environment, where.name, before)
        if options.from_guest:
            return await locking.lock_from_guest(vm, guest, wanted)
        return await locking.lock(vm, guest, wanted, options.upgrade)

    with watching():
        made = runtime().run_blocking(resolve())
    locks.write(target, made)
    packages = len(made.pylock.get("packages", ()))
    print(f"Wrote {target}: {packages} Python packages, for {', '.join(sorted(made.platforms))}")
    if options.from_guest:
        print("To have the very files that it names, and not only their versions: lima-kernels env sync")
    return 0


def _sync(options: argparse.Namespace) -> int:
    where = place_of(options)
    lock = where.locked

    async def sync() -> bool:
        asked = places.wish_of(where)
        if not is_there(where.instance):
            await golden.make(runtime().vm(where.described.golden), asked)
        vm = runtime().vm(where.instance)
        guest = await vm.ensure(asked)
        return await syncing.sync(vm, guest, lock, timeout=asked.create_timeout)

    with watching():
        changed = runtime().run_blocking(sync())
    print(f"The VM {where.instance} {'is now' if changed else 'is already'} what {lock_path(where.file)} says.")
    return 0


def _diff(options: argparse.Namespace) -> int:
    where = place_of(options)

    async def look() -> list[difference.Difference]:
        return difference.differences(where.locked.lock, await places.inspect(where))

    with watching():
        found = runtime().run_blocking(look())
    if not found:
        print(f"The VM {where.instance} is what {lock_path(where.file)} says.")
        return 0
    Console().print(difference.table(found))
    return DRIFTED
