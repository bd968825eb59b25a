"""Which function does what a verb says; a few are the cell's own (`use`, `shell`)."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable, Mapping

from ..magics.results import Result
from . import files, kernels, machines, mounts, ports, storage, vms
from .checks import doctor
from .context import Context
from .variables import env

Function = Callable[[Context, argparse.Namespace], Awaitable[Result]]

FUNCTIONS: Mapping[str, Function] = {
    "status": vms.status,
    "list": vms.list_all,
    "start": vms.start,
    "stop": vms.stop,
    "hibernate": vms.hibernate,
    "restart": machines.restart,
    "create": machines.create,
    "delete": vms.delete,
    "factory-reset": machines.factory_reset,
    "edit": machines.edit,
    "clone": machines.clone,
    "info": machines.info,
    "logs": machines.logs,
    "copy": files.copy,
    "forward": ports.forward,
    "unforward": ports.unforward,
    "ports": ports.ports,
    "socket": ports.socket,
    "mount": mounts.mount,
    "unmount": mounts.unmount,
    "snapshot": storage.snapshot,
    "disk": storage.disk,
    "prune": storage.prune,
    "template": storage.template,
    "kernels": kernels.kernels,
    "env": env,
    "doctor": doctor,
}
