"""The build's step for the front end: the panel of notebooks and JupyterLab's extension, built from widgets/."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# The oldest that the tools of widgets/package.json run on.
_NODE = (20, 19)
_PANEL = Path("lima_kernels/widget/static")
_LABEXTENSION = Path("lima_kernels/labextension")
# Says of which sources the built files are; beside the panel, so that it goes along with them.
_DIGEST = _PANEL / "built.json"
_PLACE = "share/jupyter/labextensions/lima-kernels"
# What the built files are made of; tests and notes are not.
_SOURCES = ("package.json", "package-lock.json", "tsconfig.json", "tsconfig.build.json", "esbuild.mjs")
_SOURCE_TREES = ("src", "style", "schema")


class FrontEnd(BuildHookInterface[Any]):
    """Builds the front end where its sources changed, else takes what is built."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Have the built files in the distribution, and JupyterLab's where it looks for them."""
        root = Path(self.root)
        sources = root / "widgets"
        digest = _digest(sources)
        built = _read(root / _DIGEST)
        if digest is not None and digest != built:
            lacking = _lacking()
            if lacking is None:
                _build(sources)
                _say_version(root / _LABEXTENSION / "package.json", self.metadata.version)
                (root / _DIGEST).write_text(json.dumps({"sources": digest}) + "\n", encoding="utf-8")
                built = digest
            elif built is not None:
                self.app.display_warning(f"The front end is built from older sources: {lacking}")
            elif version == "editable":
                self.app.display_warning(f"lima-kernels without its panels and its JupyterLab extension: {lacking}")
                return
            else:
                raise SystemExit(f"The front end is not built, and cannot be: {lacking}")
        if built is None:
            raise SystemExit("The front end is not built, and its sources in widgets/ are not here.")
        build_data["artifacts"].append(f"/{_PANEL}/*")
        if self.target_name == "sdist":
            build_data["artifacts"].append(f"/{_LABEXTENSION}/**")
        else:
            build_data["shared_data"][str(root / _LABEXTENSION)] = _PLACE
            build_data["shared_data"][str(root / "widgets" / "install.json")] = f"{_PLACE}/install.json"


def _digest(sources: Path) -> str | None:
    """Return what stands for the sources, None where they are not."""
    if not (sources / "package.json").exists():
        return None
    whole = hashlib.sha256()
    for path in _files(sources):
        whole.update(f"{path.relative_to(sources).as_posix()}\0{path.stat().st_size}\0".encode())
        whole.update(path.read_bytes())
    return whole.hexdigest()


def _files(sources: Path) -> Iterator[Path]:
    yield from (sources / name for name in _SOURCES)
    for tree in _SOURCE_TREES:
        yield from sorted(path for path in (sources / tree).rglob("*") if path.is_file())


def _read(digest: Path) -> str | None:
    try:
        return str(json.loads(digest.read_text(encoding="utf-8"))["sources"])
    except (OSError, ValueError, KeyError):
        return None


def _lacking() -> str | None:
    """Return what is wrong with Node here, None when it will do."""
    wanted = ".".join(map(str, _NODE))
    if shutil.which("node") is None or shutil.which("npm") is None:
        return f"that needs Node {wanted} or newer and npm on the PATH; install them, or lima-kernels from its wheel."
    version = subprocess.run(["node", "--version"], check=True, capture_output=True, text=True, timeout=60).stdout
    found = version.strip().removeprefix("v")
    if tuple(int(part) for part in found.split(".")[:2]) < _NODE:
        return f"that needs Node {wanted} or newer, and this is Node {found}."
    return None


def _build(sources: Path) -> None:
    """Install what the lock says, unless that is there, and build."""
    # npm writes this one at each install; the Makefile looks at it too.
    installed = sources / "node_modules" / ".package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < (sources / "package-lock.json").stat().st_mtime:
        _npm(sources, "ci")
    _npm(sources, "run", "build")


def _npm(sources: Path, *arguments: str) -> None:
    npm = shutil.which("npm") or "npm"
    ended = subprocess.run(
        [npm, *arguments],
        cwd=sources,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    if ended.returncode != 0:
        last = "\n".join(ended.stdout.splitlines()[-40:])
        raise SystemExit(f"{last}\n`npm {' '.join(arguments)}` in widgets/ failed with {ended.returncode}.")


def _say_version(package: Path, version: str) -> None:
    """Write the one version of all of it to where JupyterLab shows it from."""
    said = json.loads(package.read_text(encoding="utf-8"))
    package.write_text(json.dumps({**said, "version": version}, indent=2) + "\n", encoding="utf-8")
