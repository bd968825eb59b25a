"""Copies of a guest's files and directories on this host."""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from ..errors import ConnectionFailed, GuestError, HostError
from ..paths import free_space
from . import archive, copying
from .archive import Reader, Unpacker
from .connection import Connection, Ended, Process
from .copying import Copied, Listener, Talk
from .handover import Handover
from .shell import quoted_path, undisturbed

# Bytes that may follow an archive: tar fills up its last record.
_PADDING_LIMIT = 1024 * 1024

_SEND = r"""
source=%(source)s
[ -e "$source" ] || fail missing
if [ -d "$source" ]; then
  cd -- "$source" && [ -r . ] || fail denied
  total=$(du -sb . 2>/dev/null) || total=
  say go directory ${total%%%%[!0-9]*}
  exec tar -c -b 128 -f - .
fi
[ -f "$source" ] || fail special
[ -r "$source" ] || fail denied
say go file "$(stat -L -c %%s -- "$source")"
case $source in */*) cd -- "${source%%/*}/" ;; esac
exec tar -c -h -b 128 -f - -- "./${source##*/}"
"""


_OBSTACLES = {
    "missing": "the guest has no such file or directory",
    "denied": "the guest's user may not read it",
    "special": "it is neither a file nor a directory",
}


async def download(
    connection: Connection, sources: Sequence[str], target: str, *, force: bool, on_progress: Listener
) -> list[Copied]:
    """Copy files and directories of the guest to this host, one after the other.

    As with ``cp``, a target that is a directory gets them into it. Of the modes only the nine bits of access are kept.

    :param force: replace files that exist, and copy into directories that exist.
    :raises HostError: when this host refuses: the target exists, the disk is full.
    :raises GuestError: when a source cannot be read, or is not sent as an archive has to be.
    :raises ConnectionFailed: when the connection is lost.
    """
    place = copying.place_of_all(sources, target)
    return [await _download(connection, source, place, force=force, on_progress=on_progress) for source in sources]


def _place(source: str, target: str) -> Path:
    place = Path(target)
    if target.endswith("/") and not place.is_dir():
        raise HostError(f"{source!r} was not copied: there is no directory {target!r}.")
    if place.is_dir():
        return place / copying.name_of(source)
    if not place.parent.is_dir():
        raise HostError(f"{source!r} was not copied: there is no directory for {target!r}.")
    return place


def _check_place(source: str, place: Path, *, is_directory: bool, force: bool) -> None:
    what = f"{source!r} was not copied"
    if not os.path.lexists(place):
        return
    if not force:
        raise HostError(f"{what}: {str(place)!r} exists.", hint="Give --force to replace it.")
    if place.is_dir() != is_directory:
        kind, other = ("directory", "file") if place.is_dir() else ("file", "directory")
        raise HostError(f"{what}: {str(place)!r} is a {kind}, and no {other}.")


def _unsendable(word: list[str], source: str, talk: Talk) -> GuestError | ConnectionFailed:
    if not word:
        return copying.lost(repr(source))
    said = talk.lines[0] if talk.lines else "its tar failed"
    return GuestError(f"{source!r} was not copied: {_OBSTACLES.get(word[0], said)}.", context=talk.lines)


async def _download(connection: Connection, source: str, target: str, *, force: bool, on_progress: Listener) -> Copied:
    place = _place(source, target)
    async with copying.program(connection, _SEND, {"source": quoted_path(source)}) as (process, talk):
        word = await talk.word()
        if word[:1] != ["go"] or len(word) < 2:
            raise _unsendable(word, source, talk)
        is_directory = word[1] == "directory"
        _check_place(source, place, is_directory=is_directory, force=force)
        total = copying.number(word[2]) if len(word) > 2 else None
        free = free_space(place.parent)
        if total is not None and free < total:
            raise HostError(copying.full(f"{source!r} was not copied: this host's disk has no room", free, total))
        counter = copying.Counter(source, total, on_progress)
        new = place.parent / (copying.PREFIX + secrets.token_hex(8))
        try:
            left_out = await _received(process, Unpacker(new, counter.add), counter)
            if process.ended is None:
                raise copying.lost(repr(source))
            # 1 says that a file changed while it was read, as a log does.
            if process.ended.code not in (0, 1):
                raise _unsendable(["tar"], source, talk)
            await undisturbed(asyncio.to_thread(_put, new, place))
        except ConnectionFailed as error:
            raise copying.lost(repr(source)) from error
        except OSError as error:
            raise copying.host_error(f"{source!r} was not copied", error, total, place.parent) from error
        finally:
            await undisturbed(asyncio.to_thread(archive.remove, new))
    counter.finish()
    return Copied(counter.done, left_out)


async def _received(process: Process, unpacker: Unpacker, counter: copying.Counter) -> tuple[str, ...]:
    """Unpack what the guest sends, to the end of its program."""

    async def pump(handover: Handover) -> None:
        while data := await process.stdout.read():
            await handover.given(data)
            counter.tell()
        handover.end()

    def unpack(handover: Handover) -> None:
        unpacker.unpack(Reader(handover.take))
        padding = 0
        while data := handover.take():
            padding += len(data)
            if padding > _PADDING_LIMIT:
                raise GuestError("The guest sends more than an archive; nothing was kept.")

    try:
        await copying.in_thread(unpack, pump)
    except GuestError:
        # An archive that is cut off comes of a lost connection, or of a tar that failed: these say more.
        if not process.exited.is_set() or process.ended == Ended(0, None):
            raise
    async with asyncio.timeout(copying.ANSWER_TIMEOUT):
        await process.exited.wait()
    return tuple(unpacker.left_out)


def _put(new: Path, place: Path) -> None:
    """Give a whole copy its name; a directory that exists keeps what else is in it."""
    if new.is_dir() and not new.is_symlink() and place.is_dir():
        _check_merge(new, place)
        _merge(new, place)
    else:
        os.replace(new, place)


def _inner(new: Path, place: Path) -> list[tuple[os.DirEntry[str], Path, bool]]:
    """Return what is in a directory, where it goes, and whether a directory is there that it has to join."""
    new.chmod(0o700)
    with os.scandir(new) as found:
        entries = [(entry, place / entry.name) for entry in found]
    return [(entry, there, there.is_dir() and not there.is_symlink()) for entry, there in entries]


def _check_merge(new: Path, place: Path) -> None:
    for entry, there, is_directory in _inner(new, place):
        if entry.is_dir(follow_symlinks=False) and is_directory:
            _check_merge(Path(entry.path), there)
        elif is_directory or (entry.is_dir(follow_symlinks=False) and os.path.lexists(there)):
            raise FileExistsError(errno.EEXIST, "a file and a directory have the same name", str(there))


def _merge(new: Path, place: Path) -> None:
    for entry, there, is_directory in _inner(new, place):
        if is_directory:
            _merge(Path(entry.path), there)
        elif entry.is_dir(follow_symlinks=False):
            mode = entry.stat(follow_symlinks=False).st_mode & 0o777
            # A directory changes its parent only for who may write into it.
            Path(entry.path).chmod(0o700)
            os.replace(entry.path, there)
            there.chmod(mode)
        else:
            os.replace(entry.path, there)
