"""One request, as JSON on standard input; what happens, and at last its result, as JSON lines on standard output.

    {"op": "state", "name": NAME} -> {"arch", "kernel", "python", "apt": {name: version}, "packages": {name: [version,
        record]}, "built": {the same, as it was built}, "python_digest": DIGEST or ""}
    {"op": "resolve", "apt": [NAME], "base": {name: version} or {}, "kept": {name: version}, "requirements": TEXT,
        "pylock": TEXT or "", "upgrade": [NAME] or null} -> {"apt", "debs", "pylock", "arch", "kernel", "python"}
    {"op": "export", "pyproject": TEXT, "uv_lock": TEXT} -> {"pylock"}
    {"op": "sync", "name": NAME, "lock": DIGEST, "python": DIGEST, "pylock": TEXT, "needed": BYTES, "apt": {...},
        "debs": {...}} -> {"changed": bool, "python": PATH}
    {"op": "remove", "name": NAME, "force": bool} -> {}
    {"op": "list"} -> {NAME: {"lock", "drifted"}}

Each has "environments", the directory that they are in. A result comes as {"part": TEXT} lines, whose texts together
are its JSON, and {"end": true}. Other lines are {"phase": TEXT}, {"log": TEXT}, or
{"error": TEXT, "hint": TEXT, "context": [TEXT]} in place of a result.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from .. import environments
from . import apt, python
from .commands import Failed, answer, say

Request = dict[str, Any]


def _facts() -> dict[str, Any]:
    return {"arch": platform.machine(), "kernel": platform.release(), "python": python.version()}


@contextlib.contextmanager
def _alone(base: str) -> Iterator[None]:
    python.prepare(base)
    with python.locked(base):
        yield


def _state(base: str, request: Request) -> dict[str, Any]:
    found = environments.find(base, request["name"])
    venv = environments.current(base, request["name"]) if found["python"] else ""
    manifest = python.read_manifest(base, request["name"]) if venv else {}
    return {
        **_facts(),
        # Of an environment that has not been made there is none.
        "python": python.version() if venv else "",
        "apt": apt.present(),
        "packages": environments.records(venv) if venv else {},
        "built": manifest.get("packages", {}),
        "python_digest": manifest.get("python", ""),
    }


def _resolve(base: str, request: Request) -> dict[str, Any]:
    with _alone(base):
        debian = apt.resolve(request["apt"], request["base"], request["kept"])
        pylock = python.resolve(base, request["requirements"], request["pylock"], request["upgrade"])
    return {**_facts(), **debian, "pylock": pylock}


def _export(base: str, request: Request) -> dict[str, Any]:
    python.prepare(base)
    return {"pylock": python.exported(base, request["pyproject"], request["uv_lock"])}


def _sync(base: str, request: Request) -> dict[str, Any]:
    with _alone(base):
        changed = apt.sync(request["apt"], request["debs"])
        changed |= python.sync(base, request["name"], request)
        environments.write_system(base, request["name"], lock=request["lock"])
    return {"changed": changed, "python": environments.find(base, request["name"])["python"]}


def _remove(base: str, request: Request) -> dict[str, Any]:
    with _alone(base):
        python.remove(base, request["name"], force=request["force"])
    return {}


def _list(base: str, _request: Request) -> dict[str, Any]:
    names = sorted(os.listdir(base)) if os.path.isdir(base) else []
    found = {name: environments.find(base, name) for name in names if not name.startswith(".")}
    return {name: {"lock": one["lock"], "drifted": one["drifted"]} for name, one in found.items()}


OPERATIONS: dict[str, Callable[[str, Request], dict[str, Any]]] = {
    "state": _state,
    "resolve": _resolve,
    "export": _export,
    "sync": _sync,
    "remove": _remove,
    "list": _list,
}


def main() -> int:
    """Answer the request on standard input."""
    # Who asked may hang up: what was begun is finished, and then nobody is told.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    request = json.load(sys.stdin)
    try:
        answer(OPERATIONS[request["op"]](request["environments"], request))
    except Failed as error:
        say(error=error.what, hint=error.hint, context=error.log)
    except OSError as error:
        say(error="%s failed: %s." % (request["op"].capitalize(), error), hint="", context=[])
    return 0
