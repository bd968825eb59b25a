"""What a kernel is started with, and where its clients come in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from . import paths
from .guest.calls import Answer
from .guest.forwards import CHANNELS, Transport
from .guest.kernels import KernelFacts


class Launch(NamedTuple):
    """What a kernel is started with.

    :param kernel_id: Jupyter's; names the sockets' directory on the host.
    :param guest_spec: one of the guest's own kernel specs; ipykernel of the guest's environment when empty.
    :param key: the connection's secret, and how messages are signed with it.
    :param curve: the CurveZMQ keys where encryption is on: ``curve_publickey`` and ``curve_secretkey``.
    :param facts: what notebook and kernel spec it belongs to; a kernel of the same is adopted when its owner is dead.
    :param keep: seconds that it lives on when its owner dies.
    :param timeout: seconds for the kernel itself, once the guest is ready.
    :param notes: lines for the stderr of its first cell.
    :param control: returns, for a kernel's name in the guest and its key, who answers what it asks of this host; None
        when it may ask nothing.
    """

    kernel_id: str
    cwd: Path
    env: Mapping[str, str]
    arguments: Sequence[str]
    guest_spec: str
    transport: Transport
    key: str
    signature_scheme: str
    kernel_name: str
    curve: Mapping[str, str]
    facts: KernelFacts
    keep: float
    timeout: float
    notes: Sequence[str] = ()
    control: Callable[[str, bytes], Answer] | None = None

    def connection_file(self, guest_prefix: str) -> dict[str, Any]:
        """Return what the kernel reads in the guest, given the prefix of its sockets."""
        return {
            "transport": "ipc",
            "ip": guest_prefix,
            **CHANNELS,
            "key": self.key,
            "signature_scheme": self.signature_scheme,
            "kernel_name": self.kernel_name,
            **self.curve,
        }


class Entry(NamedTuple):
    """Where clients on this host come in, and to what notebook and kernel spec.

    :param kernel_id: Jupyter's; names the sockets' directory.
    """

    transport: Transport
    kernel_id: str
    facts: KernelFacts
    control: Callable[[str, bytes], Answer] | None = None

    @property
    def sockets(self) -> Path | None:
        """The directory of the unix sockets, where there are any."""
        return paths.socket_path(self.kernel_id) if self.transport is Transport.IPC else None
