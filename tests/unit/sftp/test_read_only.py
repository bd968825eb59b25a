"""A directory that a guest may read only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .peer import (
    F_APPEND,
    F_CREAT,
    F_EXCL,
    F_READ,
    F_TRUNC,
    F_WRITE,
    PERMISSION_DENIED,
    Peer,
    Refused,
    served,
    wanted,
)
from .surroundings import everything

CHANGES: dict[str, Callable[[Peer], object]] = {
    "write": lambda peer: peer.open(b"file", F_WRITE),
    "read-write": lambda peer: peer.open(b"file", F_READ | F_WRITE),
    "append": lambda peer: peer.open(b"file", F_WRITE | F_APPEND),
    "truncate": lambda peer: peer.open(b"file", F_READ | F_TRUNC),
    "create": lambda peer: peer.open(b"new", F_READ | F_CREAT),
    "create-new": lambda peer: peer.open(b"new", F_WRITE | F_CREAT | F_EXCL),
    "write-handle": lambda peer: peer.write(peer.open(b"file"), b"x"),
    "setstat": lambda peer: peer.setstat(b"file", wanted(times=(1, 2))),
    "fsetstat": lambda peer: peer.fsetstat(peer.open(b"file"), wanted(mode=0o600)),
    "lsetstat": lambda peer: peer.lsetstat(b"link", wanted(times=(1, 2))),
    "remove": lambda peer: peer.remove(b"file"),
    "mkdir": lambda peer: peer.mkdir(b"new"),
    "rmdir": lambda peer: peer.rmdir(b"empty"),
    "rename": lambda peer: peer.rename(b"file", b"new"),
    "posix-rename": lambda peer: peer.replace(b"file", b"new"),
    "hardlink": lambda peer: peer.link(b"file", b"new"),
    "symlink": lambda peer: peer.symlink(b"file", b"new"),
}


@pytest.fixture
def reader(shared: Path) -> Iterator[Peer]:
    (shared / "file").write_bytes(b"content")
    (shared / "link").symlink_to("file")
    (shared / "empty").mkdir()
    with served(shared, "--read-only") as made:
        yield made


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_change_is_refused(change: Callable[[Peer], object], shared: Path, reader: Peer) -> None:
    before = everything(shared)
    with pytest.raises(Refused) as caught:
        change(reader)
    assert caught.value.code == PERMISSION_DENIED
    assert everything(shared) == before


def test_all_else_is_allowed(reader: Peer) -> None:
    assert reader.get(b"file") == b"content"
    reader.fsync(reader.open(b"file", F_READ | F_APPEND))
    assert reader.readlink(b"link") == b"file"
    assert reader.listed().keys() == {b".", b"..", b"file", b"link", b"empty"}
    assert reader.lstat(b"file").size == 7
    # ST_RDONLY
    assert reader.statvfs(b"/")[9] == 1
    assert reader.fstatvfs(reader.open(b"file"))[9] == 1
