"""Makes the guest what Lima's cidata says: user and keys, mounts, network, certificates. Runs as root in each boot.

cloud-init does that in some hundred ways for a hundred clouds, and takes most of a boot's time for it. Lima asks for a
dozen things (lima ``pkg/cidata/cidata.TEMPLATE.d/user-data``); each is done here once for each content, for the guest
remembers what was done. What Lima's own boot scripts do is theirs: see ``boot.service``.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

LABEL = "cidata"
WHERE = Path("/run/lima-kernels/cidata")
# Says that users may come in, and will not be sent out again.
READY = Path("/run/lima-kernels/ready")
ENVIRONMENT = Path("/etc/environment")
# ISO 9660's first descriptor, and where in it the volume's name is (ECMA-119, 8.4).
DESCRIPTOR = 16 * 2048
MAGIC = b"\1CD001"
NAME = slice(40, 72)
DONE = Path("/var/lib/lima-kernels/cidata-done")
BOOT_COMMANDS = Path("/var/lib/lima-kernels/boot-commands")
# By this option our lines in fstab are known again.
MARK = "x-lima-kernels"
CERTIFICATES = Path("/usr/local/share/ca-certificates/lima-kernels")
# All authorities that the guest trusts, as update-ca-certificates writes them.
BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
# Says that systemd is to read fstab again, when there is time for that.
RELOAD = Path("/run/lima-kernels/reload")
# Where Debian has PyYAML; whoever starts this has left out Python's `site`, for the time it takes.
PACKAGES = "/usr/lib/python3/dist-packages"

Document = Mapping[str, Any]


def run(*argv: str, **variables: str) -> None:
    """Run a program, with more environment variables.

    :raises subprocess.CalledProcessError: when it fails.
    """
    subprocess.run(argv, stdin=subprocess.DEVNULL, env={**os.environ, **variables}, check=True)


def write(file: Path, text: str, mode: int = 0o644) -> bool:
    """Write a file whose content is another, and tell whether it was."""
    if file.exists() and file.read_text() == text:
        return False
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".new")
    # What is to be secret is never anything else, not for a moment.
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as made:
        made.write(text)
    partial.chmod(mode)
    os.replace(partial, file)
    return True


# What is to be done, as text: these decide, and touch nothing.


def fstab_line(mount: Sequence[str]) -> str:
    """Return fstab's line for one entry of ``mounts``: what would end a field there is escaped (fstab(5))."""
    source, point, kind, options, *_ = (str(field) for field in mount)
    escaped = [field.replace("\\", "\\134").replace(" ", "\\040").replace("\t", "\\011") for field in (source, point)]
    names = options.split(",")
    # A mount that fails must not end the boot.
    names += [name for name in ("nofail", MARK) if name not in names]
    return " ".join((*escaped, kind, ",".join(names), "0 0"))


def fstab(before: str, mounts: Sequence[Sequence[str]]) -> str:
    """Return fstab with our lines in place of those of an earlier boot."""
    kept = [line for line in before.splitlines() if MARK not in line]
    return "\n".join((*kept, *map(fstab_line, mounts), ""))


def network(ethernet: Document) -> str:
    """Return systemd-networkd's file for one of ``ethernets`` (netplan's form; Lima uses these words of it)."""
    metric = ethernet.get("dhcp4-overrides", {}).get("route-metric")
    servers = ethernet.get("nameservers", {}).get("addresses", [])
    lines = ["[Match]", f"MACAddress={ethernet['match']['macaddress']}", "", "[Network]"]
    lines += ["DHCP=ipv4"] if ethernet.get("dhcp4") else []
    lines += [f"DNS={address}" for address in servers]
    lines += ["LinkLocalAddressing=ipv6", "", "[DHCPv4]", "ClientIdentifier=mac"]
    lines += [f"RouteMetric={metric}"] if metric is not None else []
    lines += ["UseDNS=no"] if servers else []
    return "\n".join((*lines, ""))


def link(name: str, ethernet: Document) -> str:
    """Return systemd-udevd's file that gives an interface its name."""
    return f"[Match]\nMACAddress={ethernet['match']['macaddress']}\nType=ether\n\n[Link]\nName={name}\n"


def hosts(before: str, name: str) -> str:
    """Return /etc/hosts in which the guest knows its own name: sudo asks for it."""
    if any(name in line.split()[1:] for line in before.splitlines() if not line.startswith("#")):
        return before
    return f"127.0.1.1 {name}\n{before}"


def environment(before: str, ours: str) -> str:
    """Return /etc/environment as Lima's ``07-etc-environment.sh`` makes it: its block anew, and last.

    That script ends all sessions of the user when it finds it otherwise.
    """
    kept, is_limas = [], False
    for line in before.splitlines(keepends=True):
        is_limas = is_limas or "#LIMA-START" in line
        if not is_limas:
            kept.append(line)
        is_limas = is_limas and "#LIMA-END" not in line
    return "".join((*kept, ours))


def is_cidata(descriptor: bytes) -> bool:
    """Tell whether a disk is Lima's, by its first descriptor."""
    return descriptor.startswith(MAGIC) and descriptor[NAME].decode(errors="replace").strip().lower() == LABEL


