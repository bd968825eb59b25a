"""The IPython extension in a kernel of this host."""

from __future__ import annotations

from typing import Any

from .magics import magic
from .verbs.host import HostBackend


def load(shell: Any) -> None:
    """Give an IPython shell `%lima` and `%%lima`."""
    magic.load(shell, HostBackend())
