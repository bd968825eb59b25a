"""Sizes as people and Lima write them."""

from __future__ import annotations

import pytest

from lima_kernels.lima.sizes import asked, in_bytes, shown, written

MIB, GIB = 1024**2, 1024**3


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("4GiB", 4 * GIB), ("4GB", 4 * GIB), ("4", 4 * GIB), (" 0.5 ", GIB // 2), ("1.5 GiB", 3 * GIB // 2)),
        *(("512MiB", 512 * MIB), ("0.3GiB", 307 * MIB), ("1TiB", 1024 * GIB)),
    ],
)
def test_a_size_that_is_asked_for(text: str, size: int) -> None:
    assert asked(text) == size


@pytest.mark.parametrize("text", ["", "lots", "-1", "0", "0GiB", "1KiB", "4 G", "4gib", "1e3", "4GiB;", "NaN"])
def test_what_is_no_size(text: str) -> None:
    assert asked(text) is None


@pytest.mark.parametrize(
    ("size", "text"),
    [
        *((0, "0 bytes"), (1023, "1023 bytes"), (1024, "1 KiB"), (353 * MIB + MIB // 2, "353.5 MiB")),
        *((4 * GIB, "4 GiB"), (1023 * GIB, "1023 GiB"), (1536 * GIB, "1.5 TiB"), (4096 * 1024 * GIB, "4096 TiB")),
    ],
)
def test_a_size_for_a_person(size: int, text: str) -> None:
    assert shown(size) == text


@pytest.mark.parametrize("size", [MIB, 1536 * MIB, 4 * GIB, 100 * GIB])
def test_lima_reads_what_is_written(size: int) -> None:
    assert in_bytes(written(size)) == size
