"""One file for several: a tar whose first member says what else is in it, and by which bytes.

Anybody's archive may come back. So it is read by a stricter rule than tar's: an index, then exactly the files that the
index names, in its order, each of exactly its size; no links, no devices, no long names, nothing compressed.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec

from ..errors import ImageError

INDEX = "bundle.json"
VERSION = 1
_FORMAT = "lima-kernels environment"
_BLOCK = 512
_CHUNK = 1 << 20
# Bounds that no honest archive comes near: bytes of the index, files, and bytes of a path, as tar's header holds.
_INDEX_BYTES = 1 << 20
_FILES = 1000
_PATH_BYTES = 100
_HEX = re.compile(r"[0-9a-f]{64}")


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file: its path in the archive, its size in bytes, its SHA-256 in hexadecimal."""

    path: str
    size: int
    sha256: str


class Index(msgspec.Struct, frozen=True, kw_only=True):
    """What an archive says of itself: which environment it is of, by name and lock, and for which CPU."""

    format: str = _FORMAT
    version: int = VERSION
    made_by: str
    name: str
    lock: str
    arch: str
    environment: str
    image: str
    files: tuple[Entry, ...]


class Member(NamedTuple):
    """A file that is to go into an archive; the digest that it is known by, where there is one already."""

    path: str
    file: Path
    sha256: str = ""


class _Version(msgspec.Struct):
    format: str
    version: int


def entry_of(member: Member) -> Entry:
    """Return the index's line for a file.

    :raises ImageError: when its path is none that an archive may have.
    """
    check_path(member.path)
    with member.file.open("rb") as file:
        digest = member.sha256 or hashlib.file_digest(file, "sha256").hexdigest()
    return Entry(member.path, member.file.stat().st_size, digest)


def write(output: BinaryIO, index: Index, members: Iterable[Member], time: int) -> None:
    """Write an archive; the same files give the same bytes.

    :param time: of all files, in seconds since 1970.
    :raises ImageError: when a file is not what the index says of it.
    """
    data = msgspec.json.format(msgspec.json.encode(index)) + b"\n"
    with tarfile.open(fileobj=output, mode="w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(_header(INDEX, len(data), time), io.BytesIO(data))
        for entry, member in zip(index.files, members, strict=True):
            with member.file.open("rb") as file:
                watched = _Watched(file)
                tar.addfile(_header(entry.path, entry.size, time), watched)
            if watched.digest.hexdigest() != entry.sha256:
                raise ImageError(
                    f"The file {member.file} is damaged: its SHA-256 is not {entry.sha256}.",
                    hint="Make it again: lima-kernels env image FILE",
                )


class _Watched(io.RawIOBase):
    """A file whose bytes are digested as they are read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(size)
        self.digest.update(data)
        return data


def _header(path: str, size: int, time: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(path)
    info.size, info.mtime, info.mode = size, time, 0o644
    return info


def check_path(path: str) -> None:
    """See that a path stays below the directory that it is unpacked in, and hides nothing.

    :raises ImageError: when it does not, or is one that not every filesystem can have.
    """
    parts = path.split("/")
    odd = "\\" in path or not path.isprintable() or len(path.encode(errors="replace")) > _PATH_BYTES
    # Hidden files are what tools obey unasked, and so are Jupyter's configurations.
    if odd or any(not part or part[0] == "." or re.match(r"jupyter.*config", part.lower()) for part in parts):
        raise ImageError(f"An archive may not have a file {path!r}.")


def read_index(file: BinaryIO) -> Index:
    """Read what an archive begins with; what it says of its files has been checked as far as it can be without them.

    :raises ImageError: when it is no archive of ours, or of one that is newer than we are.
    """
    info = _next(file, INDEX)
    if not 0 < info.size <= _INDEX_BYTES:
        raise ImageError(f"It is no archive of lima-kernels env export: its index has {info.size} bytes.")
    data = _exactly(file, info.size)
    _skip_padding(file, info.size)
    try:
        known = msgspec.json.decode(data, type=_Version)
        if known.format != _FORMAT:
            raise ImageError(f"It is no archive of lima-kernels env export, but {known.format!r}.")
        if known.version > VERSION:
            raise ImageError(
                f"It was made by a newer lima-kernels (version {known.version} of its form; we know {VERSION}).",
                hint="Upgrade lima-kernels.",
            )
        index = msgspec.json.decode(data, type=Index)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ImageError(f"Its {INDEX} is damaged: {error}.") from error
    _check(index)
    return index


def _check(index: Index) -> None:
    if not 0 < len(index.files) <= _FILES:
        raise ImageError(f"It says that it has {len(index.files)} files.")
    seen: set[str] = set()
    for entry in index.files:
        check_path(entry.path)
        # Two names may be one file, on macOS.
        plain = unicodedata.normalize("NFC", entry.path).casefold()
        parents = {plain[:end] for end, letter in enumerate(plain) if letter == "/"}
        if plain in seen or parents & seen or any(other.startswith(f"{plain}/") for other in seen):
            raise ImageError(f"It has the file {entry.path!r} twice.")
        seen.add(plain)
        if entry.size < 0 or not _HEX.fullmatch(entry.sha256):
            raise ImageError(f"Its {INDEX} is damaged: what it says of {entry.path!r} cannot be.")


def unpack(file: BinaryIO, entries: Sequence[Entry], directory: Path, tell: Callable[[str], None]) -> None:
    """Unpack the files after the index, each checked as it is written; what comes after them is refused.

    :param tell: called with each path as it begins.
    :raises ImageError: when a file is not what the index says; the directory is then to be thrown away.
    :raises OSError: when it cannot be written.
    """
    for entry in entries:
        info = _next(file, entry.path)
        if info.size != entry.size:
            raise ImageError(f"Its file {entry.path!r} has {info.size} bytes, and not {entry.size}.")
        tell(entry.path)
        target = directory / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with target.open("xb") as output:
            left = entry.size
            while left:
                data = _exactly(file, min(left, _CHUNK))
                digest.update(data)
                output.write(data)
                left -= len(data)
        if digest.hexdigest() != entry.sha256:
            raise ImageError(
                f"Its file {entry.path!r} was damaged or changed on the way: expected SHA-256 {entry.sha256}, got "
                f"{digest.hexdigest()}.",
                hint="Copy the archive again.",
            )
        _skip_padding(file, entry.size)
    rest = file.read(_BLOCK)
    if len(rest) < _BLOCK:
        raise _cut()
    if rest.strip(b"\0"):
        raise ImageError("It has more in it than its index says.")


def _next(file: BinaryIO, path: str) -> tarfile.TarInfo:
    """Read one header; tarfile would follow what an archive says of further headers."""
    block = file.read(_BLOCK)
    if not block or (0 < len(block) < _BLOCK and path != INDEX):
        raise _cut()
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.HeaderError, ValueError) as error:
        if path == INDEX:
            raise ImageError("It is no archive of lima-kernels env export.") from error
        raise ImageError(f"Where its file {path!r} should begin, there is something else: {error}.") from error
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise ImageError(f"It has {info.name!r}, which is no ordinary file.")
    if info.name != path:
        if path == INDEX:
            raise ImageError(f"It is no archive of lima-kernels env export: it begins with {info.name!r}.")
        raise ImageError(f"It has {info.name!r} where its index says {path!r}.")
    return info


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise _cut()
    return data


def _skip_padding(file: BinaryIO, size: int) -> None:
    _exactly(file, -size % _BLOCK)


def _cut() -> ImageError:
    return ImageError("It ends too early.", hint="Copy the archive again.")
