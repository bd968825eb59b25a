"""env init, show, list, remove, schema: environment files, and where what they say is."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .. import kernelspec
from ..environment import locked, schema, spec
from ..environment.discovery import FILE_NAME, lock_path
from ..environment.keys import PythonSpec
from ..environment.locked import Described
from ..environment.spec import DEFAULT
from ..errors import ConfigurationError, nearest
from ..kernelspec import Installed
from ..reproduce import removing
from ..runtime import runtime
from . import bundles, locks
from .progress import watching

_TEMPLATE = """\
# What the VM of these notebooks is. All keys: docs/environments.md; for an editor: lima-kernels env schema
name: {name}
image: debian-12
# cpus: 4
# memory: 8GiB

# Debian packages.
apt: []

# Python packages.
{python}"""
_NO_PYTHON = "python: []\n"
# In the order that they are looked for; the first that can be obeyed is taken.
_PYTHON_FILES = {"pylock.toml": "pylock", "pyproject.toml": "pyproject", "requirements.txt": "requirementsFile"}
_CONDA_FILES = ("environment.yml", "environment.yaml")


def add_commands(commands: Any) -> None:
    """Add this group's commands."""
    parser = commands.add_parser("env", help="environments: files that say what a VM is, and their locks")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    init = verbs.add_parser("init", help=f"write a {FILE_NAME} to begin with")
    init.add_argument("directory", nargs="?", type=Path, metavar="DIR", default=Path(), help="where (default: here)")
    init.add_argument("--force", action="store_true", help="also over one that is there")
    init.set_defaults(command=_init)
    show = verbs.add_parser("show", help="show what an environment file says, and what its lock is")
    locks.add_place(show)
    show.add_argument("--json", action="store_true", help="as JSON")
    show.set_defaults(command=_show)
    listing = verbs.add_parser("list", help="list the environments of the kernel specs, and those in VMs")
    listing.add_argument("--json", action="store_true", help="as JSON")
    listing.set_defaults(command=_list)
    remove = verbs.add_parser("remove", help="remove an environment from its VM, and its kernel specs; its files stay")
    remove.add_argument("name", metavar="NAME", help="the environment's name")
    remove.add_argument("--force", action="store_true", help="also while kernels run in it, which end")
    remove.set_defaults(command=_remove)
    verbs.add_parser("schema", help="print the JSON Schema of environment files").set_defaults(command=_schema)
    locks.add_verbs(verbs)
    bundles.add_verbs(verbs)


def _schema(_options: argparse.Namespace) -> int:
    print(schema.text(), end="")
    return 0


def _init(options: argparse.Namespace) -> int:
    directory: Path = options.directory
    file = directory / FILE_NAME
    if not directory.is_dir():
        raise ConfigurationError(f"There is no directory {directory}.")
    name = locked.name_of(file, DEFAULT)
    python = _NO_PYTHON
    for candidate, key in _PYTHON_FILES.items():
        if not (directory / candidate).is_file():
            continue
        python = f"python:\n  {key}: {candidate}\n"
        try:
            spec.parse(python, source=FILE_NAME, base=directory.resolve())
            break
        except ConfigurationError as error:
            print(f"{candidate} is left out. {error}")
            python = _NO_PYTHON
    for conda in _CONDA_FILES:
        if (directory / conda).is_file():
            _say_why_not(directory / conda)
    try:
        with file.open("w" if options.force else "x", encoding="utf-8") as opened:
            opened.write(_TEMPLATE.format(name=name, python=python))
    except FileExistsError as error:
        raise ConfigurationError(f"{file} is there already.", hint="To write it anew: --force") from error
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be written: {error.strerror}.") from error
    print(f"Wrote {file}. To lock it: lima-kernels env lock")
    return 0


def _say_why_not(conda: Path) -> None:
    try:
        spec.load(conda)
    except ConfigurationError as error:
        print(error)


def _lock_state(described: Described) -> str:
    if described.locked is None:
        return "no lock"
    return "stale: the file has changed since" if described.locked.is_stale else "locked"


