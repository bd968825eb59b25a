"""What Lima's mount types can carry, held against those who read it there, and what they need of this host."""

from __future__ import annotations

import string
import sys
from pathlib import Path

import pytest
import yaml

from lima_kernels.errors import HostError
from lima_kernels.lima import mounting
from lima_kernels.lima.mounting import (
    MountType,
    check_helpers,
    default_mount_type,
    find_sftp_server,
    find_virtiofsd,
    transport_fault,
)

ODD = [
    *(f"/a{character}b" for character in string.punctuation if character != "/"),
    *(f"/a{character}" for character in string.punctuation if character != "/"),
    *("/a b", "/a  b", "/a ", "/a #b", "/a: b", "/a:b", "/a:", "/a - b", "/a \\b", "/ä/日本/🎉", "/a'b\"c"),
]


@pytest.mark.parametrize("point", ODD)
def test_what_cloud_init_reads_as_it_is_written_is_carried(point: str) -> None:
    # lima pkg/cidata/cidata.TEMPLATE.d/user-data
    try:
        read = yaml.safe_load(f'- [lima-0123456789abcdef, {point}, 9p, "rw,trans=virtio", "0", "0"]')
    except yaml.YAMLError:
        read = None
    comes_through = read == [["lima-0123456789abcdef", point, "9p", "rw,trans=virtio", "0", "0"]]
    # fstab(5) has the backslash for escapes of its own.
    carried = not transport_fault(MountType.VIRTIOFS, "/host", point)
    assert carried is (comes_through and "\\" not in point)


@pytest.mark.parametrize("mount_type", MountType)
@pytest.mark.parametrize("path", ["/a", "/a b", "/home/me/C++ & more", "/a=b", "/ä/日本/🎉", "/100%", "/it's", "/a;b"])
def test_ordinary_paths_are_carried_by_all(mount_type: MountType, path: str) -> None:
    assert transport_fault(mount_type, path, path) == ""


@pytest.mark.parametrize(
    ("mount_type", "location", "point", "why"),
    [
        (MountType.NINEP, "/a,b", "/data", "QEMU would take the ',' in it for the end of the path"),
        (MountType.NINEP, "/a,b", "/a,b", "QEMU would take the ',' in it for the end of the path"),
        (MountType.VIRTIOFS, "/a,b", "/data", ""),
        (MountType.VIRTIOFS, "/a,b", "/a,b", "cloud-init would stumble over the ',' in it"),
        (MountType.REVERSE_SSHFS, "/a,b[c]{d}: e #f", "/a,b[c]{d}: e #f", ""),
        (MountType.NINEP, "/a", "/b [1]", "cloud-init would stumble over the '[' in it"),
        (MountType.NINEP, "/a", "/b: c", "cloud-init would stumble over the ': ' in it"),
        (MountType.NINEP, "/a", "/b #c", "cloud-init would stumble over the ' #' in it"),
        (MountType.NINEP, "/a", "/b ", "cloud-init would stumble over the ' ' in it"),
        (MountType.NINEP, "/a", "{{.Home}}/b", ""),
        (MountType.NINEP, "/a", "{{.Home}}/{b}", "cloud-init would stumble over the '{' in it"),
        (MountType.REVERSE_SSHFS, "/a", "{{.Home}}/b", ""),
        (MountType.REVERSE_SSHFS, "/a$b", "/data", "its '$' would not come through the guest's shell"),
        (MountType.REVERSE_SSHFS, "/a", "/`b`", "its '`' would not come through the guest's shell"),
        (MountType.REVERSE_SSHFS, "/a\u00a0b", "/b", "its '\\xa0' would not come through the guest's shell"),
        (MountType.NINEP, "/a$b", "/a$b", ""),
        (MountType.NINEP, "/a\u00a0b", "/a\u00a0b", ""),
    ],
)
def test_what_a_mount_type_cannot_carry(mount_type: MountType, location: str, point: str, why: str) -> None:
    assert transport_fault(mount_type, location, point) == why


