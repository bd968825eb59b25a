"""Copies to and from a guest: whole or not at all, as they were, and nothing that a guest sends leads astray."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from lima_kernels.errors import ConfigurationError, ConnectionFailed, GuestError, HostError, LimaKernelsError
from lima_kernels.guest.archive import Unpacker
from lima_kernels.guest.connection import Connection
from lima_kernels.guest.copying import Copied, CopyProgress
from lima_kernels.guest.download import download
from lima_kernels.guest.upload import upload
from tests.sshd import Sshd, connected, running

LIMIT = 60.0
NASTY = [
    "plain.txt",
    "-leading dash",
    "--force",
    "new\nline",
    'it\'s "quoted" $HOME `id`',
    "grüße 日本語",
    "back\\slash",
    "*",
    " spaces ",
    "x" * 200,
]


@pytest.fixture
async def connection(sshd: Sshd) -> AsyncIterator[Connection]:
    async with connected(sshd) as made:
        yield made


@pytest.fixture
def here(tmp_path: Path) -> Path:
    made = tmp_path / "here"
    made.mkdir()
    return made


def nothing(_progress: CopyProgress) -> None:
    """Nobody looks."""


class Ways:
    """The same copy in either direction: both ends are this machine's."""

    def __init__(self, connection: Connection, way: str) -> None:
        self._connection = connection
        self.is_upload = way == "upload"

    async def copy(
        self, *sources: Path | str, to: Path | str, force: bool = False, on_progress: Callable[..., None] = nothing
    ) -> list[Copied]:
        async with asyncio.timeout(LIMIT):
            if self.is_upload:
                paths = [Path(source) for source in sources]
                return await upload(self._connection, paths, str(to), force=force, on_progress=on_progress)
            return await download(
                self._connection, list(map(str, sources)), str(to), force=force, on_progress=on_progress
            )

    async def refusal(self, *sources: Path | str, to: Path | str, force: bool = False) -> str:
        with pytest.raises(LimaKernelsError) as caught:
            await self.copy(*sources, to=to, force=force)
        assert isinstance(caught.value, GuestError | HostError)
        assert "\n" not in str(caught.value)
        return str(caught.value)


@pytest.fixture(params=["upload", "download"])
def ways(request: pytest.FixtureRequest, connection: Connection) -> Ways:
    return Ways(connection, request.param)


def tree(root: Path) -> dict[str, tuple[str, int, int, bytes]]:
    """All below a directory: kind, mode, time in seconds, content or link."""
    found = {}
    for path in sorted([root, *root.rglob("*")]):
        entry = path.lstat()
        kind = stat.S_IFMT(entry.st_mode)
        content = os.fsencode(os.readlink(path)) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        name = "." if path == root else str(path.relative_to(root))
        mode = 0 if path.is_symlink() else stat.S_IMODE(entry.st_mode)
        found[name] = (str(kind), mode, int(entry.st_mtime), content)
    return found


def plant(root: Path) -> None:
    """A tree with all that may come in one, read-only things and dangling links included."""
    (root / "empty").mkdir(parents=True)
    deep = root / "a" / "b" / "c"
    deep.mkdir(parents=True)
    (deep / "data.bin").write_bytes(os.urandom(300_000))
    for number, name in enumerate(NASTY):
        (root / name).write_text(name)
        os.utime(root / name, (1_000_000_000 + number, 1_000_000_000 + number))
    (root / "script").write_text("#!/bin/sh\n")
    (root / "script").chmod(0o755)
    (root / "secret").write_text("x")
    (root / "secret").chmod(0o600)
    (root / "inner link").symlink_to("a/b")
    (root / "outer link").symlink_to("/etc")
    (root / "dangling").symlink_to("../no/such")
    (root / "second name").hardlink_to(deep / "data.bin")
    closed = root / "closed"
    closed.mkdir()
    (closed / "file").write_text("in")
    closed.chmod(0o555)
    for path in (deep, root / "a", root):
        os.utime(path, (1_100_000_000, 1_100_000_000))


def leftovers(*directories: Path) -> list[str]:
    return [str(path) for directory in directories for path in directory.rglob(".lima-kernels-copy*")]


