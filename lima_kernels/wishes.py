"""What is asked of a VM by its name: what a kernel of the kernel spec that names it would ask."""

from __future__ import annotations

from pathlib import Path

from .environment import locked
from .environment.locked import Described
from .guest.kernels import Conduct
from .instances import Wish
from .kernelspec import installed
from .runtime import runtime
from .settings import Settings
from .vm import Guest


def settings_of(instance: str) -> Settings | None:
    """Return the settings of the first kernel spec of ours that names a VM, or None when none does.

    :raises ConfigurationError: when that spec's config is wrong.
    """
    config = next((found.config for found in installed() if found.instance == instance), None)
    return None if config is None else Settings(**config)


def wish_of(settings: Settings, directory: Path | None) -> Wish:
    """Return what a kernel of these settings would ask of its VM.

    :param directory: what the VM has to show.
    :raises ConfigurationError: when its environment file cannot be obeyed.
    """
    return wish_for(settings, described(settings), directory)


def described(settings: Settings) -> Described:
    """Return what the environment file of these settings says, with its lock.

    :raises ConfigurationError: when it cannot be obeyed.
    """
    return locked.describe(Path(settings.environment)) if settings.environment else locked.DEFAULT


def wish_for(settings: Settings, described: Described, directory: Path | None) -> Wish:
    """Return what a kernel of these settings asks of its VM, of which this is said."""
    return Wish(
        environment=described.machine,
        attach=settings.attach,
        directory=directory,
        create_timeout=settings.create_timeout,
        boot_timeout=settings.boot_timeout,
        conduct=Conduct(settings.idle_timeout, settings.on_idle, settings.standby_kernels),
        locked=described.locked,
        golden=described.golden,
    )


async def ready_guest(instance: str, wish: Wish) -> Guest:
    """Return the guest of a VM, which is made and booted as needed; to be awaited in the I/O thread."""
    guest = await runtime().vm(instance).ensure(wish)
    await guest.forkserver.obey(wish.conduct)
    return guest
