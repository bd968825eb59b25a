"""A directory that is served, and one beside it that must stay as it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .peer import Peer, served
from .surroundings import SECRET, SECRET_NAME, everything


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    directory = tmp_path / "shared"
    directory.mkdir()
    return directory


@pytest.fixture
def peer(shared: Path) -> Iterator[Peer]:
    """A client of a server of ``shared``, which must still be well at the test's end."""
    with served(shared) as made:
        yield made


@pytest.fixture
def outside(shared: Path) -> Iterator[Path]:
    """A directory with the same names as the shared one's, and links to it at each depth; it must not change."""
    directory = shared.parent / "outside"
    for root in (directory, shared):
        (root / "a" / "b" / "c").mkdir(parents=True)
        (root / "empty").mkdir()
    for place in (directory, directory / "a", directory / "a" / "b", directory / "a" / "b" / "c"):
        (place / "secret").write_bytes(SECRET)
        (place / os.fsdecode(SECRET_NAME)).touch()
    (shared / "file").write_bytes(b"inside")
    # The first, the second, ... component of `name/b/c/secret` and of its likes leads outside.
    (shared / "to-a").symlink_to("../outside/a")
    (shared / "to-root").symlink_to(directory)
    (shared / "a" / "to-b").symlink_to("../../outside/a/b")
    (shared / "a" / "b" / "to-c").symlink_to(directory / "a" / "b" / "c")
    (shared / "to-file").symlink_to("../outside/secret")
    (shared / "to-nothing").symlink_to("../outside/new")
    (shared / "to-link").symlink_to("to-root")
    before = everything(directory)
    yield directory
    assert everything(directory) == before
