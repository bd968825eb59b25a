"""Parameters of a notebook, as papermill has them: a cell of assignments behind the one tagged `parameters`."""

from __future__ import annotations

import ast
import contextlib
import keyword
import math
import re
from collections.abc import Mapping, Sequence

import nbformat
from nbformat import NotebookNode

from ..errors import ConfigurationError, nearest

Value = str | int | float | bool | None

DECLARED = "parameters"
INJECTED = "injected-parameters"
_CONSTANTS: Mapping[str, Value] = {"True": True, "False": False, "None": None}
_INTEGER = re.compile(r"[+-]?[0-9]{1,4000}")
# Not "nan" and "inf", which are words of other things too.
_FLOAT = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_SECRET = {"password", "passwd", "passphrase", "secret", "secrets", "token", "credential", "credentials", "apikey"}
_KEYS = {"api", "access", "private", "secret", "auth", "signing", "encryption"}


def parsed(typed: Sequence[Sequence[str]], raw: Sequence[Sequence[str]] = ()) -> dict[str, Value]:
    """Return the parameters of a command line: ``True``, ``None``, ``3`` and ``0.5`` are what they look like, all else
    is text.

    :param raw: those that are text whatever they look like.
    :raises ConfigurationError: when a name cannot be a variable's, comes twice, or is that of a secret.
    """
    found: dict[str, Value] = {}
    for pairs, value_of in ((typed, _value), (raw, str)):
        for name, text in pairs:
            _check(name, found)
            found[name] = value_of(text)
    return found


def _value(text: str) -> Value:
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text) and math.isfinite(number := float(text)):
        return number
    return text


def _check(name: str, earlier: Mapping[str, Value]) -> None:
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ConfigurationError(f"{name!r} cannot be a parameter's name.", hint="It becomes a variable's.")
    if name in earlier:
        raise ConfigurationError(f"The parameter {name!r} is given twice.")
    if is_secret(name):
        raise ConfigurationError(
            f"The parameter {name!r} has the name of a secret, and would stand in the notebook for all to read.",
            hint="Let the notebook read it from a file, or pass it by the kernel spec's environment_variables.",
        )


def is_secret(name: str) -> bool:
    """Tell whether a name is that of a password, a token, a key: ``API_KEY`` is, ``max_tokens`` and ``key`` are not."""
    words = [word.lower() for word in _WORDS.findall(name)]
    if not words:
        return False
    return words[-1] in _SECRET or (words[-1] == "key" and bool(_KEYS & set(words)))


def _tagged(notebook: NotebookNode, tag: str) -> int | None:
    tags = (cell.get("metadata", {}).get("tags", ()) for cell in notebook.cells)
    return next((index for index, found in enumerate(tags) if tag in found), None)


def inject(notebook: NotebookNode, parameters: Mapping[str, Value], language: str) -> None:
    """Put a cell that sets the parameters behind the one that declares them, else first; an older such cell goes.

    :raises ConfigurationError: when the notebook's language is not Python.
    """
    if not parameters:
        return
    if language.lower() != "python":
        raise ConfigurationError(f"Only a notebook in Python can be given parameters, and the kernel's is {language}.")
    source = "\n".join(["# Parameters", *(f"{name} = {value!r}" for name, value in parameters.items())])
    cell: NotebookNode = nbformat.v4.new_code_cell(source, metadata={"tags": [INJECTED]})  # type: ignore[no-untyped-call]
    if (notebook.nbformat, notebook.nbformat_minor) < (4, 5):
        # Cells have names since 4.5, and may not before.
        del cell["id"]
    older = _tagged(notebook, INJECTED)
    if older is not None:
        notebook.cells[older] = cell
        return
    declared = _tagged(notebook, DECLARED)
    notebook.cells.insert(0 if declared is None else declared + 1, cell)


def injected(notebook: NotebookNode) -> dict[str, Value]:
    """Return the parameters that a notebook is run with: those of its injected cell, by whomever, without secrets."""
    index = _tagged(notebook, INJECTED)
    assignments = [] if index is None else _assignments(notebook.cells[index].source)
    found: dict[str, Value] = {}
    for name, node in assignments:
        with contextlib.suppress(ValueError):
            value = ast.literal_eval(node)
            # JSON knows no infinity.
            is_plain = isinstance(value, str | int | None) or (isinstance(value, float) and math.isfinite(value))
            if is_plain and not is_secret(name):
                found[name] = value
    return found


def undeclared(notebook: NotebookNode, names: Sequence[str]) -> list[str]:
    """Return a line for each parameter that the notebook's tagged cell does not set: a mistake, most likely."""
    index = _tagged(notebook, DECLARED)
    if index is None:
        return []
    known = [name for name, _ in _assignments(notebook.cells[index].source)]
    return [
        f"The notebook declares no parameter {name!r}. {nearest(name, known)}".rstrip()
        for name in names
        if known and name not in known
    ]


def _assignments(source: str) -> list[tuple[str, ast.expr]]:
    """Return the plain assignments of a cell in Python; none where it is not, as one with magics."""
    try:
        statements = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    found = []
    for statement in statements:
        if isinstance(statement, ast.AnnAssign):
            targets: list[ast.expr] = [statement.target]
        elif isinstance(statement, ast.Assign):
            targets = statement.targets
        else:
            continue
        value = statement.value
        found += [(target.id, value) for target in targets if isinstance(target, ast.Name) and value is not None]
    return found
