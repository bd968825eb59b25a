"""What a start of a VM goes by: how long it may take, and when it has to begin again."""

from __future__ import annotations

import asyncio

from .instances import Wish


class Ended(Exception):
    """The VM's host agent ended while we were on our way to the guest: it has to be looked at anew.

    :param pid: the process that ended, 0 when it was not seen.
    """

    def __init__(self, pid: int = 0) -> None:
        super().__init__()
        self.pid = pid


class Limit:
    """The time that a start has: first until the instance exists, then, counted once, until its guest is ready."""

    def __init__(self, wish: Wish, timer: asyncio.Timeout) -> None:
        self.name, self.seconds = "create_timeout", wish.create_timeout
        self._boot_timeout = wish.boot_timeout
        self._timer = timer

    def exists(self) -> None:
        """Say that the instance exists."""
        if self.name != "boot_timeout":
            self.name, self.seconds = "boot_timeout", self._boot_timeout
            self._timer.reschedule(asyncio.get_running_loop().time() + self.seconds)

    def expired(self) -> bool:
        """Tell whether it is used up."""
        return self._timer.expired()
