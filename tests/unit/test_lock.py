"""The lock of an environment: the same text for the same lock, and nothing of a stranger's that is more than a lock."""

from __future__ import annotations

import stat
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tomli_w

from lima_kernels.environment import lock as locks
from lima_kernels.environment.discovery import lock_path
from lima_kernels.environment.keys import Environment
from lima_kernels.environment.lock import Deb, Lock, Platform, inputs_digest
from lima_kernels.environment.spec import DEFAULT, parse
from lima_kernels.errors import ConfigurationError

HEX, OTHER = "ab" * 32, "cd" * 32


def wheel(name: str, url: str = "https://files.example/", **more: Any) -> dict[str, Any]:
    return {"url": f"{url}{name}-1.0-py3-none-any.whl", "size": 1000, "hashes": {"sha256": HEX}, **more}


def package(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "version": "1.0", "wheels": [wheel(name)], **more}


def pylock(*packages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"lock-version": "1.0", "created-by": "uv", "packages": list(packages), **more}


PLATFORM = Platform(
    image="debian-12",
    image_sha256=HEX,
    kernel="6.1.0-41-amd64",
    python="3.11.2",
    apt={"libc6": "2.36-9+deb12u13", "zlib1g": "1:1.2.13.dfsg-1", "libc6:arm64": "2.36-9~bpo+1"},
    debs={"graphviz": Deb("2.42.2-7", OTHER, 613128)},
)
LOCK = Lock(
    version=locks.LOCK_VERSION,
    name="my-project",
    inputs=OTHER,
    platforms={"x86_64": PLATFORM, "aarch64": PLATFORM},
    pylock=pylock(package("numpy"), package("a"), **{"requires-python": ">=3.11"}),
)


def changed(**values: Any) -> Lock:
    return msgspec.structs.replace(LOCK, **values)


def machine(**values: Any) -> Lock:
    return changed(platforms={"x86_64": msgspec.structs.replace(PLATFORM, **values)})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "lima-env.lock"


def forged(file: Path, lock: Lock) -> None:
    """A lock whose digest fits, as somebody writes it who means harm."""
    file.write_text(locks.text(lock))


def refusal(file: Path) -> str:
    with pytest.raises(ConfigurationError) as caught:
        locks.read(file)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(str(file))
    return line.removeprefix(str(file))


def test_a_lock_comes_back_as_it_was_written(file: Path) -> None:
    locks.write(file, LOCK)
    found = locks.read(file)
    assert (found.name, found.inputs, found.platforms) == (LOCK.name, LOCK.inputs, LOCK.platforms)
    assert found.digest == LOCK.digest
    assert locks.text(found) == file.read_text()


def test_the_same_lock_is_the_same_text_whatever_order_it_was_made_in() -> None:
    shuffled = changed(
        platforms={
            "aarch64": PLATFORM,
            "x86_64": msgspec.structs.replace(PLATFORM, apt=dict(reversed(PLATFORM.apt.items()))),
        },
        pylock=dict(reversed(pylock(package("a"), package("numpy"), **{"requires-python": ">=3.11"}).items())),
    )
    assert locks.text(shuffled) == locks.text(LOCK)
    assert shuffled.digest == LOCK.digest


def test_a_changed_version_changes_one_line_beside_the_digest() -> None:
    other = msgspec.structs.replace(PLATFORM, apt={**PLATFORM.apt, "zlib1g": "1:1.3"})
    before, after = locks.text(LOCK), locks.text(changed(platforms={"x86_64": other, "aarch64": PLATFORM}))
    differing = [pair for pair in zip(before.splitlines(), after.splitlines(), strict=True) if pair[0] != pair[1]]
    assert [line.partition(" ")[0] for line, _after in differing] == ["digest", "zlib1g"]


def test_times_of_uploads_are_kept(file: Path) -> None:
    uploaded = tomllib.loads("t = 2026-10-18T16:21:07Z")["t"]
    sdist = {"url": "https://files.example/a-1.0.tar.gz", "upload-time": uploaded, "hashes": {"sha256": HEX}}
    locks.write(file, changed(pylock=pylock(package("a", sdist=sdist))))
    assert locks.read(file).pylock["packages"][0]["sdist"]["upload-time"] == uploaded


def test_the_python_part_is_a_pylock() -> None:
    made = tomllib.loads(locks.pylock_text(LOCK))
    assert [entry["name"] for entry in made["packages"]] == ["a", "numpy"]
    assert list(made)[:2] == ["lock-version", "requires-python"]


