"""What every verb is given beside its arguments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..lima.limactl import Limactl
from ..vm import VM


class Context(NamedTuple):
    """Who asks, and with what.

    :param vm: returns the handle of an instance; to be called in the I/O thread.
    :param say: is told in a line what is going on, for a person.
    :param default: the instance that is meant when none is named.
    :param asked_by: the guest's kernel that asks, which knows that it ends with its VM; none on the host.
    :param here: the directory that a VM which is started shall show; None for no other than it shows already.
    """

    limactl: Limactl
    vm: Callable[[str], VM]
    say: Callable[[str], None]
    default: str
    asked_by: str = ""
    here: Path | None = None

    def instance(self, name: str | None) -> str:
        """Return the name of the instance that is meant."""
        return name or self.default
