"""A locked environment in one file, and such files from people who mean harm."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import yaml
from filelock import FileLock

from lima_kernels import paths
from lima_kernels.cli.main import main
from lima_kernels.environment import image, locked
from lima_kernels.environment import lock as locks
from lima_kernels.environment.instance import plan
from lima_kernels.errors import ConfigurationError, HostError, ImageError
from lima_kernels.lima.limactl import Limactl
from lima_kernels.lima.template import Source
from lima_kernels.reproduce import archive, bundle
from lima_kernels.reproduce.archive import Entry, Index

from .conftest import Machine
from .locks import lock
from .test_image import header

TEXT = """\
name: tables
apt: [tree]
python:
  requirementsFile: requirements.txt
files:
  - {path: /etc/motd, source: texts/motd}
"""


class Given(NamedTuple):
    """An environment that has been exported, and what it was made of."""

    file: Path
    archive: Path
    contents: dict[str, bytes]
    index: Index


def silent(_what: str) -> None:
    pass


def relock(file: Path) -> locks.Lock:
    inputs = locks.inputs_digest(locked.describe(file).environment)
    made = lock(inputs=inputs)
    locks.write(file.with_suffix(".lock"), msgspec.structs.replace(made, name="tables"))
    return locks.read(file.with_suffix(".lock"))


def make(directory: Path, text: str = TEXT) -> Path:
    (directory / "texts").mkdir(parents=True)
    file = directory / "lima-env.yaml"
    file.write_text(text)
    (directory / "requirements.txt").write_text("numpy\n")
    (directory / "texts" / "motd").write_text("hello\n")
    made = relock(file)
    bake(made)
    return file


def bake(of: locks.Lock, disk: bytes = header(), **changed: Any) -> Path:
    directory = paths.images_directory() / "env-tables"
    directory.mkdir(parents=True, exist_ok=True)
    files = {"disk.qcow2": disk, "vmlinuz": b"kernel", "initrd": b"initrd" * 1000}
    for name, data in files.items():
        (directory / name).write_bytes(data)
    said: dict[str, Any] = {
        "version": 2,
        "recipe": "r",
        "arch": "x86_64",
        "disk": "disk.qcow2",
        "kernel": "vmlinuz",
        "initrd": "initrd",
        "cmdline": "ro",
        "epoch": 1_700_000_000,
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        "environment": image.BakedEnvironment(name="tables", lock=of.digest, base_sha256="b" * 64),
        **changed,
    }
    (directory / image.MANIFEST).write_bytes(msgspec.json.encode(image.Manifest(**said)))
    return directory


@pytest.fixture(autouse=True)
def x86(monkeypatch: pytest.MonkeyPatch) -> None:
    """The archives here are of one CPU; the host that runs the tests may be of another."""
    monkeypatch.setattr(image, "host_arch", lambda: "x86_64")


@pytest.fixture
def empty(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """What makes this another host, on which nothing is."""

    def move() -> None:
        monkeypatch.setenv("JUPYTER_DATA_DIR", str(machine.root / "elsewhere"))
        monkeypatch.chdir(machine.notebooks)

    return move


@pytest.fixture
def given(machine: Machine, tmp_path: Path, empty: Callable[[], None]) -> Given:
    file = make(tmp_path / "source")
    output = bundle.export(file, tmp_path / "tables.tar", silent)
    with output.open("rb") as opened:
        index = archive.read_index(opened)
    with tarfile.open(output) as tar:
        contents = {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]
    empty()
    return Given(file, output, contents, index)


def nothing_is_there(machine: Machine) -> None:
    assert image.list_images() == []
    assert list(machine.notebooks.iterdir()) == []
    assert sorted(path.name for path in paths.data_directory().iterdir() if path.is_dir()) in ([], ["images"])


def refused(machine: Machine, file: Path, **settings: Any) -> str:
    with pytest.raises(ImageError) as raised:
        bundle.unpack(file, None, settings.get("name"), silent)
    before = f"The archive {file} is refused. "
    assert raised.value.message.startswith(before)
    assert "\n" not in raised.value.message
    nothing_is_there(machine)
    return raised.value.message.removeprefix(before)


def forge(given: Given, contents: dict[str, bytes | None] | None = None, **index: Any) -> Path:
    """Write an archive as an attacker would: other contents, whose digests are right, and another index."""
    files = {path: data for path, data in given.contents.items() if path != archive.INDEX}
    for path, data in (contents or {}).items():
        files.pop(path, None)
        if data is not None:
            files[path] = data
    entries = tuple(Entry(path, len(data), hashlib.sha256(data).hexdigest()) for path, data in files.items())
    made = msgspec.structs.replace(given.index, **{"files": entries, **index})
    return tarred(given, msgspec.json.encode(made), files)


def tarred(given: Given, index: bytes, files: dict[str, bytes], *more: tarfile.TarInfo) -> Path:
    forged = given.archive.with_name("forged.tar")
    with tarfile.open(forged, "w", format=tarfile.GNU_FORMAT) as tar:
        for path, data in {archive.INDEX: index, **files}.items():
            info = tarfile.TarInfo(path)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for info in more:
            tar.addfile(info, io.BytesIO(b"\0" * info.size))
    return forged


def test_an_environment_is_the_same_on_another_host(given: Given, machine: Machine) -> None:
    done = bundle.unpack(given.archive, None, None, silent)
    assert done == (machine.notebooks / "tables" / "lima-env.yaml", "env-tables", ())
    for path in ("lima-env.yaml", "lima-env.lock", "requirements.txt", "texts/motd"):
        assert (done.environment.parent / path).read_bytes() == (given.file.parent / path).read_bytes()
    described = locked.describe(done.environment)
    assert described.locked is not None
    assert not described.locked.is_stale
    found = image.find_baked(described.locked.lock.digest, "x86_64")
    assert found is not None
    assert image.damaged("env-tables") == []
    assert found.base_sha256 == "b" * 64


async def test_a_vm_is_made_from_what_was_brought_and_needs_no_base(given: Given, machine: Machine) -> None:
    done = bundle.unpack(given.archive, None, None, silent)
    described = locked.describe(done.environment)
    assert described.locked is not None
    assert image.list_images() == ["env-tables"]
    made = await plan(Limactl(), described.machine, [], described.locked.lock)
    assert (made.mark.source, made.mark.image_sha256) == (Source.LOCAL, "b" * 64)
    (entry,) = yaml.safe_load(made.config)["images"]
    assert Path(entry["location"]).parent == paths.images_directory() / "env-tables"
    # And so when its lima.yaml is written anew.
    assert (await plan(Limactl(), described.machine, [], made.mark)).config == made.config
    assert machine.calls("template") == []


def test_what_is_exported_again_has_the_same_bytes(given: Given) -> None:
    done = bundle.unpack(given.archive, None, None, silent)
    again = bundle.export(done.environment, given.archive.with_name("again.tar"), silent)
    assert again.read_bytes() == given.archive.read_bytes()


def test_an_ordinary_tar_can_list_it(given: Given) -> None:
    with tarfile.open(given.archive) as tar:
        assert tar.getnames()[0] == "bundle.json"
        assert all(member.isreg() and member.mode == 0o644 for member in tar.getmembers())


def test_the_command_line(given: Given, machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "import", str(given.archive), "--directory", "here", "--name", "mine"]) == 0
    assert capsys.readouterr().out == "Imported here/lima-env.yaml, and its image mine\n"
    assert main(["env", "export", "here/lima-env.yaml", "-o", "out.tar"]) == 0
    assert capsys.readouterr().out == "Wrote out.tar (0 MiB)\n"
    assert main(["env", "import", "out.tar", "--directory", "here"]) == 1
    assert "is there already, and not an empty directory." in capsys.readouterr().err


def test_what_an_environment_takes_of_the_host_is_told(
    machine: Machine, tmp_path: Path, empty: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    file = make(
        tmp_path / "source", f"{TEXT}mounts: [{{location: '~', writable: true}}]\nports: [{{guest: 80, host: 8080}}]\n"
    )
    output = bundle.export(file, tmp_path / "tables.tar", silent)
    empty()
    assert main(["env", "import", str(output)]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"With it, the VM sees {machine.home} (writable)",
        "With it, port 8080 of 127.0.0.1 leads to port 80 of the VM",
    ]


# Exports that cannot be.


def test_what_has_no_lock_is_not_exported(machine: Machine, tmp_path: Path) -> None:
    file = tmp_path / "lima-env.yaml"
    file.write_text("name: tables\n")
    with pytest.raises(ConfigurationError, match=r"has no lock\."):
        bundle.export(file, tmp_path / "out.tar", silent)


def test_what_has_changed_since_it_was_locked_is_not_exported(machine: Machine, tmp_path: Path) -> None:
    file = make(tmp_path / "source")
    file.write_text(TEXT.replace("tree", "jq"))
    with pytest.raises(ConfigurationError, match=r"has changed since it was locked\."):
        bundle.export(file, tmp_path / "out.tar", silent)


def test_what_has_no_image_is_not_exported(machine: Machine, tmp_path: Path) -> None:
    file = make(tmp_path / "source")
    bake(msgspec.structs.replace(locks.read(file.with_suffix(".lock")), name="other"))
    with pytest.raises(ImageError) as raised:
        bundle.export(file, tmp_path / "out.tar", silent)
    assert raised.value.hint == f"lima-kernels env image {file}"


def test_a_file_that_is_not_beside_it_is_not_exported(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "motd").write_text("elsewhere")
    file = make(tmp_path / "source", TEXT.replace("texts/motd", "../motd"))
    with pytest.raises(ConfigurationError, match=r"motd, which is not below its own directory\."):
        bundle.export(file, tmp_path / "out.tar", silent)


def test_a_damaged_image_is_not_exported_and_an_older_archive_stays(machine: Machine, tmp_path: Path) -> None:
    file = make(tmp_path / "source")
    (paths.images_directory() / "env-tables" / "initrd").write_bytes(b"damage" * 1000)
    (tmp_path / "out.tar").write_text("older")
    with pytest.raises(ImageError, match=r"initrd is damaged: its SHA-256 is not"):
        bundle.export(file, tmp_path / "out.tar", silent)
    assert (tmp_path / "out.tar").read_text() == "older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.tar", "source"]


def test_an_archive_that_cannot_be_written_is_one_line(machine: Machine, tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"cannot be written: No such file or directory\."):
        bundle.export(make(tmp_path / "source"), tmp_path / "none" / "out.tar", silent)


# Archives that are none.


@pytest.mark.parametrize("data", [b"", b"x", b"\0" * 10240, b"\x1f\x8b" + b"x" * 2000, b"\xff" * 5000])
def test_what_is_no_archive_is_refused(given: Given, machine: Machine, data: bytes) -> None:
    given.archive.write_bytes(data)
    assert refused(machine, given.archive) in (
        "It ends too early.",
        "It is no archive of lima-kernels env export.",
    )


def test_there_has_to_be_an_archive(given: Given, machine: Machine) -> None:
    with pytest.raises(HostError, match=r"cannot be imported: No such file or directory\."):
        bundle.unpack(machine.root / "none", None, None, silent)


def test_what_was_cut_off_anywhere_is_refused(given: Given, machine: Machine) -> None:
    whole = given.archive.read_bytes()
    end = len(whole.rstrip(b"\0"))
    for length in [*range(1, end, 1021), end - 1]:
        given.archive.write_bytes(whole[:length])
        assert refused(machine, given.archive)


def test_a_bit_that_turned_anywhere_is_found(given: Given, machine: Machine) -> None:
    whole = given.archive.read_bytes()
    with tarfile.open(given.archive) as tar:
        places = [(member.name, member.offset_data) for member in tar.getmembers()]
    for name, offset in places:
        turned = bytearray(whole)
        turned[offset] ^= 1
        given.archive.write_bytes(turned)
        said = refused(machine, given.archive)
        assert "damaged" in said
        assert name in said


@pytest.mark.parametrize(
    ("index", "what"),
    [
        (b"{", "Its bundle.json is damaged: "),
        (b"[" * 100_000, "Its bundle.json is damaged: "),
        (b'{"format": "other", "version": 1}', "It is no archive of lima-kernels env export, but 'other'."),
        (b'{"format": "lima-kernels environment", "version": 2}', "It was made by a newer lima-kernels (version 2 of"),
        (b'{"format": "lima-kernels environment", "version": 1}', "Its bundle.json is damaged: "),
        (b" " * ((1 << 20) + 1), "It is no archive of lima-kernels env export: its index has 1048577 bytes."),
    ],
)
def test_an_index_that_cannot_be_read_is_refused(given: Given, machine: Machine, index: bytes, what: str) -> None:
    assert refused(machine, tarred(given, index, {})).startswith(what)


# Archives that mean harm.

EVIL = [
    *("../x", "environment/../../x", "/etc/cron.d/x", "environment//x", "environment/./x", "environment/x/", ""),
    *("environment/.git/hooks/x", ".ssh/authorized_keys", "environment/a\\..\\x", "environment/a\nb"),
    *("environment/jupyter_server_config.py", "environment/Jupyter_Notebook_Config.json", "environment/a\x1b[2J"),
    *("environment/" + "x" * 100, "environment/\u202etxt.exe"),
]


@pytest.mark.parametrize("path", EVIL)
def test_a_path_that_leads_elsewhere_or_hides_is_refused(given: Given, machine: Machine, path: str) -> None:
    entries = (*given.index.files, Entry(path, 1, "a" * 64))
    made = msgspec.structs.replace(given.index, files=entries)
    said = refused(machine, tarred(given, msgspec.json.encode(made), {}))
    assert said == f"An archive may not have a file {path!r}."


@pytest.mark.parametrize(
    "path",
    ["environment/lima-env.yaml", "environment/LIMA-env.yaml", "environment/texts", "environment/texts/motd/x"],
)
def test_a_file_that_would_take_anothers_place_is_refused(given: Given, machine: Machine, path: str) -> None:
    entries = (*given.index.files, Entry(path, 1, "a" * 64))
    made = msgspec.structs.replace(given.index, files=entries)
    assert refused(machine, tarred(given, msgspec.json.encode(made), {})) == f"It has the file {path!r} twice."


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_what_is_no_ordinary_file_is_refused(given: Given, machine: Machine, kind: bytes) -> None:
    info = tarfile.TarInfo(given.index.files[0].path)
    info.type, info.linkname = kind, "/etc/passwd"
    said = refused(machine, tarred(given, given.contents[archive.INDEX], {}, info))
    assert said == f"It has {info.name!r}, which is no ordinary file."


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE])
def test_headers_that_change_what_follows_are_refused(given: Given, machine: Machine, kind: bytes) -> None:
    info = tarfile.TarInfo(given.index.files[0].path)
    info.type, info.size = kind, 512
    said = refused(machine, tarred(given, given.contents[archive.INDEX], {}, info))
    assert said == f"It has {info.name!r}, which is no ordinary file."


def test_another_file_than_the_index_says_is_refused(given: Given, machine: Machine) -> None:
    files = {path: data for path, data in given.contents.items() if path != archive.INDEX}
    first, second, *rest = files
    swapped = {second: files[second], first: files[first], **{path: files[path] for path in rest}}
    said = refused(machine, tarred(given, given.contents[archive.INDEX], swapped))
    assert said == f"It has {second!r} where its index says {first!r}."


@pytest.mark.parametrize("change", [-1, 1, 1 << 40])
def test_a_size_that_is_not_the_indexs_is_refused(given: Given, machine: Machine, change: int) -> None:
    first, *others = given.index.files
    lied = Entry(first.path, max(first.size + change, 0), first.sha256)
    made = msgspec.structs.replace(given.index, files=(lied, *others))
    files = {path: data for path, data in given.contents.items() if path != archive.INDEX}
    forged = tarred(given, msgspec.json.encode(made), files)
    if change > 1 << 30:
        with pytest.raises(HostError, match=r"There is no room to import it: "):
            bundle.unpack(forged, None, None, silent)
        nothing_is_there(machine)
    else:
        assert f"has {first.size} bytes, and not {lied.size}." in refused(machine, forged)


def test_sizes_that_are_below_nothing_are_refused(given: Given, machine: Machine) -> None:
    first, *others = given.index.files
    made = msgspec.structs.replace(given.index, files=(Entry(first.path, -512, first.sha256), *others))
    assert "cannot be." in refused(machine, tarred(given, msgspec.json.encode(made), {}))


def test_more_than_the_index_says_is_refused(given: Given, machine: Machine) -> None:
    files = {path: data for path, data in given.contents.items() if path != archive.INDEX}
    more = tarfile.TarInfo("environment/more")
    assert refused(machine, tarred(given, given.contents[archive.INDEX], files, more)) == (
        "It has more in it than its index says."
    )


def test_files_that_the_environment_does_not_name_are_refused(given: Given, machine: Machine) -> None:
    said = refused(machine, forge(given, {"environment/sitecustomize.py": b"import os"}))
    assert said == "It has files that its environment does not name: sitecustomize.py."
    said = refused(machine, forge(given, {"image/extra": b"x"}))
    assert said.startswith("It has files that its image does not name: ")


@pytest.mark.parametrize("source", ["~/.ssh/id_rsa", "/etc/hostname", "../../secret"])
def test_an_environment_that_reads_this_hosts_files_is_refused(given: Given, machine: Machine, source: str) -> None:
    for place in (machine.home / ".ssh" / "id_rsa", paths.data_directory() / "secret"):
        place.parent.mkdir(exist_ok=True)
        place.write_text("secret")
    text = TEXT.replace("texts/motd", source).encode()
    assert refused(machine, forge(given, {"environment/lima-env.yaml": text})).startswith(
        "Its environment cannot be used"
    )


def test_an_environment_of_another_lock_is_refused(given: Given, machine: Machine) -> None:
    stale = forge(given, {"environment/lima-env.yaml": TEXT.replace("tree", "jq").encode()})
    assert "has changed since it was locked." in refused(machine, stale)
    edited = given.contents["environment/lima-env.lock"].replace(b"9.1.0", b"9.1.1")
    assert "it was edited since it was made" in refused(machine, forge(given, {"environment/lima-env.lock": edited}))
    assert refused(machine, forge(given, lock="f" * 64)) == "Its lock is not the one that its index names."
    assert "Its environment file 'other.yaml' is not in it." in refused(machine, forge(given, environment="other.yaml"))


@pytest.mark.parametrize("field", ["name", "image", "environment"])
def test_names_that_are_paths_are_refused(given: Given, machine: Machine, field: str) -> None:
    assert refused(machine, forge(given, **{field: "../x"})) == "An archive may not have a file '../x'."
    assert refused(machine, forge(given, **{field: "a/b"})) == "It names 'a/b', which is no name."


def test_an_image_for_another_cpu_is_refused(given: Given, machine: Machine) -> None:
    assert refused(machine, forge(given, arch="aarch64")) == "Its image is for aarch64, and this host's CPU is x86_64."


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"disk": "../x"}, "Its image.json is damaged: '../x' is not a file's name."),
        ({"version": 9}, "The image was made by a newer lima-kernels."),
        ({"arch": "aarch64"}, "Its image is not of its environment."),
        ({"environment": None}, "Its image is not of its environment."),
        ({"sha256": {}}, "Its image is not the one that its manifest names."),
        ({"disk": "vmlinuz"}, "It has files that its image does not name: "),
        ({"cmdline": "ro\ninit=/x"}, "Its kernel's command line cannot be."),
    ],
)
def test_an_image_that_is_not_the_environments_is_refused(
    given: Given, machine: Machine, changed: dict[str, Any], what: str
) -> None:
    said = msgspec.json.decode(given.contents["image/image.json"])
    forged = forge(given, {"image/image.json": msgspec.json.encode({**said, **changed})})
    assert refused(machine, forged).startswith(what)


def test_a_disk_that_reads_this_hosts_files_is_refused(given: Given, machine: Machine) -> None:
    disk = header(backing=256)
    said = msgspec.json.decode(given.contents["image/image.json"])
    said["sha256"]["disk.qcow2"] = hashlib.sha256(disk).hexdigest()
    forged = forge(given, {"image/image.json": msgspec.json.encode(said), "image/disk.qcow2": disk})
    assert refused(machine, forged) == "Its disk is based on another file, which could be any of this host's."


# Imports that cannot be, or end early.


def test_a_place_that_is_taken_is_left_as_it_is(given: Given, machine: Machine) -> None:
    taken = machine.notebooks / "tables"
    taken.mkdir()
    (taken / "mine").write_text("mine")
    with pytest.raises(ConfigurationError, match=r"is there already, and not an empty directory\."):
        bundle.unpack(given.archive, None, None, silent)
    link = machine.notebooks / "link"
    link.symlink_to(machine.home)
    with pytest.raises(ConfigurationError, match=r"is there already"):
        bundle.unpack(given.archive, link, None, silent)
    assert [path.name for path in taken.iterdir()] == ["mine"]
    assert image.list_images() == []


def test_an_image_of_that_name_is_kept(given: Given, machine: Machine) -> None:
    bundle.unpack(given.archive, machine.notebooks / "one", None, silent)
    # The same one is no obstacle.
    bundle.unpack(given.archive, machine.notebooks / "two", None, silent)
    bake(lock(inputs="5" * 64))
    with pytest.raises(ConfigurationError, match=r"There is another image 'env-tables' already\."):
        bundle.unpack(given.archive, machine.notebooks / "three", None, silent)
    assert not (machine.notebooks / "three").exists()
    bundle.unpack(given.archive, machine.notebooks / "three", "env-tables-2", silent)
    assert image.list_images() == ["env-tables", "env-tables-2"]


def test_without_room_nothing_is_unpacked(given: Given, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "free_space", lambda _path: 1 << 20)
    with pytest.raises(HostError, match=r"There is no room to import it: 1 MiB are free"):
        bundle.unpack(given.archive, None, None, silent)
    nothing_is_there(machine)


def test_an_interrupted_import_leaves_nothing(given: Given, machine: Machine) -> None:
    for path in [entry.path for entry in given.index.files]:

        def stop(what: str, path: str = path) -> None:
            if what == path:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            bundle.unpack(given.archive, None, None, stop)
        nothing_is_there(machine)


def test_what_a_killed_import_left_goes_with_the_next(given: Given, machine: Machine) -> None:
    left = paths.data_directory() / "import" / "image"
    left.mkdir(parents=True)
    (left / "disk.qcow2").write_text("half")
    bundle.unpack(given.archive, None, None, silent)
    assert not left.parent.exists()


def test_only_one_import_at_a_time(given: Given, machine: Machine) -> None:
    with (
        FileLock(paths.data_directory() / "import.lock"),
        pytest.raises(HostError, match=r"Another archive is being imported\."),
    ):
        bundle.unpack(given.archive, None, None, silent)
    bundle.unpack(given.archive, None, None, silent)
