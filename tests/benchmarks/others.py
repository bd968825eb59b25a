"""The same VM's kernels by other ways: sshpyk, and ipykernel_launcher over ssh with `ssh -L`."""

from __future__ import annotations

import importlib.metadata
import json
import secrets
import subprocess
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from jupyter_client import BlockingKernelClient
from jupyter_core.paths import jupyter_data_dir

from lima_kernels import paths
from lima_kernels.guest.forwards import CHANNELS

from .machine_room import INSTANCE, Managed, Room, life
from .openssh import ALONE, arguments, wait_for
from .samples import SSH, SSHPYK, Sample

TIMES = 3
ALIAS = f"lima-{INSTANCE}"
# Seconds.
LIMIT = 60.0
# The connection file comes on stdin, for it holds the key; $1 is its path, $2 the guest's Python.
LAUNCH = 'umask 077; trap "rm -f $1 $1-[1-5]" EXIT; head -n 1 >"$1"; "$2" -m ipykernel_launcher -f "$1"'


def guest_ssh() -> list[str]:
    """Return the command that logs in to the VM by Lima's own configuration, over a connection of its own."""
    return ["ssh", "-F", str(paths.ssh_config(paths.lima_home() / INSTANCE)), *ALONE, ALIAS]


def _install_sshpyk() -> str:
    """Write a kernel spec for sshpyk, as `sshpyk add` does, and return its name."""
    try:
        importlib.metadata.version("sshpyk")
    except importlib.metadata.PackageNotFoundError as error:
        raise RuntimeError("sshpyk is not installed: pip install 'lima-kernels[bench]'") from error
    config = {
        "ssh_host_alias": ALIAS,
        "ssh_config": str(paths.ssh_config(paths.lima_home() / INSTANCE)),
        "remote_python": paths.GUEST_PYTHON,
        "remote_kernel_name": "python3",
    }
    spec = {
        "argv": ["sshpyk-kernel", "--KernelManager.connection_file='{connection_file}'"],
        "display_name": "sshpyk",
        "language": "python",
        "interrupt_mode": "message",
        "metadata": {"kernel_provisioner": {"provisioner_name": "sshpyk-provisioner", "config": config}},
    }
    directory = Path(jupyter_data_dir()) / "kernels" / "sshpyk"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "kernel.json").write_text(json.dumps(spec))
    return directory.name


def measure_sshpyk(room: Room) -> Iterator[Sample]:
    """Measure sshpyk into the VM, over the connection that Lima's configuration shares."""
    room.warm()
    spec = _install_sshpyk()
    for _ in range(TIMES):
        yield from life("sshpyk", SSHPYK, partial(Managed, spec, room.notebooks))


class Launched:
    """A kernel that ssh starts in the guest, and whose sockets the same ssh forwards.

    :param root: where the sockets are on this host.
    :param home: where they are in the guest.
    """

    def __init__(self, root: Path, home: str) -> None:
        self._root = root
        self._home = home
        self._start()

    def _start(self) -> None:
        name = f"b{secrets.token_hex(4)}"
        prefix, file = str(self._root / name), f"{self._home}/{name}"
        there = {
            "transport": "ipc",
            "ip": file,
            **CHANNELS,
            "key": secrets.token_hex(16),
            "signature_scheme": "hmac-sha256",
        }
        self._connection: dict[str, Any] = {**there, "ip": prefix}
        ssh, *options = guest_ssh()
        remote = f"sh -c '{LAUNCH}' sh {file} {paths.GUEST_PYTHON}"
        argv = [ssh, *arguments({prefix: file}), *options, remote]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(there).encode() + b"\n")
        self._process.stdin.close()
        wait_for([Path(f"{prefix}-{number}") for number in CHANNELS.values()], self._process)

    @property
    def connection(self) -> Mapping[str, Any]:
        return self._connection

    def restart(self) -> None:
        self.end()
        self._start()

    def end(self) -> None:
        client = BlockingKernelClient()
        client.load_connection_info(self._connection)
        client.start_channels(shell=False, iopub=False, stdin=False, hb=False)
        try:
            client.shutdown()
            self._process.wait(LIMIT)
        finally:
            client.stop_channels()
            self._process.terminate()
            self._process.wait(LIMIT)


def measure_openssh(room: Room) -> Iterator[Sample]:
    """Measure ipykernel_launcher over ssh, with a forward for each channel."""
    room.warm()
    argv = [*guest_ssh(), 'printf %s "$HOME"']
    home = subprocess.check_output(argv, stdin=subprocess.DEVNULL, text=True, timeout=LIMIT)
    for _ in range(TIMES):
        yield from life("openssh", SSH, partial(Launched, room.root, home))
