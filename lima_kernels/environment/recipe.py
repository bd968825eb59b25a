"""What a guest image of ours holds, and the scripts that make it; two builds of one archive state have the same bytes.

What would differ from build to build is taken out where it comes in: times are the archive's own, bytecode is compiled
in a fixed order, and what only notes that something was done (logs, caches, backups, ids) is left out.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from .. import paths

SUITE = "bookworm"
# The cloud kernel of Debian has no 9p: the plain one it is.
CMDLINE = "root=LABEL=cloudimg-rootfs ro console=tty0 console=ttyS0 net.ifnames=0"
DEBIAN_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
# What Lima's boot scripts need (rsync and uidmap among them, or the first boot runs apt), what ssh and mounts need,
# and what a person expects to find.
PACKAGES = (
    # systemd and what Lima's boot scripts call
    *("systemd", "systemd-sysv", "systemd-resolved", "systemd-timesyncd", "libpam-systemd", "dbus", "udev", "kmod"),
    *("procps", "cloud-guest-utils", "e2fsprogs", "iproute2", "iptables", "rsync"),
    *("openssh-server", "sudo", "uidmap", "sshfs", "fuse3", "ca-certificates", "python3-yaml"),
    # for people
    *("curl", "git", "less", "nano", "python3", "python3-venv", "python3-pip"),
)
# Pinned with hashes, for what pip would choose changes every day.
REQUIREMENTS = Path(__file__).parents[1] / "resources" / "image-requirements.txt"
# What the guest has in place of cloud-init, and where.
_BOOT = Path(__file__).with_name("guest_boot")
_BOOT_FILES = {
    "cidata.py": "/usr/local/lib/lima-kernels",
    "lima-kernels-init.service": "/etc/systemd/system",
    "lima-kernels-devices.service": "/etc/systemd/system",
    "lima-kernels-boot.service": "/etc/systemd/system",
}
# The build's time, in seconds since 1970: when the archive was last changed.
_EPOCH = "usr/local/lib/lima-kernels/epoch"
# The filesystem's UUID and the seed of its directories' hashes. VMs of one image have the same disk anyway.
_UUID = "9d0a8d5c-6b7e-4e0f-8f0b-6c696d616b31"
# Where the build has what makes a locked environment, and how that is run.
_LAYER = "usr/local/lib/lima-kernels/layer"
_PROGRAM = "lima_kernels_forkserver"
_BAKE = f'import sys; sys.path.insert(0, "/{_LAYER}"); from {_PROGRAM}.layers.baking import main; main()'

# Runs outside the new tree, with its path as $1, when the archive's lists are there and before packages are. The
# drivers are those of the root filesystem's disk, below any hypervisor of Lima's: an initrd with all that there are is
# six times as long, and all of it has to be read and unpacked. That of 9p is there before anything is mounted: as it
# comes by the first of two mounts, the second may find that it does not know its device yet.
_PREPARE = r"""
set -eu
mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/usr/share/initramfs-tools/modules.d" "$1/usr/local/lib/lima-kernels"
epoch=$(sed -n 's/^Date: //p' "$1"/var/lib/apt/lists/*Release | while read -r date; do date -d "$date" +%%s; done |
  sort -n | tail -n 1)
[ -n "$epoch" ] || { echo 'the archive does not say when it was made'; exit 1; }
echo "$epoch" > "$1/%(epoch)s"
echo MODULES=list > "$1/etc/initramfs-tools/conf.d/lima-kernels"
echo "export SOURCE_DATE_EPOCH=$epoch" > "$1/etc/initramfs-tools/conf.d/lima-kernels-epoch"
printf '%%s\n' virtio_pci virtio_mmio virtio_blk virtio_scsi sd_mod sr_mod ext4 9pnet_virtio \
  > "$1/usr/share/initramfs-tools/modules.d/lima-kernels"
mkdir -p "$1/etc/initramfs-tools/hooks" "$1/etc/initramfs-tools/scripts/init-bottom"
cat > "$1/etc/initramfs-tools/hooks/lima-kernels" <<'EOF'
#!/bin/sh
[ "$1" = prereqs ] && exit 0
. /usr/share/initramfs-tools/hook-functions
copy_exec /sbin/blkid /sbin
EOF
cat > "$1/etc/initramfs-tools/scripts/init-bottom/lima-kernels" <<'EOF'
#!/bin/sh
[ "$1" = prereqs ] && exit 0
mount -n -o move /dev "$rootmnt/dev"
EOF
chmod 755 "$1/etc/initramfs-tools/hooks/lima-kernels" "$1/etc/initramfs-tools/scripts/init-bottom/lima-kernels"
"""
# The initrd has no udev: the modules are listed, the kernel itself makes the devices' names, and the root filesystem is
# found by its label. To start, feed and end udev there takes as long as all else that an initrd does.
_WITHOUT = ("/usr/share/initramfs-tools/*/udev",)

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
    ${PIP_INDEX_URL:+UV_DEFAULT_INDEX="$PIP_INDEX_URL"} ${no_proxy:+no_proxy="$no_proxy"} chroot "$root" "$@"
}
inside update-ca-certificates
inside python3 -m venv %(venv)s
inside %(venv)s/bin/pip install --quiet --no-compile --require-hashes --requirement /tmp/%(requirements)s
# uv is no part of the environment: what is installed there must not change the tool.
mkdir -p "$root%(prefix)s/bin"
cp "$root%(venv)s/bin/uv" "$root%(uv)s"
inside %(venv)s/bin/pip uninstall --quiet --yes uv
inside systemctl --quiet enable systemd-networkd systemd-resolved \
  lima-kernels-init lima-kernels-devices lima-kernels-boot
