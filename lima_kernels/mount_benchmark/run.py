"""Run the benchmark: a VM of its own, a boot for each mount type, and the program in the guest for each setting."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import secrets
import shlex
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import msgspec

from .. import added_mounts, paths
from ..environment.mounts import MountSpec
from ..environment.spec import Environment
from ..errors import GuestError, HostError, LimaKernelsError, MountError, printable
from ..instances import Wish
from ..lima.limactl import Limactl
from ..progress import Step
from ..vm import VM, Guest
from .plan import EDIT_LIMIT, UNITS, Boot, Origin, Setting, Size
from .result import Measured, Result, examine

PREFIX = "lk-benchmark"
# The file that the host changes while the guest looks.
WATCHED = "watched"
# What a VM's disk grows to, beside the files of the benchmark.
DISK_NEEDED = 3 * 1024**3
# Seconds beyond the guest's own limit, after which it is no longer believed to keep it.
_GRACE = 60.0
_SHORT = 60.0
_REASON_LENGTH = 200

Say = Callable[[str], None]


class _Message(msgspec.Struct, frozen=True):
    """One line of the guest's program."""

    figure: str = ""
    value: float | None = None
    failed: str = ""
    caches_emptied: bool | None = None
    watching: bool = False
    done: bool = False


class _Place(NamedTuple):
    """A setting's directory in the guest, and the host's own; None for a directory that the host does not have."""

    setting: Setting
    guest: str
    host: Path | None


def check_space(size: Size, scratch: Path) -> None:
    """See that there is room for the VM and the files.

    :raises HostError: when there is not.
    """
    # A page for each small file, and as much again for git's and Python's own.
    files_needed = size.mebibytes * 1024**2 + size.files * 8192
    for directory, needed in ((paths.lima_home(), DISK_NEEDED + files_needed), (scratch, files_needed)):
        if (free := paths.free_space(directory)) < needed:
            raise HostError(
                f"The benchmark needs {needed / 1024**2:.0f} MiB in {directory}, and {free / 1024**2:.0f} are free.",
                hint="Free some space there, or try --quick.",
            )


async def run(boots: Sequence[Boot], size: Size, say: Say) -> Result:
    """Measure every setting, in a VM that is made for it and deleted whatever happens.

    :param say: told of each phase and figure, in a line.
    :raises LimaKernelsError: when the VM cannot be had, or is lost.
    """
    began = time.monotonic()

    def line(text: str) -> None:
        say(f"{time.monotonic() - began:6.1f} s  {printable(text)}")

    def step(step: Step) -> None:
        line(f"{step.instance}: {step.phase.value}")

    limactl = Limactl()
    async with AsyncExitStack() as stack:
        # Lima mounts what a path's links lead to.
        parent = paths.data_directory().resolve()
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mounts-", dir=parent)))
        check_space(size, scratch)
        vm = VM(f"{PREFIX}-{secrets.token_hex(3)}", limactl, step)
        stack.push_async_callback(_delete, limactl, vm)
        return await _Run(limactl, vm, scratch, size, line).measure(boots)


async def _delete(limactl: Limactl, vm: VM) -> None:
    await vm.disconnect()
    if await limactl.find(vm.name) is not None:
        await vm.delete(force=True)
    # Nobody will ask for a VM of this name again.
    shutil.rmtree(paths.instance_state(vm.name), ignore_errors=True)


