"""From an environment to a lima.yaml: the image that is really there, the mounts, the provisioning."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from .. import paths
from ..errors import ImageError
from ..lima import template
from ..lima.limactl import Limactl
from ..lima.template import Source
from .certificates import host_certificates
from .checks import HOME
from .direct_kernel import direct_kernel, serves
from .image import LocalImage, find_baked, find_image, find_of_base, host_arch, sha256_of
from .keys import Environment, FileSpec, HostCertificates, ImageFiles, PortSpec
from .lock import Lock
from .provision import own_script, provision_digest, provision_script
from .shares import Share, check, mount_entry, mount_type_of, put_together

# Lima takes every boot for a new cloud-init instance; without this the guest would get new host keys at each.
_CLOUD_CONFIG = "ssh_deletekeys: false\n"


class Plan(NamedTuple):
    """A lima.yaml and what tells that its guest is ready."""

    config: str
    mark: template.OwnerMark


async def _local_entry(image: LocalImage) -> dict[str, Any]:
    kernel = await asyncio.to_thread(direct_kernel, image.kernel) if serves(image.arch) else image.kernel
    return {
        "location": str(image.disk),
        "arch": image.arch,
        "kernel": {"location": str(kernel), "cmdline": image.cmdline},
        "initrd": {"location": str(image.initrd)},
    }


def _given_entry(image: ImageFiles) -> dict[str, Any]:
    """The entry for an image that the environment names by its files; they are looked at before Lima copies them."""
    files = [image.location, *(part.location for part in (image.kernel, image.initrd) if part)]
    for file in files:
        if not Path(file).is_file():
            raise ImageError(f"The image file {file} does not exist.", hint="Correct it in the environment file.")
    with Path(image.location).open("rb") as disk:
        head = disk.read(512)
    # qcow2's magic number, or a filesystem or boot sector: an empty or text file is neither.
    if not head.startswith(b"QFI\xfb") and (len(head) < 512 or (head.isascii() and head.strip(b"\0"))):
        raise ImageError(f"The file {image.location} is not a disk image.", hint="A qcow2 or raw disk is needed.")
    entry: dict[str, Any] = {"location": image.location}
    if image.kernel:
        entry["kernel"] = {"location": image.kernel.location, "cmdline": image.kernel.cmdline}
    if image.initrd:
        entry["initrd"] = {"location": image.initrd.location}
    return entry


class _Found(NamedTuple):
    """Where an instance's disk comes from; ``base`` is the template, ``sha256`` the disk's digest where it is known."""

    source: Source
    images: Sequence[dict[str, Any]] = ()
    base: str = ""
    sha256: str = ""


def _local(environment: Environment) -> LocalImage | None:
    # A template may be given by its path or address.
    return None if "/" in environment.image_name else find_image(environment.image_name)


async def _check_locked(local: LocalImage, lock: Lock) -> None:
    """See that an image is the base that a lock names."""
    platform = lock.platforms.get(local.arch)
    expected = platform.image_sha256 if platform else ""
    if not expected:
        return
    found = local.base_sha256 or await asyncio.to_thread(sha256_of, local.disk)
    if found != expected:
        raise ImageError(
            f"The image {local.disk} is not the one that the environment {lock.name!r} was locked for: expected "
            f"SHA-256 {expected}, got {found}.",
            hint="Get that image from who locked it (lima-kernels env import), or lock the environment again.",
        )


async def _new_source(limactl: Limactl, environment: Environment, lock: Lock | None) -> _Found:
    """Find what a new instance is made from, and see that it is what the environment pins."""
    if isinstance(environment.image, ImageFiles):
        found = _Found(Source.FILES, [_given_entry(environment.image)], sha256=environment.image_pin)
        await _check_pin(environment, Path(environment.image.location), "")
        return found
    arch = environment.arch.value if environment.arch else host_arch()
    # One that brings all that the lock says needs no base beside it.
    baked = find_baked(lock.digest, arch) if lock else None
    local = baked or _local(environment)
    if local is None:
        if environment.image_pin:
            raise ImageError(
                f"The image {environment.image} is not on this host.",
                hint="Get it from who made it (lima-kernels env import), or lock the environment for another image.",
            )
        return _Found(Source.TEMPLATE, base=await _template(limactl, environment))
    if environment.arch is not None and environment.arch.value != local.arch:
        raise ImageError(
            f"The image {environment.image_name!r} is for {local.arch}, and the environment wants "
            f"{environment.arch.value}.",
            hint="Name a template as its image, such as template:debian-12.",
        )
    await _check_pin(environment, local.disk, local.base_sha256)
    if lock and baked is None:
        await _check_locked(local, lock)
    return _Found(Source.LOCAL, [await _local_entry(local)], sha256=local.base_sha256 or environment.image_pin)


async def _check_pin(environment: Environment, disk: Path, known: str) -> None:
    """See that a disk is the one that the environment names by its digest; one that nobody knows takes a second."""
    if not environment.image_pin:
        return
    found = known or await asyncio.to_thread(sha256_of, disk)
    if found != environment.image_pin:
        raise ImageError(
            f"The disk {disk} is not the one that the environment names: expected SHA-256 {environment.image_pin}, "
            f"got {found}.",
            hint="Get that image, or change the digest in the environment file.",
        )


async def _template(limactl: Limactl, environment: Environment) -> str:
    return await limactl.template(environment.image_name.removeprefix("template:"))


async def _old_source(limactl: Limactl, environment: Environment, mark: template.OwnerMark) -> _Found:
    """Find again what an instance was made from; its disk is its own by now."""
    if isinstance(environment.image, ImageFiles):
        return _Found(mark.source, [_given_entry(environment.image)], sha256=mark.image_sha256)
    if mark.source is not Source.LOCAL:
        return _Found(mark.source, base=await _template(limactl, environment), sha256=mark.image_sha256)
    local = _local(environment) or find_of_base(mark.image_sha256)
    if local is None:
        raise ImageError(
            f"The image {environment.image_name!r} that the VM was made from is no longer there.",
            hint=f"Build it again: lima-kernels image build --name {environment.image_name}",
        )
    return _Found(mark.source, [await _local_entry(local)], sha256=mark.image_sha256)


async def plan(
    limactl: Limactl, environment: Environment, directories: Sequence[Path], of: template.OwnerMark | Lock | None = None
) -> Plan:
    """Plan an instance for an environment.

    :param directories: host directories that it shows, writable, at their own paths.
    :param of: the mark of the instance when it exists; of a new one the environment's lock.
    :raises ImageError: when its image is missing or damaged, or not the one that the environment names.
    :raises InstanceError: when Lima does not know its template.
    :raises MountError: when a directory cannot be shown.
    :raises ConfigurationError: when the template's kernel does not know the mount type, or a lock is missing.
    :raises HostError: when this host lacks what the mount type needs.
    """
    if isinstance(of, template.OwnerMark):
        found = await _old_source(limactl, environment, of)
    else:
        found = await _new_source(limactl, environment, of)
    source, base, images = found.source, found.base, found.images
    shares = put_together(environment, directories)
    await check(shares, mount_type_of(environment, template.unsupported_mount_types(base)))
    mark = template.OwnerMark(
        version=template.MARK_VERSION,
        environment=environment.digest,
        image=environment.image_digest,
        source=source,
        provisioned=provision_digest(environment, has_base=source is Source.LOCAL),
        directories=tuple(share.mount.location for share in shares if not share.field),
        image_sha256=found.sha256,
    )
    return Plan(template.render(_config(environment, shares, images, mark), base), mark)


def _config(
    environment: Environment, shares: Sequence[Share], images: Sequence[dict[str, Any]], mark: template.OwnerMark
) -> template.Config:
    # Our own image brings ipykernel, and has the host's certificates built in.
    has_base = mark.source is Source.LOCAL
    scripts = [{"mode": "system", "script": provision_script(environment, has_base=has_base)}]
    scripts += [own_script(script) for script in environment.provision]
    return template.Config(
        images=images,
        mounts=[mount_entry(share) for share in shares],
        provision=scripts,
        files=[
            template.GuestFile(paths.GUEST_INSTANCE_FILE, msgspec.json.encode(mark).decode()),
            template.GuestFile(paths.GUEST_CLOUD_CONFIG, _CLOUD_CONFIG),
            *map(_guest_file, environment.files),
        ],
        ca_certificates=_certificates(environment, has_base=has_base),
        cpus=environment.cpus,
        memory=environment.memory,
        disk=environment.disk,
        mount_type=environment.mount_type.value if environment.mount_type else None,
        mount_inotify=environment.mount_inotify,
        arch=environment.arch.value if environment.arch else None,
        # Firmware has nothing to do for a kernel that QEMU starts by itself, and takes its time.
        legacy_bios=has_base and any(serves(image["arch"]) for image in images),
        port_forwards=[_forward(port) for port in environment.ports if isinstance(port, PortSpec)],
    )


def _certificates(environment: Environment, *, has_base: bool) -> Sequence[str]:
    if environment.ca_certificates is HostCertificates.AUTO:
        return () if has_base else host_certificates()
    return () if environment.ca_certificates is HostCertificates.NONE else environment.ca_certificates


def _guest_file(file: FileSpec) -> template.GuestFile:
    owner = "{{.User}}" if file.path.startswith(HOME) else "root:root"
    return template.GuestFile(file.path, template.literal(file.content or ""), file.mode, owner)


def _forward(port: PortSpec) -> dict[str, Any]:
    host = port.guest if port.host is None else port.host
    return {"guestPort": port.guest, "hostPort": host, "hostIP": "127.0.0.1", "proto": "tcp"}
