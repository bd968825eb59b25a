"""What a guest needs before a directory of this host can be added to it: sshfs, and leave for its other users."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from ..errors import MountError
from .connection import Connection

# Seconds. Without an installation it is a matter of one; a package is fetched and unpacked in an emulated guest.
PREPARE_TIMEOUT = 300.0
# The host may change what is there at any moment: what was seen of it is asked for again after a second.
OPTIONS = ("default_permissions", "dcache_timeout=1", "dcache_clean_interval=5", "dcache_min_clean_interval=2")
# What depends on the guest: its fuse.conf, and a newer sshfs, which else refuses every symbolic link that leads upwards
# for fear of the server; ours is the host, which rules the guest anyhow, and no link is followed there.
_IF_SAID = {"ALLOWED": "allow_other", "CONTAINS": "no_contain_symlinks"}

_PREPARE = r"""
set -u
fail() { printf 'FAIL %%s\n' "$1"; exit 0; }
if ! command -v sshfs >/dev/null; then
  if %(may_install)s && command -v apt-get >/dev/null && sudo -n true 2>/dev/null; then
    sudo -n env DEBIAN_FRONTEND=noninteractive sh -c \
      'apt-get update -q && apt-get install -y -q --no-install-recommends sshfs' >&2 || fail INSTALL
  else
    fail SSHFS
  fi
fi
[ -e /dev/fuse ] || sudo -n modprobe fuse || fail FUSE
# Containers are root's, and want to see the directory too.
allowed() { grep -qs '^user_allow_other' /etc/fuse.conf; }
allowed || sudo -n sh -c 'echo user_allow_other >>/etc/fuse.conf'
allowed && echo ALLOWED
sshfs --help 2>&1 | grep -q no_contain_symlinks && echo CONTAINS
echo READY
"""

_FAILURES = {
    "SSHFS": ("it has no sshfs", "Install it there: limactl shell NAME sudo apt-get install sshfs"),
    "INSTALL": ("installing sshfs failed", "Look at it by hand: limactl shell NAME sudo apt-get install sshfs"),
    "FUSE": ("its kernel has no FUSE", "Stop the VM and start it again: then Lima mounts the directory itself."),
}


async def prepare(connection: Connection, *, may_install: bool) -> Sequence[str]:
    """Make a guest ready for mounts of this host's directories, and return the options of its sshfs.

    :param may_install: sshfs may be installed where it is missing.
    :raises MountError: when the guest cannot have it.
    """
    script = _PREPARE % {"may_install": "true" if may_install else "false"}
    done = await connection.run(f"sh -c {shlex.quote(script)}", timeout=PREPARE_TIMEOUT)
    said = dict(line.partition(" ")[::2] for line in done.stdout.splitlines())
    if "READY" not in said:
        what, hint = _FAILURES.get(said.get("FAIL", ""), (f"preparing it ended with exit code {done.status}", ""))
        raise MountError(
            f"A directory cannot be added to the VM while it runs: {what}.",
            hint=hint,
            context=done.stderr.splitlines()[-10:],
        )
    return (*OPTIONS, *(option for word, option in _IF_SAID.items() if word in said))
