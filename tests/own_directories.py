"""Jupyter's and Lima's own directories for one run, apart from the user's."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from lima_kernels import paths

# Seconds for what serves directories to a VM to see that the VM is gone.
_SERVERS_END = 60.0


def mount_servers(lima_home: Path) -> list[psutil.Process]:
    """Return the processes that serve directories to the VMs of a LIMA_HOME."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            is_one = any("mount_server" in word for word in process.cmdline())
            if is_one and process.environ().get("LIMA_HOME") == str(lima_home):
                found.append(process)
    return found


@contextmanager
def own_directories() -> Iterator[Path]:
    """The run's own root; the guest images that were built are the one thing taken over from the user."""
    # Short: Lima's and our sockets lie below it. Not below /tmp itself, which is no place to mount.
    root = Path(tempfile.mkdtemp(prefix="lk", dir=Path.home()))
    images = paths.images_directory()
    changed = {
        "LIMA_HOME": str(root / "lima"),
        "JUPYTER_DATA_DIR": str(root / "data"),
        "JUPYTER_RUNTIME_DIR": str(root / "run"),
        "JUPYTER_CONFIG_DIR": str(root / "config"),
        # A kernel spec of the virtual environment would come before the run's own.
        "JUPYTER_PREFER_ENV_PATH": "0",
    }
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        (paths.data_directory() / "images").symlink_to(images)
        yield root
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        # They have their records there, until their VMs are gone.
        psutil.wait_procs(mount_servers(root / "lima"), _SERVERS_END)
        shutil.rmtree(root)
