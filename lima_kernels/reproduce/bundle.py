"""A locked environment and its image in one file, for somebody who has no network; and back, from anybody."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from filelock import FileLock, Timeout

from .. import __version__, paths
from ..environment import building, image, locked, qcow2
from ..environment.lock import Lock
from ..environment.requirements import asking
from ..environment.spec import Environment
from ..errors import ConfigurationError, HostError, ImageError
from . import archive, baking
from .archive import Index, Member

_FILES, _IMAGE = "environment", "image"
# Room that a host keeps beside what is unpacked, in bytes.
_SPARE = 64 << 20


class Imported(NamedTuple):
    """What an archive has become: its environment file here, the image's name, and what it wants of this host."""

    environment: Path
    image: str
    wishes: tuple[str, ...]


class _Whole(NamedTuple):
    """A locked environment with all files that it was read from, by their paths below its directory."""

    environment: Environment
    lock: Lock
    files: dict[str, Path]


def _read(file: Path) -> _Whole:
    """Read an environment file and its lock, which has to be of its present text, and all that they name.

    :raises ConfigurationError: when it names a file that is not below its own directory; that is not read.
    """
    file = file.resolve()
    files = {file.name: file}

    def note(path: Path) -> None:
        if not path.resolve().is_relative_to(file.parent) or not path.is_relative_to(file.parent):
            raise ConfigurationError(
                f"The environment {file} names {path}, which is not below its own directory.",
                hint="Put the file beside the environment's.",
            )
        files[path.relative_to(file.parent).as_posix()] = path

    with asking(note):
        described = locked.describe(file)
    return _Whole(described.environment, baking.current_lock(file, described), files)


def export(file: Path, output: Path, tell: Callable[[str], None]) -> Path:
    """Write a locked environment with its image into one file, and return that.

    :param tell: called with what is done as it begins.
    :raises ConfigurationError: when it has no lock, or names files that are not beside it.
    :raises ImageError: when no image was made of it, or that is damaged.
    :raises HostError: when the file cannot be written; an older one is as it was.
    """
    lock, files = _read(file)[1:]
    baked = image.find_baked(lock.digest, image.host_arch())
    if baked is None:
        raise ImageError(
            f"There is no image of the environment {lock.name!r} as it is locked.",
            hint=f"lima-kernels env image {file}",
        )
    name = baked.disk.parent.name
    manifest = image.read_manifest(name)
    assert manifest is not None
    members = [Member(f"{_FILES}/{path}", files[path]) for path in sorted(files)]
    members.append(Member(f"{_IMAGE}/{image.MANIFEST}", baked.disk.with_name(image.MANIFEST)))
    members += [
        Member(f"{_IMAGE}/{part.name}", part, manifest.sha256[part.name])
        for part in (baked.kernel, baked.initrd, baked.disk)
    ]
    index = Index(
        made_by=f"lima-kernels {__version__}",
        name=lock.name,
        lock=lock.digest,
        arch=baked.arch,
        environment=file.resolve().name,
        image=name,
        files=tuple(map(archive.entry_of, members)),
    )
    tell(f"writing {output}")
    try:
        with _replacing(output) as opened:
            archive.write(opened, index, members, manifest.epoch)
    except OSError as error:
        raise HostError(f"The archive {output} cannot be written: {error.strerror}.") from error
    return output


@contextlib.contextmanager
def _replacing(output: Path) -> Iterator[BinaryIO]:
    """Open a file that is there, whole, when the block has ended well."""
    incoming = output.with_name(f".{output.name}.new")
    try:
        with incoming.open("wb") as opened:
            yield opened
        incoming.replace(output)
    finally:
        incoming.unlink(missing_ok=True)


def unpack(source: Path, directory: Path | None, name: str | None, tell: Callable[[str], None]) -> Imported:
    """Take an environment and its image from an archive; nothing is put in place before all of it has been checked.

    :param directory: where the environment's files go, which is to be new or empty; one of the environment's name here.
    :param name: the image's, on this host; the one that it had when it was exported.
    :param tell: called with what is done as it begins.
    :raises ImageError: when the archive is not whole, or is one that should not be taken.
    :raises ConfigurationError: when its environment cannot be used here, or the directory is in use.
    :raises HostError: when there is no room.
    """
    try:
        with source.open("rb") as file, _workplace() as work:
            index = archive.read_index(file)
            _check_index(index)
            target = Path.cwd() / index.name if directory is None else directory.absolute()
            _check_free(target)
            image_name = name or index.image
            image.image_directory(image_name)
            _check_room(index)
            archive.unpack(file, index.files, work, tell)
            environment = _checked_environment(work, index)
            manifest = _checked_image(work, index)
            _put_image(work / _IMAGE, image_name, manifest)
            _put_files(work / _FILES, target)
    except OSError as error:
        raise HostError(f"The archive {source} cannot be imported: {error.strerror}.") from error
    except ImageError as error:
        raise ImageError(
            f"The archive {source} is refused. {error.message}", hint=error.hint, context=error.context
        ) from error
    return Imported(target / index.environment, image_name, tuple(_wishes(environment)))


