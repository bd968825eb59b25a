"""Which environment file is taken for a notebook."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lima_kernels.environment import discovery
from lima_kernels.environment.discovery import discover
from lima_kernels.errors import ConfigurationError

from .conftest import Machine


def environment(directory: Path) -> Path:
    file = directory / "lima-env.yaml"
    file.touch()
    return file


@pytest.fixture
def project(machine: Machine) -> Path:
    made = machine.home / "project"
    (made / "a" / "b").mkdir(parents=True)
    return made


def test_the_nearest_above_is_taken(project: Path) -> None:
    above, nearest = environment(project), environment(project / "a")
    assert discover(project / "a" / "b") == nearest
    assert discover(project / "a" / "b" / "notebook.ipynb") == nearest
    assert discover(project) == above


def test_none_is_none(project: Path) -> None:
    assert discover(project / "a") is None


def test_a_directory_of_that_name_is_no_file(project: Path) -> None:
    (project / "a" / "lima-env.yaml").mkdir()
    assert discover(project / "a") is None


def test_the_home_directory_is_the_last(machine: Machine, project: Path) -> None:
    environment(machine.home.parent)
    assert discover(project) is None
    assert discover(machine.home) is None
    last = environment(machine.home)
    assert discover(project) == last


def test_another_filesystem_is_not_looked_at(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment(project)
    monkeypatch.setattr(discovery, "_is_on_same_filesystem", lambda directory, _start: directory != project)
    assert discover(project / "a" / "b") is None


def test_a_relative_path_starts_here(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = environment(project)
    monkeypatch.chdir(project / "a")
    assert discover(Path()) == discover(Path("b")) == file


def test_what_another_user_has_laid_out_is_not_taken(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = environment(project)
    mine = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: mine + 1)
    assert discover(project / "a") == file  # whose directory it is, his environment it is
    monkeypatch.setattr(discovery, "_owner", lambda path: mine if path == file else mine + 1)
    with pytest.raises(ConfigurationError) as caught:
        discover(project / "a")
    assert str(caught.value) == (
        f"The environment file {file} is another user's, and is not taken unasked. Read it; if it is what you want: "
        f"--environment {file}"
    )