def test_the_digest_of_python_is_that_of_what_a_venv_is_made_from() -> None:
    digest = LOCK.python_digest("x86_64")
    assert digest == changed(name="other", inputs=HEX).python_digest("x86_64")
    assert digest == machine(apt={}, kernel="6.2").python_digest("x86_64")
    assert digest != machine(python="3.12.1").python_digest("x86_64")
    assert digest != changed(pylock=pylock(package("a"))).python_digest("x86_64")
    with pytest.raises(ConfigurationError, match=r"is for aarch64, x86_64, not for riscv64"):
        LOCK.python_digest("riscv64")


def test_a_lock_is_put_in_place_whole_and_can_be_shared(file: Path) -> None:
    locks.write(file, LOCK)
    plain = file.with_name("plain")
    plain.touch()
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    with pytest.raises(ConfigurationError):
        locks.write(file, machine(kernel="$(id)"))
    assert locks.read(file).digest == LOCK.digest
    assert sorted(entry.name for entry in file.parent.iterdir()) == ["lima-env.lock", "plain"]


def test_a_lock_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        locks.write(tmp_path / "none" / "a.lock", LOCK)
    assert str(caught.value) == f"The lock {tmp_path}/none/a.lock cannot be written: No such file or directory."


# What is no lock


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ", line 1: it is no lock of an environment."),
        ('version = "1"\n', ", line 1: it is no lock of an environment."),
        ("version = true\n", ", line 1: it is no lock of an environment."),
        ("version = 0\n", ", line 1: it is no lock of an environment."),
        (
            "version = 2\nnew = 1\n",
            ": it was made by a newer lima-kernels (version 2 of its form; we know 1). Update lima-kernels.",
        ),
        ("version = 1\n", ": it is not what a lock is: Object missing required field `name` at the top."),
        ("version = 1\n<<<<<<< HEAD\n", ", line 2, column 1: not TOML: invalid statement."),
        ("version = 1\nversion = 1\n", ", line 2, column 12: not TOML: cannot overwrite a value."),
        ("a = " + "[" * 3000, ": not TOML: "),
        ("a = " + "9" * 5000, ": not TOML: "),
    ],
)
def test_what_is_no_lock_is_refused_with_the_place(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    assert refusal(file).startswith(message)


def test_what_cannot_be_read_is_refused(file: Path) -> None:
    assert refusal(file) == ": it cannot be read: No such file or directory."
    file.mkdir()
    assert refusal(file) == ": it is not a file."
    file.rmdir()
    file.write_bytes(b"version = 1\xff")
    assert refusal(file) == ": it is not UTF-8 text."


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace('"3.11.2"', '"3.11.3"'),
        lambda text: text.replace("2.36-9+deb12u13", "2.36-9+deb12u12"),
        lambda text: text.replace("numpy-1.0-py3", "numpy-1.1-py3"),
        lambda text: text.replace("my-project", "another"),
        lambda text: text.replace('digest = "', 'digest = "0'),
        lambda text: "\n".join(line for line in text.splitlines() if not line.startswith("digest")),
    ],
)
def test_an_edited_lock_is_refused(file: Path, edit: Callable[[str], str]) -> None:
    locks.write(file, LOCK)
    file.write_text(edit(file.read_text()))
    assert refusal(file).startswith(": it was edited since it was made (its digest is another). Change the environment")