class _Run:
    """One run of the benchmark."""

    def __init__(self, limactl: Limactl, vm: VM, scratch: Path, size: Size, say: Say) -> None:
        self._limactl = limactl
        self._vm = vm
        self._scratch = scratch
        self._size = size
        self._say = say
        self._caches_emptied = True

    async def measure(self, boots: Sequence[Boot]) -> Result:
        measured: list[Measured] = []
        for number, boot in enumerate(boots):
            if number:
                await self._vm.stop()
            places = self._places(boot)
            guest = await self._vm.ensure(self._wish(boot, places))
            measured += [await self._setting(guest, self._wish(boot, places), place) for place in places]
        if not any(found.figures for found in measured):
            reason = next(iter(measured[0].failures.values()), "")
            raise GuestError(f"Nothing could be measured in the VM: {reason}")
        instance = await self._limactl.get(self._vm.name)
        machine = await examine(self._limactl, instance, guest, caches_emptied=self._caches_emptied)
        return Result(machine, self._size, measured)

    def _places(self, boot: Boot) -> list[_Place]:
        found = []
        for number, setting in enumerate(boot.settings):
            if setting.origin is Origin.DISK:
                found.append(_Place(setting, PREFIX, None))
                continue
            directory = self._scratch / f"{boot.mount_type.value}-{number}"
            directory.mkdir()
            found.append(_Place(setting, str(directory), directory))
        return found

    def _wish(self, boot: Boot, places: Sequence[_Place]) -> Wish:
        mounts = [
            MountSpec(place.guest, writable=True, **msgspec.structs.asdict(place.setting.options))
            for place in places
            if place.setting.origin is Origin.LIMA
        ]
        notebooks = next((place.host for place in places if place.setting.origin is Origin.DEFAULT), None)
        environment = Environment(mount_type=boot.mount_type, mounts=tuple(mounts))
        return Wish(environment=environment, attach=False, directory=notebooks)

    async def _setting(self, guest: Guest, wish: Wish, place: _Place) -> Measured:
        self._say(f"{place.setting.name}:")
        trial = _Trial(guest, place, self._size.limit, self._say)
        try:
            async with self._shown(guest, wish, place):
                await trial.run("measure", place.guest, str(self._size.files), str(self._size.mebibytes))
                if place.host is not None:
                    (place.host / WATCHED).write_text("before\n")
                    await trial.run("watch", f"{place.guest}/{WATCHED}", str(EDIT_LIMIT))
        except (GuestError, MountError) as error:
            # A mount that is of no use is a result; that the guest is lost is none.
            trial.give_up(error)
        self._caches_emptied = self._caches_emptied and trial.caches_emptied
        return Measured(place.setting, trial.figures, trial.failures)

    @contextlib.asynccontextmanager
    async def _shown(self, guest: Guest, wish: Wish, place: _Place) -> AsyncIterator[None]:
        """See that the place is there, and that nothing is left of it."""
        if place.setting.origin is Origin.ADDED:
            assert place.host is not None
            await added_mounts.add(self._vm, guest, wish, place.host)
        elif place.setting.origin is Origin.DISK:
            await guest.connection.run(f"mkdir {shlex.quote(place.guest)}", timeout=_SHORT)
        try:
            yield
        finally:
            if place.setting.origin is Origin.ADDED:
                assert place.host is not None
                await added_mounts.remove(self._vm, guest, place.host)
            if place.host is None:
                await guest.connection.run(f"rm -rf {shlex.quote(place.guest)}", timeout=_SHORT)
            else:
                await asyncio.to_thread(shutil.rmtree, place.host)
                place.host.mkdir()


class _Trial:
    """What the guest's program says of one place."""

    def __init__(self, guest: Guest, place: _Place, limit: float, say: Say) -> None:
        self.figures: dict[str, float] = {}
        self.failures: dict[str, str] = {}
        self.caches_emptied = True
        self._guest = guest
        self._place = place
        self._limit = limit
        self._say = say

    async def run(self, *arguments: str) -> None:
        """Run the program in the guest, and do and keep what it says.

        :raises GuestError: when it does not come to its end.
        """
        program = shlex.join(["timeout", f"{self._limit:.0f}", self._guest.facts.python, "-", *arguments])
        other: list[str] = []
        is_done = False
        try:
            async with (
                asyncio.timeout(self._limit + _GRACE),
                self._guest.connection.lines(f"{program} 2>&1", stdin=_source()) as lines,
            ):
                async for line in lines:
                    if message := _decoded(line):
                        is_done = is_done or message.done
                        self._take(message)
                    elif line.strip():
                        other.append(printable(line.strip())[:_REASON_LENGTH])
        except TimeoutError as error:
            raise GuestError(f"The benchmark in the guest did not end within {self._limit:.0f} s.") from error
        if not is_done:
            reason = other[-1] if other else "it said nothing"
            raise GuestError(f"The benchmark in the guest did not come to its end: {reason}")

    def _take(self, message: _Message) -> None:
        if message.caches_emptied is not None:
            self.caches_emptied = message.caches_emptied
        if message.watching and self._place.host is not None:
            # As editors and JupyterLab save: another file takes the name.
            saved = self._place.host / "saved"
            saved.write_text("behind\n")
            os.replace(saved, self._place.host / WATCHED)
        if message.figure not in UNITS:
            return
        if message.value is not None:
            self.figures[message.figure] = message.value
            self._say(f"  {message.figure}: {message.value:.3g} {UNITS[message.figure]}")
        else:
            self.failures[message.figure] = printable(message.failed)[:_REASON_LENGTH]
            self._say(f"  {message.figure}: {self.failures[message.figure]}")

    def give_up(self, error: LimaKernelsError) -> None:
        """Say of all figures that are missing why they are."""
        missing = [name for name in UNITS if name not in self.figures]
        self.failures |= dict.fromkeys(missing, error.message)
        self._say(f"  {error.message}")


@functools.cache
def _source() -> str:
    return files(__package__).joinpath("workload.py").read_text(encoding="utf-8")


def _decoded(line: str) -> _Message | None:
    """Return what the program said, or None for what is not its own."""
    try:
        return msgspec.json.decode(line, type=_Message)
    except msgspec.DecodeError:
        return None
