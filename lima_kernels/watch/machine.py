"""One VM as limactl tells of it, Lima's host agent writes of it, and whoever is at work on it says; and its card."""

from __future__ import annotations

import contextlib
import ipaddress
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .. import history, paths
from ..errors import printable
from ..guest.ports import LOOPBACK, Direction
from ..hibernation.state import is_asleep
from ..instances import owner_mark
from ..lima import ending, hostagent
from ..lima.logs import LogEntry
from ..lima.models import (
    AgentLine,
    Instance,
    LimaStatus,
    Status,
    decode_agent_line,
    decode_event,
    decode_forwarded,
)
from ..progress import Phase, holder
from ..verbs.ports import present
from ..vm import VM
from .cards import Card, Kernel, Mount, Port, Problem, State
from .tails import Tail

# Lines of a log that a follower gets at once.
LOG_LINES = 200
_LOG_BACKLOG = 64 * 1024
# What holds a VM's data (lima ``pkg/limatype/filenames``); `diffdisk` and `basedisk` are older VMs'.
_DISKS = ("disk", "diffdisk", "basedisk", "lima-kernels.memory")
# Bytes. A disk grows all the time while a VM runs: not every block is news.
_DISK_STEP = 16 << 20
# What a phase makes of a VM; in the others it is as Lima says.
_STATES = {Phase.CREATE: State.CREATING, Phase.STOPPING: State.STOPPING, Phase.HIBERNATE: State.STOPPING}
_STILL = (Phase.CHECK, Phase.READY)


class UnderWay(NamedTuple):
    """A start or stop of a VM; ``pid`` is the process that does it, 0 for Lima by itself."""

    phase: Phase
    began: float | None
    expected: float | None
    pid: int

    @property
    def state(self) -> State:
        return _STATES.get(self.phase, State.STARTING)


