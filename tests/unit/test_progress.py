"""What a listener hears of a start."""

from __future__ import annotations

import time

from lima_kernels.progress import Phase, Progress, Step


def test_a_listener_hears_each_phase_as_it_begins() -> None:
    heard: list[Step] = []
    progress = Progress("vm", heard.append)
    progress.enter(Phase.BOOT)
    progress.enter(Phase.CONNECT, "port 60022")
    assert [(step.instance, step.phase, step.detail) for step in heard] == [
        ("vm", Phase.BOOT, ""),
        ("vm", Phase.CONNECT, "port 60022"),
    ]


def test_elapsed_time_never_goes_back_and_is_in_seconds() -> None:
    heard: list[Step] = []
    progress = Progress("vm", heard.append)
    progress.enter(Phase.BOOT)
    time.sleep(0.05)
    progress.enter(Phase.CONNECT)
    assert heard[0].elapsed >= 0
    assert 0.05 <= heard[1].elapsed - heard[0].elapsed < 5


def test_a_restart_counts_anew() -> None:
    heard: list[Step] = []
    progress = Progress("vm", heard.append)
    time.sleep(0.5)
    progress.restart()
    progress.enter(Phase.CHECK)
    assert heard[0].elapsed < 0.5


def test_the_present_phase_is_remembered_for_messages() -> None:
    progress = Progress("vm", lambda _step: None)
    assert progress.phase is Phase.CHECK
    progress.enter(Phase.MOUNT)
    assert progress.phase is Phase.MOUNT
    # Whoever waits for the next thing is not told that it is still the last.
    progress.restart()
    assert progress.phase is Phase.CHECK


def test_a_phase_is_known_before_its_listener_is_called() -> None:
    seen: list[Phase] = []
    progress = Progress("vm", lambda _step: seen.append(progress.phase))
    progress.enter(Phase.KERNEL)
    assert seen == [Phase.KERNEL]


def test_phases_read_differently_and_end_with_ready() -> None:
    texts = [phase.value for phase in Phase]
    assert len(set(texts)) == len(texts)
    assert texts[-1] == "ready"
