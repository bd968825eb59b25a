"""Start the guest's forkserver where it does not run: the package is pushed, and run by the guest's Python."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import shlex
import tarfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.resources import files

from .. import paths
from ..errors import ConnectionFailed, GuestError
from .connection import Connection
from .events import GuestEvent
from .forkserver.kernels import CONTROL
from .forkserver.kit import KIT
from .kernels import Forkserver
from .readiness import Facts

# Starting Python in an emulated guest takes seconds; importing ipykernel comes after the socket is there.
START_TIMEOUT = 60.0

_START = r"""
set -eu
umask 077
mkdir -p %(root)s/k
# Another process of the host may be starting it too.
exec 9>%(root)s/start.lock
flock 9
if [ ! -d %(program)s ]; then
  rm -rf %(root)s/incoming
  mkdir %(root)s/incoming
  base64 -d | tar -xz -C %(root)s/incoming
  mv %(root)s/incoming %(program)s
fi
set -- %(argv)s
# A system service of its own is not ended with the login session that an SSH connection is; and when the kernel's
# memory killer takes one kernel, the others live on, as they do when the forkserver itself is killed and started again.
if [ -d /run/systemd/system ] && sudo -n true 2>/dev/null; then
  # Once: sudo takes its time in an emulated guest.
  sudo -n sh -euc '
    umask 022
    if [ "$(systemctl show --property=LoadState --value "$1")" != loaded ]; then
      for units in /etc/systemd/system /run/systemd/system; do
        # Not every /etc can be written.
        { printf %%s "$2" | base64 -d >"$units/$1"; } 2>/dev/null && break
      done
      if [ -e %(ready)s ]; then
        # In a guest of ours it comes with each boot from now on, before anybody asks; other versions no longer do.
        cd "$units/multi-user.target.wants" && rm -f lima-kernels-%(uid)s-* && ln -s "../$1" . || :
      fi
    fi
    systemctl start "$1"' sh %(unit)s %(service)s
else
  setsid "$@" --detach 9>&-
fi
"""


# systemd.service(5). What it starts outlives it: kernels. Their language is that of a session, which PAM gives it.
_SERVICE = """\
[Unit]
Description=Starts kernels for lima-kernels
DefaultDependencies=no
After=lima-kernels-init.service local-fs.target systemd-tmpfiles-setup.service
Conflicts=shutdown.target
Before=shutdown.target
CollectMode=inactive-or-failed

[Service]
Type=notify
NotifyAccess=all
User=%(uid)s
Group=%(gid)s
WorkingDirectory=%(home)s
Environment=LANG=C.UTF-8
EnvironmentFile=-/etc/locale.conf
EnvironmentFile=-/etc/default/locale
EnvironmentFile=-/etc/environment
ExecStart=%(command)s
KillMode=process
Restart=on-failure
RestartSec=100ms
OOMPolicy=continue
OOMScoreAdjust=-500
TasksMax=infinity
LimitNOFILE=65536
"""


def _sources() -> Iterator[tuple[str, bytes]]:
    """Yield what the guest gets, by its path there: the forkserver's package, and what cells use of ours."""
    ours = files(__package__.partition(".")[0])
    for place, directory, suffix in (
        ("", ours.joinpath("guest", "forkserver"), ".py"),
        ("layers/", ours.joinpath("guest", "forkserver", "layers"), ".py"),
        (f"{KIT}/{ours.name}/magics/", ours.joinpath("magics"), ".py"),
        (f"{KIT}/{ours.name}/widget/", ours.joinpath("widget"), ".py"),
        # Sources of which nobody has built the front end have none; panels then say so.
        (f"{KIT}/{ours.name}/widget/static/", ours.joinpath("widget", "static"), ".js"),
    ):
        if directory.is_dir():
            for file in sorted(directory.iterdir(), key=lambda file: file.name):
                if file.name.endswith(suffix):
                    yield place + file.name, file.read_bytes()
    yield f"{KIT}/{ours.name}/__init__.py", ours.joinpath("__init__.py").read_bytes()


