"""Variables as files, on either side: arrays, tables and plain values, without pickle unless that is asked for.

Standard library only; numpy, pandas and pyarrow are used where they are. A directory has a manifest and a file, or a
directory of columns, for each variable. What comes from a guest is hostile: nothing in it is obeyed or unpickled.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .backend import LimaError

MANIFEST = "manifest.json"
JSON, NPY, COLUMNS, ARROW, PICKLE = "json", "npy", "columns", "arrow", "pickle"
FORMATS = (JSON, NPY, COLUMNS, ARROW)
_PLAIN = (str, int, float, bool, type(None))
# A manifest that is longer is none of ours.
_MANIFEST_LIMIT = 1024 * 1024


def formats() -> list[str]:
    """Return what this side can write and read, without pickle."""
    known = {NPY: "numpy", COLUMNS: "pandas", ARROW: "pyarrow"}
    return [JSON, *(name for name, module in known.items() if importlib.util.find_spec(module) is not None)]


def _module(name: str) -> Any:
    """Return a package that this side may have; none of them is needed for the rest."""
    return importlib.import_module(name)


def _is_plain(value: object) -> bool:
    """Tell whether a value comes back from JSON as it was."""
    if isinstance(value, dict):
        return all(type(key) is str for key in value) and all(map(_is_plain, value.values()))
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return type(value) in _PLAIN


def _kind(value: object) -> str:
    """Return ``module.Class`` of a value, as its own package calls it: nothing is imported to find out."""
    return f"{type(value).__module__.partition('.')[0]}.{type(value).__name__}"


def _chosen(value: Any, known: Sequence[str]) -> str:
    """Return the format for a value, or nothing when no format but pickle would keep it."""
    kind = _kind(value)
    if kind == "pandas.DataFrame" and all(type(name) is str for name in value.columns) and value.columns.is_unique:
        if ARROW in known and ARROW in formats():
            return ARROW
        return COLUMNS if COLUMNS in known else ""
    if kind == "numpy.ndarray" and NPY in known and not value.dtype.hasobject:
        return NPY
    return JSON if _is_plain(value) else ""


# Writing


def export(namespace: Mapping[str, Any], names: Sequence[str], directory: Path, known: Sequence[str]) -> None:
    """Write variables into a directory.

    :param known: the formats that whoever reads them knows; pickle among them where it was asked for.
    :raises LimaError: when a variable is missing, or can only be pickled and that was not asked for.
    """
    manifest = {}
    for number, name in enumerate(names):
        if name not in namespace:
            raise LimaError(f"There is no variable {name!r}.")
        value = namespace[name]
        found = _chosen(value, known) or (PICKLE if PICKLE in known else "")
        if not found:
            raise LimaError(
                f"{name!r} is a {_kind(value)}, which goes across by pickle only.",
                "With --pickle it does: then each side runs what the other sends.",
            )
        try:
            _WRITERS[found](value, directory / str(number))
        except (ValueError, TypeError, OSError, pickle.PicklingError, AttributeError) as error:
            raise LimaError(f"{name!r} could not be written as {found}: {error}.") from None
        manifest[name] = {"format": found, "file": str(number)}
    (directory / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def _write_json(value: Any, file: Path) -> None:
    file.write_text(json.dumps(value, allow_nan=True), encoding="utf-8")


def _write_npy(value: Any, file: Path) -> None:
    np = _module("numpy")
    with file.open("wb") as stream:
        np.save(stream, value, allow_pickle=False)


def _write_arrow(value: Any, file: Path) -> None:
    pa, ipc = _module("pyarrow"), _module("pyarrow.ipc")
    table = pa.Table.from_pandas(value)
    with pa.OSFile(str(file), "wb") as sink, ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _write_columns(value: Any, directory: Path) -> None:
    """Write each column, and the index, as an array, or as JSON where it holds plain Python values."""
    directory.mkdir()
    index = value.index
    if index.nlevels > 1:
        raise TypeError("its index has several levels")
    described = []
    for number, column in enumerate([index.to_series(), *(value[name] for name in value.columns)]):
        array = column.to_numpy()
        if array.dtype.hasobject:
            plain = column.tolist()
            if not _is_plain(plain):
                raise TypeError(f"column {column.name!r} holds what is no plain value")
            _write_json(plain, directory / str(number))
            described.append({"format": JSON, "dtype": str(column.dtype)})
        else:
            _write_npy(array, directory / str(number))
            described.append({"format": NPY, "dtype": str(column.dtype)})
    names = {"columns": list(value.columns), "index": index.name if isinstance(index.name, str) else None}
    _write_json({**names, "described": described}, directory / MANIFEST)


def _write_pickle(value: Any, file: Path) -> None:
    file.write_bytes(pickle.dumps(value))


_WRITERS: Mapping[str, Callable[[Any, Path], None]] = {
    JSON: _write_json,
    NPY: _write_npy,
    ARROW: _write_arrow,
    COLUMNS: _write_columns,
    PICKLE: _write_pickle,
}


# Reading


def take(directory: Path, names: Sequence[str], known: Sequence[str]) -> dict[str, Any]:
    """Read variables from a directory; all that it says is checked.

    :param names: those that were asked for.
    :param known: the formats that may be read.
    :raises LimaError: when they are not there, or not what they should be.
    """
    try:
        if (directory / MANIFEST).stat().st_size > _MANIFEST_LIMIT:
            raise ValueError("it is too long")
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        found = {}
        for name in names:
            entry = manifest[name]
            place, written = str(int(entry["file"])), entry["format"]
            if written not in known:
                raise ValueError(f"{name!r} comes as {written!r}")
            found[name] = _READERS[written](directory / place)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise LimaError(f"What came is not what it should be: {error}.") from None
    return found


def _read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _read_npy(file: Path) -> Any:
    np = _module("numpy")
    with file.open("rb") as stream:
        return np.load(stream, allow_pickle=False)


def _read_arrow(file: Path) -> Any:
    pa, ipc = _module("pyarrow"), _module("pyarrow.ipc")
    with pa.OSFile(str(file), "rb") as source:
        return ipc.open_file(source).read_all().to_pandas()


def _read_columns(directory: Path) -> Any:
    pd = _module("pandas")
    said = _read_json(directory / MANIFEST)
    columns = []
    for number, described in enumerate(said["described"]):
        read = {JSON: _read_json, NPY: _read_npy}[described["format"]]
        values = pd.Series(read(directory / str(number)))
        columns.append(values if str(values.dtype) == described["dtype"] else values.astype(described["dtype"]))
    index, *others = columns
    names = [str(name) for name in said["columns"]]
    frame = pd.DataFrame(dict(zip(names, others, strict=True)), columns=names)
    frame.index = pd.Index(index, name=said["index"])
    return frame


def _read_pickle(file: Path) -> Any:
    # Only where who reads it has said so.
    return pickle.loads(file.read_bytes())  # noqa: S301


_READERS: Mapping[str, Callable[[Path], Any]] = {
    JSON: _read_json,
    NPY: _read_npy,
    ARROW: _read_arrow,
    COLUMNS: _read_columns,
    PICKLE: _read_pickle,
}
