"""The program that makes a guest what a lock says: real environments by uv, and a small fake of apt."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lima_kernels.guest.forkserver import environments
from lima_kernels.guest.forkserver.layers import apt, main, python
from lima_kernels.guest.forkserver.layers.commands import Failed, answer
from tests import locked_guest
from tests.locked_guest import DEB, Debian, Index

NAME = "paper"
TINY = "tiny"


def wheel(directory: Path, version: str) -> Path:
    return locked_guest.wheel(directory, TINY, version)


def wanted(file: Path, version: str, sha256: str = "") -> dict[str, Any]:
    digest = sha256 or hashlib.sha256(file.read_bytes()).hexdigest()
    pylock = (
        'lock-version = "1.0"\ncreated-by = "us"\n\n[[packages]]\n'
        f'name = "{TINY}"\nversion = "{version}"\n'
        f'wheels = [{{ url = "{file.as_uri()}", hashes = {{ sha256 = "{digest}" }} }}]\n'
    )
    return {"lock": hashlib.sha256(pylock.encode()).hexdigest(), "python": "1" * 64, "pylock": pylock, "needed": 1000}


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where environments are, with the real uv."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert uv is not None
    monkeypatch.setattr(python, "UV", uv)
    made = tmp_path / "environments"
    made.mkdir()
    return made


def version(base: Path) -> str:
    found = environments.find(str(base), NAME)
    argv = [found["python"], "-c", f"import {TINY}; print({TINY}.VERSION)"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


def builds(base: Path) -> list[str]:
    return sorted(entry.name for entry in (base / NAME / "builds").iterdir())


def test_an_environment_is_built_aside_and_switched(base: Path, tmp_path: Path) -> None:
    first = wanted(wheel(tmp_path, "1.0"), "1.0")
    assert python.sync(str(base), NAME, first)
    assert version(base) == "1.0"
    (old,) = builds(base)
    assert not python.sync(str(base), NAME, first), "it is there already"
    assert builds(base) == [old]
    assert python.sync(str(base), NAME, wanted(wheel(tmp_path, "2.0"), "2.0"))
    assert version(base) == "2.0"
    assert old not in builds(base), "nobody uses the older build"


def test_a_build_that_kernels_run_in_stays_until_they_end(base: Path, tmp_path: Path) -> None:
    python.sync(str(base), NAME, wanted(wheel(tmp_path, "1.0"), "1.0"))
    interpreter = environments.find(str(base), NAME)["python"]
    with subprocess.Popen([interpreter, "-c", "input()"], stdin=subprocess.PIPE) as kernel:
        python.sync(str(base), NAME, wanted(wheel(tmp_path, "2.0"), "2.0"))
        assert len(builds(base)) == 2
        with pytest.raises(Failed, match="1 processes run in the environment paper"):
            python.remove(str(base), NAME, force=False)
        kernel.communicate(b"\n")
    python.sync(str(base), NAME, wanted(wheel(tmp_path, "3.0"), "3.0"))
    assert len(builds(base)) == 1
    python.remove(str(base), NAME, force=False)
    assert not (base / NAME).exists()


def test_an_environment_is_removed_by_force_with_what_runs_in_it(base: Path, tmp_path: Path) -> None:
    python.sync(str(base), NAME, wanted(wheel(tmp_path, "1.0"), "1.0"))
    interpreter = environments.find(str(base), NAME)["python"]
    # Until it runs, nobody can see what it is.
    argv = [interpreter, "-c", "input(1)"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as kernel:
        assert kernel.stdout is not None
        assert kernel.stdout.read(1) == b"1"
        python.remove(str(base), NAME, force=True)
        assert kernel.wait(10) == -signal.SIGKILL
    assert not (base / NAME).exists()


def test_what_was_changed_by_hand_is_made_anew(base: Path, tmp_path: Path) -> None:
    first = wanted(wheel(tmp_path, "1.0"), "1.0")
    python.sync(str(base), NAME, first)
    interpreter = environments.find(str(base), NAME)["python"]
    argv = [python.UV, "pip", "install", "--quiet", "--no-index", "--python", interpreter, str(wheel(tmp_path, "1.1"))]
    subprocess.run(argv, check=True)
    assert version(base) == "1.1"
    assert environments.find(str(base), NAME)["drifted"]
    assert python.sync(str(base), NAME, first)
    assert version(base) == "1.0"
    assert not environments.find(str(base), NAME)["drifted"]


def test_a_wrong_hash_names_package_expected_and_got(base: Path, tmp_path: Path) -> None:
    python.sync(str(base), NAME, wanted(wheel(tmp_path, "1.0"), "1.0"))
    before = builds(base)
    file = wheel(tmp_path, "2.0")
    with pytest.raises(Failed) as caught:
        python.sync(str(base), NAME, wanted(file, "2.0", sha256="0" * 64))
    got = hashlib.sha256(file.read_bytes()).hexdigest()
    assert TINY in caught.value.what
    assert f"expected sha256:{'0' * 64}, got sha256:{got}" in caught.value.what
    assert builds(base) == before
    assert version(base) == "1.0"


def test_a_package_without_a_build_for_this_guest_is_named(base: Path, tmp_path: Path) -> None:
    file = wheel(tmp_path, "1.0").rename(tmp_path / f"{TINY}-1.0-py3-none-win_amd64.whl")
    with pytest.raises(
        Failed, match=rf"The Python package {TINY}\S* has no build for this guest \({os.uname().machine}\)"
    ):
        python.sync(str(base), NAME, wanted(file, "1.0"))
    assert builds(base) == []


def test_without_network_and_cache_it_says_so(base: Path, tmp_path: Path) -> None:
    nobody = wanted(wheel(tmp_path, "1.0"), "1.0")
    nobody["pylock"] = nobody["pylock"].replace(tmp_path.as_uri(), "http://127.0.0.1:9")
    with pytest.raises(Failed, match="Installing the Python packages needs the network"):
        python.sync(str(base), NAME, nobody)


def test_what_is_cached_needs_no_index(base: Path, tmp_path: Path) -> None:
    index = Index(tmp_path / "index")
    index.add(TINY, "1.0")
    file = tmp_path / "index" / TINY / f"{TINY}-1.0-py3-none-any.whl"
    with index.served() as address:
        first = wanted(file, "1.0")
        first["pylock"] = first["pylock"].replace(file.parent.as_uri(), f"{address}/{TINY}")
        assert address in first["pylock"]
        python.sync(str(base), NAME, first)
    # It wanted to be asked again before it is believed; hashes do not.
    python.sync(str(base), "another", first)
    assert len(os.listdir(base / "another" / "builds")) == 1


def test_room_is_looked_for_before_anything_is_fetched(base: Path, tmp_path: Path) -> None:
    large = {**wanted(wheel(tmp_path, "1.0"), "1.0"), "needed": 1 << 60}
    with pytest.raises(Failed, match="no room for the environment"):
        python.sync(str(base), NAME, large)
    assert builds(base) == []


def test_what_a_killed_sync_left_is_removed_by_the_next(base: Path, tmp_path: Path) -> None:
    first = wanted(wheel(tmp_path, "1.0"), "1.0")
    python.sync(str(base), NAME, first)
    half = base / NAME / "builds" / "half-made"
    (half / "bin").mkdir(parents=True)
    (base / NAME / "current.new").symlink_to("builds/half-made")
    assert version(base) == "1.0"
    python.sync(str(base), NAME, wanted(wheel(tmp_path, "2.0"), "2.0"))
    assert not half.exists()
    assert version(base) == "2.0"


def test_two_syncs_at_once_wait_for_each_other(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python, "PATIENCE", 1.0)
    with (base / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with (
            pytest.raises(Failed, match="Another sync of an environment of this VM has not ended within 1 s"),
            python.locked(str(base)),
        ):
            pytest.fail("it is locked")
        fcntl.flock(other, fcntl.LOCK_UN)
    with python.locked(str(base)):
        pass


def test_requirements_that_do_not_go_together_are_uvs_to_explain(base: Path, tmp_path: Path) -> None:
    with pytest.raises(Failed) as caught:
        python.resolve(str(base), f"{TINY} @ {wheel(tmp_path, '1.0').as_uri()}\n{TINY}==2.0\n", "", None)
    assert caught.value.what == "The Python requirements do not go together."
    assert any(TINY in line for line in caught.value.log)


# Debian's side, over programs of the same names that keep a list of packages in a file.


@pytest.fixture
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Debian:
    made = Debian(tmp_path, tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(apt, "ARCHIVES", str(made.archives))
    monkeypatch.setattr(apt, "STATUS", str(made.status))
    monkeypatch.setattr(apt, "_own", [])
    return made


def test_packages_are_resolved_without_a_change(debian: Debian) -> None:
    found = apt.resolve(["tree"], {}, {})
    assert found["apt"] == {"base": "1", "tree": "2.1"}
    assert found["debs"] == {"tree": {"version": "2.1", "sha256": DEB, "size": 4}}
    assert debian.installed == {"base": "1"}


def test_a_locked_version_stays_as_long_as_the_archive_has_it(debian: Debian) -> None:
    assert apt.resolve(["tree"], {}, {"tree": "2.0"})["apt"]["tree"] == "2.0"
    assert apt.resolve(["tree"], {}, {"tree": "1.9"})["apt"]["tree"] == "2.1"
    assert apt.resolve(["tree=2.0"], {}, {"tree": "2.1"})["apt"]["tree"] == "2.0"


def test_what_somebody_installed_by_hand_is_in_no_lock(debian: Debian) -> None:
    debian.set("installed", {"base": "1", "byhand": "1"})
    assert apt.resolve([], {"base": "1"}, {})["apt"] == {"base": "1"}
    assert debian.calls == [], "nothing is asked of the archive for that"


def test_packages_become_those_of_the_lock(debian: Debian) -> None:
    debian.set("installed", {"base": "1", "byhand": "1"})
    debs = {"tree": {"version": "2.0", "sha256": DEB, "size": 4}}
    assert apt.sync({"base": "1", "tree": "2.0"}, debs)
    assert debian.installed == {"base": "1", "tree": "2.0"}
    assert not apt.sync({"base": "1", "tree": "2.0"}, debs)


def test_a_version_with_an_epoch_is_found_among_what_was_fetched(
    debian: Debian, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # apt writes the colon as %3a.
    fetched = tmp_path / "archives" / "jq_1%3a1.6_amd64.deb"
    fetched.write_text("deb\n")
    assert apt.sync({"base": "1", "jq": "1:1.6"}, {"jq": {"version": "1:1.6", "sha256": DEB, "size": 4}})


def test_a_wrong_hash_of_a_debian_package_installs_nothing(debian: Debian) -> None:
    debs = {"tree": {"version": "2.0", "sha256": "0" * 64, "size": 4}}
    with pytest.raises(Failed, match=f"Debian package tree .* expected SHA-256 {'0' * 64}, got {DEB}. Nothing was"):
        apt.sync({"base": "1", "tree": "2.0"}, debs)
    assert debian.installed == {"base": "1"}


def test_a_version_that_the_archive_lost_is_named(debian: Debian) -> None:
    with pytest.raises(Failed, match=r"no longer has version 1\.0 of tree") as caught:
        apt.sync({"base": "1", "tree": "1.0"}, {})
    assert "env lock --upgrade" in caught.value.hint
    # The lists could have been older than the lock.
    assert any("update" in call for call in debian.calls)
    assert debian.installed == {"base": "1"}


def test_a_guest_that_has_no_lists_yet_fetches_them(debian: Debian) -> None:
    debian.set("has_lists", False)
    debs = {"tree": {"version": "2.0", "sha256": DEB, "size": 4}}
    assert apt.sync({"base": "1", "tree": "2.0"}, debs)
    assert debian.installed == {"base": "1", "tree": "2.0"}


def test_a_package_that_the_archive_lost_is_named(debian: Debian) -> None:
    with pytest.raises(Failed, match="The package archive no longer has treee"):
        apt.sync({"base": "1", "treee": "1"}, {})


def test_a_package_that_is_in_no_archive_is_named(debian: Debian) -> None:
    with pytest.raises(Failed, match="The package archive has no package 'treee' for amd64"):
        apt.resolve(["treee"], {}, {})


# The requests.


@pytest.fixture
def ask(
    base: Path, debian: Debian, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[dict[str, Any]]]:
    monkeypatch.setattr(environments, "DPKG_STATUS", str(debian.status))

    def ask_one(**request: Any) -> list[dict[str, Any]]:
        read, write = os.pipe()
        os.write(write, json.dumps({**request, "environments": str(base)}).encode())
        os.close(write)
        with os.fdopen(read) as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            assert main.main() == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return ask_one


def result(lines: list[dict[str, Any]]) -> Any:
    assert lines[-1] == {"end": True}, lines
    return json.loads("".join(line.get("part", "") for line in lines))


def test_a_request_from_its_lock_to_its_state(
    ask: Callable[..., Any], tmp_path: Path, base: Path, debian: Debian
) -> None:
    request = {"name": NAME, **wanted(wheel(tmp_path, "1.0"), "1.0"), "apt": {"base": "1"}, "debs": {}}
    lines = ask(op="sync", **request)
    assert result(lines) == {"changed": True, "python": environments.find(str(base), NAME)["python"]}
    assert {"phase": "installing Python packages"} in lines
    assert result(ask(op="sync", **request))["changed"] is False
    state = result(ask(op="state", name=NAME))
    assert state["packages"] == state["built"]
    assert state["packages"][TINY][0] == "1.0"
    assert state["apt"] == {"base": "1"}
    assert result(ask(op="list")) == {NAME: {"lock": request["lock"], "drifted": False}}
    found = environments.find(str(base), NAME)
    assert (found["system"], found["drifted"]) == (request["lock"], False)
    debian.status.write_text("another package")
    assert environments.find(str(base), NAME)["drifted"], "Debian's packages count as well"
    assert result(ask(op="remove", name=NAME, force=False)) == {}
    assert result(ask(op="state", name=NAME))["python"] == ""


def test_what_cannot_be_done_is_an_answer(ask: Callable[..., Any], tmp_path: Path) -> None:
    request = {**wanted(wheel(tmp_path, "1.0"), "1.0"), "apt": {"none": "1"}, "debs": {}}
    last = ask(op="sync", name=NAME, **request)[-1]
    assert "Debian" in last["error"] or "archive" in last["error"]
    assert "Traceback" not in json.dumps(last)


def test_a_long_answer_comes_in_pieces(capsys: pytest.CaptureFixture[str]) -> None:
    answer({"text": "x" * 200_000})
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) > 6
    assert result(lines) == {"text": "x" * 200_000}


def test_what_was_begun_is_finished_when_the_host_hangs_up(tmp_path: Path) -> None:
    go, done = tmp_path / "go", tmp_path / "done"
    work = f"echo one; until [ -e {go} ]; do sleep 0.05; done; for n in 1 2 3; do echo $n; done; touch {done}"
    program = f"from lima_kernels.guest.forkserver.layers.commands import run\nrun(('sh', '-c', {work!r}), 'It')"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        go.touch()
        assert process.stderr.read() == b""
    assert process.returncode == 0
    assert done.exists()
