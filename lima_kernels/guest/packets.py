"""Which packets an SSH connection sends beside those that carry something."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# RFC 4253, 12.
_MSG_IGNORE = 2


def without_ignored(send: Callable[..., None]) -> Any:
    """Return what sends a packet as ``send`` does, unless its peer is to ignore it.

    asyncssh puts one of these before each other packet, against an attack on ciphers in CBC mode (RFC 4251, 9.3.1). We
    offer none of those, and each packet wakes the guest once more.
    """

    def send_packet(kind: int, *args: bytes, **options: Any) -> None:
        if kind != _MSG_IGNORE:
            send(kind, *args, **options)

    return send_packet
