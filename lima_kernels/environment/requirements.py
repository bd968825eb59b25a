"""What an environment file says of Python packages in files of their own: they are read once, with it."""

from __future__ import annotations

import contextlib
import re
import tomllib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import msgspec
from packaging.pylock import Pylock, PylockValidationError
from packaging.requirements import InvalidRequirement, Requirement

from ..errors import ConfigurationError
from .keys import PythonFiles, PythonSpec

PYPROJECT, UV_LOCK, PYLOCK = "pyproject.toml", "uv.lock", "pylock.toml"
# Lock files of large projects have some MiB.
MAX_BYTES = 32 * 1024**2
_MAX_NESTED = 10
_COMMENT = re.compile(r"(^|\s)#.*$")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_INCLUDE = re.compile(r"(?:-r|--requirement)[ =]\s*(\S.*)")


_asked: ContextVar[Callable[[Path], None]] = ContextVar("_asked", default=lambda _path: None)


@contextlib.contextmanager
def asking(before: Callable[[Path], None]) -> Iterator[None]:
    """Be told of every file that environments and locks are read from within a block, before it is; that may raise."""
    token = _asked.set(before)
    try:
        yield
    finally:
        _asked.reset(token)


def text_of(path: Path, limit: int = MAX_BYTES) -> str:
    """Return the text of a file that an environment file names.

    :param limit: bytes.
    :raises ConfigurationError: when it cannot be read, is longer, or is no text.
    """
    _asked.get()(path)
    try:
        # A pipe or a device would never end.
        if not path.is_file() and path.exists():
            raise ConfigurationError(f"{path}: it is not a file.")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise ConfigurationError(f"{path}: it cannot be read: {error.strerror}.") from error
    if len(data) > limit:
        raise ConfigurationError(f"{path}: it is too long: at most {limit // 1024} KiB.")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: it is not UTF-8 text.") from error


