"""A VM that nobody uses is put to sleep, as its guest asks for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from ..errors import LimaKernelsError
from .state import is_asleep

logger = logging.getLogger(__name__)


class WhenIdle:
    """Puts one VM to sleep, and says once why it cannot.

    :param hibernate: does it.
    """

    def __init__(self, name: str, hibernate: Callable[[], Awaitable[object]]) -> None:
        self._name = name
        self._hibernate = hibernate
        self._task: asyncio.Future[None] | None = None
        self._said = ""

    def begin(self, idle: float) -> None:
        """Begin with it.

        :param idle: for how many seconds nobody used the VM.
        """
        self._task = asyncio.ensure_future(self._sleep(idle))

    async def _sleep(self, idle: float) -> None:
        logger.info("The VM %r is put to sleep: nobody used it for %.0f s.", self._name, idle)
        try:
            await self._hibernate()
        except LimaKernelsError as error:
            # Another process may have been at it, too.
            if not is_asleep(self._name) and error.message != self._said:
                self._said = error.message
                logger.warning("The VM %r is not put to sleep. %s", self._name, error)
