"""The guest image: a Debian with ipykernel and a data-science set, built here without downloading an image.

mmdebstrap makes the file tree as an ordinary user (user namespaces), mke2fs turns it into a filesystem, qemu-img packs
it. The kernel is booted directly, so there is neither partition table nor boot loader.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from .. import paths
from ..errors import HostError, ImageError
from ..lima import process
from .certificates import host_certificates

DEFAULT_IMAGE = "debian-12"
MANIFEST = "image.json"
MANIFEST_VERSION = 1
SUITE = "bookworm"
# The cloud kernel of Debian has no 9p: the plain one it is.
CMDLINE = "root=LABEL=cloudimg-rootfs ro console=tty0 console=ttyS0 net.ifnames=0"
DEBIAN_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "newuidmap": "uidmap",
    "unshare": "util-linux",
    "mke2fs": "e2fsprogs",
    "qemu-img": "qemu-utils",
    "tar": "tar",
}
# What Lima's boot scripts need (rsync and uidmap among them, or the first boot runs apt), what ssh and mounts need,
# and what a person expects to find.
PACKAGES = (
    # systemd and what Lima's boot scripts call
    *("systemd", "systemd-sysv", "systemd-resolved", "systemd-timesyncd", "libpam-systemd", "dbus", "udev", "kmod"),
    *("procps", "cloud-init", "cloud-guest-utils", "e2fsprogs", "netplan.io", "iproute2", "iptables", "rsync"),
    *("isc-dhcp-client", "openssh-server", "sudo", "uidmap", "sshfs", "fuse3", "ca-certificates"),
    # for people
    *("curl", "git", "less", "nano", "python3", "python3-venv", "python3-pip"),
)
# What a build goes through, in order; each is told when it begins.
STEPS = ("mmdebstrap", "mke2fs", "qemu-img convert")
# ipywidgets and psutil belong in it: clients expect both of a kernel. Panels of VMs are anywidgets.
REQUIREMENTS = ("ipykernel>=6.29", "ipywidgets", "anywidget", "psutil", "numpy", "pandas", "matplotlib")

# Runs outside the new tree, with its path as $1 and the host's own certificates in its /usr/local. What pip may know of
# the host's settings is said by name: the rest of its environment names files that are not in the tree.
_INSTALL = r"""
set -eu
root="$1"
rm -f "$root/etc/resolv.conf"
cp /etc/resolv.conf "$root/etc/resolv.conf"
printf '[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n' > "$root/etc/pip.conf"
inside() {
  env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore ${PIP_INDEX_URL:+PIP_INDEX_URL="$PIP_INDEX_URL"} \
    ${https_proxy:+https_proxy="$https_proxy"} ${http_proxy:+http_proxy="$http_proxy"} \
    ${no_proxy:+no_proxy="$no_proxy"} chroot "$root" "$@"
}
inside update-ca-certificates
inside python3 -m venv %(venv)s
inside %(venv)s/bin/pip install --quiet %(requirements)s
"""

# Runs in the unpacked tree as its root. The host keys are the first boot's to make, one set for each instance;
# cloud-init takes every boot of Lima's for a new instance and would make new ones each time.
_FINISH = r"""
set -eu
umask 022
tar --extract --file "$1" --directory "$2" --exclude './dev/*' --numeric-owner
cd "$2"
printf 'LABEL=cloudimg-rootfs / ext4 defaults,discard,errors=remount-ro 0 1\n' > etc/fstab
: > etc/machine-id
rm -f var/lib/dbus/machine-id etc/ssh/ssh_host_* etc/hostname etc/resolv.conf
ln -s ../run/systemd/resolve/stub-resolv.conf etc/resolv.conf
for unit in apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service \
            systemd-networkd-wait-online.service; do
  ln -sf /dev/null "etc/systemd/system/$unit"
