"""What a guest's kernel and its host say to each other: JSON, a line each. Standard library only.

The guest asks ``{"version", "token", "verb", "arguments"}``. The host answers ``{"step": text}`` as often as it likes,
and at last one of ``{"table": {columns, rows, title}}``, ``{"note": text}``, ``{"error": {message, hint, context}}``.
A guest that hangs up wants it no longer.

Of the verb ``watch``, whose argument may be a VM's name, the answer is an error, or the messages of
``lima_kernels.widget.source``; what panels say follows the request, a line each, until the guest hangs up.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .backend import LimaError
from .results import Note, Result, Table

VERSION = 1
# What tells a guest's kernel where its host listens, and the name that its VM has there.
SOCKET_VARIABLE = "LIMA_KERNELS_CONTROL"
NAME_VARIABLE = "LIMA_KERNELS_INSTANCE"
# Bytes: what a guest is told may be a log.
ANSWER_LIMIT = 4 * 1024 * 1024
# What a panel asks for; no verb of a cell.
WATCH = "watch"
_PURPOSE = b"lima-kernels control"


def token(key: bytes) -> str:
    """Return what proves that a kernel asks, made of the key that it signs its messages with."""
    return hmac.new(key, _PURPOSE, hashlib.sha256).hexdigest()


class Address(NamedTuple):
    """How a kernel of a guest reaches its host.

    :param path: the socket on which it listens; empty when it does not.
    :param token: what proves who asks.
    :param instance: this VM's name there.
    """

    path: str
    token: str
    instance: str

    @classmethod
    def of(cls, shell: Any) -> Address:
        """Return that of an IPython shell's kernel."""
        key = shell.kernel.session.key if hasattr(shell, "kernel") else b""
        return cls(os.environ.get(SOCKET_VARIABLE, ""), token(key), os.environ.get(NAME_VARIABLE, ""))

    def request(self, verb: str, arguments: Sequence[str]) -> bytes:
        """Return what asks for something."""
        return line({"version": VERSION, "token": self.token, "verb": verb, "arguments": list(arguments)})


def line(message: Mapping[str, Any]) -> bytes:
    """Return a message as it is sent."""
    return json.dumps(message).encode() + b"\n"


def messages(chunks: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yield what comes, in whatever pieces it does.

    :raises ValueError: when that is too long, or nothing that was sent by :func:`line`.
    """
    incoming = b""
    for chunk in chunks:
        incoming += chunk
        *lines, incoming = incoming.split(b"\n")
        for found in lines:
            yield json.loads(found)
        if len(incoming) > ANSWER_LIMIT:
            raise ValueError("its answer is too long")


def encoded(result: Result) -> dict[str, Any]:
    """Return a result as a message."""
    if isinstance(result, Table):
        rows = [[row.get(column) for column in result.columns] for row in result]
        return {"table": {"columns": result.columns, "rows": rows, "title": result.title}}
    return {"note": str(result)}


def failed(error: LimaError) -> dict[str, Any]:
    """Return an error as a message."""
    return {"error": {"message": error.message, "hint": error.hint, "context": error.context}}


def unreachable(error: object) -> LimaError:
    """Return what a person is told when the host could not be asked."""
    return LimaError(
        f"This VM's host could not be asked: {error}.",
        "Is this kernel's trait `control` off, or was its Jupyter server stopped?",
    )


def decoded(message: Mapping[str, Any]) -> Result | None:
    """Return the result that a message brings, or None when it brings none.

    :raises LimaError: that it brings.
    """
    if "error" in message:
        raise LimaError(**message["error"])
    if "table" in message:
        return Table(**message["table"])
    return Note(message["note"]) if "note" in message else None
