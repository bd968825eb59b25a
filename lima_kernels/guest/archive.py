"""Files and directories as a tar stream: written here for the guest, and what a guest wrote unpacked with suspicion."""

from __future__ import annotations

import contextlib
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self, cast

from ..errors import GuestError

# Bytes read and written at once.
BLOCK = 1024 * 1024
# Entries that only carry long names and the like for the next one, and their bytes.
_HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_HEADER_LIMIT = 1024 * 1024


class Size(NamedTuple):
    """What is to be copied: the files' bytes, and what is neither file, directory nor link and stays behind."""

    total: int
    left_out: tuple[str, ...]


class Writer:
    """Where an archive goes; tarfile asks for the position once, and never seeks."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self.write = write

    def tell(self) -> int:
        """Return where it begins."""
        return 0


class Reader:
    """Where an archive comes from, a block at a time; tarfile asks again for what a block was too short for."""

    def __init__(self, take: Callable[[], bytes]) -> None:
        self._take = take

    def read(self, _size: int) -> bytes:
        """Return the next block, however long it is, or nothing at the end."""
        return self._take()


class _Counted:
    """A file that is read for an archive."""

    def __init__(self, file: BinaryIO, count: Callable[[int], None]) -> None:
        self._file = file
        self._count = count

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._count(len(data))
        return data


def _is_copied(mode: int) -> bool:
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)


def _entries(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield all below a directory with its path from there; no link is followed.

    What is in a directory comes directly after it: tar closes a directory behind its last entry.
    """
    levels = [(_scanned(root), "")]
    while levels:
        entries, prefix = levels[-1]
        if not entries:
            levels.pop()
            continue
        entry = entries.pop()
        inner = f"{prefix}/{entry.name}"
        yield Path(entry.path), inner
        if entry.is_dir(follow_symlinks=False):
            levels.append((_scanned(Path(entry.path)), inner))


def _scanned(directory: Path) -> list[os.DirEntry[str]]:
    with os.scandir(directory) as found:
        return sorted(found, key=lambda entry: entry.name, reverse=True)


def measure(source: Path) -> Size:
    """Return how much there is to copy.

    :raises OSError: when it cannot be read.
    """
    if not source.is_dir():
        return Size(source.stat().st_size, ())
    total = 0
    left_out = []
    for path, inner in _entries(source):
        found = path.lstat()
        if not _is_copied(found.st_mode):
            left_out.append(inner[1:])
        elif stat.S_ISREG(found.st_mode):
            total += found.st_size
    return Size(total, tuple(left_out))


def pack(source: Path, name: str, mark: str, sink: Writer, count: Callable[[int], None]) -> None:
    """Write a file, or a directory with all below it, as an archive whose first entry has the given name.

    A link that is the source itself is followed, others are kept. Owners are not told.

    :param mark: the name of an empty file that comes last: an archive that is cut off between two entries looks whole.

    :raises OSError: when something cannot be read, or changes meanwhile.
    """
    root = Path(os.path.realpath(source))
    with tarfile.TarFile(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT, copybufsize=BLOCK) as archive:  # type: ignore[arg-type]
        _add(archive, root, name, count)
        if root.is_dir():
            for path, inner in _entries(root):
                _add(archive, path, name + inner, count)
        archive.addfile(tarfile.TarInfo(mark))


def _add(archive: tarfile.TarFile, path: Path, name: str, count: Callable[[int], None]) -> None:
    if not _is_copied(path.lstat().st_mode):
        return
    info = archive.gettarinfo(path, name)
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    if info.isreg():
        with path.open("rb") as file:
            archive.addfile(info, _Counted(file, count))
    else:
        archive.addfile(info)


