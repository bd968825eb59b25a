"""Take an environment out of a VM."""

from __future__ import annotations

from typing import Any

import msgspec

from .. import paths, records
from ..errors import InstanceError
from ..guest import layers
from ..instances import REACH
from ..lima.limactl import Limactl
from ..vm import VM
from . import golden, syncing

# Seconds; an environment has tens of thousands of files.
_TIMEOUT = 120.0


def hosting() -> dict[str, list[str]]:
    """Return the VMs that have locked environments, as far as this host knows, each with their names.

    Golden VMs, in which nobody works, are not meant.
    """
    return {name: hosted for name, hosted in _hosting().items() if not paths.has_golden_mark(name)}


def goldens(name: str) -> list[str]:
    """Return the golden VMs of an environment's locks."""
    return [vm for vm, hosted in _hosting().items() if paths.has_golden_mark(vm) and name in hosted]


def _hosting() -> dict[str, list[str]]:
    names = sorted(place.name for place in paths.shared_state().iterdir() if place.is_dir())
    return {name: sorted(found) for name in names if (found := syncing.hosted(name).environments)}


async def remove_golden(vm: VM) -> None:
    """Remove a golden VM, and what is known of it; to be awaited in the I/O thread."""
    if await Limactl().find(vm.name) is not None:
        await golden.remove(vm)
    records.remove(paths.environments_file(vm.name))
    records.remove(paths.golden_mark(vm.name))


async def remove(vm: VM, name: str, *, force: bool) -> None:
    """Remove an environment from a VM; to be awaited in the I/O thread.

    :param force: also while kernels run in it, which end.
    :raises InstanceError: when the VM is stopped: its disk is out of reach.
    :raises GuestError: when kernels run in it, and that is not forced.
    """
    found = await Limactl().find(vm.name)
    if found is not None:
        if not found.is_up:
            raise InstanceError(
                f"The VM {vm.name!r}, which has the environment {name!r} on its disk, is stopped.",
                hint=f"lima-kernels start {vm.name}, or lima-kernels delete {vm.name}",
            )
        guest = await vm.reconnect(REACH)
        request = {"op": "remove", "name": name, "force": force}
        await layers.ask(
            guest.connection, guest.facts, request, dict[str, Any], timeout=_TIMEOUT, tell=lambda _step: None
        )
    known = syncing.hosted(vm.name)
    left = {other: digest for other, digest in known.environments.items() if other != name}
    files = {other: file for other, file in known.files.items() if other != name}
    syncing.note(vm.name, msgspec.structs.replace(known, environments=left, files=files))
