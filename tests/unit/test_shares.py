"""What of the host an instance shows: the order of its mounts, their options, and what this host cannot show."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from lima_kernels.environment import directories, shares
from lima_kernels.environment.mounts import MountOptions, NinepCache, NinepOptions
from lima_kernels.environment.shares import check, mount_entry, mount_type_of, put_together, still_there
from lima_kernels.environment.spec import DEFAULT, Environment, parse
from lima_kernels.errors import ConfigurationError, HostError, MountError
from lima_kernels.lima import mounting
from lima_kernels.lima.mounting import MountType


def parsed(text: str, base: Path = Path("/base")) -> Environment:
    return parse(text, source="env.yaml", base=base)


def entries(environment: Environment, *notebooks: str | Path) -> list[dict[str, Any]]:
    return [mount_entry(share) for share in put_together(environment, [Path(path) for path in notebooks])]


def places(environment: Environment, *notebooks: str) -> list[str]:
    return [str(share.place) for share in put_together(environment, [Path(path) for path in notebooks])]


def test_nothing_is_shown_unasked() -> None:
    assert entries(DEFAULT) == []


def test_a_notebooks_directory_is_written_in_limas_words() -> None:
    assert entries(DEFAULT, "/nb") == [{"location": "/nb", "writable": True, "9p": {"msize": "500KiB"}}]


def test_every_option_is_written_in_limas_words() -> None:
    text = """
    mountOptions:
      9p: {securityModel: mapped-xattr, protocolVersion: 9p2000.L, msize: 512KiB, cache: mmap}
      sshfs: {cache: false, followSymlinks: true, sftpDriver: builtin}
      virtiofs: {queueSize: 512}
    """
    every = {
        "9p": {"securityModel": "mapped-xattr", "protocolVersion": "9p2000.L", "msize": "512KiB", "cache": "mmap"},
        "sshfs": {"cache": False, "followSymlinks": True, "sftpDriver": "builtin"},
        "virtiofs": {"queueSize": 512},
    }
    assert entries(parsed(text), "/nb") == [{"location": "/nb", "writable": True, **every}]


def test_a_mounts_own_options_come_before_those_for_all() -> None:
    text = """
    mountOptions: {9p: {msize: 512KiB, cache: none}, sshfs: {cache: false}}
    mounts:
      - {location: /data, mountPoint: "{{.Home}}/d", 9p: {cache: mmap, securityModel: none}}
    """
    assert entries(parsed(text)) == [
        {
            "location": "/data",
            "writable": False,
            "mountPoint": "{{.Home}}/d",
            "9p": {"securityModel": "none", "msize": "512KiB", "cache": "mmap"},
            "sshfs": {"cache": False},
        }
    ]


def test_our_own_defaults_hold_for_notebooks_where_the_environment_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = MountOptions(ninep=NinepOptions(msize="1MiB", cache=NinepCache.LOOSE))
    monkeypatch.setattr(shares, "DEFAULT_OPTIONS", ours)
    environment = parsed("mountOptions: {9p: {cache: none}}\nmounts: [{location: /data}]")
    assert entries(environment, "/nb") == [
        {"location": "/nb", "writable": True, "9p": {"msize": "1MiB", "cache": "none"}},
        {"location": "/data", "writable": False, "9p": {"cache": "none"}},
    ]


def test_a_mount_comes_before_those_that_lie_in_it() -> None:
    environment = parsed(
        "mounts: [{location: /a, mountPoint: /data/x/y}, {location: /b, mountPoint: /data}, "
        "{location: /c, mountPoint: /data/x}, {location: /d, mountPoint: '{{.Home}}/d/e'}, "
        "{location: /e, mountPoint: '{{.Home}}/d'}]"
    )
    found = places(environment, "/data/x/y/z", "/nb")
    assert sorted(found) == sorted([*(mount.guest_path for mount in environment.mounts), "/data/x/y/z", "/nb"])
    for outer, inner in (
        ("/data", "/data/x"),
        ("/data/x", "/data/x/y"),
        ("/data/x/y", "/data/x/y/z"),
        ("{{.Home}}/d", "{{.Home}}/d/e"),
    ):
        assert found.index(outer) < found.index(inner)


def test_what_the_environment_shows_a_notebook_is_not_shown_twice() -> None:
    environment = parsed("mounts: [{location: /work, writable: true}]")
    assert places(environment, "/work", "/work/deep", "/nb", "/nb") == ["/nb", "/work"]


def test_a_mount_that_is_elsewhere_in_the_guest_serves_no_notebook() -> None:
    environment = parsed("mounts: [{location: /work, mountPoint: /w, writable: true}]")
    assert places(environment, "/work") == ["/work", "/w"]


def test_a_notebook_in_a_directory_that_is_mounted_read_only_is_refused() -> None:
    with pytest.raises(MountError) as caught:
        put_together(parsed("mounts: [{location: /a}, {location: /work}]"), [Path("/work")])
    assert str(caught.value) == (
        "The directory /work (mounts[1].location in the environment file) is mounted read-only, and a notebook lies "
        "in it. Add writable: true to it, or keep the notebook elsewhere."
    )


def test_a_mount_where_the_notebook_has_to_be_is_refused() -> None:
    with pytest.raises(MountError) as caught:
        put_together(parsed("mounts: [{location: /data, mountPoint: /work}]"), [Path("/work")])
    assert str(caught.value) == (
        "The directory /data (mounts[0].mountPoint in the environment file) is mounted at /work, where the notebook's "
        "directory has to be. Give it another mountPoint."
    )


async def checked(environment: Environment, *notebooks: Path, mount_type: MountType = MountType.NINEP) -> str:
    """Return why this host cannot show it, or an empty string."""
    try:
        await check(put_together(environment, notebooks), mount_type)
    except (MountError, HostError) as error:
        line = str(error)
        assert "\n" not in line
        return line
    return ""


async def test_what_is_there_can_be_shown(tmp_path: Path) -> None:
    for name in ("nb", "data", "data/raw", "a b"):
        (tmp_path / name).mkdir()
    environment = parsed(
        "mounts: [{location: data, mountPoint: /data, writable: true}, {location: 'a b', mountPoint: /data/raw}]",
        tmp_path,
    )
    assert await checked(environment, tmp_path / "nb") == ""


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")
@pytest.mark.parametrize(
    ("make", "writable", "why"),
    [
        (lambda path: None, False, "it does not exist"),
        (lambda path: path.touch(), False, "it is not a directory"),
        (lambda path: path.symlink_to("nowhere"), False, "it does not exist"),
        (lambda path: path.mkdir(mode=0o300), False, "you may not read it"),
        (lambda path: path.mkdir(mode=0o500), True, "you may not write to it, and it is to be writable"),
    ],
)
async def test_a_directory_that_cannot_be_shown_is_named_with_its_field(
    tmp_path: Path, make: Any, writable: bool, why: str
) -> None:
    (tmp_path / "good").mkdir()
    make(tmp_path / "bad")
    text = f"mounts: [{{location: good}}, {{location: bad, mountPoint: /data, writable: {str(writable).lower()}}}]"
    assert await checked(parsed(text, tmp_path)) == (
        f"The directory {tmp_path}/bad (mounts[1].mountPoint in the environment file) cannot be shown to the VM: {why}."
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")
async def test_a_notebook_may_lie_in_a_directory_that_one_may_only_read(tmp_path: Path) -> None:
    (tmp_path / "nb").mkdir(mode=0o500)
    assert await checked(DEFAULT, tmp_path / "nb") == ""


async def test_a_drive_that_is_gone_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shell = tmp_path / "shell"
    shell.write_text("#!/bin/sh\nexec sleep 60\n")
    shell.chmod(0o755)
    monkeypatch.setattr(directories, "SHELL", str(shell))
    monkeypatch.setattr(directories, "LIMIT", 0.2)
    assert await checked(DEFAULT, tmp_path) == (
        f"The directory {tmp_path} cannot be shown to the VM: "
        "it did not answer within 0 s (is it on a network drive that is gone?)."
    )


@pytest.mark.parametrize(
    ("mount_type", "name", "why", "use"),
    [
        (
            MountType.NINEP,
            "a,b",
            "QEMU would take the ',' in it for the end of the path",
            "mountType: reverse-sshfs",
        ),
        (MountType.VIRTIOFS, "a[b", "cloud-init would stumble over the '[' in it", "mountType: reverse-sshfs"),
        (MountType.REVERSE_SSHFS, "a$b", "its '$' would not come through the guest's shell", "another mountType"),
    ],
)
async def test_a_name_that_a_mount_type_cannot_carry(
    tmp_path: Path, mount_type: MountType, name: str, why: str, use: str
) -> None:
    (tmp_path / name).mkdir()
    assert await checked(DEFAULT, tmp_path / name, mount_type=mount_type) == (
        f"The directory {tmp_path / name} cannot be shown to the VM by {mount_type.value}: {why}. "
        f"Rename the directory, or use {use} in the environment file."
    )


async def test_a_mount_in_another_needs_a_directory_there(tmp_path: Path) -> None:
    (tmp_path / "outer").mkdir()
    (tmp_path / "inner").mkdir()
    environment = parsed(
        "mounts: [{location: outer, mountPoint: /data}, {location: inner, mountPoint: /data/in/it}]", tmp_path
    )
    assert await checked(environment) == (
        f"The directory {tmp_path}/inner (mounts[1].mountPoint in the environment file) cannot be mounted at "
        f"/data/in/it, which lies in {tmp_path}/outer: the directory {tmp_path}/outer/in/it is needed for that, "
        "but it does not exist. Make it, or choose another mountPoint."
    )
    (tmp_path / "outer" / "in" / "it").mkdir(parents=True)
    assert await checked(environment) == ""


async def test_a_mount_behind_a_link_that_leads_out_of_another_is_refused(tmp_path: Path) -> None:
    for name in ("root", "big/data"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "root" / "link").symlink_to(tmp_path / "big")
    notebook = tmp_path / "root" / "link" / "data"
    assert await checked(DEFAULT, tmp_path / "root", notebook) == (
        f"The directory {notebook} cannot be mounted at {notebook}: the link {notebook} leads out of {tmp_path}/root, "
        "which the VM shows, and so to nowhere in the guest. "
        f"List {tmp_path}/big/data under 'mounts' (writable: true) in an environment file."
    )


async def test_openssh_serves_only_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounting, "_SFTP_SERVERS", ())
    monkeypatch.setenv("PATH", "/nonexistent")
    environment = parsed(
        "mounts: [{location: ., mountPoint: /data, sshfs: {sftpDriver: openssh-sftp-server}}]", tmp_path
    )
    assert await checked(environment, mount_type=MountType.REVERSE_SSHFS) == (
        f"The directory {tmp_path} (mounts[0].mountPoint in the environment file) is to be served by "
        "openssh-sftp-server, which was not found. "
        "Install it (openssh-sftp-server on Debian), or leave sshfs.sftpDriver out."
    )
    assert await checked(environment, mount_type=MountType.NINEP) == ""
    assert await checked(DEFAULT, tmp_path, mount_type=MountType.REVERSE_SSHFS) == ""


async def test_earlier_notebooks_directories_stay_while_they_are_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("kept", "taken"):
        (tmp_path / name).mkdir()
    environment = parsed("mounts: [{location: taken}]", tmp_path)
    before = [tmp_path / name for name in ("kept", "taken", "gone")]
    assert await still_there(before, environment) == [tmp_path / "kept"]
    assert caplog.messages == [f"The VM does not show {tmp_path}/gone any longer: it does not exist."]


def test_the_mount_type_is_what_was_asked_for_or_limas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    assert mount_type_of(DEFAULT, ()) is MountType.NINEP
    assert mount_type_of(DEFAULT, ["9p"]) is MountType.REVERSE_SSHFS
    assert mount_type_of(parsed("mountType: virtiofs"), ["9p"]) is MountType.VIRTIOFS


def test_a_mount_type_that_the_templates_kernel_does_not_know_is_refused() -> None:
    with pytest.raises(ConfigurationError) as caught:
        mount_type_of(parsed("image: debian-13\nmountType: 9p"), ["9p"])
    assert str(caught.value) == (
        "Lima's template 'debian-13' cannot mount by 9p. "
        "Its kernel does not know it; use mountType: virtiofs or reverse-sshfs, or another image."
    )