@cache
def program() -> bytes:
    """Return what the guest gets as a compressed tar archive; the same bytes for the same source."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path, data in _sources():
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return gzip.compress(buffer.getvalue(), mtime=0)


class Layout:
    """Where things lie in one guest: absolute paths below its user's home."""

    def __init__(self, facts: Facts) -> None:
        arguments = f"{facts.python}\0{paths.GUEST_ENVIRONMENTS}\0".encode()
        version = hashlib.sha256(arguments + program()).hexdigest()[:12]
        # Each version of the forkserver has a directory of its own, whose kernels are its own to clean up.
        self.root = f"{facts.home}/{paths.GUEST_STATE}/{version}"
        # The directory's name is the package's in the forkserver's process, and in its kernels.
        self.program = f"{self.root}/lima_kernels_forkserver"
        self.socket = f"{self.root}/socket"
        self.unit = f"lima-kernels-{facts.uid}-{version}.service"

    def directory(self, kernel: str) -> str:
        """Return where a kernel has its files and sockets."""
        return f"{self.root}/k/{kernel}"

    def control(self, kernel: str) -> str:
        """Return the socket on which a kernel asks its host."""
        return f"{self.directory(kernel)}/{CONTROL}"

    def channels(self, kernel: str) -> str:
        """Return the prefix of a kernel's five sockets.

        :raises GuestError: when the guest's home is too long a path for unix sockets.
        """
        prefix = f"{self.directory(kernel)}/c"
        if len(prefix.encode()) + 2 > paths.UNIX_PATH_MAX_GUEST:
            raise GuestError(
                f"The path {prefix} is too long for a unix socket in the guest: "
                f"at most {paths.UNIX_PATH_MAX_GUEST - 2} bytes.",
                hint="Use a guest user with a shorter home directory.",
            )
        return prefix


def _service(facts: Facts, argv: Sequence[str]) -> str:
    """Return systemd's unit; what has a meaning for it in a path is escaped."""
    words = (word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$") for word in argv)
    values = {"uid": facts.uid, "gid": facts.gid, "home": facts.home.replace("%", "%%")}
    return _SERVICE % {**values, "command": " ".join(f'"{word}"' for word in words)}


async def _start(connection: Connection, layout: Layout, facts: Facts) -> None:
    argv = [facts.python, layout.program, "--root", layout.root, "--socket", layout.socket]
    argv += ["--environments", paths.GUEST_ENVIRONMENTS]
    values = {
        "root": shlex.quote(layout.root),
        "program": shlex.quote(layout.program),
        "argv": shlex.join(argv),
        "unit": layout.unit,
        "uid": facts.uid,
        "service": base64.b64encode(_service(facts, argv).encode()).decode(),
        "ready": paths.GUEST_READY,
    }
    command = f"sh -c {shlex.quote(_START % values)}"
    done = await connection.run(command, stdin=base64.b64encode(program()).decode(), timeout=START_TIMEOUT)
    if done.status:
        raise GuestError(
            f"The guest's forkserver could not be started with {facts.python}: exit code {done.status}.",
            hint="Is the guest's disk full? Look: limactl shell NAME df -h" if "No space" in done.stderr else "",
            context=done.stderr.splitlines()[-10:],
        )


async def find(connection: Connection, facts: Facts, on_event: Callable[[GuestEvent], None]) -> Forkserver | None:
    """Connect to the guest's forkserver; None when it does not run.

    :param on_event: called in the I/O thread for each kernel that ends, and when the guest shuts down by itself.
    """
    layout = Layout(facts)
    try:
        reader, writer = await connection.open_unix(layout.socket)
    except ConnectionFailed:
        return None
    return Forkserver(reader, writer, layout.socket, on_event)


async def connect(connection: Connection, facts: Facts, on_event: Callable[[GuestEvent], None]) -> Forkserver:
    """Connect to the guest's forkserver, and start it when it does not run.

    :param on_event: as for :func:`find`.
    :raises GuestError: when it cannot be started.
    """
    if found := await find(connection, facts, on_event):
        return found
    layout = Layout(facts)
    await _start(connection, layout, facts)
    reader, writer = await connection.open_unix(layout.socket)
    return Forkserver(reader, writer, layout.socket, on_event)
