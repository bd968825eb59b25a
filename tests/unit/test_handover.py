"""Bytes between a thread and the event loop: in order, whole, bounded, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable

import pytest

from lima_kernels.guest.connection import CHUNK
from lima_kernels.guest.handover import Handover

LIMIT = 30.0
BLOCKS = [os.urandom(size) for size in (1, 512, 3 * CHUNK, CHUNK, 0, 7, CHUNK - 7)] * 20
# What may lie there, and one block more.
HELD = 8 * CHUNK


async def test_from_a_thread_to_the_loop() -> None:
    handover = Handover()

    def give() -> None:
        for block in BLOCKS:
            handover.give(block)
        handover.end()

    giving = asyncio.ensure_future(asyncio.to_thread(give))
    found = b""
    while data := await asyncio.wait_for(handover.taken(), LIMIT):
        found += data
    await giving
    assert found == b"".join(BLOCKS)
    assert await handover.taken() == b""


async def test_from_the_loop_to_a_thread() -> None:
    handover = Handover()

    def take() -> bytes:
        found = b""
        while data := handover.take():
            found += data
        return found

    taking = asyncio.ensure_future(asyncio.to_thread(take))
    for block in BLOCKS:
        await asyncio.wait_for(handover.given(block), LIMIT)
    handover.end()
    assert await asyncio.wait_for(taking, LIMIT) == b"".join(BLOCKS)


async def test_who_gives_waits_for_who_takes() -> None:
    handover = Handover()
    given = 0

    async def give() -> None:
        nonlocal given
        while True:
            await handover.given(bytes(CHUNK))
            given += CHUNK

    giving = asyncio.ensure_future(give())
    await asyncio.sleep(0)
    before = given
    assert 0 < before <= HELD
    while given == before:
        await asyncio.to_thread(handover.take)
    giving.cancel()
    # Small ones come together, as far as one may be long.
    handover = Handover()
    for _ in range(10):
        await handover.given(b"x")
    assert await handover.taken() == b"x" * 10


def give_much(handover: Handover) -> None:
    for _ in range(100):
        handover.give(bytes(CHUNK))


@pytest.mark.parametrize("wait", [Handover.take, give_much])
async def test_closing_ends_a_wait_in_a_thread(wait: Callable[[Handover], object]) -> None:
    handover = Handover()
    has_begun = threading.Event()

    def work() -> None:
        has_begun.set()
        wait(handover)

    working = asyncio.ensure_future(asyncio.to_thread(work))
    await asyncio.to_thread(has_begun.wait, LIMIT)
    handover.close()
    handover.close()
    with pytest.raises(BrokenPipeError):
        await asyncio.wait_for(working, LIMIT)


async def test_closing_ends_a_wait_in_the_loop() -> None:
    handover = Handover()
    waiting = asyncio.ensure_future(handover.taken())
    await asyncio.sleep(0)
    handover.close()
    with pytest.raises(BrokenPipeError):
        await asyncio.wait_for(waiting, LIMIT)
    with pytest.raises(BrokenPipeError):
        await handover.given(b"x")