class _Entry(tarfile.TarInfo):
    """An entry whose names have a limit: tarfile would keep them in memory, however long the guest says they are."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        made = super().frombuf(buf, encoding, errors)
        if made.type in _HEADERS and made.size > _HEADER_LIMIT:
            raise GuestError("The guest's archive holds a name that is too long; nothing was kept.")
        return made


class Unpacker:
    """Makes what a guest's archive holds, below one path that does not exist yet: that is the archive's first entry.

    Nothing in the archive is believed: each entry's parent must be a directory that this unpacker has made, no entry
    comes twice, links are made but never followed, and of the modes only the nine bits of access are kept. Whether
    the archive is whole is for its sender's exit code to say.

    :param count: told of each block of a file's bytes that is written.
    """

    def __init__(self, root: Path, count: Callable[[int], None]) -> None:
        self.left_out: list[str] = []
        self._root = root
        self._count = count
        self._first: tuple[str, ...] | None = None
        self._made: dict[tuple[str, ...], bytes] = {}
        self._directories: list[tuple[Path, tarfile.TarInfo]] = []

    def unpack(self, source: Reader) -> None:
        """Read an archive to its end.

        :raises GuestError: when the archive is none, ends early, or would write where it must not.
        :raises OSError: when something cannot be written here.
        """
        try:
            with tarfile.open(
                fileobj=cast(BinaryIO, source),
                mode="r|",
                bufsize=BLOCK,
                errors="surrogateescape",
                tarinfo=_Entry,
            ) as archive:
                while (entry := archive.next()) is not None:
                    self._make(archive, entry)
                    # tarfile keeps all that it has seen.
                    archive.members = []  # type: ignore[attr-defined]
        except (tarfile.TarError, UnicodeError, ValueError, EOFError) as error:
            raise GuestError(f"What the guest sent is no whole archive: {error}.") from error
        if () not in self._made:
            raise GuestError("What the guest sent holds neither a file nor a directory.")
        # Last: what is made in a directory changes its time, and a directory may be closed even to us.
        for path, entry in reversed(self._directories):
            path.chmod(entry.mode & 0o777)
            _set_time(path, entry)

    def _place(self, name: str) -> tuple[str, ...]:
        parts = tuple(part for part in name.split("/") if part not in ("", "."))
        if name.startswith("/") or ".." in parts:
            raise GuestError(f"The guest's archive holds {name[:80]!r}, which leads out of the copy; nothing was kept.")
        if self._first is None:
            self._first = parts
        if parts[: len(self._first)] != self._first:
            raise GuestError(f"The guest's archive holds {name[:80]!r}, which was not asked for; nothing was kept.")
        return parts[len(self._first) :]

    def _make(self, archive: tarfile.TarFile, entry: tarfile.TarInfo) -> None:
        parts = self._place(entry.name)
        if parts in self._made or (parts and self._made.get(parts[:-1]) != tarfile.DIRTYPE):
            raise GuestError(
                f"The guest's archive holds {entry.name[:80]!r}, but no directory for it, or twice; nothing was kept."
            )
        path = self._root.joinpath(*parts)
        if entry.isdir():
            path.mkdir(mode=0o700)
            self._directories.append((path, entry))
        elif entry.issym() and parts:
            path.symlink_to(entry.linkname)
            with contextlib.suppress(NotImplementedError):
                os.utime(path, (entry.mtime, entry.mtime), follow_symlinks=False)
        elif entry.islnk():
            self._link(path, entry)
        elif entry.isreg():
            self._write(archive, path, entry)
        else:
            self.left_out.append("/".join(parts))
            return
        self._made[parts] = entry.type if not entry.isreg() else tarfile.REGTYPE

    def _link(self, path: Path, entry: tarfile.TarInfo) -> None:
        """Make a second name of a file that this archive brought, and of no other."""
        first = self._place(entry.linkname)
        if self._made.get(first) not in (tarfile.REGTYPE, tarfile.LNKTYPE):
            raise GuestError(
                f"The guest's archive links {entry.name[:80]!r} to what it does not hold; nothing was kept."
            )
        os.link(self._root.joinpath(*first), path, follow_symlinks=False)

    def _write(self, archive: tarfile.TarFile, path: Path, entry: tarfile.TarInfo) -> None:
        source = archive.extractfile(entry)
        assert source is not None
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            left = entry.size
            while left:
                data = source.read(min(left, BLOCK))
                if not data:
                    raise EOFError("it ends in the middle of a file")
                _write_all(file, data)
                left -= len(data)
                self._count(len(data))
            os.fchmod(descriptor, entry.mode & 0o777)
        _set_time(path, entry)


def _write_all(file: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _set_time(path: Path, entry: tarfile.TarInfo) -> None:
    # A time that this host cannot have is no reason to fail.
    with contextlib.suppress(OverflowError, ValueError, OSError):
        os.utime(path, (entry.mtime, entry.mtime))


def remove(path: Path) -> None:
    """Remove whatever is at a path, also what a guest's modes closed to us; no link is followed."""
    with contextlib.suppress(FileNotFoundError):
        if path.is_symlink() or not path.is_dir():
            path.unlink()
            return
        path.chmod(0o700)
        with os.scandir(path) as found:
            inner = [Path(entry.path) for entry in found]
        for entry in inner:
            remove(entry)
        path.rmdir()