# What arrives


@pytest.mark.parametrize("name", NASTY)
async def test_a_file_arrives_as_it_was(ways: Ways, sshd: Sshd, here: Path, name: str) -> None:
    source = here / name
    source.write_bytes(os.urandom(100_000))
    source.chmod(0o640)
    os.utime(source, (1_234_567_890, 1_234_567_890))
    assert await ways.copy(source, to=sshd.home) == [Copied(100_000)]
    target = sshd.home / name
    assert target.read_bytes() == source.read_bytes()
    assert (target.stat().st_mode & 0o777, int(target.stat().st_mtime)) == (0o640, 1_234_567_890)
    other = sshd.home / f"other {name}"[:250]
    await ways.copy(source, to=other)
    assert other.read_bytes() == source.read_bytes()
    assert leftovers(sshd.home, here) == []


async def test_a_directory_arrives_as_it_was(ways: Ways, sshd: Sshd, here: Path) -> None:
    source = here / "tree"
    plant(source)
    [copied] = await ways.copy(source, to=sshd.home)
    assert tree(sshd.home / "tree") == tree(source)
    # The second name of a file is no second copy.
    assert (sshd.home / "tree" / "second name").stat().st_nlink == 2
    assert copied.left_out == ()
    await ways.copy(source, to=sshd.home / "under another name")
    assert tree(sshd.home / "under another name") == tree(source)
    assert leftovers(sshd.home, here) == []


async def test_an_empty_file_and_an_empty_directory(ways: Ways, sshd: Sshd, here: Path) -> None:
    (here / "file").touch()
    (here / "directory").mkdir()
    assert await ways.copy(here / "file", here / "directory", to=sshd.home) == [Copied(0), Copied(0)]
    assert (sshd.home / "file").read_bytes() == b""
    assert list((sshd.home / "directory").iterdir()) == []


async def test_a_name_that_is_no_text(ways: Ways, sshd: Sshd, here: Path) -> None:
    source = here / "tree"
    source.mkdir()
    (source / os.fsdecode(b"latin-1 \xfc\xff")).write_text("x")
    await ways.copy(source, to=sshd.home)
    assert os.listdir(os.fsencode(sshd.home / "tree")) == [b"latin-1 \xfc\xff"]


async def test_a_link_that_is_named_is_followed(ways: Ways, sshd: Sshd, here: Path) -> None:
    (here / "file").write_text("content")
    (here / "directory").mkdir()
    (here / "directory" / "inner").write_text("inner")
    (here / "to file").symlink_to("file")
    (here / "to directory").symlink_to("directory")
    await ways.copy(here / "to file", here / "to directory", to=sshd.home)
    assert not (sshd.home / "to file").is_symlink()
    assert (sshd.home / "to file").read_text() == "content"
    assert not (sshd.home / "to directory").is_symlink()
    assert (sshd.home / "to directory" / "inner").read_text() == "inner"


async def test_links_out_of_the_tree_stay_links(ways: Ways, sshd: Sshd, here: Path) -> None:
    outside = here / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    source = here / "tree"
    source.mkdir()
    (source / "out").symlink_to("../outside")
    [copied] = await ways.copy(source, to=sshd.home)
    assert os.readlink(sshd.home / "tree" / "out") == "../outside"
    assert copied.size == 0


async def test_what_is_no_file_is_left_out(ways: Ways, sshd: Sshd, here: Path) -> None:
    source = here / "tree"
    source.mkdir()
    os.mkfifo(source / "pipe")
    (source / "file").write_text("x")
    [copied] = await ways.copy(source, to=sshd.home)
    assert copied.left_out == ("pipe",)
    assert [path.name for path in (sshd.home / "tree").iterdir()] == ["file"]


async def test_progress(ways: Ways, sshd: Sshd, here: Path) -> None:
    source = here / "big"
    source.write_bytes(bytes(20_000_000))
    told: list[CopyProgress] = []
    await ways.copy(source, to=sshd.home, on_progress=told.append)
    assert len(told) > 1
    assert [step.done for step in told] == sorted(step.done for step in told)
    assert {(step.source, step.total) for step in told} == {(str(source), 20_000_000)}
    assert told[-1].done == 20_000_000


