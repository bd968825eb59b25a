"""Whether the guest has what a kernel needs, as far as that can be told at once."""

from __future__ import annotations

import os
from typing import Any

from . import advice


def answer(_client: object, request: dict[str, Any]) -> dict[str, Any]:
    """Tell whether directories are mounted, files hold a text and paths exist; and who we are."""
    mounted = {mount.point for mount in advice.all_mounts()}
    is_ready = (
        mounted.issuperset(point.rstrip("/") or "/" for point in request["mounted"])
        and all(_content(path) == text for path, text in request["holds"].items())
        and all(os.path.exists(path) for path in request["exists"])
    )
    return {"ok": {"is_ready": is_ready, "uid": os.getuid(), "gid": os.getgid()}}


def _content(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\n")
    except OSError:
        return None