def boot_commands(commands: Sequence[object]) -> str:
    """Return ``bootcmd`` as a script: a text is the shell's, a list is a program with its arguments."""
    lines = ["#!/bin/sh"]
    for command in commands:
        if isinstance(command, str):
            # Each in a shell of its own, as one of them may end its.
            lines.append(f"(\n{command}\n)")
        elif isinstance(command, Sequence):
            lines.append(" ".join("'" + str(word).replace("'", "'\\''") + "'" for word in command))
    return "\n".join((*lines, ""))


# What does it.


def disk() -> str:
    """Return Lima's disk, which is looked for without udev: that takes longer than all that is done here."""
    for found in sorted(Path("/sys/block").iterdir(), key=lambda found: not found.name.startswith("sr")):
        try:
            with Path("/dev", found.name).open("rb") as opened:
                opened.seek(DESCRIPTOR)
                if is_cidata(opened.read(2048)):
                    return f"/dev/{found.name}"
        except OSError:
            # There is no medium in it, or it is too small.
            continue
    link_name = f"/dev/disk/by-label/{LABEL}"
    run("udevadm", "wait", "--timeout=120", link_name)
    return link_name


def set_environment(ours: str) -> None:
    """Give sessions the variables that Lima wants them to have."""
    before = ENVIRONMENT.read_text() if ENVIRONMENT.exists() else ""
    write(ENVIRONMENT, environment(before, ours))


def grow() -> None:
    """Let the root filesystem fill its disk, which may have been made larger since; it has no partition table.

    Nobody waits for that: it can be used meanwhile.
    """
    source = next(line.split()[0] for line in Path("/proc/mounts").read_text().splitlines() if line.split()[1] == "/")
    actions = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
    os.posix_spawnp("resize2fs", ["resize2fs", os.path.realpath(source)], os.environ, file_actions=actions)


def make_user(user: Document) -> None:
    """Make a user, or give one that exists its keys and rights."""
    name, home = str(user["name"]), Path(user["homedir"])
    # Whom useradd makes has no password yet.
    has_password = True
    try:
        pwd.getpwnam(name)
    except KeyError:
        has_password = False
        options = ["--uid", str(user["uid"]), "--home-dir", str(home), "--shell", str(user["shell"]), "--user-group"]
        # A mount below it may have made the home directory before.
        run("useradd", "--create-home", "--comment", str(user.get("gecos", "")), *options, name)
    account = pwd.getpwnam(name)
    home.mkdir(parents=True, exist_ok=True)
    os.chown(home, account.pw_uid, account.pw_gid)
    if rule := user.get("sudo"):
        write(Path("/etc/sudoers.d/90-lima-users"), f"{name} {rule}\n", 0o440)
    keys = home / ".ssh" / "authorized_keys"
    keys.parent.mkdir(mode=0o700, exist_ok=True)
    kept = keys.read_text().splitlines() if keys.exists() else []
    kept += [key for key in user.get("ssh-authorized-keys", []) if key not in kept]
    write(keys, "\n".join((*kept, "")), 0o600)
    for path in (keys.parent, keys):
        os.chown(path, account.pw_uid, account.pw_gid)
    # Last, for whoever has no password comes in by a key.
    if has_password and user.get("lock_passwd", True):
        run("passwd", "--quiet", "--lock", name)


def make_users(data: Document) -> None:
    """Make the users."""
    for user in data.get("users", []):
        make_user(user)


def mount_all(data: Document) -> None:
    """Write the mounts into fstab, and mount what is not mounted yet."""
    mounts = data.get("mounts", [])
    table = Path("/etc/fstab")
    if write(table, fstab(table.read_text(), mounts)):
        RELOAD.touch()
    for source, point, kind, options, *_ in mounts:
        Path(point).mkdir(parents=True, exist_ok=True)
        if not os.path.ismount(point):
            try:
                run("mount", "-t", kind, "-o", options, source, point)
            except subprocess.CalledProcessError as error:
                print(f"{point} is not mounted: {error}", file=sys.stderr)


def set_network(config: Document) -> None:
    """Name and configure the interfaces."""
    changed = False
    for name, ethernet in config.get("ethernets", {}).items():
        directory = Path("/etc/systemd/network")
        changed |= write(directory / f"10-lima-{name}.network", network(ethernet))
        changed |= write(directory / f"10-lima-{name}.link", link(name, ethernet))
        address = str(ethernet["match"]["macaddress"]).lower()
        for found in Path("/sys/class/net").iterdir():
            if found.name != name and (found / "address").read_text().strip() == address:
                run("ip", "link", "set", found.name, "down")
                run("ip", "link", "set", found.name, "name", name)
    if changed:
        run("systemctl", "try-reload-or-restart", "--no-block", "systemd-networkd.service")


def set_name(meta: str) -> None:
    """Give the guest its name."""
    name = next(line.partition(":")[2].strip() for line in meta.splitlines() if line.startswith("local-hostname:"))
    if write(Path("/etc/hostname"), f"{name}\n"):
        run("hostname", name)
    file = Path("/etc/hosts")
    write(file, hosts(file.read_text() if file.exists() else "127.0.0.1 localhost\n", name))


