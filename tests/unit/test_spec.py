"""The environment file: what it may say, and the one line that says what is wrong and where."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from lima_kernels.environment.mounts import MountOptions, MountSpec, NinepCache, NinepOptions
from lima_kernels.environment.spec import (
    DEFAULT,
    Environment,
    ImageFiles,
    InitrdFile,
    KernelFile,
    ProvisionMode,
    ProvisionScript,
    load,
    parse,
)
from lima_kernels.errors import ConfigurationError
from lima_kernels.lima.mounting import MountType

KEYS = (
    "name, image, arch, cpus, memory, disk, mountType, mountInotify, mountOptions, mounts, apt, python, kernels, "
    "provision, files, ports, caCertificates, env"
)


def parsed(text: str, base: Path = Path("/base")) -> Environment:
    return parse(text, source="env.yaml", base=base)


def test_every_key_is_read() -> None:
    text = """
    image: debian-13
    cpus: 4
    memory: 8GiB
    disk: 50 GiB
    mountType: reverse-sshfs
    mountInotify: true
    mountOptions: {9p: {cache: none}}
    mounts:
      - location: /data
        mountPoint: /mnt/data
        writable: true
    apt: [graphviz, "libc6:arm64", "git=1:2.39.5-0+deb12u2"]
    python: ["polars>=1", "scikit-learn[benchmark] ; python_version > '3.9'"]
    provision:
      - script: echo hello
      - {script: echo you, mode: user}
    env: {A: "1", _B2: two}
    """
    assert parsed(text) == Environment(
        image="debian-13",
        cpus=4,
        memory="8GiB",
        disk="50 GiB",
        mount_type=MountType.REVERSE_SSHFS,
        mount_inotify=True,
        mount_options=MountOptions(ninep=NinepOptions(cache=NinepCache.NONE)),
        mounts=(MountSpec("/data", "/mnt/data", writable=True),),
        apt=("graphviz", "libc6:arm64", "git=1:2.39.5-0+deb12u2"),
        python=("polars>=1", "scikit-learn[benchmark] ; python_version > '3.9'"),
        provision=(ProvisionScript("echo hello"), ProvisionScript("echo you", ProvisionMode.USER)),
        env={"A": "1", "_B2": "two"},
    )


@pytest.mark.parametrize(
    "text", ["", "# nothing yet\n", "---\n", "{}", "null", "cpus:\nmemory: ~\nmountType: null\nmountInotify:\n"]
)
def test_an_empty_file_and_null_scalars_mean_the_defaults(text: str) -> None:
    assert parsed(text) == DEFAULT


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cpus: two", "expected int, got str at cpus."),
        ("cpus: true", "expected int, got bool at cpus."),
        ("cpus: 2.5", "expected int, got float at cpus."),
        ("memory: 4", "expected str, got int at memory."),
        ("disk: 2024-01-01", "expected str, got date at disk."),
        ("image: 3", "expected str | object, got int at image."),
        ("image: ~", "expected str | object, got null at image."),
        ("image: {kernel: {location: k}}", "object missing required field location at image."),
        ("image: {location: i, kernel: k}", "expected object, got str at image.kernel."),
        ("mountType: nfs", "invalid enum value 'nfs' at mountType. Choose one of: 9p, virtiofs, reverse-sshfs."),
        ("mounts: ~", "expected array, got null at mounts."),
        ("mounts: {location: a}", "expected array, got object at mounts."),
        ("mounts: [a]", "expected object, got str at mounts[0]."),
        ("mounts: [{location: a}, {writable: true}]", "object missing required field location at mounts[1]."),
        ("mounts: [{location: a, writable: 'yes'}]", "expected bool, got str at mounts[0].writable."),
        ("apt: git", "expected array, got str at apt."),
        ("apt: [git, 3]", "expected str, got int at apt[1]."),
        (
            "provision: [{script: x, mode: boot}]",
            "invalid enum value 'boot' at provision[0].mode. Choose one of: system, user.",
        ),
        ("provision: [{mode: user}]", "object missing required field script at provision[0]."),
        ("env: [A]", "expected object, got array at env."),
        ("env: {A: 1}", "expected str, got int at env[...]."),
    ],
)
def test_a_wrong_type_is_named_with_its_path(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parsed(text)
    assert str(caught.value) == f"env.yaml, line 1: {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("memroy: 4GiB", "unknown key 'memroy'. Did you mean 'memory'?"),
        ("mounttype: 9p", "unknown key 'mounttype'. Did you mean 'mountType'?"),
        ("mount_type: 9p", "unknown key 'mount_type'. Did you mean 'mountType'?"),
        ("zzz: 1", f"unknown key 'zzz'. Known: {KEYS}."),
        ("image: {location: a, kernle: b}", "unknown key 'image.kernle'. Did you mean 'kernel'?"),
        ("mounts: [{location: a, writeable: true}]", "unknown key 'mounts[0].writeable'. Did you mean 'writable'?"),
        (
            "mounts: [{zzz: 1}]",
            "unknown key 'mounts[0].zzz'. Known: location, mountPoint, writable, 9p, sshfs, virtiofs.",
        ),
        (
            "image: {location: a, kernel: {location: b, cmd: c}}",
            "unknown key 'image.kernel.cmd'. Did you mean 'cmdline'?",
        ),
        ("mountOptions: {nfs: {}}", "unknown key 'mountOptions.nfs'. Known: 9p, sshfs, virtiofs."),
        ("mounts: [{location: a, 9p: {msiz: b}}]", "unknown key 'mounts[0].9p.msiz'. Did you mean 'msize'?"),
        (
            "mountOptions: {sshfs: {zzz: 1}}",
            "unknown key 'mountOptions.sshfs.zzz'. Known: cache, followSymlinks, sftpDriver.",
        ),
        ("mountOptions: {virtiofs: {size: 1}}", "unknown key 'mountOptions.virtiofs.size'. Known: queueSize."),
        ("provision: [{script: a, mod: user}]", "unknown key 'provision[0].mod'. Did you mean 'mode'?"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parsed(text)
    assert str(caught.value) == f"env.yaml, line 1: {message}"


@pytest.mark.parametrize(("text", "path"), [("1: 2", "the top"), ("env: {on: x}", "env")])
def test_a_key_that_yaml_takes_for_something_else_is_named_with_its_path(text: str, path: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parsed(text)
    assert str(caught.value).endswith(f" at {path}.")
    assert "$" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "kind"), [("- image: debian-12\n", "list"), ("debian-12\n", "str"), ("3\n", "int"), ("false\n", "bool")]
)
def test_a_file_without_keys_is_refused(text: str, kind: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parsed(text)
    assert str(caught.value) == f"env.yaml: expected keys such as name, image, arch, cpus, got {kind}."


@pytest.mark.parametrize(
    ("text", "where", "problem"),
    [
        ("cpus: 2\nmemory: [1\n", "line 3, column 1", "expected ',' or ']', but got '<stream end>'"),
        ("cpus: 2\nmemory: a: b\n", "line 2, column 10", "mapping values are not allowed here"),
        ("cpus: 2\n\tmemory: 1\n", "line 2, column 1", "found character '\\t' that cannot start any token"),
        (
            "apt: !!python/object/apply:os.system [id]",
            "line 1, column 6",
            "could not determine a constructor for the tag 'tag:yaml.org,2002:python/object/apply:os.system'",
        ),
    ],
)
def test_what_is_no_yaml_is_named_with_line_and_column(text: str, where: str, problem: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parsed(text)
    assert str(caught.value) == f"env.yaml, {where}: not YAML: {problem}."


@pytest.mark.parametrize("text", ["disk: 2024-99-99", "cpus: !!int two", "image: \0", 'mounts: [{location: "a\\0b"}]'])
def test_whatever_else_yaml_chokes_on_is_one_line_that_names_the_file(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parsed(text)
    assert str(caught.value).startswith("env.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", ["4GiB", "512MiB", "4 GiB", "1.5TiB", "4GB", "100KB"])
def test_sizes_as_lima_writes_them_are_taken(size: str) -> None:
    environment = parsed(f"memory: {size}\ndisk: {size}")
    assert (environment.memory, environment.disk) == (size, size)


@pytest.mark.parametrize("size", ["4", "4G", "4gib", "GiB", "-1GiB", "4GiB extra", "", "4GiB\n"])
@pytest.mark.parametrize("key", ["memory", "disk"])
def test_other_sizes_are_refused(key: str, size: str) -> None:
    escaped = size.replace("\n", "\\n")
    with pytest.raises(ConfigurationError) as caught:
        parsed(f'{key}: "{escaped}"')
    assert str(caught.value) == f"env.yaml, line 1: expected a size such as 4GiB, got {size!r} at {key}."


@pytest.mark.parametrize("cpus", [0, -1])
def test_a_vm_has_at_least_one_cpu(cpus: int) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parsed(f"cpus: {cpus}")
    assert str(caught.value) == f"env.yaml, line 1: cpus must be at least 1, got {cpus} at cpus."


@pytest.mark.parametrize("name", ["a b", "-y", "--allow-unauthenticated", "x;reboot", "Git", "", "$(id)", "git\n"])
def test_apt_takes_the_names_of_packages_only(name: str) -> None:
    escaped = name.replace("\n", "\\n")
    with pytest.raises(ConfigurationError) as caught:
        parsed(f'apt: [git, "{escaped}"]')
    assert str(caught.value) == f"env.yaml, line 1: {name!r} is not the name of a Debian package at apt[1]."


@pytest.mark.parametrize("requirement", ["-r other.txt", "--index-url=http://x", "  -e .", "", " ", "a\nb"])
def test_python_takes_no_options_of_pip(requirement: str) -> None:
    escaped = requirement.replace("\n", "\\n")
    with pytest.raises(ConfigurationError) as caught:
        parsed(f'python: ["{escaped}"]')
    assert str(caught.value) == f"env.yaml, line 1: {requirement!r} is not a Python requirement at python[0]."


@pytest.mark.parametrize("name", ["1A", "A-B", "A B", "", "A=B", "A\n"])
def test_the_name_of_a_variable_is_checked(name: str) -> None:
    escaped = name.replace("\n", "\\n")
    with pytest.raises(ConfigurationError) as caught:
        parsed(f'env: {{"{escaped}": x}}')
    assert str(caught.value) == f"env.yaml, line 1: {name!r} is not the name of an environment variable at env."


def test_relative_paths_start_from_the_file(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    file = tmp_path / "conf" / "env.yaml"
    file.write_text(
        "mounts: [{location: ../data, mountPoint: /mnt/d}, {location: here}]\nimage: {location: disk.qcow2}\n"
    )
    environment = load(file)
    assert environment.mounts == (
        MountSpec(str(tmp_path / "data"), "/mnt/d"),
        MountSpec(str(tmp_path / "conf" / "here")),
    )
    assert environment.image == ImageFiles(str(tmp_path / "conf" / "disk.qcow2"))


def test_relative_paths_start_from_where_a_linked_file_really_is(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "env.yaml").write_text("mounts: [{location: data}]\n")
    (tmp_path / "env.yaml").symlink_to(tmp_path / "real" / "env.yaml")
    assert load(tmp_path / "env.yaml").mounts == (MountSpec(str(tmp_path / "real" / "data")),)


def test_the_kernel_and_initrd_of_an_image_are_resolved_too() -> None:
    text = "image: {location: /i/disk, kernel: {location: vmlinuz, cmdline: ro quiet}, initrd: {location: ../initrd}}"
    assert parsed(text).image == ImageFiles("/i/disk", KernelFile("/base/vmlinuz", "ro quiet"), InitrdFile("/initrd"))


def test_the_name_of_an_image_is_no_path() -> None:
    assert parsed("image: template:fedora").image == "template:fedora"


def test_tilde_and_variables_are_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/user")
    monkeypatch.setenv("DATA", "/srv/data")
    text = "mounts: [{location: ~/nb}, {location: '~'}, {location: $DATA/raw}, {location: '${DATA}'}]"
    locations = [mount.location for mount in parsed(text).mounts]
    assert locations == ["/home/user/nb", "/home/user", "/srv/data/raw", "/srv/data"]


def test_what_a_variable_holds_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "/srv/~$HOME")
    monkeypatch.setenv("TILDE", "~")
    assert [mount.location for mount in parsed("mounts: [{location: $DATA}, {location: $TILDE/a}]").mounts] == [
        "/srv/~$HOME",
        "/base/~/a",
    ]


def test_the_home_of_another_user_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    name = pwd.getpwuid(os.getuid()).pw_name
    monkeypatch.setenv("WHO", name)
    home = os.path.expanduser(f"~{name}")
    locations = [mount.location for mount in parsed(f"mounts: [{{location: ~{name}/a}}, {{location: ~$WHO/b}}]").mounts]
    assert locations == [f"{home}/a", f"{home}/b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mounts: [{location: a}, {location: $NOPE/b}]", "the variable NOPE in '$NOPE/b' at mounts[1].location"),
        ("mounts: [{location: '/a/${NOPE}b'}]", "the variable NOPE in '/a/${NOPE}b' at mounts[0].location"),
        ("mounts: [{location: $EMPTY/b}]", "the variable EMPTY in '$EMPTY/b' at mounts[0].location"),
        ("mounts: [{location: ~$EMPTY/b}]", "the variable EMPTY in '~$EMPTY/b' at mounts[0].location"),
        ("image: {location: $NOPE}", "the variable NOPE in '$NOPE' at image.location"),
        (
            "image: {location: a, kernel: {location: $NOPE}}",
            "the variable NOPE in '$NOPE' at image.kernel.location",
        ),
        (
            "image: {location: a, initrd: {location: $NOPE}}",
            "the variable NOPE in '$NOPE' at image.initrd.location",
        ),
    ],
)
def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    monkeypatch.delenv("NOPE", raising=False)
    monkeypatch.setenv("EMPTY", "")
    with pytest.raises(ConfigurationError) as caught:
        parsed(text)
    assert str(caught.value) == f"env.yaml, line 1: {message} is not set, or empty."


def test_a_user_who_is_unknown_is_named() -> None:
    with pytest.raises(ConfigurationError) as caught:
        parsed("mounts: [{location: ~no-such-user/a}]")
    assert str(caught.value) == (
        "env.yaml, line 1: there is no user 'no-such-user', whom '~no-such-user/a' at mounts[0].location names."
    )


@pytest.mark.parametrize("location", ["/a/b/", "//a/b", "/a//b", "/a/./b", "/a/c/../b", "../a/b"])
def test_a_path_is_written_in_one_way(location: str) -> None:
    assert parsed(f"mounts: [{{location: {location}}}]").mounts == (MountSpec("/a/b"),)


def test_a_link_stays_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert parsed("mounts: [{location: link}]", tmp_path).mounts == (MountSpec(str(tmp_path / "link")),)


def test_a_key_says_nothing_when_it_says_the_default() -> None:
    text = "image: debian-12\nmounts: []\nmountOptions: {}\nmountInotify:\nenv: {}\n"
    assert parsed(text).digest == DEFAULT.digest


def test_the_digest_tells_contents_apart_and_nothing_else() -> None:
    first = parsed("cpus: 2\nenv: {A: '1', B: '2'}")
    assert first.digest == parsed("env: {B: '2', A: '1'}\ncpus: 2").digest
    assert len({first.digest, DEFAULT.digest, parsed("cpus: 3").digest, parsed("python: [a]").digest}) == 4


def test_the_image_digest_changes_with_the_image_alone() -> None:
    assert parsed("cpus: 3\napt: [git]").image_digest == DEFAULT.image_digest
    assert parsed("image: other").image_digest != DEFAULT.image_digest


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path / "none.yaml")
    assert str(caught.value) == (
        f"The environment file {tmp_path / 'none.yaml'} cannot be read: No such file or directory."
    )


def test_a_directory_is_no_environment_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path)
    assert str(caught.value) == f"The environment file {tmp_path} cannot be read: Is a directory."


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "env.yaml"
    file.write_bytes(b"cpus: \xff\xfe")
    with pytest.raises(ConfigurationError) as caught:
        load(file)
    assert str(caught.value) == f"The environment file {file} cannot be read: it is not UTF-8 text."


def test_an_error_in_a_file_begins_with_its_path(tmp_path: Path) -> None:
    file = tmp_path / "env.yaml"
    file.write_text("cpus: many\n")
    with pytest.raises(ConfigurationError) as caught:
        load(file)
    assert str(caught.value) == f"{file}, line 1: expected int, got str at cpus."
