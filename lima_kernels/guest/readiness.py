"""What a guest must have before a kernel can start: waited for by one script in the guest, not by polling from here."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from .. import paths
from ..errors import ConnectionFailed, GuestError, MountError
from ..progress import Phase, Progress
from .connection import Connection


class Needs(NamedTuple):
    """What to wait for.

    :param mounts: mount points that must be mounted.
    :param mounted_at_boot: they are mounted by the guest's own boot; one that is missing after it will not come.
    :param provisioned: the digest that provisioning leaves; empty when the guest's Python is not ours.
    :param boot_done: Lima's boot scripts must have ended.
    """

    mounts: Sequence[str] = ()
    mounted_at_boot: bool = True
    provisioned: str = ""
    boot_done: bool = False


class Facts(NamedTuple):
    """What the guest tells of itself."""

    home: str
    uid: int
    gid: int
    python: str


class Identity(msgspec.Struct, frozen=True):
    """Who the guest's user is, and whether the guest has all that was asked for."""

    is_ready: bool
    uid: int
    gid: int


_SCRIPT = r"""
set -u
booted() { [ -e %(boot_done)s ]; }
# Who waits for us may be gone: then nobody would tell us.
pause() { sleep 0.2; [ -d /proc/$PPID ] || exit 1; }
say() { printf '%%s %%s\n' "$1" "$2"; }
fail() { [ -r "${2:-}" ] && sed 's/^/LOG /' "$2"; say FAIL "$1"; exit 0; }
say PHASE SESSION
until [ -e %(ready)s ] || [ -e %(ssh_ready)s ] || booted; do pause; done
say PHASE MOUNT
for directory in %(mounts)s; do
  until mountpoint -q -- "$directory"; do
    # Of two that are mounted in the same moment, one may come before the kernel's driver knows of its device.
    if %(mounted_at_boot)s && booted && ! sudo -n mount -- "$directory" </dev/null; then fail "MOUNT $directory"; fi
    pause
  done
done
say PHASE PROVISION
python=%(python)s
if [ -n "%(provisioned)s" ]; then
  provisioned() { [ "$(cat %(provisioned_file)s 2>/dev/null)" = "%(provisioned)s" ]; }
  until provisioned; do
    if [ -e %(failed)s ]; then fail PROVISION %(failed)s; fi
    if booted && ! provisioned; then fail PROVISION %(failed)s; fi
    pause
  done
elif [ ! -x "$python" ]; then
  python=$(command -v python3) || fail PYTHON
fi
[ -x "$python" ] || fail PYTHON
if %(wait_boot_done)s; then
  say PHASE SCRIPTS
  until booted; do pause; done
fi
say HOME "$HOME"
say UID "$(id -u)"
say GID "$(id -g)"
say PYTHON "$python"
say DONE ok
"""


def _script(needs: Needs) -> str:
    return _SCRIPT % {
        "boot_done": paths.LIMA_BOOT_DONE,
        "ssh_ready": paths.LIMA_SSH_READY,
        "ready": paths.GUEST_READY,
        "mounts": shlex.join(needs.mounts),
        "mounted_at_boot": "true" if needs.mounted_at_boot else "false",
        "python": paths.GUEST_PYTHON,
        "provisioned": needs.provisioned,
        "provisioned_file": paths.GUEST_PROVISIONED,
        "failed": paths.GUEST_PROVISION_FAILED,
        "wait_boot_done": "true" if needs.boot_done else "false",
    }


def _failure(what: str, log: Sequence[str]) -> GuestError | MountError:
    kind, _, detail = what.partition(" ")
    if kind == "MOUNT":
        return MountError(
            f"The guest did not mount {detail}.",
            hint="Does its kernel know the mount type? Try mountType: reverse-sshfs in the environment file.",
        )
    if kind == "PYTHON":
        return GuestError(
            "The guest has no Python.", hint="Install it there: limactl shell NAME sudo apt-get install python3-venv"
        )
    return GuestError(
        "Installing the environment's packages in the guest failed.",
        hint=f"The whole log is in the guest: {paths.GUEST_PREFIX}/provision.log",
        context=log,
    )


def question(needs: Needs) -> dict[str, object]:
    """Return what a forkserver is asked to know at once what the script would wait for."""
    return {
        "mounted": list(needs.mounts),
        "holds": {paths.GUEST_PROVISIONED: needs.provisioned},
        "exists": [paths.LIMA_BOOT_DONE] if needs.boot_done else [],
    }


async def wait_until_ready(connection: Connection, needs: Needs, progress: Progress) -> Facts:
    """Wait for what a kernel needs, and tell the phases as they come.

    :raises MountError: when a directory will not be mounted.
    :raises GuestError: when provisioning failed or Python is missing.
    :raises ConnectionFailed: when the connection ends meanwhile, as it does once in a guest's first boot.
    """
    found: dict[str, str] = {}
    log: list[str] = []
    async with connection.lines("sh -s", stdin=_script(needs)) as lines:
        async for line in lines:
            kind, _, rest = line.rstrip("\n").partition(" ")
            if kind == "PHASE" and rest in Phase.__members__:
                progress.enter(Phase[rest])
            elif kind == "LOG":
                log.append(rest)
            elif kind == "FAIL":
                raise _failure(rest, log)
            elif kind in ("HOME", "UID", "GID", "PYTHON", "DONE"):
                found[kind] = rest
    if "DONE" not in found or not (found["UID"].isdigit() and found["GID"].isdigit()):
        raise ConnectionFailed("The connection ended while the guest was getting ready.")
    return Facts(found["HOME"], int(found["UID"]), int(found["GID"]), found["PYTHON"])
