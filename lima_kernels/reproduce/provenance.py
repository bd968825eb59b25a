"""What a notebook's results were made in, kept in its metadata: no secret, and no path of this host."""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from nbformat import NotebookNode

from .. import __version__
from ..environment.lock import Lock
from ..errors import ConfigurationError, printable
from .difference import UNKNOWN, Difference, between, short
from .parameters import Value, injected
from .state import GuestState, PackageName, Sha256, Word, digest_of

KEY = "lima_kernels"
VERSION = 1


class Outcome(enum.Enum):
    """How a run ended: all cells ran, one failed or was too slow, or the environment was changed under it."""

    PASSED = "passed"
    FAILED = "failed"
    CHANGED = "changed"


class Provenance(msgspec.Struct, frozen=True):
    """What a run was made in.

    ``environment`` is the digest of all of it, ``apt``, ``records`` and ``code`` those of the Debian packages, of the
    Python packages' files and of the cells that ran.
    """

    version: int
    environment: Sha256
    lock: Sha256
    name: Word
    arch: Word
    image: Sha256
    kernel: Word
    python: Word
    apt: Sha256
    packages: Annotated[dict[PackageName, Word], msgspec.Meta(max_length=20_000)]
    records: Sha256
    lima_kernels: Word
    date: Word
    code: Sha256
    outcome: Outcome
    parameters: dict[str, Value]


def of_run(notebook: NotebookNode, directory: Path, lock: Lock, state: GuestState, outcome: Outcome) -> Provenance:
    """Return what is to be known of a run.

    :param directory: the notebook's; a parameter that names it, or the home directory, is told without.
    """
    return Provenance(
        version=VERSION,
        environment=state.digest,
        lock=lock.digest,
        name=lock.name,
        arch=state.arch,
        image=state.image_sha256,
        kernel=state.kernel,
        python=state.python,
        apt=digest_of(state.apt),
        packages={name: package.version for name, package in state.packages.items()},
        records=digest_of(state.packages),
        lima_kernels=__version__,
        date=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        code=code_digest(notebook),
        outcome=outcome,
        parameters=_without_host_paths(injected(notebook), directory),
    )


def _without_host_paths(parameters: Mapping[str, Value], directory: Path) -> dict[str, Value]:
    # The longer one first: notebooks lie in the home directory.
    hidden = {str(directory): ".", str(directory.resolve()): ".", str(Path.home()): "~"}

    def told(value: Value) -> Value:
        if isinstance(value, str):
            for path, word in hidden.items():
                value = value.replace(path, word) if path != "/" else value
        return value

    return {name: told(value) for name, value in parameters.items()}


def code_digest(notebook: NotebookNode) -> str:
    """Return the SHA-256 of a notebook's code, in hexadecimal."""
    return digest_of([cell.source for cell in notebook.cells if cell.cell_type == "code"])


def keep(notebook: NotebookNode, provenance: Provenance) -> None:
    """Write it into the notebook's metadata."""
    notebook.metadata[KEY] = msgspec.to_builtins(provenance)


def forget(notebook: NotebookNode) -> None:
    """Remove it from the notebook: the results that it told of are no more."""
    notebook.metadata.pop(KEY, None)


def kept(notebook: NotebookNode, path: Path) -> Provenance:
    """Return what a notebook says of the run that made its results.

    :raises ConfigurationError: when it says nothing, or something else.
    """
    found: Any = notebook.metadata.get(KEY)
    if found is None:
        raise ConfigurationError(
            f"{path} does not say what it was run in.", hint=f"Run it: lima-kernels run --locked {path}"
        )
    if isinstance(found, dict) and isinstance(found.get("version"), int) and found["version"] > VERSION:
        raise ConfigurationError(f"{path} was run by a newer lima-kernels.", hint="Update lima-kernels.")
    try:
        return msgspec.convert(found, Provenance)
    except (msgspec.ValidationError, RecursionError) as error:
        said = " ".join(printable(str(error)).split())[:200]
        raise ConfigurationError(f"What {path} says it was run in cannot be read: {said}.") from error


def changes(provenance: Provenance, state: GuestState) -> list[Difference]:
    """Return how the present environment differs from the recorded one, nothing when it is the same."""
    if provenance.environment == state.digest:
        return []
    plain = (
        ("architecture", provenance.arch, state.arch),
        ("image", short(provenance.image) or UNKNOWN, short(state.image_sha256) or UNKNOWN),
        ("kernel", provenance.kernel, state.kernel),
        ("Python", provenance.python, state.python),
        ("Debian packages", short(provenance.apt), short(digest_of(state.apt))),
    )
    found = [Difference(*row) for row in plain if row[1] != row[2]]
    packages = {name: package.version for name, package in state.packages.items()}
    of_packages = list(between("python", provenance.packages, packages))
    records = digest_of(state.packages)
    if not of_packages and records != provenance.records:
        of_packages = [Difference("files of the Python packages", short(provenance.records), short(records))]
    found += of_packages
    # What the notebook says may not agree with itself.
    return found or [Difference("environment", short(provenance.environment), short(state.digest))]