async def test_who_looks_and_fails_is_told_so(ways: Ways, sshd: Sshd, here: Path) -> None:
    source = here / "big"
    source.write_bytes(bytes(20_000_000))

    def look(_progress: CopyProgress) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await ways.copy(source, to=sshd.home, on_progress=look)
    assert list(sshd.home.iterdir()) == []


async def test_the_home_directory_by_its_sign(connection: Connection, sshd: Sshd, here: Path) -> None:
    (here / "file").write_text("x")
    await upload(connection, [here / "file"], "~/it's mine", force=False, on_progress=nothing)
    assert (sshd.home / "it's mine").read_text() == "x"
    await upload(connection, [here / "file"], "~", force=False, on_progress=nothing)
    await download(connection, ["~/it's mine", "~/file"], str(here / ".."), force=False, on_progress=nothing)
    assert (here.parent / "it's mine").read_text() == "x"
    assert (here.parent / "file").read_text() == "x"


# What is refused, in one line


async def test_what_does_not_exist(ways: Ways, sshd: Sshd, here: Path) -> None:
    said = await ways.refusal(here / "nothing", to=sshd.home)
    assert "No such file" in said or "no such file" in said
    (here / "file").write_text("x")
    for target in (f"{sshd.home}/no/such", f"{sshd.home}/nothing/"):
        said = await ways.refusal(here / "file", to=target)
        assert "no directory" in said
        assert target in said
    said = await ways.refusal(here / "file", here / "file", to=f"{sshd.home}/nothing")
    assert "no directory" in said
    assert list(sshd.home.iterdir()) == []


async def test_a_target_that_exists_is_kept_unless_forced(ways: Ways, sshd: Sshd, here: Path) -> None:
    (here / "file").write_text("new")
    target = sshd.home / "file"
    target.write_text("old")
    for to in (sshd.home, target):
        said = await ways.refusal(here / "file", to=to)
        assert f"'{target}' exists" in said
        assert said.endswith("Give --force to replace it.")
    assert target.read_text() == "old"
    await ways.copy(here / "file", to=sshd.home, force=True)
    assert target.read_text() == "new"
    # A link is replaced itself, and not what it leads to.
    (sshd.home / "elsewhere").write_text("kept")
    target.unlink()
    target.symlink_to("elsewhere")
    await ways.copy(here / "file", to=target, force=True)
    assert (target.is_symlink(), target.read_text()) == (False, "new")
    assert (sshd.home / "elsewhere").read_text() == "kept"


async def test_a_directory_where_a_file_is_expected(ways: Ways, sshd: Sshd, here: Path) -> None:
    (here / "thing").write_text("file")
    (here / "tree").mkdir()
    (sshd.home / "thing").mkdir()
    (sshd.home / "tree").write_text("file")
    said = await ways.refusal(here / "thing", to=sshd.home, force=True)
    assert "is a directory" in said
    assert "and no file" in said
    said = await ways.refusal(here / "tree", to=sshd.home, force=True)
    assert "is a file" in said
    assert "and no directory" in said
    assert (sshd.home / "tree").read_text() == "file"
    assert leftovers(sshd.home) == []


async def test_a_directory_that_exists_gets_what_is_new(ways: Ways, sshd: Sshd, here: Path) -> None:
    source, target = here / "tree", sshd.home / "tree"
    plant(source)
    target.mkdir()
    (target / "own").write_text("kept")
    (target / "plain.txt").write_text("old")
    (target / "a").mkdir()
    (target / "a" / "own").write_text("kept")
    assert "exists" in await ways.refusal(source, to=sshd.home)
    await ways.copy(source, to=sshd.home, force=True)
    expected = {name: entry for name, entry in tree(source).items() if name not in (".", "a")}
    found = tree(target)
    assert {name: found.get(name) for name in expected} == expected
    assert (target / "own").read_text() == (target / "a" / "own").read_text() == "kept"
    assert leftovers(sshd.home) == []


