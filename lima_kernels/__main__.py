"""The program: ``lima-kernels``, or ``python -m lima_kernels``."""

import gc
import sys

from .cli.main import main


def run() -> None:
    """Run the command that the arguments name, and end the process with its exit code."""
    # What is imported stays until the end: no collection need look at it, those as the interpreter ends among them,
    # which take as long as a third of all imports.
    gc.freeze()
    sys.exit(main())


if __name__ == "__main__":
    run()
