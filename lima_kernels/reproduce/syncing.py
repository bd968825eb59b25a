"""Make a guest equal to a lock, and tell what it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import msgspec

from .. import paths, records
from ..environment.lock import Lock, Platform, pylock_text
from ..environment.locked import Locked, describe
from ..errors import ConfigurationError, InstanceError
from ..guest import layers
from ..guest.kernels import Found
from ..instances import owner_mark
from ..lima.models import Instance
from ..progress import Phase
from ..vm import VM, Guest
from . import pylock
from .state import GuestState, decoded, digest_of

# Seconds for what only looks: an emulated guest lists its packages in a few.
LOOK_TIMEOUT = 120.0


class Hosted(records.Record, frozen=True, kw_only=True):
    """What this host knows of the environments in one VM.

    ``base`` are the Debian packages that the VM had before its first environment; ``environments`` has for each by its
    name the digest of the Debian packages that its lock wants: all that share a VM want the same. ``files`` has the
    environment file of each.
    """

    VERSION: ClassVar[int] = 1
    version: int = VERSION
    base: dict[str, str] = msgspec.field(default_factory=dict)
    environments: dict[str, str] = msgspec.field(default_factory=dict)
    files: dict[str, str] = msgspec.field(default_factory=dict)


class Ready(NamedTuple):
    """The Python of an environment in the guest, and what its kernel's first cell says of it."""

    python: str
    notes: Sequence[str] = ()


class _Synced(msgspec.Struct, frozen=True):
    changed: bool


def hosted(instance: str) -> Hosted:
    """Return what this host knows of a VM's environments."""
    return records.read(paths.environments_file(instance), Hosted) or Hosted()


def platform_of(lock: Lock, instance: Instance) -> Platform:
    """Return a lock's part for a VM.

    :raises InstanceError: when it has none for its architecture, or the VM was made from another image.
    """
    platform = lock.platforms.get(instance.arch)
    if platform is None:
        raise InstanceError(
            f"The lock of {lock.name!r} has nothing for {instance.arch}, only for {', '.join(sorted(lock.platforms))}.",
            hint="Add this architecture to it, here: lima-kernels env lock",
        )
    made_of = image_of(instance)
    if platform.image_sha256 and made_of and platform.image_sha256 != made_of:
        raise InstanceError(
            f"The VM {instance.name!r} was made from another image than the lock of {lock.name!r} names: expected "
            f"SHA-256 {platform.image_sha256[:12]}, got {made_of[:12]}.",
            hint=f"Get that image (lima-kernels env import), and make the VM anew: lima-kernels delete {instance.name}",
        )
    return platform


def image_of(instance: Instance) -> str:
    """Return the SHA-256 of the image that a VM of ours was made from; empty when it is not known."""
    mark = owner_mark(instance)
    return mark.image_sha256 if mark else ""


def _check_sharing(vm: str, locked: Locked, wanted: str) -> None:
    """See that environments which share a VM have different names, and want the same Debian packages."""
    lock, known = locked.lock, hosted(vm)
    if (other := Path(known.files.get(lock.name, locked.file))) != locked.file and _is_another(other, lock):
        raise InstanceError(
            f"The VM {vm!r} has an environment {lock.name!r} already, that of {other}: each would undo the other.",
            hint=f"Give {locked.file} another name, and lock it again.",
        )
    for name, digest in known.environments.items():
        if name != lock.name and digest != wanted:
            raise InstanceError(
                f"The environments {lock.name!r} and {name!r} cannot share the VM {vm!r}: other Debian packages.",
                hint="Give it a VM of its own (lima-kernels install --environment FILE --instance NAME), or remove "
                f"that one: lima-kernels env remove {name}",
            )


def _is_another(file: Path, lock: Lock) -> bool:
    """Tell whether an environment file is that of another lock of the same name."""
    try:
        other = describe(file).locked
    except ConfigurationError:
        # It is gone, or no longer one.
        return False
    return other is not None and other.lock.name == lock.name and other.lock.digest != lock.digest


async def sync(vm: VM, guest: Guest, locked: Locked, *, timeout: float) -> bool:
    """Make the guest what a lock says, and tell whether that changed anything; to be awaited in the I/O thread.

    :param timeout: seconds; packages may have to be fetched.
    :raises InstanceError: when the VM cannot be that.
    :raises GuestError: when it cannot be done; the environment's present build is as it was.
    """
    lock = locked.lock
    live = vm.live()
    assert live is not None
    platform = platform_of(lock, live.instance)
    if _is(lock, await guest.forkserver.environment(lock.name)):
        # An image may have brought it.
        _remember(vm.name, locked, platform)
        return False
    _check_sharing(vm.name, locked, digest_of(platform.apt))
    request = {
        "op": "sync",
        "name": lock.name,
        "lock": lock.digest,
        "python": lock.python_digest(live.instance.arch),
        "pylock": pylock_text(lock),
        "needed": pylock.needed_space(lock.pylock, platform.python, live.instance.arch),
        "apt": platform.apt,
        "debs": msgspec.to_builtins(platform.debs),
    }

    def tell(step: str) -> None:
        vm.progress.enter(Phase.ENVIRONMENT, step)

    vm.progress.enter(Phase.ENVIRONMENT)
    done = await layers.ask(guest.connection, guest.facts, request, _Synced, timeout=timeout, tell=tell)
    _remember(vm.name, locked, platform)
    return done.changed


def _remember(instance: str, locked: Locked, platform: Platform) -> None:
    before = hosted(instance)
    name = locked.lock.name
    known = msgspec.structs.replace(
        before,
        environments={**before.environments, name: digest_of(platform.apt)},
        files={**before.files, name: str(locked.file)},
    )
    if known != before:
        note(instance, known)


def _is(lock: Lock, found: Found) -> bool:
    return found.lock == found.system == lock.digest and not found.drifted


def note(instance: str, known: Hosted) -> None:
    """Keep what this host knows of a VM's environments."""
    records.write(paths.environments_file(instance), known)


async def ready(vm: VM, guest: Guest, locked: Locked, *, timeout: float) -> Ready:
    """Return the Python of a locked environment, which is made first where the guest does not have it yet.

    What somebody changed in it since is left as it is, and told.
    """
    lock = locked.lock
    found = await guest.forkserver.environment(lock.name)
    if not found.python or found.lock != lock.digest:
        await sync(vm, guest, locked, timeout=timeout)
        found = await guest.forkserver.environment(lock.name)
    notes = []
    if found.drifted:
        notes.append(
            f"The environment {lock.name} is no longer what its lock says. See how: lima-kernels env diff; to mend it: "
            "lima-kernels env sync"
        )
    if locked.is_stale:
        notes.append(f"The environment file of {lock.name} has changed since it was locked: lima-kernels env lock")
    return Ready(found.python, notes)


async def state(vm: VM, guest: Guest, name: str) -> GuestState:
    """Return what an environment in a guest is at this moment; to be awaited in the I/O thread."""
    live = vm.live()
    assert live is not None
    request: dict[str, Any] = {"op": "state", "name": name}
    raw = await layers.ask(
        guest.connection, guest.facts, request, msgspec.Raw, timeout=LOOK_TIMEOUT, tell=lambda _step: None
    )
    return decoded(bytes(raw), image_of(live.instance))
