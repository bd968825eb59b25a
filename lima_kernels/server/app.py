"""The extension as Jupyter Server loads it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from jupyter_events.logger import EventLogger
from jupyter_server.base.handlers import JupyterHandler
from jupyter_server.extension.application import ExtensionApp

from ..parting import leave_vms
from . import lookups, machines, stream
from .base import Nowhere

_SCHEMA = Path(__file__).parent / "schemas" / "action.yaml"
_ROOT = "lima-kernels/api"
_NAME = "([^/]+)"
ROUTES: Sequence[tuple[str, type[JupyterHandler]]] = (
    (f"{_ROOT}/vms", machines.Machines),
    (f"{_ROOT}/vms/{_NAME}", machines.Machine),
    (f"{_ROOT}/vms/{_NAME}/log", machines.Log),
    (f"{_ROOT}/vms/{_NAME}/kernels", machines.Kernels),
    (f"{_ROOT}/vms/{_NAME}/{_NAME}", machines.Verb),
    (f"{_ROOT}/jobs", lookups.Jobs),
    (f"{_ROOT}/jobs/{_NAME}", lookups.OneJob),
    (f"{_ROOT}/templates", lookups.Templates),
    (f"{_ROOT}/environments", lookups.Environments),
    (f"{_ROOT}/kernels/{_NAME}/vm", lookups.KernelsMachine),
    (f"{_ROOT}/events", stream.Stream),
    (f"{_ROOT}/(.*)", Nowhere),
)


class LimaKernelsApp(ExtensionApp):
    """Shows VMs to JupyterLab, and does what is asked of them there."""

    name = "lima_kernels"

    def initialize_settings(self) -> None:
        events: EventLogger = self.settings["event_logger"]
        events.register_event_schema(_SCHEMA)
        self.settings[stream.SETTING] = set()

    def initialize_handlers(self) -> None:
        self.handlers.extend(ROUTES)

    async def stop_extension(self) -> None:
        """End all streams; what was begun with VMs goes on, and those that nobody uses any more are parted with."""
        streams = self.settings[stream.SETTING]
        await asyncio.gather(*(each.end() for each in tuple(streams)))
        leave_vms()
