"""A guest image as clouds and Lima's own templates have it: Debian with cloud-init, and nothing of ours.

It is built once for each recipe and kept in the account's cache: the build is no part of what is measured.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from lima_kernels.environment.building import check_builder
from lima_kernels.environment.recipe import CMDLINE, DEBIAN_ARCHITECTURES, PACKAGES, SUITE

# Instead of what ours has: the same boot scripts of Lima's run in both.
CLOUD = ("cloud-init", "netplan.io", "isc-dhcp-client", "locales")
# Runs as root of a user namespace: $1 is the tree as an archive, $2 where it is unpacked, $3 the image's directory.
PACK = r"""
set -eu
umask 022
tar --extract --file "$1" --directory "$2" --exclude './dev/*' --numeric-owner
cd "$2"
printf 'LABEL=cloudimg-rootfs / ext4 defaults,discard,errors=remount-ro 0 1\n' > etc/fstab
: > etc/machine-id
rm -f var/lib/dbus/machine-id etc/ssh/ssh_host_* etc/hostname etc/resolv.conf
ln -s ../run/systemd/resolve/stub-resolv.conf etc/resolv.conf
rm -rf var/lib/apt/lists/* var/cache/apt/*
env -i PATH=/usr/sbin:/usr/bin chroot . systemctl --quiet enable systemd-networkd systemd-resolved
cp --dereference vmlinuz "$3/vmlinuz"
cp --dereference initrd.img "$3/initrd"
mke2fs -q -t ext4 -L cloudimg-rootfs -d . "$3/disk.raw" "$(($(du -sm . | cut -f1) * 5 / 4 + 512))M"
"""
_NAMESPACE = ("unshare", "--map-auto", "--map-root-user")
# Seconds for one step of the build.
LIMIT = 1800.0


class StockImage(NamedTuple):
    """Its files; the disk has no boot loader, so its kernel is booted directly, as ours is."""

    disk: Path
    kernel: Path
    initrd: Path

    @property
    def entry(self) -> dict[str, object]:
        """It as a lima.yaml's ``images`` name it."""
        return {
            "location": str(self.disk),
            "arch": platform.machine(),
            "kernel": {"location": str(self.kernel), "cmdline": CMDLINE},
            "initrd": {"location": str(self.initrd)},
        }


def _in(directory: Path) -> StockImage:
    return StockImage(directory / "disk.qcow2", directory / "vmlinuz", directory / "initrd")


def _cache() -> Path:
    packages = [*PACKAGES, *CLOUD]
    digest = hashlib.sha256("\0".join((SUITE, CMDLINE, PACK, *packages)).encode()).hexdigest()[:12]
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "lima-kernels" / f"stock-image-{digest}"


def _run(argv: Sequence[str]) -> None:
    env = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    done = subprocess.run(
        argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise RuntimeError(f"{argv[0]} ended with exit code {done.returncode}: {last}")


def stock_image(say: Callable[[str], None]) -> StockImage:
    """Return the image, built when the cache has none.

    :raises HostError: when this host cannot build one.
    :raises RuntimeError: when a step fails; nothing of the attempt is left.
    """
    place = _cache()
    if place.exists():
        return _in(place)
    check_builder()
    debian = DEBIAN_ARCHITECTURES[platform.machine()]
    place.parent.mkdir(parents=True, exist_ok=True)
    # Within reach of the subordinate user ids that mmdebstrap and unshare work with; a home directory may not be.
    with tempfile.TemporaryDirectory(prefix="lima-kernels-stock-", ignore_cleanup_errors=True) as name:
        work = Path(name)
        work.chmod(0o755)
        archive, tree, out = work / "tree.tar", work / "tree", work / "out"
        out.mkdir()
        tree.mkdir()
        say("building the stock-style image; it is kept")
        packages = ",".join((*PACKAGES, *CLOUD, f"linux-image-{debian}"))
        how = ("--mode=unshare", "--variant=minbase", f"--architectures={debian}")
        try:
            _run(("mmdebstrap", *how, f"--include={packages}", SUITE, str(archive)))
            _run((*_NAMESPACE, "sh", "-c", PACK, "sh", str(archive), str(tree), str(out)))
        finally:
            # Its files belong to subordinate ids: only the namespace's root may remove them.
            _run((*_NAMESPACE, "rm", "-rf", str(tree)))
        packing = ("qemu-img", "convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd")
        _run((*packing, str(out / "disk.raw"), str(out / "disk.qcow2")))
        (out / "disk.raw").unlink()
        # In one step: a build that is given up leaves no half of an image.
        with tempfile.TemporaryDirectory(prefix=".", dir=place.parent) as incoming:
            shutil.copytree(out, Path(incoming) / "image")
            (Path(incoming) / "image").rename(place)
    return _in(place)
