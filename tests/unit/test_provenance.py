"""What a notebook says it was run in, and what another environment makes of that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat import NotebookNode

from lima_kernels.errors import ConfigurationError
from lima_kernels.reproduce import notebooks, provenance
from lima_kernels.reproduce.difference import Difference
from lima_kernels.reproduce.parameters import inject
from lima_kernels.reproduce.provenance import Outcome, Provenance
from lima_kernels.reproduce.state import Package

from .locks import APT, IMAGE, KERNEL, OTHER, PYTHON, lock, state


def notebook(*cells: str) -> NotebookNode:
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])


def of_run(made: NotebookNode, directory: Path = Path("/nowhere")) -> Provenance:
    return provenance.of_run(made, directory, lock(), state(lock()), Outcome.PASSED)


def test_what_is_kept_comes_back_through_the_file(tmp_path: Path) -> None:
    made = notebook("print(1)")
    inject(made, {"n": 3}, "python")
    kept = of_run(made)
    provenance.keep(made, kept)
    path = tmp_path / "one.ipynb"
    notebooks.write(made, path)
    back = notebooks.read(path)
    nbformat.validate(back)
    assert provenance.kept(back, path) == kept
    assert (kept.environment, kept.lock, kept.name) == (state(lock()).digest, lock().digest, "tables")
    assert (kept.arch, kept.image, kept.kernel, kept.python) == ("x86_64", IMAGE, KERNEL, PYTHON)
    assert (kept.packages, kept.parameters) == ({"ipython": "9.1.0", "numpy": "2.1.0"}, {"n": 3})
    assert kept.date.endswith("+00:00")


def test_no_path_of_this_host_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    directory = tmp_path / "work"
    made = notebook("print(1)")
    inject(made, {"data": f"{directory}/data.csv", "other": f"--from={tmp_path}/x", "n": 3}, "python")
    kept = of_run(made, directory)
    assert kept.parameters == {"data": "./data.csv", "other": "--from=~/x", "n": 3}
    provenance.keep(made, kept)
    assert str(tmp_path) not in str(made.metadata)


def test_a_home_that_is_the_root_hides_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/")
    made = notebook()
    inject(made, {"url": "https://example.invalid/x"}, "python")
    assert of_run(made, Path("/")).parameters == {"url": "https://example.invalid/x"}


def test_the_same_environment_has_no_changes() -> None:
    assert provenance.changes(of_run(notebook()), state(lock(), built={})) == []


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"kernel": "6.2"}, ("kernel", KERNEL, "6.2")),
        ({"python": "3.12.1"}, ("Python", PYTHON, "3.12.1")),
        ({"arch": "aarch64"}, ("architecture", "x86_64", "aarch64")),
        ({"image_sha256": ""}, ("image", IMAGE[:12], "unknown")),
    ],
)
def test_one_thing_that_changed(changed: dict[str, Any], difference: tuple[str, str, str]) -> None:
    assert provenance.changes(of_run(notebook()), state(lock(), **changed)) == [Difference(*difference)]


def test_packages_that_changed() -> None:
    kept = of_run(notebook())
    there = state(lock()).packages
    newer = state(lock(), packages={**there, "numpy": Package("2.2.0", OTHER)})
    assert provenance.changes(kept, newer) == [Difference("python numpy", "2.1.0", "2.2.0")]
    (files,) = provenance.changes(kept, state(lock(), packages={**there, "numpy": Package("2.1.0", OTHER)}))
    assert files.what == "files of the Python packages"
    (debian,) = provenance.changes(kept, state(lock(), apt={**APT, "zsh": "5.9"}))
    assert debian.what == "Debian packages"


def test_a_notebook_that_contradicts_itself_is_not_the_same() -> None:
    made = notebook()
    provenance.keep(made, of_run(made))
    made.metadata[provenance.KEY]["environment"] = OTHER
    found = provenance.changes(provenance.kept(made, Path("x.ipynb")), state(lock()))
    assert [difference.what for difference in found] == ["environment"]


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"version": 2}, "x.ipynb was run by a newer lima-kernels. Update lima-kernels."),
        ({"kernel": "\x1b[2J"}, "x.ipynb says it was run in cannot be read"),
        ({"environment": "no digest"}, "x.ipynb says it was run in cannot be read"),
        ({"outcome": "\x1b[2J\nproved"}, "x.ipynb says it was run in cannot be read"),
        ({"packages": ["numpy"]}, "x.ipynb says it was run in cannot be read"),
        ({"parameters": {"n": {"deep": 1}}}, "x.ipynb says it was run in cannot be read"),
        ({"parameters": None}, "x.ipynb says it was run in cannot be read"),
    ],
)
def test_what_somebody_wrote_into_the_notebook(changed: dict[str, Any], line: str) -> None:
    made = notebook()
    provenance.keep(made, of_run(made))
    made.metadata[provenance.KEY].update(changed)
    with pytest.raises(ConfigurationError) as caught:
        provenance.kept(made, Path("x.ipynb"))
    assert line in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_notebook_that_says_nothing() -> None:
    made = notebook()
    with pytest.raises(ConfigurationError) as caught:
        provenance.kept(made, Path("x.ipynb"))
    assert str(caught.value) == ("x.ipynb does not say what it was run in. Run it: lima-kernels run --locked x.ipynb")
    made.metadata[provenance.KEY] = "text"
    with pytest.raises(ConfigurationError, match="cannot be read"):
        provenance.kept(made, Path("x.ipynb"))


def test_the_code_counts_and_the_words_do_not() -> None:
    one, other = notebook("1", "2"), notebook("12")
    assert provenance.code_digest(one) != provenance.code_digest(other)
    one.cells.append(nbformat.v4.new_markdown_cell("# more"))
    assert provenance.code_digest(one) == provenance.code_digest(notebook("1", "2"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "[]",
        "1",
        "null",
        "{}",
        '{"nbformat": 4, "nbformat_minor": 5}',
        '{"nbformat": 4, "nbformat_minor": 5, "metadata": [], "cells": []}',
        '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": {}}',
        '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [1]}',
        '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{"cell_type": "code", "source": 1}]}',
        '{"nbformat": 4, "nbformat_minor": 4, "metadata": {}, "cells": [{"cell_type": "code", "source": "1"}]}',
        '{"nbformat": 4, "metadata": {}, "cells": [{"cell_type": "code", "source": "", "metadata": {"tags": 1}}]}',
        '{"nbformat": 99, "nbformat_minor": 0, "metadata": {}, "cells": []}',
        '{"nbformat": 3, "worksheets": 1}',
        '{"nbformat": 4, "nbformat_minor": 4, "metadata": {"x": "\\ud800"}, "cells": []}',
        '{"nbformat": "4\\u001b[2J"}',
        '{"nbformat": 4, "nbformat_minor": {}, "metadata": {}, "cells": []}',
        "[" * 100_000,
    ],
)
def test_what_is_no_notebook(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.ipynb"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"x\.ipynb is not a notebook") as caught:
        notebooks.read(path)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_a_result_that_cannot_be_written_leaves_the_older_one(tmp_path: Path) -> None:
    path = tmp_path / "one.ipynb"
    notebooks.write(notebook("1"), path)
    path.chmod(0o640)
    before = path.read_bytes()
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ConfigurationError, match=r"cannot be written: Permission denied\.$"):
            notebooks.write(notebook("2"), path)
    finally:
        tmp_path.chmod(0o700)
    assert path.read_bytes() == before
    notebooks.write(notebook("2"), path)
    assert path.stat().st_mode & 0o777 == 0o640
    assert [file.name for file in tmp_path.iterdir()] == ["one.ipynb"]
