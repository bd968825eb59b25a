"""Parameters: what is typed, the cell they become, and what is no parameter."""

from __future__ import annotations

import nbformat
import pytest
from nbformat import NotebookNode

from lima_kernels.errors import ConfigurationError
from lima_kernels.reproduce.parameters import inject, injected, is_secret, parsed, undeclared


def notebook(*cells: str, tagged: int | None = None, minor: int = 5) -> NotebookNode:
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    if tagged is not None:
        made.cells[tagged].metadata["tags"] = ["parameters"]
    if minor < 5:
        for cell in made.cells:
            del cell["id"]
    made.nbformat_minor = minor
    return made


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-3", -3),
        ("0.5", 0.5),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("True", True),
        ("False", False),
        ("None", None),
        ("true", "true"),
        ("nan", "nan"),
        ("inf", "inf"),
        ("1e999", "1e999"),
        ("1_000", "1_000"),
        ("3" * 5000, "3" * 5000),
        ("", ""),
        ("a b", "a b"),
        ("'quoted'\n\\", "'quoted'\n\\"),
        ("__import__('os')", "__import__('os')"),
    ],
)
def test_a_value_is_what_it_looks_like(text: str, value: object) -> None:
    found = parsed([("x", text)])["x"]
    assert (found, type(found)) == (value, type(value))


def test_a_text_stays_one() -> None:
    assert parsed([("a", "1.10")], [("b", "1.10"), ("c", "True")]) == {"a": 1.1, "b": "1.10", "c": "True"}


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("1x", "'1x' cannot be a parameter's name. It becomes a variable's."),
        ("", "'' cannot be a parameter's name. It becomes a variable's."),
        ("for", "'for' cannot be a parameter's name. It becomes a variable's."),
        ("x = 1; y", "'x = 1; y' cannot be a parameter's name. It becomes a variable's."),
        ("y", "The parameter 'y' is given twice."),
    ],
)
def test_what_cannot_be_a_name(name: str, line: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parsed([("y", "1"), (name, "2")])
    assert str(caught.value) == line


@pytest.mark.parametrize("name", ["password", "API_KEY", "apiKey", "githubToken", "AWS_SECRET_ACCESS_KEY"])
def test_a_secret_is_refused_and_its_value_not_told(name: str) -> None:
    with pytest.raises(ConfigurationError, match="has the name of a secret") as caught:
        parsed([(name, "hunter2")])
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("name", ["max_tokens", "tokenizer", "key", "key_column", "n", "_", "primary_key", "secretary"])
def test_what_only_looks_like_a_secret(name: str) -> None:
    assert not is_secret(name)


def test_the_cell_comes_behind_the_one_that_declares() -> None:
    made = notebook("import os", "n = 1", "print(n)", tagged=1)
    inject(made, {"n": 3, "name": "it's\n'", "rate": 0.5, "all": True, "none": None}, "python")
    assert [cell.source for cell in made.cells] == [
        "import os",
        "n = 1",
        "# Parameters\nn = 3\nname = \"it's\\n'\"\nrate = 0.5\nall = True\nnone = None",
        "print(n)",
    ]
    nbformat.validate(made)


def test_the_cell_comes_first_where_none_declares() -> None:
    made = notebook("print(n)")
    inject(made, {"n": 3}, "Python")
    assert [cell.source for cell in made.cells] == ["# Parameters\nn = 3", "print(n)"]


def test_the_next_run_replaces_the_cell() -> None:
    made = notebook("n = 1", "print(n)", tagged=0)
    inject(made, {"n": 2}, "python")
    inject(made, {"n": 3}, "python")
    assert [cell.source for cell in made.cells] == ["n = 1", "# Parameters\nn = 3", "print(n)"]
    inject(made, {}, "python")
    assert injected(made) == {"n": 3}


def test_a_notebook_of_an_older_format_stays_valid() -> None:
    made = notebook("print(n)", minor=4)
    inject(made, {"n": 3}, "python")
    nbformat.validate(made)


def test_another_language_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"Only a notebook in Python .* the kernel's is R\.$"):
        inject(notebook("1"), {"n": 3}, "R")


def test_what_a_notebook_says_it_was_given() -> None:
    source = (
        "# Parameters\nn = 3\nx: float = 0.5\nbig = 1e999\nlisted = [1]\npassword = 'p'\n"
        "called = f()\na.b = 1\nfor i in x:\n    pass\nm = -1"
    )
    made = notebook(source)
    made.cells[0].metadata["tags"] = ["injected-parameters"]
    assert injected(made) == {"n": 3, "x": 0.5, "m": -1}
    for broken in ("%magic", "n = ", "(" * 10_000, "n = " + "-" * 100_000 + "1", "\0"):
        made.cells[0].source = broken
        assert injected(made) == {}


def test_a_name_that_no_cell_declares_is_told() -> None:
    made = notebook("import os", "rows = 1\ncolumns: int = 2", tagged=1)
    assert undeclared(made, ["rows", "columns"]) == []
    assert undeclared(made, ["row"]) == ["The notebook declares no parameter 'row'. Did you mean 'rows'?"]
    assert undeclared(notebook("1"), ["row"]) == []
    assert undeclared(notebook("%matplotlib inline\nrows = 1", tagged=0), ["row"]) == []
