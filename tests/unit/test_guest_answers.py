"""What the guest's program for environments may say: it is a guest's word, and not trusted."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lima_kernels.errors import ConnectionFailed, GuestError, LimaKernelsError, PhaseTimeout
from lima_kernels.guest import layers
from lima_kernels.guest.readiness import Facts
from tests import sshd
from tests.sshd import Sshd


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Sshd]:
    with sshd.running(tmp_path) as made:
        yield made


async def asked(guest: Sshd, says: str, *, answer: Any = dict[str, Any], timeout: float = 60, heard: Any = None) -> Any:
    """Ask a guest whose program does this in place of ours."""
    program = guest.bin / "answers"
    program.write_text(f"#!{sys.executable} -IS\nimport json, sys, time\ntext = sys.stdin.read()\n{says}\n")
    program.chmod(0o755)
    steps: list[str] = []

    def tell(step: str) -> None:
        steps.append(step)
        if heard is not None:
            heard(step)

    async with sshd.connected(guest) as connection:
        facts = Facts(str(guest.home), 1000, 1000, str(program))
        found = await layers.ask(connection, facts, {"op": "sync", "name": "paper"}, answer, timeout=timeout, tell=tell)
    return found, steps


def says(**line: object) -> str:
    return f"print({json.dumps(line)!r}, flush=True)"


END = says(end=True)
# Seconds: longer than anything here waits, for a program that outlives its connection, as sshd lets it.
LONG = 40


async def test_an_answer_in_pieces_with_its_steps(guest: Sshd) -> None:
    parts = [
        says(phase="one"),
        says(log="what a program says"),
        says(part='{"a"'),
        says(phase="two"),
        says(part=": 1}"),
    ]
    assert await asked(guest, "\n".join((*parts, END))) == ({"a": 1}, ["one", "two"])


async def test_it_hears_what_is_asked_and_where_environments_are(guest: Sshd) -> None:
    found, _ = await asked(guest, f"print(json.dumps({{'part': text}}))\n{END}")
    assert found == {"op": "sync", "name": "paper", "environments": "/opt/lima-kernels/environments"}


DEEP = "'[' * 100_000 + ']' * 100_000"


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (END, "The guest gave an answer that cannot be: "),
        (f"{says(part='{')}\n{END}", "The guest gave an answer that cannot be: "),
        (f"{says(part='[1]')}\n{END}", "The guest gave an answer that cannot be: Expected `object`, got `array`."),
        (f"print(json.dumps({{'part': {DEEP}}}))\n{END}", "The guest gave an answer that cannot be: "),
        ("print('<html>')", "The guest's program for environments did not run."),
        (f"print({DEEP})", "The guest's program for environments did not run."),
        ('print(\'{"part": 1, "end": true}\')', "The guest's program for environments did not run."),
        ("raise ImportError('no module')", "The guest's program for environments did not run."),
        (says(part="{}"), "The connection ended before the guest had answered."),
        ("", "The connection ended before the guest had answered."),
        (says(error="It is\x1b[2J\x07 broken.\nReally."), "It is broken. Really."),
        (
            "while True:\n    print(json.dumps({'part': 'x' * 1_000_000}))",
            "The guest's answer is longer than 32 MiB.",
        ),
    ],
)
async def test_what_is_no_answer_is_one_line(guest: Sshd, program: str, message: str) -> None:
    with pytest.raises(LimaKernelsError) as caught:
        await asked(guest, program)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


async def test_a_line_without_an_end_is_not_read_for_ever(guest: Sshd) -> None:
    with pytest.raises(GuestError, match="a line that is longer than 4 MiB"):
        await asked(guest, "while True:\n    sys.stdout.write('x' * 1_000_000)")


async def test_what_python_itself_says_is_shown(guest: Sshd) -> None:
    with pytest.raises(GuestError) as caught:
        await asked(guest, "raise ImportError('no module')")
    assert caught.value.context[-1] == "ImportError: no module"


async def test_an_answer_of_another_type_is_refused(guest: Sshd) -> None:
    with pytest.raises(GuestError, match="Expected `bool`, got `str`"):
        await asked(guest, f"{says(part=json.dumps({'changed': 'yes'}))}\n{END}", answer=dict[str, bool])


async def test_an_error_has_its_hint_and_the_end_of_what_was_said(guest: Sshd) -> None:
    lines = [f"{number} \x1b[31m{'x' * 1000}" for number in range(100)]
    with pytest.raises(GuestError) as caught:
        await asked(guest, says(error="No.", hint="Do\x07 this", context=lines))
    assert (caught.value.message, caught.value.hint) == ("No.", "Do this")
    assert [line[:4] for line in caught.value.context] == [f"{number} x" for number in range(85, 100)]
    assert all(len(line) <= 500 for line in caught.value.context)


async def test_steps_are_text(guest: Sshd) -> None:
    _, steps = await asked(guest, "\n".join((says(phase="a\x1b[2J\nb" + "c" * 1000), says(part="{}"), END)))
    assert steps == ["a b" + "c" * 497]


async def test_the_time_that_is_used_up_names_its_step(guest: Sshd) -> None:
    with pytest.raises(PhaseTimeout) as caught:
        await asked(guest, f"{says(phase='installing')}\ntime.sleep({LONG})", timeout=2)
    assert str(caught.value) == "The guest was not done within 2 s: installing."
    with pytest.raises(PhaseTimeout) as caught:
        await asked(guest, f"time.sleep({LONG})", timeout=1)
    assert str(caught.value) == "The guest was not done within 1 s: nothing was begun."


async def test_a_connection_that_is_cut_in_the_middle(guest: Sshd) -> None:
    def cut(_step: str) -> None:
        guest.drop_connections()

    with pytest.raises(ConnectionFailed):
        await asyncio.wait_for(asked(guest, f"{says(phase='installing')}\ntime.sleep({LONG})", heard=cut), 30)