def test_the_mount_type_that_lima_takes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    assert default_mount_type(()) is MountType.NINEP
    assert default_mount_type(["9p"]) is MountType.REVERSE_SSHFS
    monkeypatch.setattr(sys, "platform", "darwin")
    assert default_mount_type(["9p"]) is MountType.VIRTIOFS


class Host:
    """Where a host keeps its descriptions of virtiofsd: in the home directory, and beside QEMU."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "home" / ".local" / "share" / "qemu" / "vhost-user"
        self.qemu = root / "prefix" / "share" / "qemu" / "vhost-user"
        for directory in (self.home, self.qemu, root / "prefix" / "bin"):
            directory.mkdir(parents=True)

    def program(self, name: str, text: str) -> Path:
        file = self.root / name
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)
        return file

    def describe(self, file: Path, binary: Path, kind: str = "fs") -> None:
        file.write_text(f'{{"description": "x", "type": "{kind}", "binary": "{binary}", "features": []}}')


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host(tmp_path)
    qemu = made.program("prefix/bin/qemu-system-x86_64", "exit 1")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("QEMU_SYSTEM_X86_64", f"{qemu} -machine q35")
    monkeypatch.setattr(mounting.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(sys, "platform", "linux")
    return made


async def test_virtiofsd_is_found_as_lima_finds_it(host: Host) -> None:
    old = host.program("old", '[ "$1" = --version ] && exit 1')
    new = host.program("new", '[ "$1" = --version ]')
    later = host.program("later", "exit 0")
    (host.home / "05-broken.json").write_text("{")
    (host.home / "06-list.json").write_text("[]")
    (host.home / "10.txt").write_text("{}")
    host.describe(host.home / "10-gpu.json", later, kind="gpu")
    host.describe(host.home / "20-gone.json", host.root / "gone")
    host.describe(host.home / "30-old.json", old)
    host.describe(host.qemu / "50-new.json", new)
    host.describe(host.qemu / "60-later.json", later)
    assert await find_virtiofsd() == new
    await check_helpers(MountType.VIRTIOFS)


async def test_the_one_in_the_home_directory_comes_first(host: Host) -> None:
    host.describe(host.qemu / "a.json", host.program("theirs", "exit 0"))
    mine = host.program("mine", "exit 0")
    host.describe(host.home / "z.json", mine)
    assert await find_virtiofsd() == mine


async def test_a_virtiofsd_that_does_not_answer_is_none(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounting, "_VIRTIOFSD_TIMEOUT", 0.2)
    host.describe(host.home / "a.json", host.program("stuck", "exec sleep 60"))
    after = host.program("after", "exit 0")
    host.describe(host.home / "b.json", after)
    assert await find_virtiofsd() == after


async def test_virtiofs_without_a_virtiofsd_is_refused_on_linux(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounting, "_vhost_user_directories", lambda: [host.home, host.qemu])
    host.describe(host.home / "a.json", host.program("old", "exit 1"))
    with pytest.raises(HostError) as caught:
        await check_helpers(MountType.VIRTIOFS)
    assert str(caught.value) == (
        "mountType virtiofs needs the virtiofsd that is written in Rust, and Lima would find none here. "
        "Install the package virtiofsd (QEMU's own one serves root only), or use mountType: 9p."
    )
    await check_helpers(MountType.NINEP)
    await check_helpers(MountType.REVERSE_SSHFS)


async def test_vz_needs_no_virtiofsd(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounting, "_vhost_user_directories", list)
    monkeypatch.setattr(sys, "platform", "darwin")
    await check_helpers(MountType.VIRTIOFS)


def test_an_sftp_server_on_the_path_comes_first(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    other = host.program("elsewhere", "exit 0")
    monkeypatch.setattr(mounting, "_SFTP_SERVERS", (str(host.root / "none"), str(other)))
    monkeypatch.setenv("PATH", "/nonexistent")
    assert find_sftp_server() == str(other)
    named = host.program("sftp-server", "exit 0")
    monkeypatch.setenv("PATH", str(host.root))
    assert find_sftp_server() == str(named)
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(mounting, "_SFTP_SERVERS", ())
    assert find_sftp_server() is None
