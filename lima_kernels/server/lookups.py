"""Routes of jobs, and of what a VM can be made from or is used by."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import msgspec

from ..errors import NotFound
from ..kernelspec import installed
from ..lima.limactl import Limactl
from ..provisioner import LimaProvisioner
from ..runtime import runtime
from ..watch.cards import Job
from ..watch.shared import watcher
from .base import EVENT_SCHEMA, Route, answers


class Template(msgspec.Struct, frozen=True):
    """One of Lima's templates; Lima itself has no words for what it is."""

    name: str


class Environment(msgspec.Struct, frozen=True, rename="camel"):
    """A kernel spec of ours; ``file`` is its environment file, empty for the built-in default."""

    name: str
    display_name: str
    instance: str
    file: str


class Jobs(Route):
    """What was asked for, and is under way or has ended just now."""

    @answers
    async def get(self) -> Mapping[str, Sequence[Job]]:
        return {"jobs": await runtime().run(_jobs())}


class OneJob(Route):
    """One job."""

    @answers
    async def delete(self, id_: str) -> None:
        vm = await runtime().run(_cancel(id_))
        self.event_logger.emit(schema_id=EVENT_SCHEMA, data={"action": "cancel", "vm": vm, "job": id_})


async def _jobs() -> Sequence[Job]:
    return watcher().jobs.all()


async def _cancel(id_: str) -> str:
    """Cancel a job, and return its VM's name."""
    jobs = watcher().jobs
    jobs.cancel(id_)
    return next(job.vm for job in jobs.all() if job.id == id_)


class Templates(Route):
    """What Lima can make VMs from."""

    @answers
    async def get(self) -> Mapping[str, Sequence[Template]]:
        names = await runtime().run(Limactl().templates())
        return {"templates": [Template(name) for name in names]}


class Environments(Route):
    """Our kernel specs."""

    @answers
    async def get(self) -> Mapping[str, Sequence[Environment]]:
        found = await asyncio.to_thread(installed)
        return {
            "environments": [
                Environment(spec.name, spec.display_name, spec.instance, str(spec.config.get("environment", "")))
                for spec in found
            ]
        }


class KernelsMachine(Route):
    """The VM that one of this server's kernels lives in."""

    @answers
    async def get(self, kernel_id: str) -> Mapping[str, str]:
        # A gateway's kernels have no provisioner here.
        provisioner = None
        if kernel_id in self.kernel_manager:
            provisioner = getattr(self.kernel_manager.get_kernel(kernel_id), "provisioner", None)
        if not isinstance(provisioner, LimaProvisioner):
            raise NotFound("No kernel of that id lives in a Lima VM.")
        return {"name": provisioner.instance}
