"""The phases of a start as a line that lives, or as lines where the output is no terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from ..progress import Phase, Step
from ..runtime import runtime


@contextmanager
def watching() -> Iterator[None]:
    """Show the phases of every start while the block runs."""
    console = Console(stderr=True)
    if not console.is_terminal:
        with runtime().listening(lambda step: print(_text(step), file=console.file, flush=True)):
            yield
        return
    with console.status("") as status:

        def show(step: Step) -> None:
            if step.phase is Phase.READY:
                status.update("")
            else:
                status.update(_text(step))

        with runtime().listening(show):
            yield


def _text(step: Step) -> str:
    return f"{step.elapsed:5.1f} s  {step.text}"
