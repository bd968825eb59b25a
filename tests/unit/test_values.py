"""Variables as files: what comes back is what went, and nothing that a guest writes is obeyed."""

from __future__ import annotations

import decimal
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lima_kernels.magics.backend import LimaError
from lima_kernels.magics.values import ARROW, COLUMNS, FORMATS, JSON, MANIFEST, NPY, PICKLE, export, formats, take

WITHOUT_ARROW = [name for name in FORMATS if name != ARROW]
FRAMES = {
    "numbers": pd.DataFrame({"a": [1, 2, 3], "b": [0.5, float("nan"), -1.0]}),
    "texts": pd.DataFrame({"é": ["x", "ö\n", None], "flag": [True, False, True]}),
    "times": pd.DataFrame({"t": pd.date_range("2026-01-01", periods=4), "n": np.arange(4, dtype="uint8")}),
    "index": pd.DataFrame({"v": [1.5, 2.5]}, index=pd.Index(["one", "two"], name="which")),
    "empty": pd.DataFrame({"a": pd.Series([], dtype="float64")}),
    "categories": pd.DataFrame({"c": pd.Series(["a", "b", "a"], dtype="category")}),
}


def across(value: Any, tmp_path: Path, known: Sequence[str]) -> Any:
    directory = tmp_path / "values"
    directory.mkdir()
    export({"x": value}, ["x"], directory, known)
    return take(directory, ["x"], known)["x"]


def test_this_side_knows_all() -> None:
    assert set(formats()) == set(FORMATS)


@pytest.mark.parametrize("known", [FORMATS, WITHOUT_ARROW], ids=["arrow", "columns"])
@pytest.mark.parametrize("name", FRAMES)
def test_a_data_frame_comes_back_as_it_was(tmp_path: Path, name: str, known: Sequence[str]) -> None:
    came = across(FRAMES[name], tmp_path, known)
    pd.testing.assert_frame_equal(came, FRAMES[name], check_freq=False)
    (entry,) = json.loads((tmp_path / "values" / MANIFEST).read_text()).values()
    assert entry["format"] == (ARROW if ARROW in known else COLUMNS)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12).reshape(3, 4),
        np.zeros((0, 2)),
        np.array(3.5),
        np.array(["a", "éé"]),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        np.asfortranarray(np.ones((2, 3), dtype=complex)),
    ],
    ids=str,
)
def test_an_array_comes_back_as_it_was(tmp_path: Path, array: Any) -> None:
    came = across(array, tmp_path, FORMATS)
    assert came.dtype == array.dtype
    np.testing.assert_array_equal(came, array)


@pytest.mark.parametrize("value", [1, 10**30, 0.1, float("inf"), "é\x00\n", True, None, [], {"a": [1, {"b": None}]}])
def test_a_plain_value_comes_back_as_it_was(tmp_path: Path, value: Any) -> None:
    came = across(value, tmp_path, [JSON])
    assert came == value
    assert type(came) is type(value)


@pytest.mark.parametrize(
    "value",
    [(1, 2), {1: 2}, {1, 2}, decimal.Decimal(1), object, np.array([object()]), pd.Series([1]), lambda: None, b"x"],
    ids=lambda value: type(value).__name__,
)
def test_what_only_pickle_keeps_is_refused_in_one_line(tmp_path: Path, value: Any) -> None:
    with pytest.raises(LimaError, match=r"'x' is a \S+, which goes across by pickle only\. With --pickle"):
        across(value, tmp_path, FORMATS)


def test_pickle_where_it_is_asked_for(tmp_path: Path) -> None:
    assert across({1: decimal.Decimal(2)}, tmp_path, [*FORMATS, PICKLE]) == {1: decimal.Decimal(2)}


def test_a_variable_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(LimaError, match="There is no variable 'y'"):
        export({"x": 1}, ["y"], tmp_path, FORMATS)


class Evil:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("obeyed"),)


@pytest.mark.parametrize(
    "manifest",
    [
        "",
        "[]",
        "null",
        '{"x": {"format": "pickle", "file": "0"}}',
        '{"x": {"format": "json", "file": "../secret"}}',
        '{"x": {"format": "json", "file": "/etc/passwd"}}',
        '{"x": {"format": "evil", "file": "0"}}',
        '{"x": {"format": ["json"], "file": "0"}}',
        '{"x": []}',
        '{"y": {"format": "json", "file": "0"}}',
        '{"x": {"format": "npy", "file": "0"}}',
        '{"x": {"format": "arrow", "file": "0"}}',
        '{"x": {"format": "columns", "file": "0"}}',
        "[" * 100_000,
        " " * 2_000_000 + '{"x": {"format": "json", "file": "0"}}',
    ],
)
def test_what_a_hostile_guest_writes_is_refused(tmp_path: Path, manifest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    directory = tmp_path / "values"
    directory.mkdir()
    (tmp_path / "secret").write_text('"secret"')
    (directory / MANIFEST).write_text(manifest)
    (directory / "0").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(LimaError, match="What came is not what it should be"):
        take(directory, ["x"], FORMATS)
    assert not (tmp_path / "obeyed").exists()


def test_an_array_of_objects_is_not_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "0", np.array([Evil()]), allow_pickle=True)
    (tmp_path / "0.npy").rename(tmp_path / "0")
    (tmp_path / MANIFEST).write_text(json.dumps({"x": {"format": NPY, "file": "0"}}))
    with pytest.raises(LimaError, match="What came is not what it should be"):
        take(tmp_path, ["x"], FORMATS)
    assert not (tmp_path / "obeyed").exists()
