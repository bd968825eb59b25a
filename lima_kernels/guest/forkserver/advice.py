"""What depends on whether a path is on a directory of the host: a line of advice to a cell, and IPython's history."""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import re
import sqlite3
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

# The table of mounts, with which a path need not be looked at: one whose host is away would let us wait.
MOUNTS = "/proc/self/mountinfo"
# What was found (docs/mount-properties.json): where a lock that is taken here does not hold on the host, and where a
# virtual environment does not run, because its link to the guest's Python cannot be read.
LOCKS_END_HERE = frozenset({"9p", "added", "reverse-sshfs"})
NO_VENV = frozenset({"reverse-sshfs"})

_ESCAPED = re.compile(r"\\([0-7]{3})")
_MAKES_VENV = re.compile(r"(?:-m[ ]+venv|\bvirtualenv|\buv[ ]+venv)\b([^;&|\n]*)")
# What was said already, by the kind of advice and the mount.
_said: set[tuple[str, str]] = set()


class Mount(NamedTuple):
    """A line of the table of mounts (proc(5))."""

    point: str
    kind: str
    source: str

    @property
    def shows_host_by(self) -> str:
        """How it shows a directory of the host, in the words of docs/mount-properties.json; nothing where it does not.

        Of virtiofs nothing was measured.
        """
        if self.kind == "fuse.sshfs":
            return "added" if self.source.startswith("lima-kernels-") else "reverse-sshfs"
        return self.kind if self.kind in ("9p", "virtiofs") else ""


def all_mounts() -> Iterator[Mount]:
    """Yield what is mounted, the later after the earlier."""
    with open(MOUNTS, encoding=sys.getfilesystemencoding(), errors="surrogateescape") as file:
        for line in file:
            fields = line.split(" ")
            # Optional fields end with a dash.
            kind, source = fields[fields.index("-", 6) + 1 :][:2]
            yield Mount(_ESCAPED.sub(lambda match: chr(int(match[1], 8)), fields[4]), kind, source)


def mount_of(path: str) -> Mount:
    """Return the mount that an absolute path is on."""
    found = Mount("", "", "")
    for mount in all_mounts():
        below = mount.point.rstrip("/") + "/"
        # Of two at one place the later hides the earlier.
        if (path + "/").startswith(below) and len(mount.point) >= len(found.point):
            found = mount
    return found


def home() -> str:
    """Return the directory of the guest's user on the guest's own disk, whatever ``HOME`` says."""
    return pwd.getpwuid(os.getuid()).pw_dir


def attend(shell: Any) -> None:
    """Give advice to a shell's cells from now on.

    SQLite gets a wrapper and no audit hook: a hook in Python is called for every ``id()`` too, and made
    ``copy.deepcopy`` take 1.8 times as long.
    """
    connect = sqlite3.connect

    @functools.wraps(connect)
    def connect_with_advice(*args: Any, **kwargs: Any) -> Any:
        # Advice must not cost anybody a database.
        with contextlib.suppress(Exception):
            _advise_on_sqlite(os.fspath(args[0] if args else kwargs["database"]))
        return connect(*args, **kwargs)

    def look_at_cell(info: Any) -> None:
        with contextlib.suppress(Exception):
            _advise_on_venv(info.raw_cell)

    sqlite3.connect = sqlite3.dbapi2.connect = connect_with_advice
    shell.events.register("pre_run_cell", look_at_cell)


def _say(kind: str, mount: Mount, text: str) -> None:
    if (kind, mount.point) not in _said:
        _said.add((kind, mount.point))
        print("[lima-kernels] " + text.replace("\n", " "), file=sys.stderr, flush=True)


def _advise_on_sqlite(database: str | bytes) -> None:
    name = os.fsdecode(database)
    if name in ("", ":memory:") or "mode=memory" in name:
        return
    # SQLite does the same in its next step, so if this has to wait, so would that.
    path = os.path.realpath(name.removeprefix("file:").partition("?")[0] if name.startswith("file:") else name)
    mount = mount_of(path)
    if mount.shows_host_by in LOCKS_END_HERE:
        text = (
            "SQLite at %s: the directory is the host's, and a lock that is taken here does not hold there. "
            "Let no program of the host use the file meanwhile, or keep it on the VM's own disk, such as in %s."
        )
        _say("sqlite", mount, text % (path, home()))


def _advise_on_venv(cell: str) -> None:
    for match in _MAKES_VENV.finditer(cell):
        words = [word.strip("'\"") for word in match[1].split()]
        # Which of the others is the place, and not an option's value, is no matter: all of them are below here.
        place = os.path.expanduser(next((word for word in words if word.startswith(("/", "~"))), os.getcwd()))
        mount = mount_of(os.path.normpath(place))
        if mount.shows_host_by in NO_VENV and "--copies" not in words:
            text = (
                "A virtual environment in %s: the directory is the host's, and a link to the VM's Python cannot be "
                "read there, so it will not run. Make it on the VM's own disk, such as in %s."
            )
            _say("venv", mount, text % (mount.point, home()))


def keep_history_here(app: Any) -> None:
    """Let IPython's history be on the guest's own disk also where an application's profile is not.

    What the user's own configuration says of it holds.
    """

    def place(change: Any) -> None:
        if mount_of(os.path.realpath(change.new.location)).shows_host_by:
            directory = os.path.join(home(), ".ipython", "profile_default")
            os.makedirs(directory, mode=0o700, exist_ok=True)
            app.config.HistoryManager.hist_file = os.path.join(directory, "history.sqlite")

    app.observe(place, names="profile_dir")