async def test_no_link_in_the_target_leads_a_copy_elsewhere(ways: Ways, sshd: Sshd, here: Path) -> None:
    outside = here / "outside"
    outside.mkdir()
    source, target = here / "tree", sshd.home / "tree"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "file").write_text("x")
    target.mkdir()
    (target / "sub").symlink_to(outside)
    await ways.refusal(source, to=sshd.home, force=True)
    assert list(outside.iterdir()) == []
    assert leftovers(sshd.home) == []


async def test_a_source_that_may_not_be_read(ways: Ways, sshd: Sshd, here: Path) -> None:
    source = here / "tree"
    source.mkdir()
    (source / "closed").write_text("x")
    (source / "closed").chmod(0)
    assert "Permission denied" in await ways.refusal(source, to=sshd.home)
    said = await ways.refusal(source / "closed", to=sshd.home)
    assert "Permission denied" in said or "may not read" in said
    assert list(sshd.home.iterdir()) == []


async def test_a_target_that_may_not_be_written(ways: Ways, sshd: Sshd, here: Path) -> None:
    (here / "file").write_text("x")
    closed = sshd.home / "closed"
    closed.mkdir()
    closed.chmod(0o555)
    said = await ways.refusal(here / "file", to=closed)
    assert "may not write" in said or "Permission denied" in said


@pytest.mark.parametrize("path", ["/", ".", "..", "x/..", "~"])
async def test_what_has_no_name_of_its_own(connection: Connection, here: Path, path: str) -> None:
    (here / "x").mkdir()
    with pytest.raises(ConfigurationError, match="cannot be copied as a whole"):
        await download(connection, [path], str(here), force=False, on_progress=nothing)


# A guest that means harm


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", data: bytes = b"") -> tuple[tarfile.TarInfo, bytes]:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.size, made.mode = kind, link, len(data), 0o6777
    return made, data


TOP = entry(".", tarfile.DIRTYPE)
HOSTILE = {
    "absolute": [TOP, entry("/tmp/lk-evil", data=b"x")],
    "upwards": [TOP, entry("../evil", data=b"x")],
    "upwards inside": [TOP, entry("a", tarfile.DIRTYPE), entry("a/../../evil", data=b"x")],
    "through a link": [TOP, entry("a", tarfile.SYMTYPE, ".."), entry("a/evil", data=b"x")],
    "through an absolute link": [TOP, entry("a", tarfile.SYMTYPE, "/tmp"), entry("a/evil", data=b"x")],
    "onto a link": [TOP, entry("a", tarfile.SYMTYPE, "../evil"), entry("a", data=b"x")],
    "a link for a directory": [
        TOP,
        entry("a", tarfile.DIRTYPE),
        entry("a", tarfile.SYMTYPE, ".."),
        entry("a/evil", data=b"x"),
    ],
    "hard link to the host's": [TOP, entry("a", tarfile.LNKTYPE, "/etc/passwd")],
    "hard link upwards": [TOP, entry("a", tarfile.LNKTYPE, "../secret")],
    "hard link to a link": [TOP, entry("a", tarfile.SYMTYPE, "/etc/passwd"), entry("b", tarfile.LNKTYPE, "a")],
    "the copy itself is a link": [entry(".", tarfile.SYMTYPE, "..")],
    "a file, then below it": [entry("a", data=b"x"), entry("a/evil", data=b"x")],
    "another file": [entry("a", data=b"x"), entry("evil", data=b"x")],
    "nameless parent": [TOP, entry("no/evil", data=b"x")],
    "cut": [TOP, entry("a", data=b"x" * 100_000)],
    "empty": [],
}


