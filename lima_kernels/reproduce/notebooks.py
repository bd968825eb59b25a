"""Notebooks as files: read with suspicion, and written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from ..errors import ConfigurationError, printable


def read(path: Path) -> NotebookNode:
    """Read a notebook of any version as one of version 4.

    :raises ConfigurationError: when it cannot be read, or is none.
    """
    try:
        notebook: NotebookNode = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    except OSError as error:
        raise ConfigurationError(f"The notebook {path} cannot be read: {error.strerror}.") from error
    except (ValueError, nbformat.ValidationError, nbformat.reader.NotJSONError) as error:
        raise ConfigurationError(f"{path} is not a notebook: {printable(str(error).splitlines()[0])[:200]}") from error
    except (AssertionError, AttributeError, KeyError, TypeError, RecursionError) as error:
        # What is JSON and not at all like a notebook.
        raise ConfigurationError(f"{path} is not a notebook.") from error
    if not _is_notebook(notebook):
        # nbformat only logs what is wrong, and hands it out all the same.
        raise ConfigurationError(f"{path} is not a notebook: it has no cells as nbformat 4 has them.")
    try:
        nbformat.writes(notebook).encode()  # type: ignore[no-untyped-call]
    except UnicodeEncodeError as error:
        raise ConfigurationError(f"{path} is not a notebook: it has half a character in it.") from error
    return notebook


def _is_notebook(notebook: NotebookNode) -> bool:
    cells, metadata = notebook.get("cells"), notebook.get("metadata")
    return isinstance(cells, list) and isinstance(metadata, dict) and all(map(_is_cell, cells))


def _is_cell(cell: object) -> bool:
    if not isinstance(cell, dict) or not isinstance(cell.get("metadata"), dict):
        return False
    tags = cell["metadata"].get("tags", [])
    return isinstance(cell.get("cell_type"), str) and isinstance(cell.get("source"), str) and isinstance(tags, list)


def write(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook in one step.

    :raises ConfigurationError: when it cannot be written; the older file is as it was.
    """
    # A guest may print half a character.
    replace(path, nbformat.writes(notebook).encode(errors="replace") + b"\n")  # type: ignore[no-untyped-call]


def replace(path: Path, data: bytes) -> None:
    """Write a result in one step; its directory is made when it is missing.

    :raises ConfigurationError: when it cannot be written completely; the older file is as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
        fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
            Path(name).chmod(mode)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigurationError(f"The result {path} cannot be written: {error.strerror}.") from error
