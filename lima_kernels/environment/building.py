"""The build of a guest image: a Debian with ipykernel and a data-science set, without downloading an image.

mmdebstrap makes the file tree as an ordinary user (user namespaces), mke2fs turns it into a filesystem, qemu-img packs
it. The kernel is booted directly, so there is neither partition table nor boot loader.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from .. import paths
from ..errors import HostError, ImageError
from ..lima import process
from .certificates import host_certificates
from .image import (
    MANIFEST,
    MANIFEST_VERSION,
    BakedEnvironment,
    LocalImage,
    Manifest,
    find_image,
    image_directory,
    sha256_of,
)
from .recipe import CMDLINE, DEBIAN_ARCHITECTURES, Layer, mmdebstrap, recipe_digest, scripts

TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "newuidmap": "uidmap",
    "unshare": "util-linux",
    "mke2fs": "e2fsprogs",
    "qemu-img": "qemu-utils",
    "tar": "tar",
}
# What a build goes through, in order; each is told when it begins.
STEPS = ("mmdebstrap", "unpack", "mke2fs", "qemu-img convert")
_NAMESPACE = ("unshare", "--map-auto", "--map-root-user")
_DISK, _KERNEL, _INITRD = "disk.qcow2", "vmlinuz", "initrd"


def check_builder() -> None:
    """Check that an image can be built on this host.

    :raises HostError: when it is no Linux, of another CPU, or lacks a tool; the hint is the command that mends it.
    """
    if not sys.platform.startswith("linux"):
        raise HostError(
            "A guest image can only be built on Linux.",
            hint="Leave it out: the kernel then starts from Lima's own template.",
        )
    if platform.machine() not in DEBIAN_ARCHITECTURES:
        raise HostError(f"No guest image is made for the CPU {platform.machine()}.", hint="Use a Lima template.")
    search = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    missing = [package for tool, package in TOOLS.items() if shutil.which(tool, path=search) is None]
    if missing:
        raise HostError(
            f"Building a guest image needs {', '.join(missing)}.",
            hint=f"sudo apt-get install --no-install-recommends {' '.join(missing)}",
        )


async def _step(argv: Sequence[str], what: str, report: Callable[[str], None]) -> None:
    tail: list[str] = []
    env = {**os.environ, "PATH": os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"}
    report(what)
    async with process.stream(argv, env=env) as running:
        async for line in running.lines():
            tail = [*tail[-19:], line]
            report(line)
        code = await running.wait()
    if code:
        raise ImageError(f"Building the guest image failed: {what} ended with exit code {code}.", context=tail)


class Baking(NamedTuple):
    """An environment that goes into an image, and the digest of the image that its lock names."""

    layer: Layer
    base_sha256: str


async def build_image(name: str, report: Callable[[str], None], baking: Baking | None = None) -> LocalImage:
    """Build the image and put it in place of an older one of that name.

    :param report: called with each line of output as it comes.
    :param baking: a locked environment that it brings with it.
    :raises HostError: when this host cannot build one.
    :raises ImageError: when a step fails; nothing of the attempt is left, an older image stays as it was.
    """
    check_builder()
    target = image_directory(name)
    arch = platform.machine()
    # Within reach of the subordinate user ids that mmdebstrap and unshare work with; a home directory may not be.
    with tempfile.TemporaryDirectory(prefix="lima-kernels-image-", ignore_cleanup_errors=True) as work_name:
        work = Path(work_name)
        work.chmod(0o755)
        archive, tree, out = work / "tree.tar", work / "tree", work / "out"
        out.mkdir()
        pems = host_certificates()
        certificates = [work / f"host-{number}.crt" for number in range(len(pems))]
        for file, pem in zip(certificates, pems, strict=True):
            file.write_text(pem + "\n")
        if baking:
            baking.layer.lay_out(work / "layer")
        await _step(mmdebstrap(arch, certificates, archive, baking and baking.layer), STEPS[0], report)
        try:
            tree.mkdir()
            for what, script in zip(STEPS[1:3], scripts()[2:], strict=True):
                command = [*_NAMESPACE, "sh", "-c", script, "sh", str(archive), str(tree), str(out)]
                await _step(command, what, report)
        finally:
            # Its files belong to subordinate ids: only the namespace's root may remove them.
            await process.run([*_NAMESPACE, "rm", "-rf", str(tree)])
        # Clusters are written in the disk's order unless told otherwise (-W): the same bytes each time.
        convert = ["qemu-img", "convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd"]
        await _step([*convert, str(out / "disk.raw"), str(out / _DISK)], STEPS[3], report)
        (out / "disk.raw").unlink()
        _describe(out, arch, baking)
        publish(out, target)
    image = find_image(name)
    assert image is not None
    return image


def _taken(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    file.unlink()
    return text


def _packages(listing: str) -> dict[str, str]:
    lines = (line.partition("=") for line in listing.splitlines())
    return dict(sorted((name, version) for name, _, version in lines))


def _check_packages(wanted: Mapping[str, str], found: Mapping[str, str]) -> None:
    """See that an image has the packages of a lock, and no others."""
    off = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
    if off:
        raise ImageError(
            f"The image's Debian packages are not those of the lock: {len(off)} differ.",
            hint="Lock the environment again: lima-kernels env lock --upgrade",
            context=[
                f"{name}: expected {wanted.get(name, 'none')}, got {found.get(name, 'none')}" for name in off[:10]
            ],
        )


def _describe(out: Path, arch: str, baking: Baking | None) -> None:
    """Write the manifest of a built image from its files, and from the lists that the build left beside them.

    :raises ImageError: when it is not what a lock says.
    """
    apt = {name.removesuffix(f":{DEBIAN_ARCHITECTURES[arch]}"): v for name, v in _packages(_taken(out / "apt")).items()}
    if baking:
        _check_packages(baking.layer.apt, apt)
        environment = BakedEnvironment(name=baking.layer.name, lock=baking.layer.lock, base_sha256=baking.base_sha256)
    manifest = Manifest(
        version=MANIFEST_VERSION,
        recipe=recipe_digest(),
        arch=arch,
        disk=_DISK,
        kernel=_KERNEL,
        initrd=_INITRD,
        cmdline=CMDLINE,
        epoch=int(_taken(out / "epoch")),
        apt=apt,
        python=_packages(_taken(out / "python")),
        sha256={name: sha256_of(out / name) for name in (_DISK, _INITRD, _KERNEL)},
        environment=environment if baking else None,
    )
    (out / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")


def publish(built: Path, target: Path) -> None:
    """Put an image's files in their place; an older one stays until the copy is complete.

    :raises OSError: when there is no room; the older one is as it was.
    """
    incoming = paths.private_directory(target.parent) / f".{target.name}.new"
    shutil.rmtree(incoming, ignore_errors=True)
    try:
        shutil.copytree(built, incoming)
        put_in_place(incoming, target)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)


def put_in_place(incoming: Path, target: Path) -> None:
    """Move an image's directory, of the same filesystem, to where images are looked for, and remove an older one."""
    outgoing = target.with_name(f".{target.name}.old")
    shutil.rmtree(outgoing, ignore_errors=True)
    if target.exists():
        target.rename(outgoing)
    incoming.rename(target)
    shutil.rmtree(outgoing, ignore_errors=True)
