"""What tells whether an environment in a guest is whole, and whether it is still what was locked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from lima_kernels.guest.forkserver import environments

LOCK = "a" * 64
PYTHON = "b" * 64
NOTHING = {"python": "", "lock": "", "system": "", "drifted": False}
LIMIT = 60.0


@pytest.fixture
def base(tmp_path: Path) -> str:
    return str(tmp_path / "environments")


def build(base: str, number: str = "1", name: str = "data") -> Path:
    """Make what has the shape of an environment, and the present one."""
    venv = Path(base, name, "builds", number)
    (venv / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
    (venv / "bin").mkdir()
    Path(environments.interpreter(str(venv))).symlink_to(sys.executable)
    current = Path(base, name, "current")
    current.unlink(missing_ok=True)
    current.symlink_to(f"builds/{number}")
    return venv


def packages(venv: Path) -> Path:
    return Path(environments.site_packages(str(venv)))


def install(venv: Path, name: str, version: str, *lines: str, metadata: str | None = None) -> Path:
    """Leave what an installer leaves of a package, and return its metadata's directory."""
    directory = packages(venv) / f"{name}-{version}.dist-info"
    directory.mkdir()
    said = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nName: of no matter\n"
    (directory / "METADATA").write_text(said if metadata is None else metadata)
    (directory / "RECORD").write_text("".join(f"{line}\n" for line in lines))
    return directory


def whole(venv: Path) -> None:
    environments.write_manifest(str(venv), lock=LOCK, python=PYTHON)


def found(base: str) -> dict[str, Any]:
    return environments.find(base, "data")


def test_an_environment_is_found_when_it_is_whole(base: str) -> None:
    assert found(base) == NOTHING
    venv = build(base)
    assert found(base) == NOTHING
    whole(venv)
    python = environments.interpreter(str(venv))
    assert found(base) == {"python": python, "lock": LOCK, "system": "", "drifted": False}
    assert environments.venv_of(base, python) == str(venv)
    manifest = json.loads((venv / environments.MANIFEST).read_text())
    assert manifest == {
        "version": 1,
        "lock": LOCK,
        "python": PYTHON,
        "fingerprint": environments.fingerprint(str(venv)),
        "packages": {},
    }
    assert sorted(os.listdir(venv)) == ["bin", "lib", "lima-env.json"]
    os.unlink(python)
    assert found(base) == NOTHING


def test_the_present_build_is_the_one_that_was_switched_to(base: str) -> None:
    first = build(base, "1")
    whole(first)
    second = build(base, "2")
    assert found(base) == NOTHING
    whole(second)
    assert found(base)["python"] == environments.interpreter(str(second))
    # Whoever has the earlier one may still use it.
    assert environments.venv_of(base, environments.interpreter(str(first))) == str(first)


@pytest.mark.parametrize(
    "target", ["../../other/builds/1", "/etc", "builds", "builds/..", "builds/1/lib", "builds/1\n"]
)
def test_a_link_that_leads_elsewhere_is_no_environment(base: str, target: str) -> None:
    whole(build(base))
    current = Path(base, "data", "current")
    current.unlink()
    current.symlink_to(target)
    assert found(base) == NOTHING


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[1]",
        '"text"',
        "[" * 100_000,
        b"\xff\xfe\x00",
        '{"version": 2, "lock": "a", "python": "b", "fingerprint": "c", "packages": {}}',
        '{"version": 1, "lock": 5, "python": "b", "fingerprint": "c", "packages": {}}',
        '{"version": 1, "lock": "a", "python": "b", "fingerprint": "c", "packages": []}',
        '{"version": 1, "lock": "a", "python": "b", "packages": {}}',
    ],
)
def test_a_manifest_that_is_none_is_no_environment(base: str, text: str | bytes) -> None:
    venv = build(base)
    (venv / environments.MANIFEST).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert found(base) == NOTHING


def test_what_python_leaves_when_it_imports_is_no_drift(base: str) -> None:
    venv = build(base)
    install(venv, "one", "1.0", "one/__init__.py,sha256=x,1")
    (packages(venv) / "one").mkdir()
    (packages(venv) / "one" / "__init__.py").touch()
    (packages(venv) / "six.py").touch()
    whole(venv)
    before = environments.fingerprint(str(venv))
    env = {**os.environ, "PYTHONPATH": str(packages(venv)), "PYTHONDONTWRITEBYTECODE": ""}
    subprocess.run([sys.executable, "-c", "import one, six"], env=env, check=True, timeout=LIMIT)
    assert (packages(venv) / "__pycache__").is_dir()
    assert environments.fingerprint(str(venv)) == before
    assert not found(base)["drifted"]


def test_every_change_of_what_is_installed_is_drift(base: str) -> None:
    venv = build(base)
    kept = install(venv, "one", "1.0", "one.py,sha256=x,1")
    whole(venv)
    added = install(venv, "two", "2.0")
    assert found(base)["drifted"]
    for file in added.iterdir():
        file.unlink()
    added.rmdir()
    assert not found(base)["drifted"]
    # The same version of other files.
    (kept / "RECORD").write_text("one.py,sha256=y,1\n")
    assert found(base)["drifted"]
    (kept / "RECORD").write_text("one.py,sha256=x,1\n")
    assert not found(base)["drifted"]
    (kept / "METADATA").unlink()
    (kept / "RECORD").unlink()
    kept.rmdir()
    assert found(base)["drifted"]


