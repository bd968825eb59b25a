"""An image from an environment's lock: what is in it needs no network any more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..environment import building, image, locked
from ..environment.lock import Lock, pylock_text
from ..environment.locked import Described
from ..environment.recipe import Layer
from ..errors import ConfigurationError
from ..guest import forkserver


def current_lock(file: Path, described: Described) -> Lock:
    """Return the lock of an environment file that has been read.

    :raises ConfigurationError: when it has none, or one for what the file said earlier.
    """
    found = described.locked
    if found is None:
        raise ConfigurationError(f"The environment {file} has no lock.", hint=f"lima-kernels env lock {file}")
    if found.is_stale:
        raise ConfigurationError(
            f"The environment {file} has changed since it was locked.", hint=f"lima-kernels env lock {file}"
        )
    return found.lock


async def bake(file: Path, name: str, report: Callable[[str], None]) -> image.LocalImage:
    """Build the image of a locked environment, for this host's CPU.

    :param name: the image's, on this host.
    :param report: called with each line of output as it comes.
    :raises ConfigurationError: when the environment has no lock for this CPU, or the lock is not of its present text.
    :raises HostError: when this host cannot build one.
    :raises ImageError: when a step fails, or the archive no longer has what the lock says.
    """
    lock, arch = current_lock(file, locked.describe(file)), image.host_arch()
    building.check_builder()
    python = lock.python_digest(arch)
    wanted = lock.platforms[arch]
    program = Path(forkserver.__file__).parent
    layer = Layer(lock.name, lock.digest, python, pylock_text(lock), wanted.apt, program)
    return await building.build_image(name, report, building.Baking(layer, wanted.image_sha256))
