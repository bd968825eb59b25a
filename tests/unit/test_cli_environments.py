"""`lima-kernels env` as it is typed: what needs no guest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from lima_kernels.cli.main import main
from lima_kernels.environment import lock as locks
from lima_kernels.environment import schema
from lima_kernels.environment.spec import load
from lima_kernels.kernelspec import installed
from lima_kernels.reproduce import removing, syncing
from tests.unit.test_lock import LOCK

from .conftest import Machine


@pytest.fixture
def project(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = machine.home / "My Project"
    made.mkdir()
    monkeypatch.chdir(made)
    return made


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed, as one line: a terminal breaks it where it ends."""
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).split())


def locked(file: Path) -> Path:
    """Lay a lock beside an environment file that it answers to."""
    target = file.with_suffix(".lock")
    environment = load(file)
    locks.write(target, locks.msgspec.structs.replace(LOCK, name="my-project", inputs=locks.inputs_digest(environment)))
    return target


def test_init_writes_a_file_that_can_be_obeyed(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "init"]) == 0
    assert load(project / "lima-env.yaml").name == "my-project"
    assert said(capsys) == "Wrote lima-env.yaml. To lock it: lima-kernels env lock"


def test_init_overwrites_nothing_unless_it_is_forced(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "lima-env.yaml").write_text("cpus: 3\n")
    assert main(["env", "init"]) == 1
    assert said(capsys) == "lima-kernels: lima-env.yaml is there already. To write it anew: --force"
    assert load(project / "lima-env.yaml").cpus == 3
    assert main(["env", "init", "--force"]) == 0
    assert load(project / "lima-env.yaml").cpus is None


@pytest.mark.parametrize(
    ("names", "python"),
    [
        (["requirements.txt"], {"requirementsFile": "requirements.txt"}),
        (["requirements.txt", "pyproject.toml"], {"pyproject": "pyproject.toml"}),
        (["requirements.txt", "pyproject.toml", "pylock.toml"], {"pylock": "pylock.toml"}),
    ],
)
def test_init_takes_the_packages_that_are_listed_already(project: Path, names: list[str], python: object) -> None:
    contents = {
        "requirements.txt": "numpy\n",
        "pyproject.toml": '[project]\nname = "x"\n',
        "pylock.toml": 'lock-version = "1.0"\ncreated-by = "x"\npackages = []\n',
    }
    for name in names:
        (project / name).write_text(contents[name])
    assert main(["env", "init"]) == 0
    assert yaml.safe_load((project / "lima-env.yaml").read_text())["python"] == python


def test_init_says_what_it_leaves_out(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "requirements.txt").write_text("-e .\n")
    (project / "environment.yml").write_text("dependencies: [gdal]\n")
    assert main(["env", "init"]) == 0
    words = said(capsys)
    assert "requirements.txt is left out." in words
    assert "the option -e cannot be obeyed" in words
    assert "this is an environment file of conda, whose packages (gdal)" in words
    assert load(project / "lima-env.yaml").requirements == ()


def test_init_elsewhere(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "sub").mkdir()
    assert main(["env", "init", "sub"]) == 0
    assert load(project / "sub" / "lima-env.yaml").name == "sub"
    assert main(["env", "init", "none"]) == 1
    assert said(capsys).endswith("lima-kernels: There is no directory none.")


def test_show_tells_what_is_said_and_no_secret(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "lima-env.yaml").write_text(
        "name: mine\ncpus: 2\npython: {requirements: [numpy], version: '3.11'}\nenv: {TOKEN: hunter2}\n"
        "files: [{path: /etc/a, content: hunter2}]\nports: [80]\n"
    )
    (project / "sub").mkdir()
    assert main(["env", "show", "--json", "sub/../lima-env.yaml"]) == 0
    out = capsys.readouterr().out
    assert "hunter2" not in out
    facts = json.loads(out)
    assert (facts["name"], facts["state"]) == ("mine", "no lock")
    assert facts["says"] == {
        "name": "mine",
        "cpus": 2,
        "python": ["numpy"],
        "env": ["TOKEN"],
        "files": ["/etc/a"],
        "ports": [{"guest": 80, "host": None}],
    }
    assert main(["env", "show"]) == 0
    assert "hunter2" not in (words := said(capsys))
    assert "TOKEN" in words


def test_show_tells_whether_the_lock_answers_to_the_file(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = project / "lima-env.yaml"
    file.write_text("apt: [git]\n")
    locked(file)
    assert main(["env", "show", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["state"] == "locked"
    assert facts["lock"]["python_packages"] == 2
    assert facts["lock"]["platforms"]["x86_64"]["debian_packages"] == 3
    file.write_text("apt: [git, less]\n")
    assert main(["env", "show", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "stale: the file has changed since"


def test_show_without_a_file_says_how_to_make_one(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "show"]) == 1
    assert said(capsys).endswith("Write one: lima-kernels env init")


def test_an_edited_lock_is_one_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = project / "lima-env.yaml"
    file.write_text("")
    lock = locked(file)
    lock.write_text(lock.read_text().replace("3.11.2", "3.11.3"))
    assert main(["env", "show"]) == 1
    assert said(capsys).startswith(f"lima-kernels: {lock}: it was edited since it was made")


def test_list_and_remove(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "list"]) == 0
    assert said(capsys) == "No environment yet: lima-kernels env init"
    file = project / "lima-env.yaml"
    file.write_text("name: mine\n")
    assert main(["install", "--user", "--name", "one", "--environment", str(file), "--instance", "vm-one"]) == 0
    other = project / "broken.yaml"
    other.write_text("name: other\n")
    assert main(["install", "--user", "--name", "two", "--environment", str(other), "--instance", "vm-two"]) == 0
    other.write_text("name: [\n")
    capsys.readouterr()
    assert main(["env", "list", "--json"]) == 0
    rows = {row["kernel_spec"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["one"] == {
        "name": "mine",
        "instance": "vm-one",
        "state": "no lock",
        "file": str(file),
        "kernel_spec": "one",
    }
    assert (rows["two"]["name"], "not YAML" in rows["two"]["state"]) == ("?", True)
    assert main(["env", "remove", "mine"]) == 0
    names = {found.name for found in installed()}
    assert ("one" in names, "two" in names) == (False, True)
    assert file.exists()


def test_an_environment_that_is_only_in_a_vm_is_listed(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    syncing.note("vm-one", syncing.Hosted(environments={"left": "x"}))
    assert main(["env", "list", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["instance"], row["state"]) == ("left", "vm-one", "without a kernel spec")
    # The VM itself has been deleted since: there is nothing to reach.
    assert main(["env", "remove", "left"]) == 0
    assert removing.hosting() == {}


def test_remove_names_the_nearest(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    syncing.note("vm-one", syncing.Hosted(environments={"left": "x"}))
    assert main(["env", "remove", "lift"]) == 1
    assert said(capsys) == (
        "lima-kernels: There is no environment 'lift' in a kernel spec or a VM. Did you mean 'left'?"
    )


def test_the_schema_is_printed_as_it_is_published(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "schema"]) == 0
    assert capsys.readouterr().out == schema.published()
