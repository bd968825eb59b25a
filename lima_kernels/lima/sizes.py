"""Sizes as Lima writes them, such as ``4GiB``, and as people read them."""

from __future__ import annotations

import re

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT])i?B")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_EXPONENT = {"K": 1, "M": 2, "G": 3, "T": 4}
MEBIBYTE = 1024**2


def in_bytes(text: str) -> int | None:
    """Return a size in bytes, ``4GB`` being as much as ``4GiB`` as it is for Lima; None when the text is none."""
    match = _SIZE.fullmatch(text)
    return int(float(match[1]) * 1024 ** _EXPONENT[match[2]]) if match else None


def asked(text: str) -> int | None:
    """Return the size that a person asks for, in bytes: whole MiB, a bare number being GiB as it is for limactl.

    None when the text is no size, or less than one MiB.
    """
    text = text.strip()
    size = in_bytes(f"{text}GiB" if _NUMBER.fullmatch(text) else text)
    return (size // MEBIBYTE * MEBIBYTE or None) if size else None


def written(size: int) -> str:
    """Return a number of bytes as Lima reads it, without loss of whole MiB."""
    mebibytes = size // MEBIBYTE
    return f"{mebibytes}MiB" if mebibytes % 1024 else f"{mebibytes // 1024}GiB"


def shown(size: int) -> str:
    """Return a number of bytes for a person, such as ``4 GiB`` or ``353.6 MiB``."""
    value, unit = float(size), "bytes"
    for bigger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, bigger
    return f"{f'{value:.1f}'.removesuffix('.0')} {unit}"
