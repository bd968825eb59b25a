"""Which directory a VM is shown, and which never."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lima_kernels.environment.mounts import MountSpec
from lima_kernels.errors import MountError
from lima_kernels.guest.mounts import at_same_path, check_directory, covering, directory_to_share, holds
from lima_kernels.lima.models import Mount

HIDES = "at the same path it would hide the guest's own. Move the notebook into a directory of your own."


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path / "users" / "me"
    (made / "work" / "project").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(made))
    return made


def refusal(directory: Path) -> str:
    with pytest.raises(MountError) as caught:
        check_directory(directory)
    return str(caught.value)


def test_a_directory_of_ones_own_can_be_shown(tmp_path: Path) -> None:
    check_directory(tmp_path)


def test_a_missing_directory_cannot_be_shown(tmp_path: Path) -> None:
    directory = tmp_path / "none"
    assert refusal(directory) == f"The directory {directory} cannot be shown to the VM: it does not exist."


def test_a_file_cannot_be_shown(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert refusal(file) == f"The directory {file} cannot be shown to the VM: it is not a directory."


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("mode", [0o000, 0o400, 0o100])
def test_a_directory_that_one_may_not_read_cannot_be_shown(tmp_path: Path, mode: int) -> None:
    directory = tmp_path / "closed"
    directory.mkdir(mode=mode)
    said = refusal(directory)
    directory.chmod(0o700)
    assert said == f"The directory {directory} cannot be shown to the VM: you may not read it."


@pytest.mark.parametrize("name", ["/", "/usr", "/usr/bin", "/etc", "/home", "/tmp", "/var", "/var/tmp", "/opt", "/dev"])
def test_the_guests_own_directories_cannot_be_hidden(name: str) -> None:
    assert refusal(Path(name)) == f"The directory {name} cannot be shown to the VM: {HIDES}"


@pytest.mark.parametrize("name", ["/var/lib", "/var/log", "/var/cache"])
def test_what_the_guest_keeps_below_var_cannot_be_hidden(name: str) -> None:
    assert refusal(Path(name)) == f"The directory {name} cannot be shown to the VM: {HIDES}"


@pytest.mark.parametrize("name", ["//etc", "/usr/../etc", "/etc/", "/./etc", "//"])
def test_the_guests_own_directories_are_known_by_other_spellings(name: str) -> None:
    with pytest.raises(MountError) as caught:
        directory_to_share(Path(name), None)
    shown = "/" if name == "//" else "/etc"
    assert str(caught.value) == f"The directory {shown} cannot be shown to the VM: {HIDES}"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("a\nb", "it contains the control character '\\n'"),
        ("a{{b", "Lima would take the '{{' in it for a template"),
        ("a\udcffb", "it is not UTF-8"),
    ],
)
def test_a_name_that_lima_cannot_read_is_refused_in_one_line(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / name).mkdir()
    assert refusal(tmp_path / name) == (
        f"The directory {str(tmp_path / name)!r} cannot be shown to the VM: {why}. Rename it."
    )


def test_the_notebooks_directory_is_shown_without_a_server(home: Path) -> None:
    assert directory_to_share(home / "work" / "project", None) == home / "work" / "project"


def test_the_servers_root_is_shown_to_all_its_notebooks(home: Path) -> None:
    assert directory_to_share(home / "work" / "project", home / "work") == home / "work"
    assert directory_to_share(home / "work", home / "work") == home / "work"


@pytest.mark.parametrize("root", [".", "..", "../..", "/"])
def test_a_server_in_the_home_directory_or_above_shows_the_notebooks_directory_alone(home: Path, root: str) -> None:
    assert directory_to_share(home / "work", home / root) == home / "work"


def test_a_notebook_outside_the_servers_root_brings_its_own_directory(home: Path) -> None:
    other = home / "other"
    other.mkdir()
    assert directory_to_share(other, home / "work") == other


def test_a_name_that_begins_like_the_root_is_not_below_it(home: Path) -> None:
    other = home / "workshop"
    other.mkdir()
    assert directory_to_share(other, home / "work") == other


def test_the_path_is_made_absolute_and_keeps_links(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "link").symlink_to(home / "work")
    monkeypatch.chdir(home)
    assert directory_to_share(Path("link/../link/project"), None) == home / "link" / "project"


@pytest.mark.parametrize("cwd", [".", ".."])
@pytest.mark.parametrize("with_server", [True, False])
def test_all_of_home_is_not_shown_unasked(home: Path, cwd: str, with_server: bool) -> None:
    directory = Path(os.path.abspath(home / cwd))
    with pytest.raises(MountError) as caught:
        directory_to_share(home / cwd, directory if with_server else None)
    assert str(caught.value) == (
        f"The notebook lies directly in {directory}: showing that to the VM would show it all of your home directory. "
        "Move the notebook into a directory of its own, or list the directory under 'mounts' (writable: true) "
        "in an environment file."
    )


@pytest.mark.parametrize("as_server", [True, False])
def test_a_link_to_home_is_home(home: Path, tmp_path: Path, as_server: bool) -> None:
    link = tmp_path / "link"
    link.symlink_to(home)
    if as_server:
        assert directory_to_share(link / "work", link) == link / "work"
    else:
        with pytest.raises(MountError, match=f"lies directly in {link}: .* all of your home directory"):
            directory_to_share(link, None)


@pytest.mark.parametrize("above", [False, True])
def test_home_is_home_by_its_real_name_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, above: bool) -> None:
    real = tmp_path / "disk" / "me"
    (real / "work").mkdir(parents=True)
    (tmp_path / "home").symlink_to(real)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    root = real.parent if above else real
    assert directory_to_share(real / "work", root) == real / "work"
    with pytest.raises(MountError, match="all of your home directory"):
        directory_to_share(root, None)


def test_a_home_directory_that_is_not_there_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "gone"))
    (tmp_path / "work").mkdir()
    assert directory_to_share(tmp_path / "work", None) == tmp_path / "work"
    with pytest.raises(MountError, match="all of your home directory"):
        directory_to_share(tmp_path, None)


def test_a_server_in_a_system_directory_shows_the_notebooks_directory_alone(home: Path, tmp_path: Path) -> None:
    directory = tmp_path / "other"
    directory.mkdir()
    for root in ("//", "/", "/tmp", "//tmp/", "/tmp/."):
        assert directory_to_share(directory, Path(root)) == directory


def test_a_root_that_is_written_oddly_is_the_root(home: Path) -> None:
    for root in (f"{home}/work/", f"{home}/work/project/..", f"/{home}/work", f"{home}//work/."):
        assert directory_to_share(home / "work" / "project", Path(root)) == home / "work"


def test_a_link_to_a_system_directory_hides_nothing(home: Path) -> None:
    (home / "work" / "etc").symlink_to("/etc")
    assert directory_to_share(home / "work" / "etc", None) == home / "work" / "etc"


def test_a_link_out_of_the_root_brings_its_own_directory(home: Path, tmp_path: Path) -> None:
    (tmp_path / "big" / "data").mkdir(parents=True)
    (home / "work" / "link").symlink_to(tmp_path / "big")
    assert directory_to_share(home / "work" / "link" / "data", home / "work") == home / "work" / "link" / "data"
    # Where its end is mounted too, the link works in the guest.
    asked = [MountSpec(str(tmp_path / "big"), writable=True)]
    assert directory_to_share(home / "work" / "link" / "data", home / "work", asked) == home / "work"


def test_a_link_within_the_root_stays_in_it(home: Path) -> None:
    (home / "work" / "link").symlink_to("project")
    assert directory_to_share(home / "work" / "link", home / "work") == home / "work"


def test_what_the_environment_shows_comes_first(home: Path) -> None:
    asked = [
        MountSpec(str(home / "work"), "/elsewhere", writable=True),
        MountSpec(str(home / "work" / "project")),
        MountSpec(str(home), writable=True),
    ]
    assert directory_to_share(home / "work", home / "work", asked) == home
    assert directory_to_share(home, None, asked) == home
    with pytest.raises(MountError, match="all of your home directory"):
        directory_to_share(home, None, asked[:2])


def test_a_place_holds_what_really_lies_in_it(tmp_path: Path) -> None:
    (tmp_path / "place" / "deep").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "place" / "link").symlink_to(tmp_path / "out")
    (tmp_path / "by").symlink_to(tmp_path / "place")
    assert holds(tmp_path / "place", tmp_path / "place" / "deep")
    assert holds(tmp_path / "by", tmp_path / "by" / "deep")
    assert not holds(tmp_path / "place", tmp_path / "place" / "link")
    assert not holds(tmp_path / "place", tmp_path / "by" / "deep")


def test_a_missing_notebook_directory_is_refused_below_a_good_root(home: Path) -> None:
    with pytest.raises(MountError) as caught:
        directory_to_share(home / "work" / "gone", home / "work")
    assert str(caught.value) == (
        f"The directory {home / 'work' / 'gone'} cannot be shown to the VM: it does not exist."
    )


def test_only_writable_mounts_at_the_same_path_serve() -> None:
    mounts = [
        Mount("/a", "/a", writable=True),
        Mount("/b", "", writable=True),
        Mount("/c", "/c"),
        Mount("/d", "/elsewhere", writable=True),
    ]
    assert [mount.location for mount in at_same_path(mounts)] == ["/a", "/b"]


def test_tilde_is_the_home_directory(home: Path) -> None:
    assert at_same_path([Mount("~/work", str(home / "work"), writable=True)]) == [
        Mount(str(home / "work"), str(home / "work"), writable=True)
    ]


def test_a_directory_is_covered_by_the_mount_above_it() -> None:
    data = Mount("/data", "/data", writable=True)
    assert covering([Mount("/other", writable=True), data], Path("/data/deep/er")) == data
    assert covering([data], Path("/data")) == data


@pytest.mark.parametrize("directory", ["/", "/dat", "/database", "/other"])
def test_a_directory_elsewhere_is_not_covered(directory: str) -> None:
    assert covering([Mount("/data", "/data", writable=True)], Path(directory)) is None


def test_a_read_only_mount_covers_nothing() -> None:
    assert covering([Mount("/data", "/data")], Path("/data")) is None