def test_comments_and_line_ends_are_no_edits(file: Path) -> None:
    locks.write(file, LOCK)
    file.write_bytes(b"# mine\r\n" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert locks.read(file).digest == LOCK.digest


@pytest.mark.parametrize(
    ("lock", "message"),
    [
        (changed(name="../../etc"), "'../../etc' at name"),
        (changed(name="a;id"), "'a;id' at name"),
        (changed(inputs="x"), "'x' at inputs"),
        (changed(platforms={"x86_64; id": PLATFORM}), "'x86_64; id' at platforms"),
        (machine(image="$(id)"), "'$(id)' at platforms.x86_64.image"),
        (machine(image_sha256="AB" * 32), f"{'AB' * 32!r} at platforms.x86_64.image_sha256"),
        (machine(kernel="-6.1\n"), "'-6.1\\n' at platforms.x86_64.kernel"),
        (machine(python="3.11 "), "'3.11 ' at platforms.x86_64.python"),
        (machine(apt={"--allow-unauthenticated": "1"}), "'--allow-unauthenticated' at platforms.x86_64.apt"),
        (machine(apt={"git": "1 -o x=y"}), "'1 -o x=y' at platforms.x86_64.apt.git"),
        (machine(apt={"git": "-1"}), "'-1' at platforms.x86_64.apt.git"),
        (machine(apt={"git": "1\n"}), "'1\\n' at platforms.x86_64.apt.git"),
        (machine(debs={"../git": Deb("1", HEX, 1)}), "'../git' at platforms.x86_64.debs"),
        (machine(debs={"git": Deb("1", "x", 1)}), "'x' at platforms.x86_64.debs.git.sha256"),
        (machine(debs={"git": Deb("1", HEX, -1)}), "'-1' at platforms.x86_64.debs.git.size"),
        (machine(debs={"git": Deb("1", HEX, 10**17)}), f"'{10**17}' at platforms.x86_64.debs.git.size"),
    ],
)
def test_a_forged_word_is_refused(file: Path, lock: Lock, message: str) -> None:
    forged(file, lock)
    assert refusal(file) == f": it is not what a lock is: {message}. Make it again: lima-kernels env lock"


@pytest.mark.parametrize(
    ("python", "message"),
    [
        ({}, "it is no lock of PEP 751"),
        (pylock(**{"lock-version": "2.0"}), "it is no lock of PEP 751"),
        (pylock(package("Not Normal")), "it is no lock of PEP 751"),
        (pylock({"name": "a", "version": "1.0"}), "it is no lock of PEP 751"),
        (pylock({"name": "a", "directory": {"path": "/etc"}}), "the package a comes from a directory"),
        (
            pylock({"name": "a", "vcs": {"type": "git", "url": "https://x/y", "commit-id": "0" * 40}}),
            "the package a comes from a repository",
        ),
        (
            pylock({"name": "a", "wheels": [{"path": "/tmp/a-1-py3-none-any.whl", "hashes": {"sha256": HEX}}]}),
            "no download",
        ),
        (pylock({"name": "a", "wheels": [wheel("a", "file:///tmp/")]}), "has a file that is no download"),
        (
            pylock({"name": "a", "wheels": [wheel("a", "https://me:secret@host/")]}),
            "the address of the package a has a password in it",
        ),
        (pylock({"name": "a", "wheels": [wheel("a") | {"hashes": {"md5": "0" * 32}}]}), "a file without a SHA-256"),
        (pylock({"name": "a", "wheels": [wheel("a") | {"hashes": {"sha256": "--x"}}]}), "a file without a SHA-256"),
        (pylock({"name": "a", "archive": {"url": "ftp://h/a.zip", "hashes": {"sha256": HEX}}}), "that is no download"),
    ],
)
def test_python_packages_that_no_hash_tells_are_refused(file: Path, python: dict[str, Any], message: str) -> None:
    forged(file, changed(pylock=python))
    line = refusal(file)
    assert message in line
    assert "secret" not in line


def test_a_lock_for_nothing_is_refused(file: Path) -> None:
    forged(file, changed(platforms={}))
    assert refusal(file).startswith(": it is for no architecture.")


def test_a_key_that_no_lock_has_is_refused(file: Path) -> None:
    document = tomllib.loads(locks.text(LOCK))
    file.write_text(tomli_w.dumps({**document, "more": 1}))
    assert refusal(file).startswith(": it is not what a lock is: Object contains unknown field `more` at the top.")


# What a lock answers to


def asked(text: str, base: Path = Path("/b")) -> Environment:
    return parse(text, source="env.yaml", base=base)


def test_what_was_asked_is_known_by_its_content(tmp_path: Path) -> None:
    digests = []
    for name, text in (("one", "numpy\n"), ("two", "numpy\n"), ("three", "numpy<2\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "r.txt").write_text(text)
        digests.append(inputs_digest(asked("python: {requirementsFile: r.txt}", tmp_path / name)))
    assert digests[0] == digests[1] != digests[2]
    assert digests[0] == inputs_digest(asked("python: [numpy]"))


@pytest.mark.parametrize(
    "text", ["apt: [git]", "python: [a]", "python: {version: '3.11'}", "image: other", f"image: debian-12@sha256:{HEX}"]
)
def test_an_edit_that_asks_for_something_else_makes_a_lock_stale(text: str) -> None:
    assert inputs_digest(asked(text)) != inputs_digest(DEFAULT)


@pytest.mark.parametrize("text", ["cpus: 4", "name: x", "env: {A: b}", "ports: [80]", "mounts: [{location: /d}]"])
def test_an_edit_of_what_is_not_locked_does_not(text: str) -> None:
    assert inputs_digest(asked(text)) == inputs_digest(DEFAULT)


def test_image_files_are_known_by_their_digest_wherever_they_are() -> None:
    one, two = (asked(f"image: {{location: /{place}/disk, digest: 'sha256:{HEX}'}}") for place in "ab")
    assert inputs_digest(one) == inputs_digest(two)
    assert inputs_digest(one) != inputs_digest(asked(f"image: {{location: /a/disk, digest: 'sha256:{OTHER}'}}"))


def test_a_lock_lies_beside_its_file(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "lima-env.yaml").touch()
    (tmp_path / "link.yaml").symlink_to(tmp_path / "real" / "lima-env.yaml")
    assert lock_path(tmp_path / "link.yaml") == tmp_path / "real" / "lima-env.lock"
    assert lock_path(tmp_path / "my.v2.yaml") == tmp_path / "my.v2.lock"