done
cat > etc/cloud/cloud.cfg.d/80-lima-kernels-image.cfg <<'CFG'
datasource_list: [NoCloud, None]
ssh_deletekeys: false
ssh_genkeytypes: [ed25519]
locale: C.UTF-8
CFG
echo 'LANG=C.UTF-8' > etc/default/locale
mkdir -p etc/systemd/resolved.conf.d
printf '[Resolve]\nLLMNR=no\n' > etc/systemd/resolved.conf.d/lima-kernels.conf
rm -rf var/lib/apt/lists/* var/cache/apt/*.bin var/log/*.log tmp/*
echo %(token)s > %(provisioned)s
chown -R 1000:1000 %(venv)s
cp --dereference vmlinuz "$3/vmlinuz"
cp --dereference initrd.img "$3/initrd"
size=$(du --summarize --block-size=1M --apparent-size . | cut -f1)
mke2fs -q -t ext4 -L cloudimg-rootfs -d . "$3/disk.raw" "$((size * 5 / 4 + 512))M"
"""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What an image directory holds; ``image.json`` in it."""

    version: int
    recipe: str
    arch: str
    disk: str
    kernel: str
    initrd: str
    cmdline: str


class LocalImage(msgspec.Struct, frozen=True):
    """A guest image on this host: absolute paths of its files, and the kernel's command line."""

    arch: str
    disk: Path
    kernel: Path
    initrd: Path
    cmdline: str


def recipe_digest() -> str:
    """Return the digest of everything that decides what a built image holds, as far as this package decides it."""
    parts = (SUITE, CMDLINE, *PACKAGES, *REQUIREMENTS, _INSTALL, _FINISH)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _read_manifest(directory: Path) -> Manifest | None:
    try:
        return msgspec.json.decode((directory / MANIFEST).read_bytes(), type=Manifest)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise ImageError(
            f"The image directory {directory} has a damaged {MANIFEST}: {error}.",
            hint=f"Build it again: lima-kernels image build --name {directory.name} --force",
        ) from error


def find_image(name: str = DEFAULT_IMAGE) -> LocalImage | None:
    """Return the image of that name that was built on this host, or None.

    :raises ImageError: when its directory is there but damaged.
    """
    directory = paths.images_directory() / name
    manifest = _read_manifest(directory)
    if manifest is None:
        return None
    image = LocalImage(
        manifest.arch,
        directory / manifest.disk,
        directory / manifest.kernel,
        directory / manifest.initrd,
        manifest.cmdline,
    )
    for file in (image.disk, image.kernel, image.initrd):
        if not file.is_file():
            raise ImageError(
                f"The image {name} lacks its file {file}.",
                hint=f"Build it again: lima-kernels image build --name {name} --force",
            )
    return image


def list_images() -> list[str]:
    """Return the names of the images that were built on this host."""
    directory = paths.images_directory()
    return sorted(entry.parent.name for entry in directory.glob(f"*/{MANIFEST}"))


def is_current(name: str = DEFAULT_IMAGE) -> bool:
    """Tell whether the image exists and was built by this version's recipe."""
    manifest = _read_manifest(paths.images_directory() / name)
    return manifest is not None and manifest.recipe == recipe_digest()


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


def _mmdebstrap(arch: str, certificates: Sequence[Path], output: Path) -> list[str]:
    values = {
        "venv": paths.GUEST_VENV,
        "requirements": " ".join(f"'{requirement}'" for requirement in REQUIREMENTS),
    }
    argv = ["mmdebstrap", "--mode=unshare", "--variant=minbase", f"--architectures={DEBIAN_ARCHITECTURES[arch]}"]
    argv.append(f"--include={','.join((*PACKAGES, f'linux-image-{DEBIAN_ARCHITECTURES[arch]}'))}")
    argv += [f"--customize-hook=copy-in {file} /usr/local/share/ca-certificates" for file in certificates]
    return [*argv, f"--customize-hook={_INSTALL % values}", SUITE, str(output)]


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


async def build_image(name: str, report: Callable[[str], None]) -> LocalImage:
    """Build the image and put it in place of an older one of that name.

    :param report: called with each line of output as it comes.
    :raises HostError: when this host cannot build one.
    :raises ImageError: when a step fails; nothing of the attempt is left, an older image stays as it was.
    """
    check_builder()
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
        await _step(_mmdebstrap(arch, certificates, archive), STEPS[0], report)
        finish = _FINISH % {
            "venv": paths.GUEST_VENV.lstrip("/"),
            "provisioned": paths.GUEST_PROVISIONED.lstrip("/"),
            "token": paths.GUEST_PROVISIONED_BY_IMAGE,
        }
        namespace = ["unshare", "--map-auto", "--map-root-user"]
        try:
            tree.mkdir()
            command = ["sh", "-c", finish, "sh", str(archive), str(tree), str(out)]
            await _step([*namespace, *command], STEPS[1], report)
        finally:
            # Its files belong to subordinate ids: only the namespace's root may remove them.
            await process.run([*namespace, "rm", "-rf", str(tree)])
        convert = ["qemu-img", "convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd"]
        await _step([*convert, str(out / "disk.raw"), str(out / "disk.qcow2")], STEPS[2], report)
        (out / "disk.raw").unlink()
        manifest = Manifest(
            version=MANIFEST_VERSION,
            recipe=recipe_digest(),
            arch=arch,
            disk="disk.qcow2",
            kernel="vmlinuz",
            initrd="initrd",
            cmdline=CMDLINE,
        )
        (out / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))
        _publish(out, paths.private_directory(paths.images_directory()) / name)
    image = find_image(name)
    assert image is not None
    return image


def _publish(built: Path, target: Path) -> None:
    """Put a built image in its place; an older one stays until the copy is complete."""
    incoming = target.with_name(f".{target.name}.new")
    shutil.rmtree(incoming, ignore_errors=True)
    shutil.copytree(built, incoming)
    shutil.rmtree(target, ignore_errors=True)
    incoming.rename(target)
