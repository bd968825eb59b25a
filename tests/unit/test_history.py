"""What is remembered of starts, and said of the next one."""

from __future__ import annotations

import pytest

from lima_kernels import history, paths
from lima_kernels.environment.spec import DEFAULT
from lima_kernels.history import REMEMBERED, Kind
from lima_kernels.progress import Phase, Step
from lima_kernels.runtime import runtime

from .conftest import Machine
from .test_kernel import started

NAME = "lima-kernels"


@pytest.mark.usefixtures("machine")
def test_the_latest_starts_say_what_to_expect() -> None:
    assert history.expected(NAME, Kind.BOOT) is None
    for seconds in (1000.0, *[60.0] * REMEMBERED):
        history.note(NAME, Kind.BOOT, seconds)
    assert history.expected(NAME, Kind.BOOT) == 60.0
    assert history.expected(NAME, Kind.CREATE) is None
    history.note(NAME, Kind.CREATE, 90.0)
    assert (history.expected(NAME, Kind.CREATE), history.expected(NAME, Kind.BOOT)) == (90.0, 60.0)


@pytest.mark.usefixtures("machine")
def test_a_new_vm_is_expected_to_be_like_others_of_its_environment() -> None:
    for name, seconds, made_of in (("one", 60.0, "a"), ("two", 80.0, "a"), ("three", 500.0, "b"), ("four", 9.0, "")):
        history.note(name, Kind.CREATE, seconds, made_of)
    assert history.expected("new", Kind.CREATE, "a") == 70.0
    assert history.expected("new", Kind.CREATE, "b") == 500.0
    assert history.expected("new", Kind.BOOT, "a") is None
    # Of what is not known, or others made, nothing can be told.
    assert history.expected("new", Kind.CREATE, "c") is None
    assert history.expected("new", Kind.CREATE) is None
    # What it took itself says more.
    history.note("new", Kind.CREATE, 100.0, "a")
    assert history.expected("new", Kind.CREATE, "a") == 100.0
    # One that is made of something else now no longer tells about the first.
    history.note("one", Kind.CREATE, 400.0, "b")
    history.note("new", Kind.CREATE, 100.0, "b")
    assert history.expected("newer", Kind.CREATE, "a") == 80.0


@pytest.mark.usefixtures("machine")
def test_what_is_damaged_or_cannot_be_written_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    paths.starts_file(NAME).write_text("{")
    assert history.expected(NAME, Kind.BOOT) is None
    assert "is not used" in caplog.text
    paths.starts_file(NAME).mkdir()
    history.note(NAME, Kind.BOOT, 1.0)


@pytest.mark.usefixtures("guest", "spec")
def test_a_second_start_says_how_long_the_first_took(machine: Machine) -> None:
    steps: list[Step] = []
    with runtime().listening(steps.append):
        with started(machine):
            pass
        # No number is invented.
        assert {step.expected for step in steps} == {None}
        assert history.expected(NAME, Kind.CREATE) is not None
        runtime().run_blocking(_stopped())
        history.note(NAME, Kind.BOOT, 61.7)
        steps.clear()
        with started(machine):
            pass
    booting = next(step for step in steps if step.phase is Phase.BOOT)
    assert booting.text == f"{NAME}: booting the VM, 62 s the last times"
    assert history.expected(NAME, Kind.BOOT) != 61.7
    # The first VM tells how long the next of its environment takes.
    assert history.expected("another", Kind.CREATE, DEFAULT.digest) == history.expected(NAME, Kind.CREATE)


async def _stopped() -> None:
    await runtime().vm(NAME).stop()