class Machine:
    """One VM, whether or not it exists yet.

    ``card`` is what was last told of it, None when nothing was; ``kernels`` are those of the last look into its guest;
    ``holder`` is the process that was at work on it then.

    :param vm: its handle.
    """

    def __init__(self, vm: VM) -> None:
        self.name = vm.name
        self.vm = vm
        self.instance: Instance | None = None
        self.card: Card | None = None
        self.kernels: Sequence[Kernel] | None = None
        self.holder = 0
        self.log: deque[str] = deque(maxlen=LOG_LINES)
        directory = paths.lima_home() / vm.name
        self._events = Tail(paths.host_agent_events(directory))
        self._agent = Tail(paths.host_agent_log(directory), _LOG_BACKLOG)
        self._status: LimaStatus | None = None
        self._began: float | None = None
        self._stopping: AgentLine | None = None
        self._forwards: dict[str, Port] = {}

    # What Lima's host agent writes

    def read_events(self) -> bool:
        """Read what the host agent told limactl; tells whether limactl may now say something else of the instance."""
        before = self._status
        grown = self._events.read()
        if grown.is_other:
            self._status, self._began = None, None
            self._forwards.clear()
        for raw in grown.lines:
            if (event := decode_event(raw)) is None:
                continue
            self._status = event.status
            self._began = self._began or ending.seconds(event.time)
            if forwarded := decode_forwarded(raw):
                # A later event may tell of the same port again: what it says holds still.
                self._forwards.pop(forwarded.guest_addr, None)
                if forwarded.type == "forwarding":
                    port = _port(forwarded.host_addr, forwarded.guest_addr, forwarded.protocol)
                    self._forwards[forwarded.guest_addr] = port
        return self._status != before

    def read_log(self) -> list[str]:
        """Read what the host agent logged, and return the new lines of it."""
        grown = self._agent.read()
        if grown.is_other:
            self.log.clear()
            self._stopping = None
        found = []
        for line in map(decode_agent_line, grown.lines):
            if ending.says_stopping(line):
                self._stopping = self._stopping or line
            found.append(LogEntry(line.time, line.level, printable(line.msg)).line)
        self.log.extend(found)
        return found[-LOG_LINES:]

    # Who is at work on it

    def under_way(self) -> UnderWay | None:
        """Return what is being done with the VM, by this process, another, or Lima itself; None when nothing is."""
        progress = self.vm.progress
        if self.vm.starting is not None and progress.is_cold:
            return UnderWay(progress.phase, progress.began, progress.expected, 0)
        # Asking for the file's path would make its directory.
        found = holder(paths.progress_file(self.name)) if paths.has_instance_state(self.name) else None
        if found and found.phase not in (None, *_STILL) and hostagent.is_alive(found.pid):
            assert found.phase is not None
            return UnderWay(found.phase, found.began, found.expected, found.pid)
        return self._by_lima()

    def _by_lima(self) -> UnderWay | None:
        instance, status = self.instance, self._status
        if instance is None or not (instance.host_agent_pid or instance.driver_pid):
            return None
        if self._stopping or (status and status.exiting):
            began = ending.seconds(self._stopping.time) if self._stopping else None
            return UnderWay(Phase.STOPPING, began, None, 0)
        # Who has not said yet that it runs is about to boot it; a VM whose host agent says nothing at all just runs.
        # One that we are connected to is of use already, whatever Lima waits for.
        if self.vm.live() is not None:
            return None
        if instance.host_agent_pid and not (status and status.running) and (self._events.exists or instance.is_between):
            return UnderWay(Phase.BOOT, self._began, self._expected(), 0)
        return None

    def _expected(self) -> float | None:
        if not paths.has_instance_state(self.name):
            return None
        mark = owner_mark(self.instance) if self.instance is not None else None
        return history.expected(self.name, history.Kind.BOOT, mark.environment if mark else "")

    def has_lost_a_process(self) -> bool:
        """Tell whether a process has ended that was there when limactl was asked."""
        instance = self.instance
        pids = (instance.host_agent_pid, instance.driver_pid) if instance else ()
        return not all(map(hostagent.is_alive, filter(None, pids)))

    # The card

    def describe(self) -> Card | None:
        """Return the VM as it is now; None when there is none and nobody makes one."""
        under_way, instance = self.under_way(), self.instance
        self.holder = under_way.pid if under_way else 0
        if instance is None:
            if under_way is None or under_way.state is State.STOPPING:
                return None
            return Card(
                name=self.name,
                state=under_way.state,
                phase=under_way.phase.value,
                began=under_way.began,
                expected=under_way.expected,
                ours=True,
            )
        is_reached = self.vm.live() is not None
        state = under_way.state if under_way else _settled(instance)
        return Card(
            name=self.name,
            state=state,
            status=instance.status.value or "Unknown",
            phase=under_way.phase.value if under_way else "",
            began=under_way.began if under_way else None,
            expected=under_way.expected if under_way else None,
            cpus=instance.cpus,
            memory=instance.memory,
            disk=instance.disk,
            disk_used=_disk_used(instance.dir),
            arch=instance.arch,
            vm_type=instance.vm_type,
            ours=owner_mark(instance) is not None,
            kernels=self.kernels if is_reached else None,
            ports=self._ports() if instance.is_up else (),
            mounts=[Mount(mount.location, mount.guest_path, mount.writable) for mount in instance.config.mounts],
            problem=None if under_way else self._problem(instance),
        )

    def _ports(self) -> Sequence[Port]:
        ours = [
            _port(f"{LOOPBACK}:{made.host}" if isinstance(made.host, int) else made.host, str(made.guest), "tcp")
            for made in present(self.vm)
            if made.direction is Direction.TO_GUEST
        ]
        return [*self._forwards.values(), *ours]

    def _problem(self, instance: Instance) -> Problem | None:
        errors = instance.errors
        if instance.status is Status.RUNNING and self._status is not None and self._status.degraded:
            errors = self._status.errors or ("not all of it is as it should be",)
        elif instance.status in (Status.RUNNING, Status.STOPPED):
            return None
        # Lima shows the place in a lima.yaml on further lines.
        reasons = [printable(error.partition("\n")[0]) for error in errors]
        message = "; ".join(reasons) or "Lima gives no reason."
        if instance.is_up:
            return Problem(message, f"To mend it, which ends its kernels: %lima restart {self.name} --force")
        if instance.host_agent_pid:
            return Problem(message, f"To end what is left of it: %lima stop {self.name} --force")
        return Problem(message, f"Look at it by hand: limactl list {self.name}")


def _settled(instance: Instance) -> State:
    """Return the state of an instance with which nothing is done."""
    if instance.is_up:
        return State.RUNNING
    if instance.status is Status.STOPPED:
        return State.ASLEEP if is_asleep(instance.name) else State.STOPPED
    return State.CREATING if instance.status is Status.INSTALLING else State.BROKEN


def _disk_used(directory: Path) -> int | None:
    found = []
    for name in _DISKS:
        with contextlib.suppress(OSError):
            found.append((directory / name).stat().st_blocks * 512)
    return sum(found) // _DISK_STEP * _DISK_STEP if found else None


def _port(host: str, guest: str, protocol: str) -> Port:
    address, _, number = host.rpartition(":")
    url = ""
    with contextlib.suppress(ValueError):
        parsed = ipaddress.ip_address(address.strip("[]"))
        if protocol == "tcp" and int(number) and (parsed.is_loopback or parsed.is_unspecified):
            url = f"http://localhost:{int(number)}" if parsed.is_unspecified else f"http://{host}"
    return Port(printable(host), printable(guest), url)
