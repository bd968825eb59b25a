"""run: execute notebooks on Lima kernels and write the results, held to a lock where that is asked for."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import signal
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from nbformat import NotebookNode
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .. import kernelspec
from ..errors import ConfigurationError, LimaKernelsError, printable
from ..reproduce import notebooks, parameters
from ..reproduce.running import Job, Limits, Proof, Result, run_all
from .choosing import instance_of, named, of_environment
from .locks import DRIFTED
from .progress import watching
from .proving import Seen, are_as_locked, check_is_current, place_of, say, see

T = TypeVar("T")
CELL_FAILED = 3


def run(options: argparse.Namespace) -> int:
    """Execute notebooks, and return the exit code."""
    values = parameters.parsed(options.p, options.r)
    if options.environment is not None and not options.locked:
        raise ConfigurationError("--environment says which lock is meant, and goes with --locked.")
    read = {path: notebooks.read(path) for path in options.notebooks}
    outputs = _outputs(options.notebooks, options.output)
    pages = _pages(options.notebooks, options.html)
    _check_writable([*outputs.values(), *pages.values(), *filter(None, [options.junit])])
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as spare:
        if options.locked:
            jobs = _locked_jobs(read, outputs, options, Path(spare), console)
        else:
            kernel = named(options.kernel or kernelspec.DEFAULT_NAME)
            jobs = [Job(path, notebook, outputs[path], kernel) for path, notebook in read.items()]
        if not jobs:
            return DRIFTED
        for job in jobs:
            _give(job, values, console)
        with watching():
            results = _executed(jobs, Limits(options.timeout, options.allow_errors), options.parallel, console)
    _report(results, pages, options.junit)
    return _told(results, console)


# What is to be run


def _outputs(paths: Sequence[Path], output: Path | None) -> Mapping[Path, Path]:
    """Return where each notebook's result goes.

    :raises ConfigurationError: when two would go to the same place.
    """
    if output is None:
        found = {path: path for path in paths}
    elif len(paths) == 1 and not output.is_dir():
        found = {paths[0]: output}
    else:
        found = {path: output / path.name for path in paths}
    _check_apart(paths, [found[path].resolve() for path in paths])
    return found


def _pages(paths: Sequence[Path], directory: Path | None) -> Mapping[Path, Path]:
    found = {} if directory is None else {path: directory / f"{path.stem}.html" for path in paths}
    _check_apart(paths, list(found.values()))
    return found


def _check_apart(paths: Sequence[Path], targets: Sequence[Path]) -> None:
    for number, target in enumerate(targets):
        if target in targets[:number]:
            first = paths[targets.index(target)]
            raise ConfigurationError(f"The results of {first} and {paths[number]} would be one file: {target}.")


def _check_writable(files: Sequence[Path]) -> None:
    """Find out before an hour has gone whether the results can be written."""
    for file in files:
        directory = next(parent for parent in file.absolute().parents if parent.exists())
        if file.is_dir() or not directory.is_dir() or not os.access(directory, os.W_OK | os.X_OK):
            raise ConfigurationError(f"The result {file} cannot be written there.")


def _locked_jobs(
    read: Mapping[Path, NotebookNode],
    outputs: Mapping[Path, Path],
    options: argparse.Namespace,
    spare: Path,
    console: Console,
) -> list[Job]:
    """Return the jobs with what proves them, or none when an environment is not what its lock says."""
    instance = instance_of(options.kernel) if options.kernel else None
    found = {path: place_of(path, options.environment, instance) for path in read}
    for place in found.values():
        check_is_current(place)
    kernels = {
        path: of_environment(place.file, place.instance, options.kernel, read[path], spare)
        for path, place in found.items()
    }
    seen = see(found)
    if not are_as_locked(seen.values(), console):
        return []
    return [Job(path, notebook, outputs[path], kernels[path], _proof(seen[path])) for path, notebook in read.items()]


def _proof(seen: Seen) -> Proof:
    return Proof(seen.place.locked.lock, seen.state, seen.again)


def _give(job: Job, values: Mapping[str, parameters.Value], console: Console) -> None:
    for line in parameters.undeclared(job.notebook, list(values)):
        say(f"{job.path}: {line}", console, "yellow")
    parameters.inject(job.notebook, values, job.kernel.language)


# Running


def _executed(jobs: Sequence[Job], limits: Limits, parallel: int, console: Console) -> list[Result]:
    with _bars(jobs, console) as advance:
        try:
            return asyncio.run(_ended_by_signals(run_all(jobs, limits, parallel, advance)))
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None


async def _ended_by_signals(work: Coroutine[Any, Any, T]) -> T:
    task = asyncio.current_task()
    assert task is not None
    # A terminal that is closed, or a batch job whose time is over, should leave no kernel either.
    for number in (signal.SIGTERM, signal.SIGHUP):
        # What nohup(1) ignores stays ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await work


@contextmanager
def _bars(jobs: Sequence[Job], console: Console) -> Iterator[Callable[[Job], None]]:
    """Show a bar for each notebook; what is yielded moves one on."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks = {job.path: bars.add_task(escape(printable(job.path.name)), total=job.code_cells) for job in jobs}
        yield lambda job: bars.advance(tasks[job.path])


# What came of it


def _report(results: Sequence[Result], pages: Mapping[Path, Path], junit: Path | None) -> None:
    if not pages and junit is None:
        return
    # nbconvert takes a while to be loaded.
    reports = importlib.import_module("..reproduce.reports", __package__)
    for result in results:
        if result.job.path in pages:
            notebooks.replace(pages[result.job.path], reports.html(result.job.notebook))
    if junit is not None:
        notebooks.replace(junit, reports.junit(results))


def _told(results: Sequence[Result], console: Console) -> int:
    """Say what came of each notebook, and return the exit code.

    :raises LimaKernelsError: when one could not be executed for other reasons than its code.
    """
    for result in results:
        _tell(result, console)
    if errors := [result for result in results if result.error is not None]:
        if len(results) == 1 and errors[0].error is not None:
            raise errors[0].error
        raise LimaKernelsError(
            f"{len(errors)} of {len(results)} notebooks could not be executed.",
            context=[f"{result.job.path}: {result.error}" for result in errors],
        )
    if any(result.is_changed for result in results):
        return DRIFTED
    return CELL_FAILED if any(result.failure for result in results) else 0


def _tell(result: Result, console: Console) -> None:
    if result.failure:
        for line in result.failure.splitlines():
            say(printable(line), console)
        say(f"The result so far is in {result.job.output}", console, "none")
    elif result.error is None:
        print(f"Wrote {result.job.output}", flush=True)
    if result.is_changed:
        say(f"{result.job.path}: the environment was changed while the notebook ran.", console)
