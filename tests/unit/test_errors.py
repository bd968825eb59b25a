"""The family of errors: text, fields, and the way through a process boundary."""

from __future__ import annotations

import copy
import pickle

import pytest

from lima_kernels import errors
from lima_kernels.errors import LimaKernelsError, nearest

FAMILY = [
    member for member in vars(errors).values() if isinstance(member, type) and issubclass(member, LimaKernelsError)
]


@pytest.mark.parametrize("kind", FAMILY)
def test_the_text_is_what_happened_and_what_to_do(kind: type[LimaKernelsError]) -> None:
    assert str(kind("It failed.", hint="Try again.", context=["a log"])) == "It failed. Try again."


def test_without_a_hint_the_text_ends_with_the_message() -> None:
    assert str(LimaKernelsError("It failed.")) == "It failed."


@pytest.mark.parametrize("kind", FAMILY)
def test_an_error_crosses_a_process_boundary_whole(kind: type[LimaKernelsError]) -> None:
    error = kind("It failed.", hint="Try again.", context=["one", "two"])
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(other) is kind
        assert (other.message, other.hint, other.context) == ("It failed.", "Try again.", ("one", "two"))
        assert str(other) == str(error)


def test_each_kind_has_a_reference_of_its_own() -> None:
    references = [kind.reference for kind in FAMILY]
    assert len(set(references)) == len(references)


def test_the_context_cannot_be_changed_from_outside() -> None:
    lines = ["one"]
    error = LimaKernelsError("It failed.", context=lines)
    lines.append("two")
    assert error.context == ("one",)


def test_a_changed_host_key_is_a_failed_connection() -> None:
    assert issubclass(errors.HostKeyChanged, errors.ConnectionFailed)


@pytest.mark.parametrize(
    ("name", "known", "text"),
    [
        ("memroy", ["cpus", "memory"], "Did you mean 'memory'?"),
        ("memory", ["memory"], "Did you mean 'memory'?"),
        ("zzz", ["cpus", "memory"], ""),
        ("cpus", [], ""),
        ("", ["cpus"], ""),
    ],
)
def test_the_nearest_name_is_offered_where_one_is_near(name: str, known: list[str], text: str) -> None:
    assert nearest(name, known) == text


def test_what_a_guest_wrote_does_not_steer_the_terminal() -> None:
    error = LimaKernelsError("x", context=["\x1b[2J\x1b]0;title\x07red\x1b[31m", "tab\tstays"])
    assert error.context == ("]0;titlered", "tab\tstays")