def packed(entries: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def pretend_tar(sshd: Sshd, data: bytes, then: str = "exit 0") -> None:
    """Have the guest's tar send what a hostile one would."""
    (sshd.root / "evil.tar").write_bytes(data)
    (sshd.bin / "tar").write_text(f"#!/bin/sh\ncat {sshd.root}/evil.tar\n{then}\n")
    (sshd.bin / "tar").chmod(0o755)


@pytest.mark.parametrize("case", HOSTILE)
async def test_a_hostile_archive_writes_nothing_elsewhere(
    connection: Connection, sshd: Sshd, here: Path, case: str
) -> None:
    data = packed(HOSTILE[case])
    pretend_tar(sshd, data[:50_000] if case == "cut" else data)
    (sshd.home / "wanted").mkdir()
    (here / "secret").write_text("host")
    target = here / "target"
    target.mkdir()
    with pytest.raises(GuestError):
        await download(connection, ["~/wanted"], str(target), force=True, on_progress=nothing)
    assert list(target.iterdir()) == []
    assert sorted(path.name for path in here.iterdir()) == ["secret", "target"]
    assert not Path("/tmp/lk-evil").exists()


async def test_no_file_of_a_guest_gets_more_than_access_modes(connection: Connection, sshd: Sshd, here: Path) -> None:
    pretend_tar(sshd, packed([TOP, entry("tool", data=b"x"), entry("device", tarfile.CHRTYPE)]))
    (sshd.home / "wanted").mkdir()
    [copied] = await download(connection, ["~/wanted"], str(here), force=False, on_progress=nothing)
    assert (here / "wanted" / "tool").stat().st_mode & 0o7777 == 0o777
    assert (here / "wanted").stat().st_mode & 0o7777 == 0o777
    assert copied.left_out == ("device",)
    assert not (here / "wanted" / "device").exists()


async def test_names_without_end_are_not_read(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 33

    class Endless(io.RawIOBase):
        given = 0
        start = info.tobuf(tarfile.GNU_FORMAT)

        def read(self, size: int = -1) -> bytes:
            data = self.start + b"x" * size if not self.given else b"x" * size
            self.given += len(data)
            assert self.given < 10_000_000
            return data[:size]

    with pytest.raises(GuestError, match="too long"):
        Unpacker(tmp_path / "new", lambda _count: None).unpack(Endless())  # type: ignore[arg-type]


async def test_a_guest_that_sends_without_end(connection: Connection, sshd: Sshd, here: Path) -> None:
    pretend_tar(sshd, packed([TOP]), then="exec cat /dev/zero")
    (sshd.home / "wanted").mkdir()
    with pytest.raises(GuestError, match="sends more than an archive"):
        await download(connection, ["~/wanted"], str(here), force=False, on_progress=nothing)
    assert list(here.iterdir()) == []


# What is interrupted


async def interrupted(ways: Ways, source: Path, to: Path, act: Callable[[], None]) -> BaseException:
    """Copy, and do something when a part has been copied; return what came of it."""
    begun = asyncio.Event()

    def watch(progress: CopyProgress) -> None:
        if progress.done > 1_000_000:
            begun.set()

    task = asyncio.ensure_future(ways.copy(source, to=to, on_progress=watch))
    async with asyncio.timeout(LIMIT):
        await begun.wait()
        act() if act is not CANCEL else task.cancel()
        with pytest.raises((LimaKernelsError, asyncio.CancelledError)) as caught:
            await task
    return caught.value


def CANCEL() -> None:  # noqa: N802
    """Stands for the cancellation of the copy."""


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
def big(here: Path) -> Path:
    """Much of which half has surely not arrived when a hundredth has."""
    made = here / "big"
    made.mkdir()
    for number in range(4):
        with (made / f"file {number}").open("wb") as file:
            file.truncate(200_000_000)
    (made / "closed").mkdir()
    (made / "closed" / "file").write_text("x")
    (made / "closed").chmod(0o555)
    return made


async def test_a_cancelled_copy_leaves_nothing(ways: Ways, sshd: Sshd, big: Path, connection: Connection) -> None:
    assert isinstance(await interrupted(ways, big, sshd.home, CANCEL), asyncio.CancelledError)
    assert list(sshd.home.iterdir()) == []
    # The connection is as good as before.
    assert (await connection.run("echo on", timeout=LIMIT)).stdout == "on\n"


async def test_a_copy_whose_guest_dies_leaves_nothing(ways: Ways, sshd: Sshd, big: Path) -> None:
    error = await interrupted(ways, big, sshd.home, sshd.drop_connections)
    assert isinstance(error, ConnectionFailed)
    assert "was lost while" in str(error)
    assert "the target is as it was before" in str(error)
    await until(lambda: list(sshd.home.iterdir()) == [])


async def test_a_copy_that_is_cancelled_at_any_moment_is_whole_or_nothing(ways: Ways, sshd: Sshd, here: Path) -> None:
    source = here / "tree"
    plant(source)
    whole = 0
    for number in range(25):
        target = sshd.home / str(number)
        task = asyncio.ensure_future(ways.copy(source, to=target))
        await asyncio.wait((task,), timeout=0.002 * number)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if target.exists():
            whole += 1
            assert tree(target) == tree(source)
    await until(lambda: leftovers(sshd.home) == [])
    assert whole < 25


# A disk that is full

_MOUNT = "mount -t tmpfs -o size=4m,mode=777 tmpfs {small} && exec unshare --user --map-user={uid} --map-group={gid} "


def with_small_disk(small: Path) -> list[str]:
    """How to start a program for which a directory is a disk of 4 MiB."""
    script = _MOUNT.format(small=small, uid=os.getuid(), gid=os.getgid()) + '"$@"'
    return ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]


async def test_the_guests_disk_is_full(here: Path) -> None:
    root = Path(tempfile.mkdtemp(prefix="lk"))
    small = root / "small"
    small.mkdir()
    with running(root, with_small_disk(small)) as sshd:
        async with connected(sshd) as connection:
            (here / "big").write_bytes(bytes(8_000_000))
            with pytest.raises(GuestError, match=r"the guest's disk has no room: 4\.2 MB are free there, 8\.0 MB are"):
                await upload(connection, [here / "big"], str(small), force=False, on_progress=nothing)
            # As many files as do not fit, though their bytes would.
            (here / "tree").mkdir()
            for number in range(3000):
                (here / "tree" / str(number)).write_text("x")
            with pytest.raises(GuestError, match=r"and nothing was left there: the guest's disk is full: 4\.2 MB"):
                await upload(connection, [here / "tree"], str(small), force=False, on_progress=nothing)
            assert (await connection.run(f"ls -A {small}", timeout=LIMIT)).stdout == ""
            (here / "small").write_bytes(bytes(1_000_000))
            await upload(connection, [here / "small"], str(small), force=False, on_progress=nothing)
    shutil.rmtree(root)


_DOWNLOAD = """
import asyncio, sys
from pathlib import Path
from lima_kernels.errors import HostError
from lima_kernels.guest.connection import Endpoint, open_connection
from lima_kernels.guest.host_keys import KeyStore
from lima_kernels.guest.download import download
port, user, root, source, small = sys.argv[1:]
async def main():
    endpoint = Endpoint("127.0.0.1", int(port), user, Path(root) / "identity")
    connection = await open_connection(endpoint, KeyStore(Path(root) / "pin"))
    try:
        await download(connection, [source], small, force=False, on_progress=lambda progress: None)
    except HostError as error:
        print(error)
    await connection.close()
    print(list(Path(small).iterdir()))
asyncio.run(main())
"""


async def test_the_hosts_disk_is_full(sshd: Sshd, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    (sshd.home / "big").write_bytes(bytes(8_000_000))
    (sshd.home / "tree").mkdir()
    for number in range(3000):
        (sshd.home / "tree" / str(number)).write_text("x")

    def run(source: Path) -> list[str]:
        arguments = [sshd.port, sshd.endpoint.user, sshd.root, source, small]
        done = subprocess.run(
            [*with_small_disk(small), sys.executable, "-c", _DOWNLOAD, *map(str, arguments)],
            check=False,
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        assert done.stderr == ""
        return done.stdout.splitlines()

    said, left = await asyncio.to_thread(run, sshd.home / "big")
    assert said.endswith("this host's disk has no room: 4.2 MB are free there, 8.0 MB are to be copied.")
    assert left == "[]"
    said, left = await asyncio.to_thread(run, sshd.home / "tree")
    assert "was not copied: this host's disk is full" in said
    assert left == "[]"