def _show(options: argparse.Namespace) -> int:
    place = locks.place_of(options)
    described = place.described
    facts: dict[str, Any] = {
        "name": place.name,
        "file": str(place.file),
        "instance": place.instance,
        "state": _lock_state(described),
    }
    if described.locked:
        lock = described.locked.lock
        facts["lock"] = {
            "file": str(lock_path(place.file)),
            "digest": lock.digest,
            "python_packages": len(lock.pylock.get("packages", ())),
            "platforms": {arch: _platform(platform) for arch, platform in sorted(lock.platforms.items())},
        }
    facts["says"] = _said(described)
    if options.json:
        print(json.dumps(facts, indent=2))
        return 0
    table = Table(show_header=False)
    for key, value in _rows(facts):
        table.add_row(escape(key), escape(value))
    Console().print(table)
    return 0


def _platform(platform: Any) -> dict[str, Any]:
    kept = ("image", "image_sha256", "kernel", "python")
    return {**{name: getattr(platform, name) for name in kept}, "debian_packages": len(platform.apt)}


def _said(described: Described) -> dict[str, Any]:
    """Return what an environment says that is not the default; of variables only the names, of texts only the names."""
    environment = described.environment
    default = msgspec.structs.asdict(DEFAULT)
    said = {}
    for field in msgspec.structs.fields(environment):
        value = getattr(environment, field.name)
        if value == default[field.name]:
            continue
        if isinstance(value, PythonSpec):
            value = [*environment.requirements, *environment.python_texts]
        elif field.name == "env":
            value = sorted(value)
        elif field.name == "files":
            value = [file.path for file in value]
        elif field.name == "ca_certificates" and isinstance(value, tuple):
            value = f"{len(value)} certificates"
        said[field.encode_name] = msgspec.to_builtins(value)
    return said


def _rows(facts: dict[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for key, value in facts.items():
        name = f"{before}{key}".removeprefix("says.")
        if isinstance(value, dict):
            yield from _rows(value, f"{name}.")
        elif isinstance(value, list):
            yield name, "\n".join(entry if isinstance(entry, str) else json.dumps(entry) for entry in value)
        else:
            yield name, str(value)


class _Listed(NamedTuple):
    """An environment that this host knows of: by a kernel spec, or as one that is in a VM."""

    name: str
    instance: str
    state: str
    file: str = ""
    kernel_spec: str = ""


def _of_kernel_specs() -> Iterator[tuple[_Listed, Installed]]:
    for found in kernelspec.installed():
        if environment := found.config.get("environment"):
            file = Path(environment)
            try:
                described = locked.describe(file)
                name, state = locked.name_of(file, described.environment), _lock_state(described)
            except ConfigurationError as error:
                name, state = "?", error.message
            yield _Listed(name, found.instance, state, str(file), found.name), found


def _listed() -> list[_Listed]:
    found = [listed for listed, _spec in _of_kernel_specs()]
    known = {(listed.name, listed.instance) for listed in found}
    for instance, names in removing.hosting().items():
        found += [_Listed(name, instance, "without a kernel spec") for name in names if (name, instance) not in known]
    return sorted(found)


def _list(options: argparse.Namespace) -> int:
    rows = _listed()
    if options.json:
        print(json.dumps([row._asdict() for row in rows], indent=2))
        return 0
    table = Table("environment", "VM", "state", "file", "kernel spec")
    for row in rows:
        table.add_row(*map(escape, row))
    Console().print(table if rows else "No environment yet: lima-kernels env init")
    return 0


def _remove(options: argparse.Namespace) -> int:
    name: str = options.name
    specs = [found for listed, found in _of_kernel_specs() if listed.name == name]
    hosts = [instance for instance, names in removing.hosting().items() if name in names]
    if not specs and not hosts and not removing.goldens(name):
        known = [listed.name for listed in _listed()]
        raise ConfigurationError(
            f"There is no environment {name!r} in a kernel spec or a VM.",
            hint=nearest(name, known) or "To see which there are: lima-kernels env list",
        )
    with watching():
        for instance in hosts:
            runtime().run_blocking(_remove_from(instance, name, force=options.force))
            print(f"Removed {name} from the VM {instance}")
        for instance in removing.goldens(name):
            runtime().run_blocking(_remove_golden(instance))
            print(f"Removed the VM {instance}, of which new ones were copies")
    for found in specs:
        print(f"Removed {kernelspec.remove(found.name)}")
    return 0


async def _remove_golden(instance: str) -> None:
    await removing.remove_golden(runtime().vm(instance))


async def _remove_from(instance: str, name: str, *, force: bool) -> None:
    await removing.remove(runtime().vm(instance), name, force=force)
