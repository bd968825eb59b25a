"""What is known of VMs by all that was told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .pending import Message

# The states of a VM that ends or has, and the verbs that end it.
_ENDS = ("stopping", "stopped", "gone")
ENDINGS = ("stop", "restart", "delete")


def is_running(job: Mapping[str, Any]) -> bool:
    """Tell whether a job goes on."""
    return bool(job["state"] == "running")


class News:
    """The state of all VMs and jobs that a watch tells of, each by its name."""

    def __init__(self) -> None:
        self.vms: dict[str, dict[str, Any]] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        # The message that tells why nothing comes, until something does.
        self.lost: Message | None = None

    def note(self, message: Message) -> None:
        """Take notice of a message; what is no state of VMs and jobs changes nothing."""
        match message:
            case {"type": "snapshot", "vms": vms, "jobs": jobs}:
                self.vms = {vm["name"]: vm for vm in vms}
                self.jobs = {job["id"]: job for job in jobs}
                self.lost = None
            case {"type": "vm", "vm": vm}:
                self.vms[vm["name"]] = vm
            case {"type": "gone", "name": name}:
                self.vms.pop(name, None)
            case {"type": "job", "job": job}:
                self.jobs = {one["id"]: one for one in self._without_ended(job["vm"])}
                self.jobs[job["id"]] = job
            case {"type": "lost"}:
                self.lost = message

    def _without_ended(self, vm: str) -> Iterable[dict[str, Any]]:
        """Yield all jobs but those of a VM that have ended: only the last one is of interest."""
        return (job for job in self.jobs.values() if job["vm"] != vm or is_running(job))

    def is_ending(self, vm: str) -> bool:
        """Tell whether a VM stops, or has: whoever lives in it has no future."""
        jobs = (job for job in self.jobs.values() if job["vm"] == vm and is_running(job))
        # The job is told of before the VM does anything, and while the guest can still be told.
        return any(job["verb"] in ENDINGS for job in jobs) or self.vms.get(vm, {}).get("state") in _ENDS

    def snapshot(self) -> Message:
        """Return what tells somebody all of it."""
        return {"type": "snapshot", "vms": list(self.vms.values()), "jobs": list(self.jobs.values())}
