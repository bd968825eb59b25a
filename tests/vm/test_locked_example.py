"""notebooks/04-reproducible.ipynb as its text says it is run, on a real VM."""

from __future__ import annotations

import shutil
from pathlib import Path
from xml.etree import ElementTree as ET

import nbformat
import pytest

from .conftest import INSTANCE, Figures
from .test_other_kernels import command

pytestmark = pytest.mark.timeout(900)
EXAMPLES = Path(__file__).parents[2] / "notebooks"
NAME = "04-reproducible.ipynb"


def printed(path: Path) -> str:
    """What the last cell printed: the number, and the digest of the points."""
    (output,) = nbformat.read(path, as_version=4).cells[-1].outputs
    return str(output["text"])


def test_it_is_locked_run_and_verified(
    vm: str, notebooks: Path, figures: Figures, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Below the directory that the VM shows.
    directory = notebooks / "by chance"
    directory.mkdir()
    monkeypatch.chdir(notebooks)
    for name in (NAME, "lima-env.yaml"):
        shutil.copy(EXAMPLES / name, directory)
    file, path, other = directory / "lima-env.yaml", directory / NAME, directory / "other.ipynb"
    shutil.copy(path, other)
    command("start", INSTANCE)
    command("install", "--user", "--name", "by-chance", "--environment", str(file), "--instance", INSTANCE)
    command("env", "lock", str(file))
    command("env", "sync", str(file))
    reports = ("--junit", str(directory / "junit.xml"), "--html", str(directory / "pages"))
    with figures.timed("run --locked, two notebooks at once"):
        command("run", "--locked", "--parallel", "2", *reports, str(path), str(other), "-p", "points", "1000")
    assert printed(path) == printed(other)
    assert printed(path).startswith("pi is about 3.")
    kept = [nbformat.read(one, as_version=4).metadata["lima_kernels"] for one in (path, other)]
    assert kept[0]["environment"] == kept[1]["environment"]
    assert (kept[0]["outcome"], kept[0]["parameters"]) == ("passed", {"points": 1000})
    assert str(directory) not in str(kept)
    suites = ET.parse(directory / "junit.xml").getroot()
    assert [suite.attrib["failures"] + suite.attrib["errors"] for suite in suites] == ["00", "00"]
    assert printed(path).splitlines()[0] in (directory / "pages" / "04-reproducible.html").read_text()
    assert command("verify", str(path), str(other)).count("in the environment that the VM") == 2
    command("uninstall", "by-chance")
