"""A process that has as many kernels as it is told to, for :mod:`cost`: a kernel spec and a count in each line."""

from __future__ import annotations

import sys
from pathlib import Path

from .machine_room import Managed, first_cell


def main() -> None:
    """Have so many kernels of a spec, line by line until the input ends, and say when they are there."""
    kernels: list[Managed] = []
    try:
        for line in sys.stdin:
            spec, count = line.split()
            while len(kernels) > int(count):
                kernels.pop().end()
            while len(kernels) < int(count):
                kernels.append(Managed(spec, Path.cwd()))
            if not kernels:
                # What a first kernel brings into this process stays in it.
                with first_cell(Managed(spec, Path.cwd())):
                    pass
            print("done", flush=True)
    finally:
        for kernel in kernels:
            kernel.end()


if __name__ == "__main__":
    main()