@contextlib.contextmanager
def _workplace() -> Iterator[Path]:
    """Have an empty directory, where a rename leads to the images; what a killed import left there goes."""
    work = paths.data_directory() / "import"
    try:
        with FileLock(work.with_suffix(".lock"), mode=0o600, timeout=0):
            shutil.rmtree(work, ignore_errors=True)
            try:
                yield paths.private_directory(work)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except Timeout as error:
        raise HostError("Another archive is being imported.", hint="Try again when that is done.") from error


def _check_index(index: Index) -> None:
    if index.arch != image.host_arch():
        raise ImageError(f"Its image is for {index.arch}, and this host's CPU is {image.host_arch()}.")
    for word in (index.name, index.image, index.environment):
        archive.check_path(word)
        if "/" in word:
            raise ImageError(f"It names {word!r}, which is no name.")


def _check_free(target: Path) -> None:
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise ConfigurationError(
            f"{target} is there already, and not an empty directory.", hint="Give a new one: --directory DIRECTORY"
        )


def _check_room(index: Index) -> None:
    needed, free = sum(entry.size for entry in index.files) + _SPARE, paths.free_space(paths.data_directory())
    if needed > free:
        raise HostError(
            f"There is no room to import it: {free >> 20} MiB are free at {paths.data_directory()}, {needed >> 20} MiB "
            "are needed.",
            hint="Make room there, or set JUPYTER_DATA_DIR to another disk.",
        )


def _checked_environment(work: Path, index: Index) -> Environment:
    """Return the environment of an unpacked archive, which is to have its own files and nothing else."""
    file = work / _FILES / index.environment
    if not file.is_file():
        raise ImageError(f"Its environment file {index.environment!r} is not in it.")
    try:
        whole = _read(file)
    except ConfigurationError as error:
        message = error.message.replace(f"{file.parent.resolve()}/", "").replace(f"{file.parent}/", "")
        raise ImageError(f"Its environment cannot be used: {message}") from error
    found = {entry.path.partition("/")[2] for entry in index.files if entry.path.startswith(f"{_FILES}/")}
    if found != whole.files.keys():
        raise ImageError(
            f"It has files that its environment does not name: {', '.join(sorted(found ^ whole.files.keys()))}."
        )
    if whole.lock.digest != index.lock:
        raise ImageError("Its lock is not the one that its index names.")
    return whole.environment


def _checked_image(work: Path, index: Index) -> image.Manifest:
    """Return the manifest of an unpacked image, after a look at its files."""
    parts = {entry.path.partition("/")[2]: entry for entry in index.files if not entry.path.startswith(f"{_FILES}/")}
    file = work / _IMAGE / image.MANIFEST
    if not file.is_file():
        raise ImageError("It has no image.")
    manifest = image.decode_manifest(file.read_bytes())
    named = (manifest.disk, manifest.kernel, manifest.initrd)
    if any(entry.path != f"{_IMAGE}/{name}" for name, entry in parts.items()) or set(parts) != {image.MANIFEST, *named}:
        raise ImageError(f"It has files that its image does not name: {', '.join(sorted(parts))}.")
    if manifest.sha256 != {name: parts[name].sha256 for name in named}:
        raise ImageError("Its image is not the one that its manifest names.")
    baked = manifest.environment
    if manifest.arch != index.arch or baked is None or (baked.name, baked.lock) != (index.name, index.lock):
        raise ImageError("Its image is not of its environment.")
    if not manifest.cmdline.isascii() or not manifest.cmdline.isprintable():
        raise ImageError("Its kernel's command line cannot be.")
    qcow2.check_foreign(work / _IMAGE / manifest.disk)
    return manifest


def _put_image(built: Path, name: str, manifest: image.Manifest) -> None:
    there = image.read_manifest(name)
    if there and (there.sha256, there.environment) == (manifest.sha256, manifest.environment):
        return
    if there:
        raise ConfigurationError(f"There is another image {name!r} already.", hint="Give it another name: --name NAME")
    building.put_in_place(built, paths.private_directory(paths.images_directory()) / name)


def _put_files(unpacked: Path, target: Path) -> None:
    """Put the environment's files where the user wants them, in one step; that may be another filesystem."""
    target.parent.mkdir(parents=True, exist_ok=True)
    incoming = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        shutil.copytree(unpacked, incoming, dirs_exist_ok=True)
        incoming.chmod(0o755)
        incoming.replace(target)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)


def _wishes(environment: Environment) -> Iterator[str]:
    """Yield what an environment takes of this host; a stranger's may want more than is good."""
    for mount in environment.mounts:
        yield f"the VM sees {mount.location} ({'writable' if mount.writable else 'read-only'})"
    for port in environment.ports:
        guest, host = (port, port) if isinstance(port, int) else (port.guest, port.host or port.guest)
        yield f"port {host} of 127.0.0.1 leads to port {guest} of the VM"
