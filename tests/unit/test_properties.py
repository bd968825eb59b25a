"""The table of what holds on which mount: the program that measures it, and its place in the README."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.properties_table import COMMITTED, column, in_readme, read, rendered
from tests.vm import properties

TABLE = read(COMMITTED)
MEASURED_BY_MAKE_TEST = ("9p", "added")


def test_the_readme_shows_what_is_committed() -> None:
    assert in_readme() == rendered(TABLE), "python -m tests.properties_table"


def test_every_property_is_committed_in_its_group() -> None:
    names: dict[str, list[str]] = {}
    for group, name, _ in properties.PROPERTIES:
        names.setdefault(group, []).append(name)
    assert {group: list(rows) for group, rows in TABLE.items()} == names
    for mount in MEASURED_BY_MAKE_TEST:
        assert list(column(TABLE, mount)) == [name for rows in names.values() for name in rows]


@pytest.mark.skipif(sys.platform != "linux", reason="it is for guests")
def test_all_of_it_holds_on_a_plain_disk(tmp_path: Path) -> None:
    # git may be missing here, and pip is no matter of a file system alone.
    names = [name for group, name, _ in properties.PROPERTIES if group != "Programs"]
    argv = [sys.executable, properties.__file__, "--alone", str(tmp_path), *names]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=True)
    found = json.loads(done.stdout)["results"]
    assert found["holds"] == dict.fromkeys(names, True), found["why not"]
