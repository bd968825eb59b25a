"""The mounts of an environment file: Lima's options for them, their places in the guest, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lima_kernels.environment.mounts import (
    MountOptions,
    MountSpec,
    NinepCache,
    NinepOptions,
    ProtocolVersion,
    SecurityModel,
    SftpDriver,
    SshfsOptions,
    VirtiofsOptions,
    overlaid,
)
from lima_kernels.environment.spec import Environment, parse
from lima_kernels.errors import ConfigurationError

HIDES = "would hide the guest's own"


def parsed(text: str) -> Environment:
    return parse(text, source="env.yaml", base=Path("/base"))


def refusal(text: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        parsed(text)
    line = str(caught.value)
    assert "\n" not in line
    return re.sub(r"^env\.yaml(, line \d+)?: ", "", line)


def test_every_option_of_lima_is_read() -> None:
    options = """
    9p: {securityModel: mapped-file, protocolVersion: 9p2000.u, msize: 1MiB, cache: loose}
    sshfs: {cache: false, followSymlinks: true, sftpDriver: builtin}
    virtiofs: {queueSize: 512}
    """
    every = MountOptions(
        ninep=NinepOptions(SecurityModel.MAPPED_FILE, ProtocolVersion.UNIX, "1MiB", NinepCache.LOOSE),
        sshfs=SshfsOptions(cache=False, follow_symlinks=True, sftp_driver=SftpDriver.BUILTIN),
        virtiofs=VirtiofsOptions(512),
    )
    environment = parsed(f"mountOptions:{options}\nmounts:\n  - location: /a{options}")
    assert environment.mount_options == every
    assert environment.mounts == (MountSpec("/a", ninep=every.ninep, sshfs=every.sshfs, virtiofs=every.virtiofs),)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("securityModel", ["passthrough", "mapped-xattr", "mapped-file", "none"]),
        ("protocolVersion", ["9p2000", "9p2000.u", "9p2000.L"]),
        ("cache", ["none", "loose", "fscache", "mmap"]),
        ("msize", ["4KiB", "128KiB", "512 KiB", "4MiB", "0.5MiB"]),
    ],
)
def test_every_value_of_9p_is_taken(key: str, values: list[str]) -> None:
    for value in values:
        parsed(f"mountOptions: {{9p: {{{key}: {value}}}}}")


@pytest.mark.parametrize("size", [2, 4, 256, 1024])
def test_queue_sizes_that_qemu_takes(size: int) -> None:
    assert parsed(f"mountOptions: {{virtiofs: {{queueSize: {size}}}}}").mount_options.virtiofs.queue_size == size


def test_null_leaves_an_option_to_lima() -> None:
    assert parsed("mountOptions: {9p: {cache: ~, msize:}, sshfs: {cache:}}").mount_options == MountOptions()


@pytest.mark.parametrize("where", ["mountOptions: {%s}", "mounts: [{location: /a, %s}]"])
@pytest.mark.parametrize(
    ("options", "message", "field"),
    [
        ("9p: none", "expected object, got str", "9p"),
        ("9p: ~", "expected object, got null", "9p"),
        ("9p: {cache: all}", "invalid enum value 'all'", "9p.cache"),
        ("9p: {cache: true}", "expected str, got bool", "9p.cache"),
        ("9p: {securityModel: mapped}", "invalid enum value 'mapped'", "9p.securityModel"),
        ("9p: {protocolVersion: 9P2000}", "invalid enum value '9P2000'", "9p.protocolVersion"),
        ("9p: {msize: 131072}", "expected str, got int", "9p.msize"),
        ("9p: {msize: big}", "expected a size from 4KiB to 4MiB, got 'big'", "9p.msize"),
        ("9p: {msize: 4095KiB2}", "expected a size from 4KiB to 4MiB, got '4095KiB2'", "9p.msize"),
        ("9p: {msize: 3KiB}", "expected a size from 4KiB to 4MiB, got '3KiB'", "9p.msize"),
        ("9p: {msize: 1GiB}", "expected a size from 4KiB to 4MiB, got '1GiB'", "9p.msize"),
        ("sshfs: {cache: loose}", "expected bool, got str", "sshfs.cache"),
        ("sshfs: {followSymlinks: 1}", "expected bool, got int", "sshfs.followSymlinks"),
        ("sshfs: {sftpDriver: openssh}", "invalid enum value 'openssh'", "sshfs.sftpDriver"),
        ("virtiofs: {queueSize: '64'}", "expected int, got str", "virtiofs.queueSize"),
        ("virtiofs: {queueSize: 1}", "expected a power of two from 2 to 1024, got 1", "virtiofs.queueSize"),
        ("virtiofs: {queueSize: 1000}", "expected a power of two from 2 to 1024, got 1000", "virtiofs.queueSize"),
        ("virtiofs: {queueSize: 2048}", "expected a power of two from 2 to 1024, got 2048", "virtiofs.queueSize"),
        ("virtiofs: {queueSize: -4}", "expected a power of two from 2 to 1024, got -4", "virtiofs.queueSize"),
    ],
)
def test_a_wrong_option_is_named_with_its_path(where: str, options: str, message: str, field: str) -> None:
    choices = {
        "9p.cache": "none, loose, fscache, mmap",
        "9p.securityModel": "passthrough, mapped-xattr, mapped-file, none",
        "9p.protocolVersion": "9p2000, 9p2000.u, 9p2000.L",
        "sshfs.sftpDriver": "builtin, openssh-sftp-server",
    }
    hint = f" Choose one of: {choices[field]}." if message.startswith("invalid enum") else ""
    parent = "mountOptions" if where.startswith("mountOptions") else "mounts[0]"
    assert refusal(where % options) == f"{message} at {parent}.{field}.{hint}"


@pytest.mark.parametrize("value", ["1", "'yes'", "[]"])
def test_inotify_is_asked_for_or_not(value: str) -> None:
    kind = {"1": "int", "'yes'": "str", "[]": "array"}[value]
    assert refusal(f"mountInotify: {value}") == f"expected bool, got {kind} at mountInotify."


@pytest.mark.parametrize(
    ("mount_type", "options", "key"),
    [
        ("9p", "sshfs: {cache: false}", "sshfs"),
        ("9p", "virtiofs: {queueSize: 64}", "virtiofs"),
        ("virtiofs", "9p: {cache: none}", "9p"),
        ("reverse-sshfs", "9p: {cache: none}", "9p"),
    ],
)
def test_a_mounts_own_options_for_another_type_are_a_mistake(mount_type: str, options: str, key: str) -> None:
    assert refusal(f"mountType: {mount_type}\nmounts: [{{location: /a, {options}}}]") == (
        f"mounts[0].{key} says nothing to mountType {mount_type}. "
        "Take it out; under mountOptions it may stand for hosts with another mountType."
    )


def test_options_for_all_mounts_may_serve_other_hosts_too() -> None:
    parsed("mountType: 9p\nmountOptions: {sshfs: {cache: false}, virtiofs: {queueSize: 64}}")
    parsed("mounts: [{location: /a, sshfs: {cache: false}, 9p: {cache: none}}]")


def test_options_are_overlaid_field_by_field() -> None:
    below = MountOptions(
        ninep=NinepOptions(msize="1MiB", cache=NinepCache.NONE), sshfs=SshfsOptions(cache=True, follow_symlinks=True)
    )
    above = MountSpec("/a", ninep=NinepOptions(cache=NinepCache.MMAP), sshfs=SshfsOptions(cache=False))
    assert overlaid(below, above) == MountOptions(
        ninep=NinepOptions(msize="1MiB", cache=NinepCache.MMAP), sshfs=SshfsOptions(cache=False, follow_symlinks=True)
    )


# Places in the guest.


@pytest.mark.parametrize(
    "point",
    [
        "/data",
        "/mnt/data",
        "/home/other",
        "/tmp/a",
        "/var/lib/data",
        "/srv/a b",
        "{{.Home}}/data",
        "/x/{{.User}}/{{.UID}}",
    ],
)
def test_a_mount_point_may_be_there(point: str) -> None:
    assert parsed(f"mounts: [{{location: /a, mountPoint: '{point}'}}]").mounts == (MountSpec("/a", point),)


@pytest.mark.parametrize(
    ("written", "point"),
    [("/data/", "/data"), ("//data", "/data"), ("/a/../data", "/data"), ("{{ .Home }}//d", "{{.Home}}/d")],
)
def test_a_mount_point_is_written_in_one_way(written: str, point: str) -> None:
    assert parsed(f"mounts: [{{location: /a, mountPoint: '{written}'}}]").mounts == (MountSpec("/a", point),)


@pytest.mark.parametrize(
    ("point", "why"),
    [
        ("~", "'~' is not known there; write {{.Home}} for the guest's home directory"),
        ("~/data", "'~' is not known there; write {{.Home}} for the guest's home directory"),
        ("data", "it is no absolute path"),
        ("../data", "it is no absolute path"),
        ("$HOME/data", "it is no absolute path"),
        ("{{.User}}", "it is no absolute path"),
        (
            "/a/{{.Param.x}}",
            "of templates it may have {{.Home}}, {{.Name}}, {{.Hostname}}, {{.UID}} and {{.User}}",
        ),
        ("{{.Dir}}/a", "of templates it may have {{.Home}}, {{.Name}}, {{.Hostname}}, {{.UID}} and {{.User}}"),
        ("/a\nb", "it contains the control character '\\n'"),
        ("/a\u2028b", "it contains the control character '\\u2028'"),
        ("/a\udc80", "it is not UTF-8"),
    ],
)
def test_a_mount_point_that_is_none(point: str, why: str) -> None:
    quoted = point.replace("\n", "\\n").replace("\u2028", "\\L").replace("\udc80", "\\uDC80")
    message = refusal(f'mounts: [{{location: /a}}, {{location: /b, mountPoint: "{quoted}"}}]')
    assert message == f"{point!r} at mounts[1].mountPoint cannot be one: {why}."


@pytest.mark.parametrize(
    "point",
    [
        *("/", "/bin", "/usr", "/usr/share/x", "/etc", "/etc/ssh", "/home", "/root", "/tmp", "/var", "/var/lib"),
        *("/run/x", "/dev/shm", "/mnt", "/mnt/lima-cidata", "/opt", "/opt/lima-kernels/venv", "/proc", "/lib/x"),
        *("{{.Home}}", "{{.Home}}/.ssh", "{{.Home}}/.lima-kernels/x", "/home/{{.User}}.guest"),
    ],
)
def test_the_guests_own_directories_are_not_hidden(point: str) -> None:
    assert refusal(f"mounts: [{{location: /a, mountPoint: '{point}'}}]") == (
        f"{point!r} at mounts[0].mountPoint {HIDES}."
    )


def test_a_way_round_to_the_guests_own_directories_is_seen() -> None:
    assert refusal("mounts: [{location: /a, mountPoint: /data/../etc/}]") == f"'/etc' at mounts[0].mountPoint {HIDES}."
    assert refusal("mounts: [{location: /a, mountPoint: //etc}]") == f"'/etc' at mounts[0].mountPoint {HIDES}."


@pytest.mark.parametrize("location", ["/etc", "/usr/share", "/tmp", "/run/media/me/disk"])
def test_a_location_without_a_mount_point_is_one_too(location: str) -> None:
    assert refusal(f"mounts: [{{location: {location}}}]") == (
        f"{location!r} at mounts[0].location {HIDES} at the same path. Give it a mountPoint, such as /data."
    )
    parsed(f"mounts: [{{location: {location}, mountPoint: /data}}]")


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("/a{{b", "Lima would take the '{{' in it for a template"),
        ("/{{.Home}}", "Lima would take the '{{' in it for a template"),
        ("/a\nb", "it contains the control character '\\n'"),
        ("/a\tb", "it contains the control character '\\t'"),
        ("/a\udc80", "it is not UTF-8"),
    ],
)
def test_a_location_that_lima_cannot_read(location: str, why: str) -> None:
    quoted = location.replace("\n", "\\n").replace("\t", "\\t").replace("\udc80", "\\uDC80")
    assert refusal(f'mounts: [{{location: "{quoted}", mountPoint: /data}}]') == (
        f"{location!r} at mounts[0].location cannot be mounted: {why}. Rename the directory."
    )


@pytest.mark.parametrize(
    ("mounts", "message"),
    [
        (
            "{location: /a}, {location: /a, writable: true}",
            "'/a' at mounts[1].location is taken by mounts[0].location.",
        ),
        (
            "{location: /a, mountPoint: /m}, {location: /b}, {location: /c, mountPoint: /m/}",
            "'/m' at mounts[2].mountPoint is taken by mounts[0].mountPoint.",
        ),
        (
            "{location: /a}, {location: /b, mountPoint: /x/../a}",
            "'/a' at mounts[1].mountPoint is taken by mounts[0].location.",
        ),
        (
            "{location: /a, mountPoint: '{{.Home}}/a'}, {location: /b, mountPoint: '{{ .Home }}/a'}",
            "'{{.Home}}/a' at mounts[1].mountPoint is taken by mounts[0].mountPoint.",
        ),
    ],
)
def test_two_mounts_at_one_place_are_refused(mounts: str, message: str) -> None:
    assert refusal(f"mounts: [{mounts}]") == f"{message} Change its mountPoint."


def test_one_directory_at_two_places_is_fine() -> None:
    parsed("mounts: [{location: /a}, {location: /a, mountPoint: /b}, {location: /a, mountPoint: /c}]")


@pytest.mark.parametrize(
    ("mount", "is_workplace"),
    [
        (MountSpec("/a", writable=True), True),
        (MountSpec("/a", "/a", writable=True), True),
        (MountSpec("/a"), False),
        (MountSpec("/a", "/b", writable=True), False),
    ],
)
def test_a_notebook_works_where_it_can_write_at_its_own_path(mount: MountSpec, is_workplace: bool) -> None:
    assert mount.is_workplace is is_workplace
