"""The guest images of this host: what they hold, and by which bytes they are known."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path
from typing import Any

import msgspec

from .. import paths
from ..errors import ImageError
from .recipe import recipe_digest

DEFAULT_IMAGE = "debian-12"
MANIFEST = "image.json"
MANIFEST_VERSION = 2


class BakedEnvironment(msgspec.Struct, frozen=True, kw_only=True):
    """Which environment an image brings with it: its name, its lock's digest, and the base that the lock names."""

    name: str
    lock: str
    base_sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What an image directory holds; ``image.json`` in it.

    Version 1 ends with ``cmdline``. ``sha256`` has the files' digests by name, ``epoch`` is the archive's time in
    seconds since 1970; ``apt`` and ``python`` have all packages' versions.
    """

    version: int
    recipe: str
    arch: str
    disk: str
    kernel: str
    initrd: str
    cmdline: str
    sha256: dict[str, str] = {}
    epoch: int = 0
    apt: dict[str, str] = {}
    python: dict[str, str] = {}
    environment: BakedEnvironment | None = None


class LocalImage(msgspec.Struct, frozen=True):
    """A guest image on this host: absolute paths of its files, and the kernel's command line.

    ``sha256`` is its disk's, empty for an image of an earlier version of ours.
    """

    arch: str
    disk: Path
    kernel: Path
    initrd: Path
    cmdline: str
    sha256: str = ""
    environment: BakedEnvironment | None = None

    @property
    def base_sha256(self) -> str:
        """The disk's digest, or that of the base which an image with an environment stands for."""
        return self.environment.base_sha256 if self.environment else self.sha256


def host_arch() -> str:
    """Return this host's CPU in Lima's words."""
    return {"arm64": "aarch64"}.get(platform.machine(), platform.machine())


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal.

    :raises OSError: when it cannot be read.
    """
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def image_directory(name: str) -> Path:
    """Return where the image of that name lies, whether or not there is one.

    :raises ImageError: when the name is no name but a path.
    """
    if not name or name.startswith(".") or "/" in name or "\0" in name:
        raise ImageError(f"{name!r} cannot be an image's name.", hint="Use letters, digits, dots and dashes.")
    return paths.images_directory() / name


def _rebuild(name: str) -> str:
    return f"Build it again: lima-kernels image build --name {name} --force"


def decode_manifest(data: bytes) -> Manifest:
    """Read an image's manifest; file names in it are names.

    :raises ImageError: when it is none, or of a version that is unknown here.
    """
    try:
        version = msgspec.json.decode(data, type=dict[str, Any]).get("version")
        if isinstance(version, int) and version > MANIFEST_VERSION:
            raise ImageError("The image was made by a newer lima-kernels.", hint="Upgrade lima-kernels.")
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as error:
        raise ImageError(f"Its {MANIFEST} is damaged: {error}.") from error
    for file in (manifest.disk, manifest.kernel, manifest.initrd):
        if not file or file.startswith(".") or "/" in file or "\0" in file:
            raise ImageError(f"Its {MANIFEST} is damaged: {file!r} is not a file's name.")
    return manifest


def read_manifest(name: str) -> Manifest | None:
    """Return the manifest of the image of that name, or None when there is none.

    :raises ImageError: when it is damaged.
    """
    directory = image_directory(name)
    try:
        return decode_manifest((directory / MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ImageError(
            f"The image {name} cannot be read: {directory / MANIFEST}: {error.strerror}.", hint=_rebuild(name)
        ) from error
    except ImageError as error:
        raise ImageError(
            f"The image directory {directory} cannot be used. {error.message}", hint=error.hint or _rebuild(name)
        ) from error


def find_image(name: str = DEFAULT_IMAGE) -> LocalImage | None:
    """Return the image of that name that was built on this host, or None.

    :raises ImageError: when its directory is there but damaged.
    """
    manifest = read_manifest(name)
    if manifest is None:
        return None
    directory = image_directory(name)
    image = LocalImage(
        manifest.arch,
        directory / manifest.disk,
        directory / manifest.kernel,
        directory / manifest.initrd,
        manifest.cmdline,
        manifest.sha256.get(manifest.disk, ""),
        manifest.environment,
    )
    for file in (image.disk, image.kernel, image.initrd):
        if not file.is_file():
            raise ImageError(f"The image {name} lacks its file {file}.", hint=_rebuild(name))
    return image


def find_baked(lock: str, arch: str) -> LocalImage | None:
    """Return an image of this host that brings the environment of a lock with it, or None.

    :param lock: the lock's digest.
    :raises ImageError: when an image's directory is damaged.
    """
    for name in list_images():
        image = find_image(name)
        if image and image.arch == arch and image.environment and image.environment.lock == lock:
            return image
    return None


def find_of_base(sha256: str) -> LocalImage | None:
    """Return an image of this host that is the one with a disk of this digest, or stands for it, or None.

    :raises ImageError: when an image's directory is damaged.
    """
    found = (find_image(name) for name in list_images())
    return next((image for image in found if image and sha256 and image.base_sha256 == sha256), None)


def list_images() -> list[str]:
    """Return the names of the images that were built on this host."""
    directory = paths.images_directory()
    return sorted(entry.parent.name for entry in directory.glob(f"*/{MANIFEST}") if entry.parent.name[0] != ".")


def is_current(name: str = DEFAULT_IMAGE) -> bool:
    """Tell whether the image exists and was built by this version's recipe."""
    manifest = read_manifest(name)
    return manifest is not None and manifest.version == MANIFEST_VERSION and manifest.recipe == recipe_digest()


def damaged(name: str) -> list[str]:
    """Return the names of an image's files that are not what its manifest says, after reading them all.

    :raises ImageError: when there is no such image, or its directory is damaged.
    """
    manifest = read_manifest(name)
    if manifest is None or find_image(name) is None:
        raise ImageError(f"There is no image {name!r}.", hint=f"lima-kernels image build --name {name}")
    return [file for file, digest in manifest.sha256.items() if sha256_of(image_directory(name) / file) != digest]
