"""OpenSSH's own client understands the server, and gets no further than the tests' own."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
from pathlib import Path

import pytest

from .peer import command


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The client's directory."""
    directory = tmp_path / "here"
    directory.mkdir()
    return directory


def sftp(shared: Path, here: Path, *lines: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run a batch of the client's commands; the first that fails ends it, unless it begins with a dash."""
    server = command(shared, *options)
    # -D takes words between spaces and knows no quotes.
    assert not any(set(word) & set(" '\"") for word in server)
    return subprocess.run(
        ["sftp", "-b", "-", "-D", " ".join(server)],
        input="".join(f"{line}\n" for line in lines),
        cwd=here,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def done(result: subprocess.CompletedProcess[str]) -> list[str]:
    """Return what a batch printed beside its own commands."""
    assert (result.returncode, result.stderr) == (0, "")
    return [line.strip() for line in result.stdout.splitlines() if not line.startswith("sftp>")]


def test_files_to_and_fro(shared: Path, here: Path) -> None:
    content = os.urandom(3_000_000)
    (here / "file").write_bytes(content)
    (here / "file").chmod(0o640)
    os.utime(here / "file", (1_000_000_000, 1_100_000_000))
    done(sftp(shared, here, "put -p file there", "get -p there back"))
    assert (shared / "there").read_bytes() == (here / "back").read_bytes() == content
    for path in (shared / "there", here / "back"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        assert path.stat().st_mtime == 1_100_000_000


def test_a_directory_tree_to_and_fro(shared: Path, here: Path) -> None:
    for number in range(30):
        directory = here / "tree" / str(number)
        directory.mkdir(parents=True)
        (directory / f"file {number}").write_bytes(os.urandom(number * 1000))
    done(sftp(shared, here, "put -R tree", "get -R tree again"))
    assert subprocess.run(["diff", "-r", "tree", "again"], cwd=here, check=False).returncode == 0


def test_its_commands(shared: Path, here: Path) -> None:
    (here / "file").write_text("content")
    printed = done(
        sftp(
            shared,
            here,
            "pwd",
            "mkdir directory",
            "cd directory",
            "pwd",
            "cd ../..",
            "pwd",
            "put file one",
            "rename one two",
            "ln two hard",
            "ln -s two soft",
            "chmod 600 two",
            "ls",
            "rm hard",
            "mkdir empty",
            "rmdir empty",
            "ls -1",
            "df",
        )
    )
    where = [line.removeprefix("Remote working directory: ") for line in printed if line.startswith("Remote")]
    assert where == ["/", "/directory", "/"]
    assert [line for line in printed if line in ("directory", "soft", "two", "hard")] == ["directory", "soft", "two"]
    assert stat.S_IMODE((shared / "two").stat().st_mode) == 0o600
    # The order of the two that OpenSSH and sshfs have, against the draft.
    assert os.readlink(shared / "soft") == "two"
    assert sorted(path.name for path in shared.iterdir()) == ["directory", "soft", "two"]


@pytest.mark.parametrize(
    "line",
    [
        "get /../secret",
        "get ../secret",
        "get link/secret",
        "get soft",
        "put file link/new",
        "put file soft",
        "rm link/secret",
        "ls link/secret",
        "rename inside link/inside",
        "ln link/secret stolen",
        "chmod 777 link/secret",
        "mkdir link/new",
        "rmdir link",
        "cd link",
    ],
    ids=shlex.split,
)
def test_it_gets_no_further(line: str, shared: Path, here: Path) -> None:
    secret = shared.parent / "secret"
    secret.write_text("secret")
    before = secret.stat()
    (shared / "link").symlink_to("..")
    (shared / "soft").symlink_to("../secret")
    (shared / "inside").touch()
    (here / "file").touch()
    result = sftp(shared, here, line)
    assert result.returncode == 1
    assert [path.name for path in here.iterdir()] == ["file"]
    assert {path.name for path in shared.parent.iterdir()} == {"shared", "here", "secret"}
    assert secret.stat() == before


def test_what_it_is_told(shared: Path, here: Path) -> None:
    (here / "file").touch()
    (shared / "full").mkdir()
    (shared / "full" / "file").touch()
    for line, message, options in (
        ("rm missing", "No such file or directory", ()),
        ("rmdir full", "Failure", ()),
        ("mkdir new", "Permission denied", ("--read-only",)),
        ("put file", "Permission denied", ("--read-only",)),
    ):
        assert message in sftp(shared, here, line, options=options).stderr
