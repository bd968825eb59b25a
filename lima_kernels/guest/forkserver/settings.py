"""What the host has said of all kernels of a guest, as it is kept for a forkserver that is started anew."""

from __future__ import annotations

import json
import os
from typing import NamedTuple

from .kernels import seconds, write_private

_FILE = "settings.json"
HIBERNATE, STOP, NOTHING = "hibernate", "stop", "nothing"


class Settings(NamedTuple):
    """How long the guest runs without being used, in seconds and 0 for ever; what is done then; how many standbys there
    are."""

    idle_timeout: float = 0.0
    on_idle: str = STOP
    standby_kernels: int = 0


def load(root: str) -> Settings:
    """Return what was said last; the idle timeout of an earlier boot is none of this one."""
    try:
        with open(os.path.join(root, _FILE), encoding="utf-8") as file:
            said = json.load(file)
        idle_timeout = seconds(said["idle_timeout"]) if said.get("boot") == boot_id() else 0.0
        return Settings(idle_timeout, str(said.get("on_idle", STOP)), max(0, int(said.get("standby_kernels", 0))))
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return Settings()


def save(root: str, said: Settings) -> None:
    """Keep what was said.

    :raises OSError: when it cannot be written.
    """
    write_private(os.path.join(root, _FILE), {**said._asdict(), "boot": boot_id()})


def boot_id() -> str:
    """Return what names this boot of the guest (random(4))."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