def test_another_clock_is_no_drift(base: str) -> None:
    """As when an image is made of it, which keeps whole seconds, or none of them."""
    venv = build(base)
    directory = install(venv, "one", "1.0", "one.py,sha256=x,1")
    (directory / "METADATA").touch()
    whole(venv)
    before = environments.fingerprint(str(venv))
    for path in (directory, directory / "RECORD"):
        os.utime(path, (1, 1))
    assert environments.fingerprint(str(venv)) != before
    assert not found(base)["drifted"]


def test_a_change_of_the_guests_debian_packages_is_drift(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = tmp_path / "status"
    status.write_text("Package: one\n")
    monkeypatch.setattr(environments, "DPKG_STATUS", str(status))
    whole(build(base))
    environments.write_system(base, "data", lock=LOCK)
    assert (found(base)["system"], found(base)["drifted"]) == (LOCK, False)
    status.write_text("Package: one\n\nPackage: two\n")
    assert (found(base)["system"], found(base)["drifted"]) == (LOCK, True)
    # That of the Python packages is another question.
    assert not environments.has_drifted(base, "data")
    Path(base, "data", "system.json").write_text("[" * 100_000)
    assert (found(base)["system"], found(base)["drifted"]) == ("", False)


def test_records_do_not_depend_on_who_installed_or_where(base: str) -> None:
    one = build(base, "1")
    install(
        one,
        "Some.Thing",
        "1.0",
        "some/__init__.py,sha256=abc,12",
        '"some/of, two.txt",sha256=def,3',
        "Some.Thing-1.0.dist-info/METADATA,sha256=m,1",
        "Some.Thing-1.0.dist-info/RECORD,,",
        "Some.Thing-1.0.dist-info/INSTALLER,sha256=pip,4",
        "Some.Thing-1.0.dist-info/REQUESTED,sha256=x,0",
        "Some.Thing-1.0.dist-info/direct_url.json,sha256=x,0",
        "some/__pycache__/__init__.cpython-311.pyc,,",
        "../../../bin/thing,sha256=one,200",
    )
    other = build(base, "2")
    install(
        other,
        "Some.Thing",
        "1.0",
        "../../../bin/thing,sha256=two,190",
        "Some.Thing-1.0.dist-info/METADATA,sha256=m,1",
        '"some/of, two.txt",sha256=def,3',
        "Some.Thing-1.0.dist-info/uv_cache.json,sha256=x,0",
        "some/__init__.py,sha256=abc,12",
        "",
    )
    records = environments.records(str(one))
    assert list(records) == ["some-thing"]
    assert records["some-thing"][0] == "1.0"
    assert environments.records(str(other)) == records
    changed = build(base, "3")
    install(changed, "Some.Thing", "1.0", "some/__init__.py,sha256=abd,12", "some/INSTALLER,sha256=abc,1")
    assert environments.records(str(changed))["some-thing"] != records["some-thing"]


def test_records_of_what_is_damaged(base: str) -> None:
    venv = build(base)
    install(venv, "no_record", "1.0").joinpath("RECORD").unlink()
    install(venv, "no_metadata", "2.0", "x,,").joinpath("METADATA").unlink()
    install(venv, "odd", "3", metadata="\0\nName\nVERSION: 3.1\nname:  Odd_One  \n\nVersion: 9")
    install(venv, "~oved", "1.0")
    install(venv, "binary", "1").joinpath("RECORD").write_bytes(b'\xff\xfe,,\n\0"unclosed,\n')
    (packages(venv) / "file.dist-info").touch()
    (packages(venv) / ".dist-info").mkdir()
    records = environments.records(str(venv))
    versions = {name: version for name, (version, _) in records.items()}
    assert versions == {"no-record": "1.0", "no-metadata": "2.0", "odd-one": "3.1", "binary": "1", "file": ""}
    assert records["no-record"] == ["1.0", ""]
    environments.fingerprint(str(venv))


def test_what_pip_does_is_noticed(base: str, tmp_path: Path) -> None:
    """A real environment, and a wheel that is put in and taken out by pip."""
    venv = Path(base, "data", "builds", "1")
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True, timeout=LIMIT)
    Path(base, "data", "current").symlink_to("builds/1")
    whole(venv)
    python = found(base)["python"]
    wheel = tmp_path / "tiny_thing-1.0-py3-none-any.whl"
    files = {
        "METADATA": "Metadata-Version: 2.1\nName: tiny-thing\nVersion: 1.0\n",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_thing.py", "")
        for name, text in files.items():
            archive.writestr(f"tiny_thing-1.0.dist-info/{name}", text)
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", "--no-index", str(wheel)], check=True, timeout=LIMIT)
    assert found(base)["drifted"]
    assert environments.records(str(venv))["tiny-thing"][0] == "1.0"
    subprocess.run([*pip, "uninstall", "--yes", "tiny-thing"], check=True, timeout=LIMIT)
    assert not found(base)["drifted"]
