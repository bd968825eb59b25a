"""What a guest's kernel and its host say to each other: JSON, a line each. Standard library only.

The guest asks ``{"version", "token", "verb", "arguments"}``. The host answers ``{"step": text}`` as often as it likes,
and at last one of ``{"table": {columns, rows, title}}``, ``{"note": text}``, ``{"error": {message, hint, context}}``.
A guest that hangs up wants it no longer.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

from .backend import LimaError
from .results import Note, Result, Table

VERSION = 1
# What tells a guest's kernel where its host listens, and the name that its VM has there.
SOCKET_VARIABLE = "LIMA_KERNELS_CONTROL"
NAME_VARIABLE = "LIMA_KERNELS_INSTANCE"
# Bytes: what a guest asks is short, what it is told may be a log.
REQUEST_LIMIT = 64 * 1024
ANSWER_LIMIT = 4 * 1024 * 1024
_PURPOSE = b"lima-kernels control"


def token(key: bytes) -> str:
    """Return what proves that a kernel asks, made of the key that it signs its messages with."""
    return hmac.new(key, _PURPOSE, hashlib.sha256).hexdigest()


def line(message: Mapping[str, Any]) -> bytes:
    """Return a message as it is sent."""
    return json.dumps(message).encode() + b"\n"


def encoded(result: Result) -> dict[str, Any]:
    """Return a result as a message."""
    if isinstance(result, Table):
        rows = [[row.get(column) for column in result.columns] for row in result]
        return {"table": {"columns": result.columns, "rows": rows, "title": result.title}}
    return {"note": str(result)}


def failed(error: LimaError) -> dict[str, Any]:
    """Return an error as a message."""
    return {"error": {"message": error.message, "hint": error.hint, "context": error.context}}


def decoded(message: Mapping[str, Any]) -> Result | None:
    """Return the result that a message brings, or None when it brings none.

    :raises LimaError: that it brings.
    """
    if "error" in message:
        raise LimaError(**message["error"])
    if "table" in message:
        return Table(**message["table"])
    return Note(message["note"]) if "note" in message else None