def toml_of(path: Path, text: str) -> dict[str, Any]:
    """Return the content of a TOML text; the path is how messages name it.

    :raises ConfigurationError: one line that names line and column.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.fullmatch(r"(.+?) \(at (.+)\)", str(error), re.DOTALL)
        problem, where = (found[1], f", {found[2]}") if found else (str(error), "")
        raise ConfigurationError(f"{path}{where}: not TOML: {problem[0].lower()}{problem[1:]}.") from error
    except (RecursionError, ValueError) as error:
        raise ConfigurationError(f"{path}: not TOML: it is nested too deeply, or has too long a number.") from error


def collected(spec: PythonSpec, absolute: Callable[[str, str], str]) -> PythonSpec:
    """Return what the files of a Python section hold, with their paths absolute.

    :param absolute: makes a path so, given its key and itself.
    :raises ConfigurationError: one line that names the file, and the line in it where there is one.
    """
    names = ("requirements_file", "pyproject", "pylock")
    named = {name: value for name in names if (value := getattr(spec, name)) is not None}
    places = {name: Path(absolute(f"python.{_camel(name)}", value)) for name, value in named.items()}
    found: list[str] = []
    texts: dict[str, str] = {}
    if "requirements_file" in places:
        found += requirements_of(places["requirements_file"])
    if "pyproject" in places:
        file = places["pyproject"]
        texts[PYPROJECT] = text_of(file)
        found += _dependencies(file, texts[PYPROJECT])
        uv_lock = file.with_name(UV_LOCK)
        if uv_lock.is_file():
            texts[UV_LOCK] = text_of(uv_lock)
            toml_of(uv_lock, texts[UV_LOCK])
    if "pylock" in places:
        texts[PYLOCK] = text_of(places["pylock"])
        check_pylock(str(places["pylock"]), toml_of(places["pylock"], texts[PYLOCK]))
    said = {**msgspec.structs.asdict(spec), **{name: str(path) for name, path in places.items()}}
    return PythonFiles(**said, collected=tuple(found), texts=texts)


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.title() for part in rest)


def _dependencies(file: Path, text: str) -> list[str]:
    project = toml_of(file, text).get("project")
    if not isinstance(project, dict):
        raise ConfigurationError(
            f"{file}: it has no [project] table, whose dependencies are meant.",
            hint="Give the packages as python.requirements.",
        )
    if "dependencies" in (project.get("dynamic") or ()):
        raise ConfigurationError(
            f"{file}: its dependencies are dynamic: only its own build would tell them.",
            hint="Give a pylock: of it: uv export --format pylock.toml",
        )
    dependencies = project.get("dependencies", [])
    if not isinstance(dependencies, list):
        raise ConfigurationError(f"{file}: expected an array at project.dependencies.")
    for number, dependency in enumerate(dependencies):
        _check_requirement(f"{file}: ", dependency, f" at project.dependencies[{number}]")
    return dependencies


def _check_requirement(before: str, requirement: object, after: str = "") -> None:
    if not isinstance(requirement, str):
        raise ConfigurationError(f"{before}expected a requirement, got {type(requirement).__name__}{after}.")
    try:
        parsed = Requirement(requirement)
    except InvalidRequirement as error:
        raise ConfigurationError(f"{before}{requirement!r} is not a Python requirement{after}.") from error
    if parsed.url is not None and not parsed.url.startswith(("https://", "http://", "git+https://")):
        raise ConfigurationError(f"{before}{requirement!r} is not to be had in a guest{after}.")


def requirements_of(path: Path, above: tuple[Path, ...] = ()) -> list[str]:
    """Return the requirements of a requirements.txt, and of those that it includes.

    :param above: the files that include it.
    :raises ConfigurationError: at an option of pip that cannot be obeyed, by file and line.
    """
    if path in above or len(above) >= _MAX_NESTED:
        raise ConfigurationError(f"{above[-1]}: it includes {path.name} in a circle, or too deeply.")
    found: list[str] = []
    for number, line in _lines(text_of(path)):
        where = f"{path}, line {number}: "
        if include := _INCLUDE.fullmatch(line):
            found += requirements_of(Path(path.parent / include[1]).resolve(), (*above, path))
        elif "--hash" in line:
            hint = "Take the hashes out; lima-kernels env lock writes those of every package."
            raise ConfigurationError(f"{where}hashes are not looked at here.", hint=hint)
        elif line.startswith("-"):
            option = line.split()[0].partition("=")[0]
            hint = "Of pip's options only -r FILE has a meaning here; an index is set in the guest's pip.conf."
            raise ConfigurationError(f"{where}the option {option} cannot be obeyed.", hint=hint)
        else:
            _check_requirement(where, line)
            found.append(line)
    return found


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield pip's logical lines with their numbers: a backslash joins two, ``#`` begins a comment."""
    whole, begun = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        begun = begun or number
        if line.endswith("\\") and not _COMMENT.search(line):
            whole += line[:-1]
            continue
        whole = _COMMENT.sub("", whole + line).strip()
        if whole:
            yield begun, whole
        whole, begun = "", 0
    if whole.strip():
        yield begun, whole.strip()


def check_pylock(where: str, content: dict[str, Any]) -> None:
    """See that a PEP 751 lock can be installed in a guest: everything has a hash, nothing lies on this host.

    :param where: how messages name it.
    :raises ConfigurationError: one line that names the package.
    """
    try:
        pylock = Pylock.from_dict(content)
    except (PylockValidationError, ValueError) as error:
        raise ConfigurationError(f"{where}: it is no lock of PEP 751: {error}.") from error
    for package in pylock.packages:
        files = [file for file in (package.archive, package.sdist, *(package.wheels or ())) if file is not None]
        if package.directory is not None or package.vcs is not None or not files:
            what = "a directory" if package.directory else "a repository" if package.vcs else "nothing"
            raise ConfigurationError(
                f"{where}: the package {package.name} comes from {what}, which no hash tells from another.",
                hint="Only wheels and source archives can be locked.",
            )
        for file in files:
            if file.url is None or not file.url.startswith(("https://", "http://")):
                raise ConfigurationError(f"{where}: the package {package.name} has a file that is no download.")
            if "@" in file.url.partition("//")[2].partition("/")[0]:
                raise ConfigurationError(f"{where}: the address of the package {package.name} has a password in it.")
            if not _SHA256.fullmatch(str(file.hashes.get("sha256", ""))):
                raise ConfigurationError(f"{where}: the package {package.name} has a file without a SHA-256.")
