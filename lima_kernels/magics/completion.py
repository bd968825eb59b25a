"""What the tabulator key offers behind `%lima` and `%%lima`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from IPython.core.completer import CompletionContext, SimpleCompletion, SimpleMatcherResult, context_matcher

from .arguments import CELL, VERBS, Argument
from .backend import Backend

# Alone, or as what is assigned.
_LINE = re.compile(r"\s*(?:[\w.\[\]]+\s*=\s*)?(?P<mark>%%?)lima\s+(?P<rest>.*)", re.DOTALL)
# Arguments that are an instance's name, by what their parser calls them.
_INSTANCES = ("NAME",)
# `--template` takes a name, too, but of something else.
_OF_INSTANCES = ("name", "source", "--instance")


def _options(arguments: Iterable[Argument]) -> list[str]:
    found = []
    for argument in arguments:
        for name in argument.names:
            if name.startswith("--"):
                found.append(name)
                if "BooleanOptionalAction" in str(argument.settings.get("action", "")):
                    found.append(name.replace("--", "--no-", 1))
    return found


def _is_instance(argument: Argument) -> bool:
    return argument.settings.get("metavar") in _INSTANCES and any(name in _OF_INSTANCES for name in argument.names)


def _valued(arguments: Iterable[Argument], option: str) -> Argument | None:
    """Return the argument of an option that takes a value, or None."""
    for argument in arguments:
        if option in argument.names and "action" not in argument.settings:
            return argument
    return None


def _offered(arguments: Sequence[Argument], before: Sequence[str], backend: Backend) -> list[str]:
    """Return what may come behind the words that are there already."""
    if before and (argument := _valued(arguments, before[-1])):
        return list(backend.instances()) if _is_instance(argument) else list(argument.settings.get("choices", ()))
    taken = 0
    for number, word in enumerate(before):
        if not word.startswith("--") and not (number and _valued(arguments, before[number - 1])):
            taken += 1
    places = [argument for argument in arguments if not argument.names[0].startswith("--")]
    found = _options(arguments)
    if taken < len(places):
        place = places[taken]
        found += place.settings.get("choices", ())
        if _is_instance(place):
            found += backend.instances()
    return found


def offered(text: str, backend: Backend) -> tuple[str, list[str]] | None:
    """Return the word that a line ends with, and what it may become; None when the line is none of ours.

    :param text: the line up to the cursor.
    """
    found = _LINE.match(text)
    if found is None:
        return None
    words = found["rest"].split()
    last = "" if found["rest"][-1:].isspace() or not words else words.pop()
    if found["mark"] == "%%":
        choices = _offered(CELL, words, backend)
    elif not words:
        choices = list(VERBS)
    else:
        choices = _offered(VERBS[words[0]].arguments, words[1:], backend) if words[0] in VERBS else []
    return last, sorted(word for word in choices if word.startswith(last))


def matcher(backend: Backend) -> Any:
    """Return what IPython's completer asks; where it knows something, Python's own words are not offered."""

    @context_matcher()
    def lima(context: CompletionContext) -> SimpleMatcherResult:
        found = offered(context.text_until_cursor.rpartition("\n")[2], backend)
        if found is None:
            return {"completions": []}
        last, words = found
        completions = [SimpleCompletion(word, type="lima") for word in words]
        return {"completions": completions, "matched_fragment": last, "suppress": bool(words)}

    return lima
