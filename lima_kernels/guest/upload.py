"""Copies of this host's files and directories in a guest."""

from __future__ import annotations

import asyncio
import os
import secrets
import shlex
from collections.abc import Sequence
from pathlib import Path

from ..errors import ConnectionFailed, GuestError
from . import archive, copying
from .archive import Writer
from .connection import Connection
from .copying import Copied, Listener, Talk
from .handover import Handover
from .shell import quoted_path

_RECEIVE = r"""
target=%(target)s
into=
case $target in */) [ -d "$target" ] || fail target ;; esac
if [ -d "$target" ]; then into=into; target=${target%%/}/%(name)s; fi
if [ -e "$target" ] || [ -L "$target" ]; then
  [ %(force)s ] || fail exists $into
  if [ -d "$target" ]; then [ %(kind)s = directory ] || fail directory $into
  else [ %(kind)s = file ] || fail file $into; fi
fi
case $target in */*) parent=${target%%/*}/ ;; *) parent=./ ;; esac
[ -d "$parent" ] || fail parent
[ -w "$parent" ] || fail denied
free() { df -Pk -- "$parent" | { read -r heading; read -r device blocks used free rest; echo "$free"; }; }
new=$parent%(new)s
clean() { [ ! -e "$new" ] || chmod -R u+rwX -- "$new"; rm -rf -- "$new" "$new.whole"; }
failed() { clean; fail tar "$(free)"; }
trap clean EXIT
trap 'exit 1' HUP INT TERM PIPE
say go "$(free)"
tar -x -p -o -b 128 -f - -C "$parent" || failed
[ -e "$new.whole" ] || fail cut
if [ -d "$target" ]; then
  cp -R -P -p -f -l -- "$new/." "$target" 2>/dev/null || cp -R -P -p -f -- "$new/." "$target" || failed
elif [ %(force)s ]; then mv -f -T -- "$new" "$target" || fail put
else mv -n -T -- "$new" "$target" || fail put; [ ! -e "$new" ] || fail exists $into
fi
clean
say done
"""

# What stands in the way of a copy, in the guest's word for it.
_OBSTACLES = {
    "exists": "{place!r} exists in the guest",
    "directory": "{place!r} is a directory in the guest, and no file",
    "file": "{place!r} is a file in the guest, and no directory",
    "target": "the guest has no directory {target!r}",
    "parent": "the guest has no directory for {target!r}",
    "denied": "the guest's user may not write beside {target!r}",
}


def _refused(word: list[str], target: str, name: str) -> GuestError:
    place = f"{target.rstrip('/')}/{name}" if "into" in word else target
    why = _OBSTACLES.get(word[0], "the guest answered {answer!r}").format(
        place=place, target=target, answer=word[0][:40]
    )
    hint = "Give --force to replace it." if word[0] == "exists" else ""
    return GuestError(f"{name!r} was not copied: {why}.", hint=hint)


def _failed(talk: Talk, word: list[str], target: str, name: str, total: int) -> GuestError | ConnectionFailed:
    if not word:
        return copying.lost(repr(name))
    if word[0] == "tar":
        what = f"{name!r} was not copied to {target!r}, and nothing was left there"
        if any("No space left" in line or "quota" in line for line in talk.lines) and len(word) > 1:
            return GuestError(copying.full(f"{what}: the guest's disk is full", copying.number(word[1]) * 1024, total))
        return GuestError(f"{what}: {(talk.lines or ['tar failed'])[0]}.", context=talk.lines)
    if word[0] in ("cut", "put"):
        return GuestError(f"{name!r} was not copied: {(talk.lines or ['it did not arrive whole'])[-1]}.")
    return _refused(word, target, name)


async def upload(
    connection: Connection, sources: Sequence[Path], target: str, *, force: bool, on_progress: Listener
) -> list[Copied]:
    """Copy files and directories of this host into the guest, one after the other.

    As with ``cp``, a target that is a directory gets them into it. Modes, times and links are kept, owners are not.

    :param force: replace files that exist, and copy into directories that exist.
    :raises HostError: when a source cannot be read.
    :raises GuestError: when the guest refuses: the target exists, its disk is full.
    :raises ConnectionFailed: when the connection is lost.
    """
    place = copying.place_of_all(sources, target)
    return [await _upload(connection, source, place, force=force, on_progress=on_progress) for source in sources]


async def _upload(connection: Connection, source: Path, target: str, *, force: bool, on_progress: Listener) -> Copied:
    name = copying.name_of(os.path.abspath(source))
    try:
        size = await asyncio.to_thread(archive.measure, source)
    except OSError as error:
        raise copying.host_error(f"{str(source)!r} cannot be copied", error, None) from error
    counter = copying.Counter(str(source), size.total, on_progress)
    new = copying.PREFIX + secrets.token_hex(8)
    values = {
        "target": quoted_path(target),
        "name": shlex.quote(name),
        "kind": "directory" if source.is_dir() else "file",
        "force": "yes" if force else '""',
        "new": new,
    }
    async with copying.program(connection, _RECEIVE, values) as (process, talk):
        word = await talk.word()
        if word[:1] != ["go"]:
            raise _failed(talk, word, target, name, size.total)
        free = copying.number(word[1]) * 1024 if len(word) > 1 else 0
        if free < size.total:
            raise GuestError(copying.full(f"{name!r} was not copied: the guest's disk has no room", free, size.total))

        async def pump(handover: Handover) -> None:
            while data := await handover.taken():
                await process.write(data)
                counter.tell()
            process.write_eof()

        def pack(handover: Handover) -> None:
            archive.pack(source, new, f"{new}.whole", Writer(handover.give), counter.add)
            handover.end()

        try:
            await copying.in_thread(pack, pump)
        except ConnectionFailed as error:
            # The guest takes no more; why, it may have said.
            raise _failed(talk, await talk.word(), target, name, size.total) from error
        except OSError as error:
            raise copying.host_error(f"{str(source)!r} cannot be copied", error, None) from error
        if (word := await talk.word()) != ["done"]:
            raise _failed(talk, word, target, name, size.total)
    counter.finish()
    return Copied(counter.done, size.left_out)
