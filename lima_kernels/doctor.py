"""The table of what this host needs, each row with the command that mends it."""

from __future__ import annotations

import enum
import os
import platform
import shutil
import sys
from collections.abc import Awaitable, Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple

from jupyter_core.paths import jupyter_runtime_dir

from . import kernelspec, paths
from .environment import image
from .errors import LimaKernelsError
from .lima import accelerator, mounting
from .lima.limactl import Limactl, find_limactl

DISK_NEEDED = 5 * 1024**3
# The longest socket name that Lima makes in an instance's directory (lima `filenames.LongestSock`).
_LONGEST_SOCKET = "/ssh.sock.1234567890123456"


class Outcome(enum.Enum):
    """How a check went: a warning works, but not as well as it could."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


class Row(NamedTuple):
    """One check's result; ``fix`` is a command where one exists."""

    check: str
    outcome: Outcome
    detail: str
    fix: str = ""


def _on_linux(command: str, mac: str) -> str:
    return mac if sys.platform == "darwin" else command


async def _user() -> Row:
    if os.geteuid() == 0:
        return Row("user", Outcome.FAILURE, "limactl refuses to run as root", "adduser jupyter && su - jupyter")
    return Row("user", Outcome.OK, f"uid {os.geteuid()}")


async def _limactl() -> Row:
    fix = _on_linux("see https://lima-vm.io/docs/installation/ (or: brew install lima)", "brew install lima")
    if os.geteuid() != 0:
        try:
            path = find_limactl()
            version = await Limactl(path).version()
        except LimaKernelsError as error:
            return Row("limactl", Outcome.FAILURE, error.message, fix)
        return Row("limactl", Outcome.OK, f"{'.'.join(map(str, version))} at {path}")
    found = shutil.which("limactl")
    return Row("limactl", Outcome.OK if found else Outcome.FAILURE, found or "not found on PATH", "" if found else fix)


async def _accelerator() -> Row:
    verdict = accelerator.detect()
    if verdict.accelerator is accelerator.Accelerator.EMULATION:
        fix = "sudo usermod --append --groups kvm $USER, then log in again (where the CPU offers virtualisation)"
        return Row("accelerator", Outcome.WARNING, f"slow emulation is used: {verdict.reason}", fix)
    return Row("accelerator", Outcome.OK, verdict.accelerator.value)


async def _qemu() -> Row:
    if sys.platform == "darwin":
        return Row("qemu", Outcome.OK, "not needed: macOS brings Virtualization.framework")
    missing = [tool for tool in (f"qemu-system-{platform.machine()}", "qemu-img") if not shutil.which(tool)]
    if missing:
        packages = "qemu-system-x86 qemu-utils" if platform.machine() == "x86_64" else "qemu-system-arm qemu-utils"
        return Row("qemu", Outcome.FAILURE, f"not found: {', '.join(missing)}", f"sudo apt-get install {packages}")
    return Row("qemu", Outcome.OK, str(shutil.which(f"qemu-system-{platform.machine()}")))


async def _ssh() -> Row:
    found = shutil.which("ssh")
    if not found:
        return Row("ssh", Outcome.FAILURE, "Lima needs OpenSSH's client", "sudo apt-get install openssh-client")
    return Row("ssh", Outcome.OK, found)


async def _sftp_server() -> Row:
    found = mounting.find_sftp_server()
    if found is None:
        detail = "not found: reverse-sshfs mounts use Lima's own, slower one"
        return Row("sftp-server", Outcome.WARNING, detail, "sudo apt-get install openssh-sftp-server")
    return Row("sftp-server", Outcome.OK, found)


async def _mount_types() -> Row:
    if sys.platform == "darwin":
        return Row("mount types", Outcome.OK, "virtiofs, reverse-sshfs")
    virtiofsd = await mounting.find_virtiofsd()
    detail = f"9p, reverse-sshfs, virtiofs ({virtiofsd})" if virtiofsd else "9p, reverse-sshfs (no virtiofsd in Rust)"
    return Row("mount types", Outcome.OK, detail)


async def _image() -> Row:
    try:
        found = image.find_image()
    except LimaKernelsError as error:
        return Row("guest image", Outcome.FAILURE, error.message, error.hint)
    if found is None:
        detail = "none built: Lima's template is downloaded at first start, and ipykernel installed in it"
        return Row("guest image", Outcome.OK, detail)
    if not image.is_current():
        return Row("guest image", Outcome.WARNING, "built by another version", "lima-kernels image build")
    return Row("guest image", Outcome.OK, str(found.disk.parent))


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())


async def _disk() -> Row:
    home = paths.lima_home()
    free = shutil.disk_usage(_existing(home)).free
    detail = f"{free / 1024**3:.1f} GiB free for {home}"
    if free < DISK_NEEDED:
        return Row("disk space", Outcome.FAILURE, detail, "free some, or set LIMA_HOME to another disk; limactl prune")
    return Row("disk space", Outcome.OK, detail)


async def _path_lengths() -> Row:
    longest = f"{paths.lima_home()}/lima-kernels{_LONGEST_SOCKET}"
    if len(os.fsencode(longest)) > paths.UNIX_PATH_MAX_HOST:
        detail = f"{paths.lima_home()} is too long for Lima's sockets"
        return Row("path lengths", Outcome.FAILURE, detail, "set LIMA_HOME to a shorter path")
    runtime = f"{jupyter_runtime_dir()}/lima/0123456789ab/c-5"
    if len(os.fsencode(runtime)) > paths.UNIX_PATH_MAX_HOST:
        detail = f"{jupyter_runtime_dir()} is too long for sockets: the temporary directory is used"
        return Row("path lengths", Outcome.WARNING, detail, "set JUPYTER_RUNTIME_DIR to a shorter path")
    return Row("path lengths", Outcome.OK, f"{paths.lima_home()}, {jupyter_runtime_dir()}")


async def _provisioner() -> Row:
    if not entry_points(group="jupyter_client.kernel_provisioners", name=kernelspec.PROVISIONER):
        detail = "Jupyter's Python does not know it: lima-kernels is installed in another environment"
        return Row("provisioner", Outcome.FAILURE, detail, f"{sys.executable} -m pip install lima-kernels")
    return Row("provisioner", Outcome.OK, kernelspec.PROVISIONER)


async def _kernel_spec() -> Row:
    found = [spec.name for spec in kernelspec.installed()]
    if not found:
        return Row("kernel spec", Outcome.WARNING, "none installed", "lima-kernels install")
    return Row("kernel spec", Outcome.OK, ", ".join(found))


CHECKS: tuple[Callable[[], Awaitable[Row]], ...] = (
    _user,
    _limactl,
    _accelerator,
    _qemu,
    _ssh,
    _sftp_server,
    _mount_types,
    _image,
    _disk,
    _path_lengths,
    _provisioner,
    _kernel_spec,
)


async def examine() -> list[Row]:
    """Run every check and return the rows in their order."""
    return [await check() for check in CHECKS]
