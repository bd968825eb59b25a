"""Where an environment is: its file, its lock, and the VM that is to be what they say."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import NamedTuple

from . import wishes
from .environment import locked
from .environment.discovery import discover
from .environment.locked import Described, Locked
from .errors import ConfigurationError, MountError
from .guest.mounts import directory_to_share
from .instances import Wish
from .kernelspec import instance_for
from .reproduce import syncing
from .reproduce.state import GuestState
from .runtime import runtime
from .settings import Settings


class Place(NamedTuple):
    """An environment file, what it says, and the VM that it is about."""

    file: Path
    described: Described
    instance: str

    @property
    def name(self) -> str:
        """The environment's name."""
        return locked.name_of(self.file, self.described.environment)

    @property
    def locked(self) -> Locked:
        """Its lock.

        :raises ConfigurationError: when it has none.
        """
        if self.described.locked is None:
            raise ConfigurationError(
                f"The environment {self.file} has no lock.", hint=f"Make it: lima-kernels env lock {self.file}"
            )
        return self.described.locked


def find(file: Path | None, instance: str | None, start: Path) -> Place:
    """Return the place of an environment.

    :param file: the environment file; looked for in a directory and above it when None.
    :param instance: the VM; that of the environment's kernel spec when None.
    :param start: the directory to begin with.
    :raises ConfigurationError: when there is no environment file, or it cannot be obeyed.
    """
    found = file or discover(start)
    if found is None:
        raise ConfigurationError(
            f"There is no lima-env.yaml in {start.absolute()} or in a directory above.",
            hint="Write one: lima-kernels env init",
        )
    described = locked.describe(found)
    return Place(found, described, instance or instance_for(found, described.environment))


def wish_of(place: Place) -> Wish:
    """Return what a kernel of the environment would ask of its VM; one that has to be booted shows its directory."""
    wish = wishes.wish_of(Settings(environment=str(place.file), instance=place.instance), None)
    # It was not asked for.
    with contextlib.suppress(MountError):
        shown = directory_to_share(place.file.resolve().parent, server_root=None, asked=wish.environment.mounts)
        return wish._replace(directory=shown)
    return wish


async def inspect(place: Place) -> GuestState:
    """Return what the environment is in its VM, which is booted as needed; to be awaited in the I/O thread."""
    vm = runtime().vm(place.instance)
    guest = await vm.ensure(wish_of(place))
    return await syncing.state(vm, guest, place.locked.lock.name)
