"""Sizes with a unit, such as ``4GiB``."""

from __future__ import annotations

import re

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT])i?B")
_EXPONENT = {"K": 1, "M": 2, "G": 3, "T": 4}


def in_bytes(text: str) -> int | None:
    """Return a size in bytes, ``4GB`` being as much as ``4GiB`` as it is for Lima; None when the text is none."""
    match = _SIZE.fullmatch(text)
    return int(float(match[1]) * 1024 ** _EXPONENT[match[2]]) if match else None
