"""What the guest image has in cloud-init's place: what Lima's cidata says becomes files, users, mounts.

The programs that it runs are scripts that write down what they were told; ``/`` is a directory of the test's.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import pwd
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lima_kernels.environment.guest_boot import cidata

# As Lima 2.2 writes it (``pkg/cidata/cidata.TEMPLATE.d``), with all that it can hold for a Linux guest.
USER_DATA = """\
#cloud-config
# vim:syntax=yaml

growpart:
  mode: auto
  devices: ['/']
mounts:
- [lima-1, /home/me/note books, 9p, "ro,trans=virtio,version=9p2000.L,msize=131072,cache=fscache", "0", "0"]
- [lima-2, /data, 9p, "rw,trans=virtio,nofail", "0", "0"]
timezone: Europe/Nowhere

users:
  - name: "{user}"
    uid: "4711"
    gecos: "Me \\"and\\" I"
    homedir: "/home/me.guest"
    shell: /bin/bash
    sudo: ALL=(ALL) NOPASSWD:ALL
    lock_passwd: true
    ssh-authorized-keys:
      - "ssh-ed25519 AAAA lima"
      - "ssh-ed25519 BBBB me@\\"host\\""
write_files:
 - content: |
      #!/bin/sh
      exec "${{LIMA_CIDATA_MNT}}"/boot.sh
   owner: root:root
   path: /var/lib/cloud/scripts/per-boot/00-lima.boot.sh
   permissions: '0755'
ca_certs:
  remove_defaults: true
  trusted:
  - |
    -----BEGIN CERTIFICATE-----
    one
    -----END CERTIFICATE-----
  - |
    -----BEGIN CERTIFICATE-----
    two
    -----END CERTIFICATE-----
bootcmd:
- |
  while read -r line; do [ -n "$line" ] && export "$line"; done <<'EOF'
  PARAM_word=it's
  EOF
  echo "$PARAM_word" >> "$RAN"
"""
NETWORK = """\
version: 2
ethernets:
  eth0:
    match:
      macaddress: '52:55:55:AA:bb:cc'
    dhcp4: true
    set-name: eth0
    dhcp4-overrides:
      route-metric: 200
    dhcp-identifier: mac
    nameservers:
      addresses:
      - 192.168.5.3