[ ! -d "$root%(layer)s" ] || inside %(bake)s build %(layer)s/wanted.json
"""

# Runs as root of a user namespace: $1 is the tree as an archive, $2 where it is unpacked, $3 the image's directory.
# The host keys are the first boot's to make, one set for each instance.
_SETTLE = r"""
set -eu
umask 022
tar --extract --file "$1" --directory "$2" --exclude './dev/*' --numeric-owner
rm "$1"
cd "$2"
epoch=$(cat %(epoch)s)
printf 'LABEL=cloudimg-rootfs / ext4 defaults,discard,errors=remount-ro 0 1\n' > etc/fstab
: > etc/machine-id
rm -f var/lib/dbus/machine-id etc/ssh/ssh_host_* etc/hostname etc/resolv.conf etc/.resolv.conf.systemd-resolved.bak
ln -s ../run/systemd/resolve/stub-resolv.conf etc/resolv.conf
# sshd comes as soon as there is somebody who may come in: it waits for no network, and nobody is refused until the boot
# has ended. What only others wait for comes after it; the clock is the host's anyway.
unit=etc/systemd/system
sed -e '/^After=/d' -e '/^ExecStartPre=/d' -e 's/^\[Unit\]/&\nDefaultDependencies=no\nConflicts=shutdown.target\n'\
'Before=shutdown.target\nAfter=lima-kernels-init.service/' -e 's/^\[Service\]/&\nCPUWeight=1000/' \
  lib/systemd/system/ssh.service > $unit/ssh.service
sed -e 's/^Before=.*/Before=shutdown.target/' -e 's/^After=.*/After=ssh.service systemd-networkd.service/' \
  lib/systemd/system/systemd-timesyncd.service > $unit/systemd-timesyncd.service
