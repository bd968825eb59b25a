"""A real `jupyter lab` whose guest is the test's fake one, in a process:  python -m tests.browser.serve ORDER"""

from __future__ import annotations

import json
import sys

from jupyterlab.labapp import LabApp

from lima_kernels import paths


def main() -> None:
    order = json.loads(sys.argv[1])
    for name, value in order["constants"].items():
        setattr(paths, name, value)
    LabApp.launch_instance(argv=[f"--{option}" for option in order["options"]])


if __name__ == "__main__":
    main()