"""
META = "instance-id: iid-1\nlocal-hostname: lima-analysis\n"
PROGRAMS = (
    *("mount", "umount", "systemctl", "useradd", "passwd", "ip", "hostname", "update-ca-certificates"),
    *("resize2fs", "ssh-keygen", "apt-get", "udevadm"),
)
# As mkisofs writes it, behind 16 sectors of nothing.
DESCRIPTOR = b"\x01CD001\x01\x00" + b"LINUX".ljust(32) + b"%b" + bytes(1976)
ENVIRONMENT = "#LIMA-START\nHTTPS_PROXY=http://gateway:1\n#LIMA-END\n"
RECORDING = """\
#!/bin/sh
{{ printf '%s' "${{0##*/}}"; for word in "$@"; do printf '\\t%s' "$word"; done; echo; }} >> '{log}'
! [ -e "$0.fails" ]
"""


class Guest:
    """A guest whose ``/`` is a directory; the programs that cidata runs are told what they are told."""

    def __init__(self, root: Path) -> None:
        self.root = root / "guest"
        self.programs = root / "bin"
        self.log = root / "ran"
        self.programs.mkdir(parents=True)
        for name in PROGRAMS:
            (self.programs / name).write_text(RECORDING.format(log=self.log))
            (self.programs / name).chmod(0o755)

    def path(self, *parts: str | Path) -> Path:
        """Return where a path of the guest is on this host."""
        whole = Path(*parts)
        is_guests = whole.is_absolute() and not whole.is_relative_to(self.root)
        return self.root / whole.relative_to("/") if is_guests else whole

    def put(self, path: str, text: str) -> Path:
        file = self.path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def text(self, path: str) -> str:
        return self.path(path).read_text()

    def fails(self, program: str, *, does: bool = True) -> None:
        mark = self.programs / f"{program}.fails"
        if does:
            mark.touch()
        else:
            mark.unlink()

    def ran(self) -> list[list[str]]:
        """Return what was run since the last look, be it what nobody waits for."""
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, 0):
                pass
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return [line.split("\t") for line in lines]


class Account(NamedTuple):
    pw_uid: int = os.getuid()
    pw_gid: int = os.getgid()


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Guest:
    made = Guest(tmp_path)
    monkeypatch.setattr(cidata, "Path", made.path)
    for name in ("WHERE", "READY", "ENVIRONMENT", "DONE", "BOOT_COMMANDS", "CERTIFICATES", "BUNDLE", "RELOAD"):
        monkeypatch.setattr(cidata, name, made.path(getattr(cidata, name)))
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setenv("PATH", str(made.programs), prepend=os.pathsep)
    monkeypatch.setenv("RAN", str(tmp_path / "commands"))
    made.put("/etc/fstab", "LABEL=cloudimg-rootfs / ext4 defaults 0 1\n")
    made.put("/etc/ca-certificates.conf", "# a note\nmozilla/A.crt\n!mozilla/B.crt\n")
    made.put("/proc/mounts", "proc /proc proc rw 0 0\n/dev/vda / ext4 rw 0 0\n")
    made.put("/sys/class/net/lo/address", "00:00:00:00:00:00\n")
    made.put("/sys/class/net/ens3/address", "52:55:55:aa:bb:cc\n")
    for name, label in (("sr0", b"cidata"), ("vda", b"")):
        guest_disk(made, name, label)
    where = str(cidata.WHERE)
    made.put(f"{where}/etc_environment", ENVIRONMENT)
    made.put("/etc/environment", "LANG=C\n")
    made.put(f"{where}/user-data", USER_DATA.format(user=getpass.getuser()))
    made.put(f"{where}/network-config", NETWORK)
    made.put(f"{where}/meta-data", META)
    return made


def guest_disk(guest: Guest, name: str, label: bytes) -> None:
    """Give the guest a disk; an empty label is that of one that has none."""
    guest.path(f"/sys/block/{name}").mkdir(parents=True, exist_ok=True)
    content = bytes(32768) + (DESCRIPTOR % label.ljust(32) if label else bytes(2048))
    guest.put(f"/dev/{name}", "").write_bytes(content)


def fields(line: str) -> list[str]:
    """Read a line as fstab(5) says."""
    return [re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field) for field in line.split()]


# What decides, and touches nothing


@pytest.mark.parametrize("point", ["/plain", "/with space", "/with\ttab", "/back\\slash", "/looks\\040so", "/é 日本"])
def test_what_ends_a_field_of_fstab_is_escaped(point: str) -> None:
    line = cidata.fstab_line([f"tag of {point}", point, "9p", "ro,cache=mmap", "0", "0"])
    options = "ro,cache=mmap,nofail,x-lima-kernels"
    assert fields(line) == [f"tag of {point}", point, "9p", options, "0", "0"]


def test_an_option_is_not_said_twice() -> None:
    assert cidata.fstab_line(["a", "/a", "9p", "nofail,rw"]).split()[3] == "nofail,rw,x-lima-kernels"
    # YAML may have made something else of a word.
    assert cidata.fstab_line([1, "/a", "9p", "rw", 0, 0]).split()[0] == "1"  # type: ignore[list-item]


def test_fstab_keeps_what_is_not_ours_and_says_ours_once() -> None:
    before = "# note\nLABEL=x / ext4 defaults 0 1\n"
    mounts = [["lima-1", "/a", "9p", "ro", "0", "0"], ["lima-2", "/b", "9p", "rw", "0", "0"]]
    once = cidata.fstab(before, mounts)
    assert once.startswith(before)
    assert [line.split()[1] for line in once.splitlines()[2:]] == ["/a", "/b"]
    assert cidata.fstab(once, mounts) == once
    assert cidata.fstab(once, mounts[1:]).count("9p") == 1
    assert cidata.fstab(once, []) == before


def test_an_interface_is_configured_and_named_by_its_address() -> None:
    ethernet = cidata.parsed(NETWORK)["ethernets"]["eth0"]
    assert cidata.network(ethernet) == (
        "[Match]\nMACAddress=52:55:55:AA:bb:cc\n\n[Network]\nDHCP=ipv4\nDNS=192.168.5.3\nLinkLocalAddressing=ipv6\n\n"
        "[DHCPv4]\nClientIdentifier=mac\nRouteMetric=200\nUseDNS=no\n"
    )
    assert cidata.link("eth0", ethernet) == "[Match]\nMACAddress=52:55:55:AA:bb:cc\nType=ether\n\n[Link]\nName=eth0\n"


def test_an_interface_without_more_takes_its_name_servers_from_dhcp() -> None:
    said = cidata.network({"match": {"macaddress": "52:55:55:00:00:01"}, "dhcp4": True})
    assert "DHCP=ipv4\n" in said
    assert not re.search("DNS|RouteMetric", said)
    assert "DHCP=ipv4" not in cidata.network({"match": {"macaddress": "52:55:55:00:00:01"}})


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param("127.0.0.1 localhost\n", "127.0.1.1 vm\n127.0.0.1 localhost\n", id="missing"),
        pytest.param("127.0.1.1\tother vm\n", "127.0.1.1\tother vm\n", id="there"),
        pytest.param("# 127.0.1.1 vm\n", "127.0.1.1 vm\n# 127.0.1.1 vm\n", id="in a comment only"),
        pytest.param("1.2.3.4 vm.example\n", "127.0.1.1 vm\n1.2.3.4 vm.example\n", id="part of another"),
        pytest.param("", "127.0.1.1 vm\n", id="nothing"),
    ],
)
def test_the_guest_knows_its_own_name(before: str, after: str) -> None:
    assert cidata.hosts(before, "vm") == after
    assert cidata.hosts(after, "vm") == after


def test_boot_commands_are_what_they_say(tmp_path: Path) -> None:
    nasty = 'it\'s $HOME `id` "x" \\ \n;'
    commands = ["echo one; exit 3", ["printf", "%s|", nasty, 5], 7, None, "cat <<'EOF'\n$PATH\nEOF"]
    script = tmp_path / "commands"
    script.write_text(cidata.boot_commands(commands))
    done = subprocess.run(["/bin/sh", str(script)], capture_output=True, text=True, timeout=30, check=True)
    # One that ends its shell does not end the others', and what is no command is none.
    assert done.stdout == f"one\n{nasty}|5|$PATH\n"
    assert done.stderr == ""


def test_a_file_is_written_when_it_differs(tmp_path: Path) -> None:
    file = tmp_path / "new" / "file"
    assert cidata.write(file, "one", 0o600)
    assert file.stat().st_mode & 0o777 == 0o600
    written = file.stat().st_mtime_ns, file.stat().st_ino
    assert not cidata.write(file, "one", 0o600)
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == written
    assert cidata.write(file, "two")
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("two", 0o644)
    assert [path.name for path in file.parent.iterdir()] == ["file"]


def test_limas_yaml_is_read(guest: Guest) -> None:
    data = cidata.parsed(guest.text("/run/lima-kernels/cidata/user-data"))
    assert data["users"][0]["uid"] == "4711"
    assert data["users"][0]["ssh-authorized-keys"] == ["ssh-ed25519 AAAA lima", 'ssh-ed25519 BBBB me@"host"']
    assert data["mounts"][0][1] == "/home/me/note books"
    assert len(data["ca_certs"]["trusted"]) == 2
    assert cidata.parsed("#cloud-config\n") == {}


def test_yaml_that_names_python_makes_none(guest: Guest) -> None:
    import yaml  # noqa: PLC0415

    with pytest.raises(yaml.YAMLError):
        cidata.parsed("users: !!python/object/apply:os.system ['true']\n")


LIMAS = """orig=$(cat environment); sed -i '/#LIMA-START/,/#LIMA-END/d' environment; cat ours >> environment"""


@pytest.mark.parametrize(
    "before",
    [
        "",
        "A=1\n",
        "A=1\n#LIMA-START\nB=2\n#LIMA-END\n",
        "#LIMA-START\n#LIMA-END\nA=1\n",
        "#LIMA-START\nB=2\n",
        ENVIRONMENT,
    ],
    ids=["empty", "others", "behind", "before", "cut", "same"],
)
def test_the_environment_is_what_limas_script_would_make_of_it(tmp_path: Path, before: str) -> None:
    made = cidata.environment(before, ENVIRONMENT)
    (tmp_path / "ours").write_text(ENVIRONMENT)
    (tmp_path / "environment").write_text(before)
    subprocess.run(["/bin/sh", "-c", LIMAS], cwd=tmp_path, timeout=30, check=True)
    assert (tmp_path / "environment").read_text() == made
    # It finds nothing to change then, and ends no session.
    assert cidata.environment(made, ENVIRONMENT) == made


def test_limas_disk_is_known_by_its_name(guest: Guest) -> None:
    assert cidata.disk() == "/dev/sr0"
    guest_disk(guest, "sr0", b"DVD")
    guest_disk(guest, "vdb", b"CIDATA")
    assert cidata.disk() == "/dev/vdb"
    assert guest.ran() == []


def test_a_disk_that_is_not_there_yet_is_waited_for(guest: Guest) -> None:
    guest.path("/dev/sr0").unlink()
    assert cidata.disk() == "/dev/disk/by-label/cidata"
    assert guest.ran() == [["udevadm", "wait", "--timeout=120", "/dev/disk/by-label/cidata"]]


# What does it


def test_a_guest_becomes_what_its_cidata_says(guest: Guest) -> None:
    assert cidata.early()
    ran = guest.ran()
    options = "ro,mode=0700,dmode=0700,overriderockperm,uid=0"
    assert ran[0] == ["mount", "-t", "iso9660", "-o", options, "/dev/sr0", str(cidata.WHERE)]
    assert guest.text("/etc/environment") == f"LANG=C\n{ENVIRONMENT}"
    assert cidata.READY.exists()
    assert ["hostname", "lima-analysis"] in ran
    assert guest.text("/etc/hostname") == "lima-analysis\n"
    assert guest.text("/etc/hosts") == "127.0.1.1 lima-analysis\n127.0.0.1 localhost\n"
    # The interface of that address had another name; the loopback is nobody's.
    assert [words[1:] for words in ran if words[0] == "ip"] == [
        ["link", "set", "ens3", "down"],
        ["link", "set", "ens3", "name", "eth0"],
    ]
    assert "Name=eth0" in guest.text("/etc/systemd/network/10-lima-eth0.link")
    assert [fields(line)[1] for line in guest.text("/etc/fstab").splitlines()] == ["/", "/home/me/note books", "/data"]
    options = "ro,trans=virtio,version=9p2000.L,msize=131072,cache=fscache"
    assert ["mount", "-t", "9p", "-o", options, "lima-1", "/home/me/note books"] in ran
    assert guest.path("/home/me/note books").is_dir()
    assert guest.text("/home/me.guest/.ssh/authorized_keys").splitlines() == [
        "ssh-ed25519 AAAA lima",
        'ssh-ed25519 BBBB me@"host"',
    ]
    assert guest.path("/home/me.guest/.ssh/authorized_keys").stat().st_mode & 0o777 == 0o600
    assert guest.text("/etc/sudoers.d/90-lima-users") == f"{getpass.getuser()} ALL=(ALL) NOPASSWD:ALL\n"
    assert guest.path("/etc/sudoers.d/90-lima-users").stat().st_mode & 0o777 == 0o440
    assert guest.path("/var/lib/cloud/scripts/per-boot/00-lima.boot.sh").stat().st_mode & 0o777 == 0o755
    assert guest.text("/etc/ca-certificates.conf") == "# a note\n!mozilla/A.crt\n!mozilla/B.crt\n"
    assert [file.name for file in sorted(cidata.CERTIFICATES.iterdir())] == ["0.crt", "1.crt"]
    assert ran.count(["update-ca-certificates"]) == 1
    # No zone of that name is known.
    assert not guest.path("/etc/localtime").exists()
    assert ["resize2fs", "/dev/vda"] in ran
    # One of Lima's commands waits for the network, for which nobody is to wait.
    assert not Path(os.environ["RAN"]).exists()
    assert cidata.late()
    assert Path(os.environ["RAN"]).read_text() == "it's\n"
    # Nobody comes in through systemd's idea of fstab.
    assert [words for words in ran if words[0] == "systemctl"] == [
        ["systemctl", "try-reload-or-restart", "--no-block", "systemd-networkd.service"]
    ]
    assert ["systemctl", "daemon-reload"] in guest.ran()
    assert cidata.late()
    assert ["systemctl", "daemon-reload"] not in guest.ran()


def test_certificates_that_the_image_brought_are_not_hashed_again(guest: Guest) -> None:
    trusted = cidata.parsed(USER_DATA.format(user="me"))["ca_certs"]["trusted"]
    guest.put(str(cidata.BUNDLE), "other\n" + "".join(trusted))
    cidata.trust({"ca_certs": {"trusted": trusted}})
    assert guest.ran() == []
    # They stay where an update would look for them.
    assert len(list(cidata.CERTIFICATES.iterdir())) == 2
    guest.put(str(cidata.BUNDLE), trusted[0])
    (cidata.CERTIFICATES / "1.crt").unlink()
    cidata.trust({"ca_certs": {"trusted": trusted}})
    assert guest.ran() == [["update-ca-certificates"]]


def test_what_was_done_is_not_done_again(guest: Guest) -> None:
    assert cidata.early()
    guest.ran()
    guest.put("/etc/ssh/ssh_host_ed25519_key", "made in the first boot")
    table = guest.path("/etc/fstab").stat().st_mtime_ns
    assert cidata.early()
    # The disk may have grown.
    assert [words[0] for words in guest.ran()] == ["mount", "resize2fs"]
    assert guest.path("/etc/fstab").stat().st_mtime_ns == table
    # But for what is of each boot.
    for count in (1, 2):
        assert cidata.late()
        assert Path(os.environ["RAN"]).read_text() == "it's\n" * count
    # Other content is: and what is as it was is left so.
    changed = guest.text("/run/lima-kernels/cidata/user-data").replace("ssh-ed25519 AAAA lima", "ssh-ed25519 CCCC new")
    guest.put("/run/lima-kernels/cidata/user-data", changed)
    assert cidata.early()
    keys = guest.text("/home/me.guest/.ssh/authorized_keys").splitlines()
    assert [key.split()[1] for key in keys] == ["AAAA", "BBBB", "CCCC"]
    assert ["update-ca-certificates"] not in guest.ran()
    assert guest.path("/etc/fstab").stat().st_mtime_ns == table


def test_a_step_that_fails_stops_no_other_and_is_tried_again(guest: Guest, capfd: pytest.CaptureFixture[str]) -> None:
    guest.fails("passwd")
    guest.fails("update-ca-certificates")
    assert not cidata.early()
    said = capfd.readouterr().err
    assert "lima-kernels: make_users failed:" in said
    assert "lima-kernels: trust failed:" in said
    ran = guest.ran()
    assert ["resize2fs", "/dev/vda"] in ran
    assert guest.path("/var/lib/cloud/scripts/per-boot/00-lima.boot.sh").exists()
    assert cidata.BOOT_COMMANDS.exists()
    guest.fails("passwd", does=False)
    guest.fails("update-ca-certificates", does=False)
    assert cidata.early()
    assert guest.path("/home/me.guest/.ssh/authorized_keys").exists()
    assert cidata.DONE.exists()


def test_a_mount_that_fails_keeps_nobody_out(guest: Guest, capfd: pytest.CaptureFixture[str]) -> None:
    guest.fails("mount")
    cidata.mount_all({"mounts": [["a", "/a", "9p", "ro", "0", "0"], ["b", "/b", "9p", "ro", "0", "0"]]})
    # Both are tried, and both said.
    assert [words[-1] for words in guest.ran() if words[0] == "mount"] == ["/a", "/b"]
    assert capfd.readouterr().err.count(" is not mounted: ") == 2


def test_a_user_who_is_not_there_is_made(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def getpwnam(name: str) -> Any:
        asked.append(name)
        if len(asked) == 1:
            raise KeyError(name)
        return Account()

    monkeypatch.setattr(pwd, "getpwnam", getpwnam)
    user = cidata.parsed(USER_DATA.format(user="me"))["users"][0]
    # Who has just been made has no password that would have to be locked.
    cidata.make_user({**user, "sudo": "ALL=(ALL) ALL"})
    options = ["--uid", "4711", "--home-dir", str(guest.path("/home/me.guest")), "--shell", "/bin/bash", "--user-group"]
    assert guest.ran() == [["useradd", "--create-home", "--comment", 'Me "and" I', *options, "me"]]
    assert guest.text("/etc/sudoers.d/90-lima-users") == "me ALL=(ALL) ALL\n"
    # Who was there is locked, unless a password is wanted.
    cidata.make_user(user)
    assert guest.ran() == [["passwd", "--quiet", "--lock", "me"]]
    cidata.make_user({**user, "lock_passwd": False})
    assert guest.ran() == []


def test_keys_that_a_user_added_stay(guest: Guest) -> None:
    guest.put("/home/me.guest/.ssh/authorized_keys", "ssh-rsa OWN\nssh-ed25519 AAAA lima")
    cidata.make_users(cidata.parsed(USER_DATA.format(user=getpass.getuser())))
    assert [line.split()[1] for line in guest.text("/home/me.guest/.ssh/authorized_keys").splitlines()] == [
        "OWN",
        "AAAA",
        "BBBB",
    ]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param("", id="empty"),
        pytest.param("users:\n- name: x\n", id="a user without a home"),
        pytest.param("mounts:\n- [a, /a]\n", id="half a mount"),
        pytest.param("write_files:\n- path: /x\n  content: y\n  permissions: 'rwx'\n", id="odd permissions"),
        pytest.param("ca_certs:\n", id="null"),
        pytest.param("timezone: ''\nbootcmd: []\nusers: []\n", id="lists of nothing"),
    ],
)
def test_odd_content_ends_no_boot(guest: Guest, data: str, capfd: pytest.CaptureFixture[str]) -> None:
    guest.put("/run/lima-kernels/cidata/user-data", f"#cloud-config\n{data}")
    succeeded = cidata.early()
    assert guest.text("/etc/hostname") == "lima-analysis\n"
    assert ["resize2fs", "/dev/vda"] in guest.ran()
    # Nothing fails without a word, and nothing is called done that failed.
    assert cidata.DONE.exists() is succeeded
    assert ("failed:" in capfd.readouterr().err) is not succeeded


def test_packages_are_brought_up_to_date_when_that_is_asked_for_only(guest: Guest) -> None:
    where = str(cidata.WHERE)
    assert cidata.late()
    assert guest.ran() == [["umount", where]]
    more = "package_update: true\npackage_upgrade: true\npackage_reboot_if_required: true\n"
    guest.put(f"{where}/user-data", f"{USER_DATA.format(user='me')}{more}")
    assert cidata.late()
    assert guest.ran() == [["apt-get", "-q", "update"], ["apt-get", "-q", "-y", "dist-upgrade"], ["umount", where]]
    guest.put("/run/reboot-required", "")
    guest.fails("apt-get")
    assert not cidata.late()
    # Lima's own boot script finds the medium free all the same.
    assert guest.ran() == [["apt-get", "-q", "update"], ["umount", where]]
    guest.fails("apt-get", does=False)
    assert cidata.late()
    assert ["systemctl", "reboot"] in guest.ran()
