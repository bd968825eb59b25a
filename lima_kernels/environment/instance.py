"""From an environment to a lima.yaml: the image that is really there, the mounts, the provisioning."""

from __future__ import annotations

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
from .image import LocalImage, find_image
from .provision import provision_digest, provision_script
from .shares import Share, check, mount_entry, mount_type_of, put_together
from .spec import Environment, ImageFiles

# Lima takes every boot for a new cloud-init instance; without this the guest would get new host keys at each.
_CLOUD_CONFIG = "ssh_deletekeys: false\n"


class Plan(NamedTuple):
    """A lima.yaml and what tells that its guest is ready."""

    config: str
    mark: template.OwnerMark


def _local_entry(image: LocalImage) -> dict[str, Any]:
    return {
        "location": str(image.disk),
        "arch": image.arch,
        "kernel": {"location": str(image.kernel), "cmdline": image.cmdline},
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


def _source(environment: Environment) -> Source:
    if isinstance(environment.image, ImageFiles):
        return Source.FILES
    return Source.LOCAL if find_image(environment.image) else Source.TEMPLATE


async def plan(
    limactl: Limactl, environment: Environment, directories: Sequence[Path], source: Source | None = None
) -> Plan:
    """Plan an instance for an environment.

    :param directories: host directories that it shows, writable, at their own paths.
    :param source: what kind of image an existing instance was made from; found out for a new one.
    :raises ImageError: when its image is missing or damaged.
    :raises InstanceError: when Lima does not know its template.
    :raises MountError: when a directory cannot be shown.
    :raises ConfigurationError: when the template's kernel does not know the mount type.
    :raises HostError: when this host lacks what the mount type needs.
    """
    source = source or _source(environment)
    base, images = "", []
    if isinstance(environment.image, ImageFiles):
        images = [_given_entry(environment.image)]
    elif source is Source.LOCAL:
        local = find_image(environment.image)
        if local is None:
            raise ImageError(
                f"The image {environment.image!r} that the VM was made from is no longer there.",
                hint=f"Build it again: lima-kernels image build --name {environment.image}",
            )
        images = [_local_entry(local)]
    else:
        base = await limactl.template(environment.image.removeprefix("template:"))
    shares = put_together(environment, directories)
    await check(shares, mount_type_of(environment, template.unsupported_mount_types(base)))
    mark = template.OwnerMark(
        version=template.MARK_VERSION,
        environment=environment.digest,
        image=environment.image_digest,
        source=source,
        provisioned=provision_digest(environment, has_base=source is Source.LOCAL),
        directories=tuple(share.mount.location for share in shares if not share.field),
    )
    return Plan(template.render(_config(environment, shares, images, mark), base), mark)


def _config(
    environment: Environment, shares: Sequence[Share], images: Sequence[dict[str, Any]], mark: template.OwnerMark
) -> template.Config:
    # Our own image brings ipykernel, and has the host's certificates built in.
    has_base = mark.source is Source.LOCAL
    scripts = [{"mode": "system", "script": provision_script(environment, has_base=has_base)}]
    scripts += [{"mode": script.mode.value, "script": script.script} for script in environment.provision]
    return template.Config(
        images=images,
        mounts=[mount_entry(share) for share in shares],
        provision=scripts,
        files=[
            template.GuestFile(paths.GUEST_INSTANCE_FILE, msgspec.json.encode(mark).decode()),
            template.GuestFile(paths.GUEST_CLOUD_CONFIG, _CLOUD_CONFIG),
        ],
        ca_certificates=() if has_base else host_certificates(),
        cpus=environment.cpus,
        memory=environment.memory,
        disk=environment.disk,
        mount_type=environment.mount_type.value if environment.mount_type else None,
        mount_inotify=environment.mount_inotify,
    )
