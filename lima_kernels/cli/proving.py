"""verify, and what `run --locked` shares with it: what a notebook's environment is now, and how it differs."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from .. import places
from ..errors import ConfigurationError
from ..places import Place
from ..reproduce import notebooks, provenance
from ..reproduce.difference import Difference, differences, table
from ..reproduce.provenance import Outcome
from ..reproduce.state import GuestState
from ..runtime import runtime
from .locks import DRIFTED
from .progress import watching


class Seen(NamedTuple):
    """An environment, and what it was in its VM when somebody looked."""

    place: Place
    state: GuestState

    async def again(self) -> GuestState:
        """Look again, from any loop."""
        return await runtime().run(places.inspect(self.place))


def see(found: Mapping[Path, Place]) -> dict[Path, Seen]:
    """Return what the environments of notebooks are in their VMs now; one of several notebooks is looked at once."""
    looked: dict[tuple[Path, str], Seen] = {}
    seen = {}
    with watching():
        for notebook, place in found.items():
            key = (place.file.resolve(), place.instance)
            if key not in looked:
                looked[key] = Seen(place, runtime().run_blocking(places.inspect(place)))
            seen[notebook] = looked[key]
    return seen


def place_of(notebook: Path, environment: Path | None, instance: str | None) -> Place:
    """Return where a notebook's environment is.

    :param environment: the environment file; looked for from the notebook's directory upwards when None.
    :raises ConfigurationError: when there is no such file, or no lock beside it.
    """
    found = places.find(environment, instance, notebook.absolute().parent)
    # That it has a lock is to be known before a VM boots.
    assert found.locked
    return found


def check_is_current(place: Place) -> None:
    """See that the lock is that of the environment file as it is now.

    :raises ConfigurationError: when the file was changed since it was locked.
    """
    if place.locked.is_stale:
        raise ConfigurationError(
            f"The environment file {place.file} was changed since it was locked.",
            hint=f"Lock it again: lima-kernels env lock {place.file}",
        )


def are_as_locked(seen: Iterable[Seen], console: Console) -> bool:
    """Tell whether environments are what their locks say, and show how they are not."""
    are_equal = True
    for place, state in {id(one): one for one in seen}.values():
        if found := differences(place.locked.lock, state):
            are_equal = False
            _show(found, f"The VM {place.instance!r} is not what the lock of {place.file} says.", console)
            say(f"Make it so: lima-kernels env sync {place.file}", console)
    return are_equal


def _show(found: Sequence[Difference], what: str, console: Console, expected: str = "lock") -> None:
    console.print(table(found, expected))
    say(what, console)


def say(line: str, console: Console, style: str = "red") -> None:
    """Print a line that is not cut, and holds nothing that rich would take for its own."""
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def verify(options: argparse.Namespace) -> int:
    """Compare notebooks with the environment that there is now, and return the exit code."""
    console = Console(stderr=True)
    read = {path: notebooks.read(path) for path in options.notebooks}
    recorded = {path: provenance.kept(notebook, path) for path, notebook in read.items()}
    found = {path: place_of(path, options.environment, None) for path in read}
    seen = see(found)
    is_same = True
    for path, kept in recorded.items():
        place, state = seen[path]
        changed = provenance.changes(kept, state)
        if changed:
            what = f"{path} was run in another environment than the VM {place.instance!r} has."
            _show(changed, what, console, "recorded")
        elif kept.outcome is Outcome.CHANGED:
            say(f"The environment of {path} was changed while the notebook ran.", console)
        elif provenance.code_digest(read[path]) != kept.code:
            say(f"The code of {path} was changed after it was run.", console)
        else:
            print(f"{path}: run on {kept.date} in the environment that the VM {place.instance} has.")
            continue
        is_same = False
    return 0 if is_same else DRIFTED
