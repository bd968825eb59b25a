"""Imports go one way, foreign libraries stay where they are translated, and rooms stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import lima_kernels

PACKAGE = "lima_kernels"
ROOT = Path(lima_kernels.__file__).parent
LAYERS = (
    "errors",
    "magics",
    "widget",
    "sftp",
    "paths",
    "records",
    "history",
    "progress",
    "lima",
    "locks",
    "environment",
    "guest",
    "leases",
    "hibernation",
    "instances",
    "arrival",
    "starting",
    "vm",
    "reproduce",
    "added_mounts",
    "mount_benchmark",
    "settings",
    "launch",
    "session",
    "runtime",
    "mount_server",
    "parting",
    "kernelspec",
    "wishes",
    "places",
    "doctor",
    "verbs",
    "watch",
    "control",
    "provisioner",
    "extension",
    "server",
    "cli",
    "__main__",
)
MODULE_LINES = 400
FUNCTION_LINES = 50


class Module(NamedTuple):
    name: str
    is_package: bool
    text: str

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    def anchor(self, level: int) -> str:
        """The package that a relative import of this level starts from."""
        parts = self.name.split(".")
        return ".".join(parts[: len(parts) - level + self.is_package])


def read(path: Path) -> Module:
    parts = [PACKAGE, *path.relative_to(ROOT).with_suffix("").parts]
    is_package = parts[-1] == "__init__"
    return Module(".".join(parts[:-1] if is_package else parts), is_package, path.read_text())


MODULES = {module.name: module for module in map(read, sorted(ROOT.rglob("*.py")))}


def imported(module: Module) -> Iterator[str]:
    """Every module that a module imports, at any level of its code, as an absolute name."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                source = ".".join(part for part in (module.anchor(node.level), source) if part)
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                yield inner if inner in MODULES else source


def ours(module: Module) -> set[str]:
    return {name for name in imported(module) if name.split(".")[0] == PACKAGE} - {module.name}


def users(library: str) -> set[str]:
    return {name for name, module in MODULES.items() if library in {found.split(".")[0] for found in imported(module)}}


def layer(name: str) -> int:
    """The layer's number from the lowest; the package itself holds the version only and is below all."""
    parts = name.split(".")
    return LAYERS.index(parts[1]) if len(parts) > 1 else -1


def test_every_module_has_a_layer() -> None:
    assert {name.split(".")[1] for name in MODULES if "." in name} == set(LAYERS)


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down(name: str) -> None:
    assert [other for other in ours(MODULES[name]) if layer(other) > layer(name)] == []


def test_no_module_imports_itself_in_a_circle() -> None:
    left = {name: ours(module) for name, module in MODULES.items()}
    while leaves := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in leaves:
            del left[name]
    assert left == {}


def test_only_one_module_knows_asyncssh() -> None:
    assert users("asyncssh") == {f"{PACKAGE}.guest.connection"}


def test_only_the_environment_file_and_lima_yaml_are_yaml() -> None:
    # The third runs in the guest, where Lima's cidata is YAML, too.
    here = {f"{PACKAGE}.environment.yaml_text", f"{PACKAGE}.lima.template"}
    assert users("yaml") == {*here, f"{PACKAGE}.environment.guest_boot.cidata"}


def test_the_forkserver_runs_in_a_guest_without_our_dependencies() -> None:
    allowed = sys.stdlib_module_names | {"IPython", "ipykernel", "ipykernel_launcher", "jupyter_client"}
    package = f"{PACKAGE}.guest.forkserver"
    found = {other for name in MODULES if name.startswith(package) for other in imported(MODULES[name])}
    assert {name for name in found if not name.startswith(package)} - {
        name for name in found if name.split(".")[0] in allowed
    } == set()


def test_the_magics_run_in_a_guest_without_our_dependencies() -> None:
    package = f"{PACKAGE}.magics"
    found = {other for name in MODULES if name.startswith(package) for other in imported(MODULES[name])}
    others = {name.split(".")[0] for name in found if not name.startswith(package)}
    assert others <= sys.stdlib_module_names | {"IPython"}


def test_a_kernels_start_does_not_wait_for_ipython() -> None:
    program = "import sys, lima_kernels.provisioner; sys.exit('IPython' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_nobody_waits_so_that_a_cancellation_is_lost() -> None:
    """In Python 3.11 `asyncio.wait_for` forgets one that comes when it is done waiting; `asyncio.timeout` does not.

    What runs in a guest has to do with older Pythons, which have no other.
    """
    ours = {name for name in MODULES if not name.startswith((f"{PACKAGE}.guest.forkserver", f"{PACKAGE}.widget"))}
    assert {name for name in ours if "asyncio.wait_for(" in MODULES[name].text} == set()


@pytest.mark.parametrize("name", MODULES)
def test_no_module_is_too_long(name: str) -> None:
    assert len(MODULES[name].text.splitlines()) <= MODULE_LINES


@pytest.mark.parametrize("name", MODULES)
def test_no_function_is_too_long(name: str) -> None:
    functions = [
        node for node in ast.walk(MODULES[name].tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    lengths = {node.name: (node.end_lineno or node.lineno) - node.lineno + 1 for node in functions}
    assert {name: length for name, length in lengths.items() if length > FUNCTION_LINES} == {}
