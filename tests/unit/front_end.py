"""A front end for tests of panels, where none has to be built."""

from __future__ import annotations

import shutil
from pathlib import Path

import lima_kernels

TEXT = "export default { render() {} };\n"


def package_with_front_end(place: Path) -> Path:
    """Copy our package to a directory, with a front end in it; returns the package's."""
    ours = place / lima_kernels.__name__
    shutil.copytree(Path(lima_kernels.__file__).parent, ours, ignore=shutil.ignore_patterns("__pycache__", "static"))
    static = ours / "widget" / "static"
    static.mkdir()
    (static / "panel.js").write_text(TEXT)
    return ours
