"""copy: files and directories between this host and a guest."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import ConfigurationError
from ..guest.copying import Copied, CopyProgress
from ..guest.download import download
from ..guest.upload import upload
from ..lima.sizes import shown
from ..magics.results import Note
from .context import Context
from .reach import reached

# As for `limactl copy`: what has a colon before any slash is in a guest.
_REMOTE = re.compile(r"(?P<name>[^/:]*):(?P<path>.*)", re.DOTALL)
_WIDTH = 30


class _End(NamedTuple):
    """One end of a copy: an instance and a path there, or no instance and a path of this host."""

    instance: str | None
    path: str


def _end(text: str, default: str) -> _End:
    found = _REMOTE.fullmatch(text)
    if found is None:
        return _End(None, str(Path(text).expanduser()) + ("/" if text.endswith("/") else ""))
    return _End(found["name"] or default, found["path"] or "~")


def progress_bar(progress: CopyProgress) -> str:
    """Return how far a copy is, in a line."""
    if not progress.total:
        return f"{progress.source}: {shown(progress.done)}"
    share = min(1.0, progress.done / progress.total)
    filled = round(share * _WIDTH)
    bar = "█" * filled + "░" * (_WIDTH - filled)
    return f"{progress.source}: {bar} {share:4.0%} of {shown(progress.total)}"


async def copy(context: Context, options: argparse.Namespace) -> Note:
    """Copy into a guest, or out of one.

    :raises ConfigurationError: when not exactly one side is in a guest.
    """
    ends = [_end(text, context.default) for text in options.paths]
    *sources, target = ends
    if not sources:
        raise ConfigurationError(f"{options.paths[0]!r} is to be copied, but where to?", hint="%lima copy FROM... TO")
    origins = {source.instance for source in sources}
    if len(origins) > 1 or (target.instance is None) == (origins == {None}):
        raise ConfigurationError(
            "One side of a copy is on this host and the other in one guest.",
            hint="A guest's path is written NAME:PATH, or :PATH in the instance in use; a file with a colon ./a:b.",
        )

    def on_progress(progress: CopyProgress) -> None:
        context.say(progress_bar(progress))

    name = target.instance or next(iter(origins))
    assert name is not None
    guest = await reached(context.vm(name))
    if target.instance is None:
        done = await download(
            guest.connection, [end.path for end in sources], target.path, force=options.force, on_progress=on_progress
        )
    else:
        done = await upload(
            guest.connection,
            [Path(end.path) for end in sources],
            target.path,
            force=options.force,
            on_progress=on_progress,
        )
    return _said(done, options.paths)


def _said(done: Sequence[Copied], paths: Sequence[str]) -> Note:
    *sources, target = paths
    lines = [f"Copied {', '.join(sources)} to {target}: {shown(sum(one.size for one in done))}."]
    lines += [f"Left out, being neither file, directory nor link: {name}" for one in done for name in one.left_out]
    return Note("\n".join(lines))
