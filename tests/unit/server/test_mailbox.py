"""What one client has not been sent yet."""

from __future__ import annotations

import asyncio
import threading

from lima_kernels.server.mailbox import LOG_LINES, Mailbox
from lima_kernels.watch.cards import (
    Card,
    CardChanged,
    CardGone,
    Job,
    JobChanged,
    JobState,
    LogGrown,
    Message,
    Snapshot,
    State,
    Usage,
    UsageTaken,
)


def card(name: str, phase: str = "") -> CardChanged:
    return CardChanged(Card(name=name, state=State.RUNNING, phase=phase))


def job(id_: str, step: str) -> JobChanged:
    return JobChanged(Job(id=id_, vm="one", verb="start", state=JobState.RUNNING, step=step, began=0.0))


async def taken(*messages: Message) -> list[Message]:
    mailbox = Mailbox()
    for message in messages:
        mailbox.put(message)
    async with asyncio.timeout(10):
        return list(await mailbox.take())


async def test_what_is_newer_takes_the_place_of_what_is_older() -> None:
    first, second = Usage("one", 1.0, 0.1, None), Usage("one", 2.0, 0.2, None)
    assert await taken(
        card("one", "booting"), job("1", "a"), UsageTaken(first), card("two"), card("one", "ready"), job("1", "b"),
        job("2", "a"), UsageTaken(second),
    ) == [card("two"), card("one", "ready"), job("1", "b"), job("2", "a"), UsageTaken(second)]  # fmt: skip


async def test_the_end_of_a_vm_is_told_after_what_became_of_it() -> None:
    assert await taken(card("one"), CardGone("one")) == [CardGone("one")]
    assert await taken(CardGone("one"), card("one")) == [card("one")]


async def test_a_snapshot_takes_the_place_of_all_but_logs() -> None:
    snapshot, log = Snapshot([], []), LogGrown("one", ["a"])
    assert await taken(card("one"), job("1", "a"), log, snapshot, card("two")) == [snapshot, log, card("two")]


async def test_lines_of_a_log_come_whole_or_from_their_end() -> None:
    assert await taken(LogGrown("one", ["a"]), LogGrown("two", ["x"]), LogGrown("one", ["b", "c"])) == [
        LogGrown("two", ["x"]),
        LogGrown("one", ["a", "b", "c"]),
    ]
    (log,) = await taken(*(LogGrown("one", [str(number)]) for number in range(3 * LOG_LINES)))
    assert isinstance(log, LogGrown)
    assert log.lines == [str(number) for number in range(2 * LOG_LINES, 3 * LOG_LINES)]


async def test_a_client_that_takes_nothing_costs_no_more_and_more() -> None:
    mailbox = Mailbox()
    for number in range(10_000):
        mailbox.put(card(f"vm{number % 3}", str(number)))
        mailbox.put(LogGrown("vm0", ["x"] * 100))
    assert len(await mailbox.take()) == 4


async def test_other_threads_put_and_nothing_is_lost() -> None:
    mailbox = Mailbox()
    threads = [
        threading.Thread(target=lambda base=base: [mailbox.put(card(f"{base}-{n}")) for n in range(500)])
        for base in range(4)
    ]
    for thread in threads:
        thread.start()
    found: list[str] = []
    async with asyncio.timeout(30):
        while len(found) < 2000:
            found += [message.vm.name for message in await mailbox.take() if isinstance(message, CardChanged)]
    assert sorted(found) == sorted(f"{base}-{n}" for base in range(4) for n in range(500))
    # Each thread's in the order in which they came.
    for base in range(4):
        assert [name for name in found if name.startswith(f"{base}-")] == [f"{base}-{n}" for n in range(500)]
    for thread in threads:
        await asyncio.to_thread(thread.join, 10)


async def test_a_closed_mailbox_ends_the_wait_and_takes_nothing() -> None:
    mailbox = Mailbox()
    waiting = asyncio.ensure_future(mailbox.take())
    await asyncio.sleep(0)
    mailbox.close()
    async with asyncio.timeout(10):
        assert await waiting == ()
        mailbox.put(card("one"))
        assert await mailbox.take() == ()


def test_a_loop_that_has_ended_is_no_failure_of_who_tells() -> None:
    async def made() -> Mailbox:
        return Mailbox()

    mailbox = asyncio.run(made())
    mailbox.put(card("one"))