mv $unit/sysinit.target.wants/systemd-timesyncd.service $unit/multi-user.target.wants/
# Of 600 things that udev is told of in a boot, a kernel needs these; lima-kernels-devices tells it of the others.
mkdir -p $unit/systemd-resolved.service.d $unit/systemd-udev-trigger.service.d
{ echo '[Service]'
  echo 'ExecStart='
  echo 'ExecStart=-udevadm trigger --type=devices --action=add --subsystem-match=virtio --subsystem-match=net'\
       '--subsystem-match=block'
} > $unit/systemd-udev-trigger.service.d/lima-kernels.conf
printf '[Unit]\nAfter=ssh.service systemd-networkd.service\n' > $unit/systemd-resolved.service.d/lima-kernels.conf
ln -s /dev/null etc/tmpfiles.d/systemd-nologin.conf
# While a guest boots, Lima and we knock at its door until it opens: nobody of them is sent away then.
printf 'MaxStartups 100\nPrintMotd yes\n' > etc/ssh/sshd_config.d/lima-kernels.conf
# A VM of Lima's has none of this hardware in use, but QEMU's chip set has it. networkd asks for wireless interfaces,
# and would wait for all that belongs to them.
{ echo 'alias net-pf-16-proto-16-family-nl80211 off'
  printf 'blacklist %%s\n' ahci i2c_i801 iTCO_wdt lpc_ich pcspkr powernow_k8 psmouse xhci_pci
} > etc/modprobe.d/lima-kernels.conf
# Each connection would begin with a new sshd, which takes as long to load as all that follows; and each session with
# programs that say which system this is, and with modules that have nothing to do here. sshd itself shows /etc/motd.
echo 'SSHD_OPTS=-r' > etc/default/ssh
rm -f etc/update-motd.d/*
sed -i '/pam_\(motd\|mail\|selinux\)\.so/d' etc/pam.d/sshd
for unit in apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service \
            systemd-networkd-wait-online.service dev-hugepages.mount sys-kernel-debug.mount \
            sys-kernel-tracing.mount modprobe@configfs.service modprobe@drm.service modprobe@efi_pstore.service; do
  ln -sf /dev/null "etc/systemd/system/$unit"
done
printf '[Match]\nName=eth*\n[Network]\nDHCP=ipv4\n[DHCPv4]\nClientIdentifier=mac\n' > etc/systemd/network/90-eth.network
echo 'LANG=C.UTF-8' > etc/default/locale
mkdir -p etc/systemd/resolved.conf.d
printf '[Resolve]\nLLMNR=no\nMulticastDNS=no\n' > etc/systemd/resolved.conf.d/lima-kernels.conf
echo %(token)s > %(provisioned)s
# What only tells of the build: caches, logs, backups, and days on which system accounts were made.
rm -rf var/lib/apt/lists/* var/cache/apt/* var/cache/ldconfig/* var/cache/debconf/*-old var/lib/dpkg/*-old \
  etc/passwd- etc/group- etc/shadow- etc/gshadow- etc/subuid- etc/subgid- etc/initramfs-tools/conf.d/lima-kernels-epoch
rm -rf tmp/* root/.cache run/*
find var/log -type f -delete
sed -i -E "s/^([^:]*:[^:]*):[0-9]+:/\1:$((epoch / 86400)):/" etc/shadow
# What was made today is as old as the archive; what came with a package keeps its time.
settle() {
  find . -newermt "@$epoch" -exec touch --no-dereference --date="@$epoch" {} +
  find usr/local etc/systemd/system etc/initramfs-tools -exec touch --no-dereference --date="@$epoch" {} +
}
settle
# Bytecode holds its source's time, and sets in the order of their hashes. What is no Python of this version has none,
# as with pip and Debian's own tools. One process for each directory: what it compiled before leaves traces, too.
find usr -name __pycache__ -prune -exec rm -rf {} +
compiled() {
  find "$@" -mindepth 1 -maxdepth 1 \( -type d -o -name '*.py' \) -printf '/%%p\n' | LC_ALL=C sort |
    xargs -d '\n' -P "$(nproc)" -n 1 env -i PATH=/usr/sbin:/usr/bin PYTHONHASHSEED=0 LANG=C.UTF-8 \
      chroot . /usr/bin/python3 -c 'import compileall; compileall.main()' -qq
}
compiled usr/lib/python3.11 usr/lib/python3/dist-packages usr/share/python3 %(venv)s/lib/python3.11/site-packages \
  $(find %(prefix)s -path '*/builds/*/lib/python3.11/site-packages' -prune)
settle
if [ -d %(layer)s ]; then
  env -i PATH=/usr/sbin:/usr/bin LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 chroot . %(bake)s finish /%(layer)s/wanted.json
  rm -rf %(layer)s %(prefix)s/environments/.cache
  chown -R 1000:1000 %(prefix)s/environments
fi
chown -R 1000:1000 %(venv)s
settle
"""

# Runs after it, in the same place.
_PACK = r"""
set -eu
cd "$2"
epoch=$(cat %(epoch)s)
cp --dereference vmlinuz "$3/vmlinuz"
cp --dereference initrd.img "$3/initrd"
echo "$epoch" > "$3/epoch"
inside() { env -i PATH=/usr/sbin:/usr/bin LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 chroot . "$@"; }
inside dpkg-query --show --showformat '${binary:Package}=${Version}\n' > "$3/apt"
inside /%(venv)s/bin/pip --disable-pip-version-check list --format freeze | sed 's/==/=/' > "$3/python"
# The room of its files' blocks, a quarter more, and half a GiB. Directories are not asked: their sizes are the host's.
size=$(find . -type f -printf '%%s\n' | awk '{ blocks += int(($1 + 4095) / 4096) } END { print int(blocks / 256) }')
export E2FSPROGS_FAKE_TIME="$epoch"
mke2fs -q -t ext4 -L cloudimg-rootfs -U %(uuid)s -E hash_seed=%(uuid)s -d . "$3/disk.raw" "$((size * 5 / 4 + 512))M"
# mke2fs takes over when this host changed and read each file: the one nobody can set but in the filesystem itself, the
# other changes as mke2fs reads.
inodes=$(dumpe2fs -h "$3/disk.raw" 2>/dev/null |
  awk '/^Inode count:/ { used += $3 } /^Free inodes:/ { used -= $3 } END { print used }')
seq 11 "$inodes" | sed "s/.*/set_inode_field <&> ctime @$epoch\nset_inode_field <&> atime @$epoch/" |
  debugfs -w -f - "$3/disk.raw" > /dev/null 2>&1
