"""The JSON Schema of the environment file, for editors."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import msgspec

from .keys import Environment

RESOURCE = "lima-env.schema.json"


def schema() -> dict[str, Any]:
    """Return the schema, made from the types that read the file."""
    made = msgspec.json.schema(Environment)
    definitions = made["$defs"]
    for name, definition in definitions.items():
        # Docstrings are for those who read the code.
        definition.pop("description", None)
        if name != "Environment":
            definition.pop("title", None)
    top = definitions.pop("Environment")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **top,
        "title": "Environment of lima-kernels",
        "description": "What a VM of lima-kernels is: lima-env.yaml.",
        "$defs": definitions,
    }


def text() -> str:
    """Return the schema as its file has it."""
    return msgspec.json.format(msgspec.json.encode(schema()), indent=2).decode() + "\n"


def published() -> str:
    """Return the text of the schema that this package brings with it."""
    return files("lima_kernels").joinpath("resources", RESOURCE).read_text(encoding="utf-8")
