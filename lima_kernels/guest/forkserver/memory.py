"""How much memory the guest has in use."""

from __future__ import annotations

_MEMINFO = "/proc/meminfo"


def usage() -> dict[str, int]:
    """Return the guest's memory, and how much of it nobody could have now, in bytes (proc(5)).

    :raises OSError: when the system does not say.
    """
    found = {}
    with open(_MEMINFO, encoding="utf-8") as file:
        for line in file:
            name, _, amount = line.partition(":")
            if name in ("MemTotal", "MemAvailable"):
                found[name] = int(amount.split()[0]) * 1024
    return {"total": found["MemTotal"], "used": found["MemTotal"] - found["MemAvailable"]}