def trust(data: Document) -> None:
    """Take over the host's certificates."""
    said = data.get("ca_certs") or {}
    trusted = said.get("trusted", [])
    changed = False
    known = BUNDLE.read_text() if BUNDLE.exists() else ""
    if said.get("remove_defaults"):
        file = Path("/etc/ca-certificates.conf")
        lines = [line if line.startswith(("#", "!")) else f"!{line}" for line in file.read_text().splitlines()]
        changed |= write(file, "\n".join((*lines, "")))
    for number, certificate in enumerate(trusted):
        # Those that the image brought are trusted already: to hash them all again takes seconds.
        is_new = write(CERTIFICATES / f"{number}.crt", certificate.strip() + "\n")
        changed |= is_new and certificate.strip() not in known
    if changed:
        # /tmp is being cleared at this moment.
        run("update-ca-certificates", TMPDIR=str(WHERE.parent))


def write_files(data: Document) -> None:
    """Write the files that Lima wants, its boot script among them."""
    for file in data.get("write_files", []):
        write(Path(file["path"]), file["content"], int(file["permissions"], 8))


def set_time_zone(data: Document) -> None:
    """Set the time zone, where one is said and known."""
    zone = Path("/usr/share/zoneinfo") / str(data.get("timezone", ""))
    if data.get("timezone") and zone.is_file():
        link_name = Path("/etc/localtime.new")
        link_name.unlink(missing_ok=True)
        link_name.symlink_to(zone)
        os.replace(link_name, "/etc/localtime")


def keep_boot_commands(data: Document) -> None:
    """Keep what is to run in each boot."""
    write(BOOT_COMMANDS, boot_commands(data.get("bootcmd", [])), 0o700)


def upgrade(data: Document) -> None:
    """Bring the packages up to date, where that is asked for."""
    if data.get("package_update") or data.get("package_upgrade"):
        run("apt-get", "-q", "update")
    if data.get("package_upgrade"):
        run("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y", "dist-upgrade")
        if data.get("package_reboot_if_required") and Path("/run/reboot-required").exists():
            run("systemctl", "reboot")


# In this order: the home directory is the user's before something is mounted below it.
STEPS: tuple[Callable[[Document], None], ...] = (
    make_users,
    mount_all,
    write_files,
    keep_boot_commands,
    set_time_zone,
    trust,
)


def attempt(step: Callable[..., None], *arguments: object) -> bool:
    """Do one thing; when it fails, that is said and the others are done."""
    try:
        step(*arguments)
    except Exception:
        print(f"lima-kernels: {step.__name__} failed:", file=sys.stderr)
        traceback.print_exc()
        return False
    return True


def make_host_key() -> None:
    """Make the guest's own key in its first boot; it stays the same ever after."""
    file = Path("/etc/ssh/ssh_host_ed25519_key")
    if not file.exists():
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(file))


def parsed(text: str) -> Document:
    """Return a YAML document."""
    sys.path.append(PACKAGES)
    # Not at the top: it takes a while to import, and most boots have nothing to read.
    import yaml  # noqa: PLC0415

    document: Document = yaml.safe_load(text) or {}
    return document


def early() -> bool:
    """Do what must be there before a user comes in, and tell whether all of it succeeded."""
    WHERE.mkdir(parents=True, exist_ok=True)
    WHERE.chmod(0o700)
    run("mount", "-t", "iso9660", "-o", "ro,mode=0700,dmode=0700,overriderockperm,uid=0", disk(), str(WHERE))
    said = {name: (WHERE / name).read_text() for name in ("user-data", "network-config")}
    meta = (WHERE / "meta-data").read_text()
    digest = hashlib.sha256("\0".join(said.values()).encode()).hexdigest()
    succeeded = attempt(make_host_key) & attempt(set_name, meta) & attempt(grow)
    is_set = attempt(set_environment, (WHERE / "etc_environment").read_text())
    if not DONE.exists() or DONE.read_text() != digest:
        done = attempt(set_network, parsed(said["network-config"]))
        data = parsed(said["user-data"])
        for step in STEPS:
            done &= attempt(step, data)
        if done:
            write(DONE, digest, 0o600)
        succeeded &= done
    if is_set:
        READY.touch()
    return succeeded & is_set


def late() -> bool:
    """Do what may come after users, and needs the network: before Lima's boot scripts.

    One of Lima's own commands waits for an address.
    """
    try:
        succeeded = not BOOT_COMMANDS.exists() or attempt(run, str(BOOT_COMMANDS))
        if RELOAD.exists():
            succeeded &= attempt(run, "systemctl", "daemon-reload")
            RELOAD.unlink()
        text = (WHERE / "user-data").read_text()
        return ("package_update" not in text or attempt(upgrade, parsed(text))) and succeeded
    finally:
        # Lima's boot script mounts it for itself.
        run("umount", str(WHERE))


if __name__ == "__main__":
    sys.exit(not {"early": early, "late": late}[sys.argv[1]]())
