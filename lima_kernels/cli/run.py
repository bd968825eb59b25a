"""run: execute a notebook on a Lima kernel and write the result."""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .. import kernelspec
from ..errors import ConfigurationError, LimaKernelsError, nearest
from .progress import watching

CELL_FAILED = 3


def add_commands(commands: Any) -> None:
    """Add this group's commands."""
    parser = commands.add_parser(
        "run",
        help="execute a notebook on a Lima kernel",
        description="Execute a notebook on a Lima kernel. Exit code 3: a cell failed, and the result says which.",
    )
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--kernel", default=kernelspec.DEFAULT_NAME, help="the kernel spec's name")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write the result (default: in place)")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="for each cell (default: none)")
    parser.add_argument("--allow-errors", action="store_true", help="go on after a cell that fails")
    parser.set_defaults(command=_run)


def _read(path: Path) -> NotebookNode:
    try:
        notebook: NotebookNode = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    except OSError as error:
        raise ConfigurationError(f"The notebook {path} cannot be read: {error.strerror}.") from error
    except (ValueError, nbformat.ValidationError, nbformat.reader.NotJSONError) as error:
        raise ConfigurationError(f"{path} is not a notebook: {str(error).splitlines()[0]}") from error
    return notebook


def _write(notebook: NotebookNode, path: Path) -> None:
    """Write in one step: a result that cannot be written completely leaves the older file as it was."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
        fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                nbformat.write(notebook, file)  # type: ignore[no-untyped-call]
            Path(name).chmod(mode)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink()
            raise
    except OSError as error:
        raise ConfigurationError(f"The result {path} cannot be written: {error.strerror}.") from error


def _check_kernel(name: str) -> None:
    manager = KernelSpecManager()
    try:
        manager.get_kernel_spec(name)
    except NoSuchKernel as error:
        known = sorted(manager.find_kernel_specs())
        hint = nearest(name, known) or "Write the spec first: lima-kernels install"
        raise ConfigurationError(f"There is no kernel spec {name!r}.", hint=hint) from error


def _run(options: argparse.Namespace) -> int:
    notebook = _read(options.notebook)
    _check_kernel(options.kernel)
    output = options.output or options.notebook
    console = Console(stderr=True)
    try:
        with watching():
            outcome = asyncio.run(_execute(notebook, options, console))
    finally:
        _write(notebook, output)
    if outcome:
        console.print(outcome, style="red", markup=False, highlight=False)
        console.print(f"The result so far is in {output}", highlight=False)
        return CELL_FAILED
    print(f"Wrote {output}")
    return 0


async def _execute(notebook: NotebookNode, options: argparse.Namespace, console: Console) -> str:
    """Execute all cells; returns how a cell failed, or nothing."""
    directory = options.notebook.resolve().parent
    client = NotebookClient(
        notebook,
        kernel_name=options.kernel,
        timeout=options.timeout,
        allow_errors=options.allow_errors,
        resources={"metadata": {"path": str(directory)}},
    )
    code_cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=console, disable=not console.is_terminal)
    task = bar.add_task("cells", total=code_cells)
    client.on_cell_executed = lambda **_: bar.advance(task)
    try:
        async with client.async_setup_kernel(cwd=str(directory)):
            with bar:
                for index, cell in enumerate(notebook.cells):
                    await client.async_execute_cell(cell, index)
            info = await client.async_wait_for_reply(client.kc.kernel_info()) if client.kc else None
            if info:
                notebook.metadata["language_info"] = info["content"]["language_info"]
    except (CellExecutionError, CellTimeoutError) as error:
        return str(error)
    except DeadKernelError as error:
        raise LimaKernelsError("The kernel died while the notebook was executed.") from error
    return ""
