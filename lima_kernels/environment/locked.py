"""An environment file with its lock: what a VM is, and exactly what of it is in an environment's own layers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from . import lock as locks
from . import spec
from .discovery import FILE_NAME, lock_path
from .lock import Lock
from .spec import Environment


class Locked(NamedTuple):
    """A lock, the environment file that it is beside, and whether that has changed since."""

    lock: Lock
    file: Path
    is_stale: bool


class Described(NamedTuple):
    """What an environment file says, and its lock where it has one.

    ``machine`` is what of it a VM's lima.yaml carries: with a lock, its packages are not Lima's business.
    """

    environment: Environment
    locked: Locked | None = None

    @property
    def golden(self) -> str:
        """The name of the VM that new ones of this lock are copies of; empty without a lock."""
        return f"lima-kernels-golden-{self.locked.lock.digest[:12]}" if self.locked else ""

    @property
    def machine(self) -> Environment:
        return self.environment.machine if self.locked else self.environment


def describe(file: Path) -> Described:
    """Read an environment file, and the lock beside it.

    :raises ConfigurationError: when one of them cannot be read, or says what cannot be obeyed.
    """
    environment = spec.load(file)
    beside = lock_path(file)
    if not beside.exists():
        return Described(environment)
    lock = locks.read(beside)
    return Described(environment, Locked(lock, file.resolve(), lock.inputs != locks.inputs_digest(environment)))


def name_of(file: Path, environment: Environment) -> str:
    """Return an environment's name: what its file says, else what the file, or its directory, is called."""
    if environment.name:
        return environment.name
    file = file.resolve()
    words = re.findall(r"[a-z0-9]+", (file.parent.name if file.name == FILE_NAME else file.stem).lower())
    return "-".join(words)[:40].strip("-") or "environment"


DEFAULT = Described(spec.DEFAULT)