"""


class Layer(NamedTuple):
    """A locked environment that an image is to bring with it.

    ``apt`` are all packages of the image with their versions, ``pylock`` is the lock of its Python part, ``python``
    that part's digest; ``program`` is the package that builds it, as the guest would.
    """

    name: str
    lock: str
    python: str
    pylock: str
    apt: Mapping[str, str]
    program: Path

    def lay_out(self, directory: Path) -> None:
        """Make the directory that the build takes into the tree."""
        shutil.copytree(self.program, directory / _PROGRAM, ignore=shutil.ignore_patterns("__pycache__"))
        # Not chance: the build's path is in the environment's scripts.
        wanted = {"environments": paths.GUEST_ENVIRONMENTS, "name": self.name, "lock": self.lock}
        wanted |= {"python": self.python, "pylock": self.pylock}
        (directory / "wanted.json").write_text(json.dumps({**wanted, "build": f"{self.python[:12]}-image"}))


class Scripts(NamedTuple):
    """The build's own scripts, as the shell takes them: before the packages, after them, and outside mmdebstrap."""

    prepare: str
    install: str
    settle: str
    pack: str


def scripts() -> Scripts:
    """Return the scripts with the guest's paths in them."""
    values = {
        "venv": paths.GUEST_VENV,
        "prefix": paths.GUEST_PREFIX,
        "uv": paths.GUEST_UV,
        "requirements": REQUIREMENTS.name,
        "epoch": _EPOCH,
        "uuid": _UUID,
        "layer": f"/{_LAYER}",
        "bake": f"/usr/bin/python3 -I -c '{_BAKE}'",
        "token": paths.GUEST_PROVISIONED_BY_IMAGE,
        "provisioned": paths.GUEST_PROVISIONED.lstrip("/"),
    }
    inside = {**values, "venv": paths.GUEST_VENV.lstrip("/"), "prefix": paths.GUEST_PREFIX.lstrip("/"), "layer": _LAYER}
    return Scripts(_PREPARE % values, _INSTALL % values, _SETTLE % inside, _PACK % inside)


def recipe_digest() -> str:
    """Return the digest of everything that decides what a built image holds, as far as this package decides it."""
    files = [_BOOT / name for name in _BOOT_FILES]
    texts = [file.read_text(encoding="utf-8") for file in (*files, REQUIREMENTS)]
    return hashlib.sha256("\0".join((SUITE, CMDLINE, *PACKAGES, *_WITHOUT, *scripts(), *texts)).encode()).hexdigest()


def mmdebstrap(arch: str, certificates: Sequence[Path], output: Path, layer: Layer | None = None) -> list[str]:
    """Return the command that makes the image's tree as an archive.

    :param certificates: files of authorities that the guest is to trust beyond Debian's.
    :param layer: what else is in it; laid out beside the output, in a directory called ``layer``.
    """
    debian, made = DEBIAN_ARCHITECTURES[arch], scripts()
    packages = [*PACKAGES, f"linux-image-{debian}"]
    if layer:
        packages = [f"{name}={version}" for name, version in sorted(layer.apt.items())]
    argv = ["mmdebstrap", "--mode=unshare", "--variant=minbase", f"--architectures={debian}"]
    argv += [f"--dpkgopt=path-exclude={pattern}" for pattern in _WITHOUT]
    # A lock may be older than what the archive begins with.
    argv += ['--aptopt=APT::Get::allow-downgrades "true"'] if layer else []
    argv.append(f"--include={','.join(packages)}")
    argv.append(f"--essential-hook={made.prepare}")
    argv += [f"--customize-hook=copy-in {_BOOT / name} {place}" for name, place in _BOOT_FILES.items()]
    argv += [f"--customize-hook=copy-in {REQUIREMENTS} /tmp"]
    argv += [f"--customize-hook=copy-in {file} /usr/local/share/ca-certificates" for file in certificates]
    argv += [f"--customize-hook=copy-in {output.with_name('layer')} /{Path(_LAYER).parent}"] if layer else []
    return [*argv, f"--customize-hook={made.install}", SUITE, str(output)]
