"""Waiting for an sshd that is not there yet, or behind a port that accepts long before it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from collections.abc import AsyncIterator, Callable

import pytest

from lima_kernels.guest import knocking

LIMIT = 30


@contextlib.asynccontextmanager
async def port(answer: Callable[[int], bytes | None]) -> AsyncIterator[tuple[int, list[int]]]:
    """A port that says something to each connection by its number; nothing when None, and hangs up when empty."""
    seen: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(seen)
        seen.append(number)
        said = answer(number)
        try:
            if said is None:
                await reader.read()
            else:
                writer.write(said)
                await writer.drain()
                if said:
                    await reader.read()
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], seen
    finally:
        server.close()
        await server.wait_closed()


async def test_nothing_that_sshd_says_is_lost() -> None:
    async with asyncio.timeout(LIMIT), port(lambda _: b"SSH-2.0-test\r\n") as (number, seen):
        with await knocking.answered("127.0.0.1", number) as sock:
            assert sock.recv(100) == b"SSH-2.0-test\r\n"
        assert seen == [0]


async def test_the_first_that_is_answered_counts_though_others_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knocking, "INTERVAL", 0.05)
    async with asyncio.timeout(LIMIT), port(lambda number: b"SSH-" if number == 3 else None) as (number, seen):
        with await knocking.answered("127.0.0.1", number) as sock:
            assert sock.recv(100) == b"SSH-"
        assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize("other", [b"", b"HTTP/1.1 400\r\n"])
async def test_what_is_no_sshd_is_asked_again(monkeypatch: pytest.MonkeyPatch, other: bytes) -> None:
    monkeypatch.setattr(knocking, "REFUSED_INTERVAL", 0.01)
    async with asyncio.timeout(LIMIT), port(lambda number: b"SSH-" if number else other) as (number, seen):
        (await knocking.answered("127.0.0.1", number)).close()
        assert seen == [0, 1]


async def test_a_port_that_is_not_there_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knocking, "REFUSED_INTERVAL", 0.01)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        number = taken.getsockname()[1]
        waiting = asyncio.ensure_future(knocking.answered("127.0.0.1", number))
        await asyncio.wait([waiting], timeout=0.1)
        assert not waiting.done()
        taken.listen()
        taken.setblocking(False)
        async with asyncio.timeout(LIMIT):
            caller, _ = await asyncio.get_running_loop().sock_accept(taken)
            with caller:
                caller.send(b"SSH-")
                (await waiting).close()


async def test_one_that_never_answers_is_given_up_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knocking, "PATIENCE", 0.05)
    monkeypatch.setattr(knocking, "REFUSED_INTERVAL", 0.01)
    async with asyncio.timeout(LIMIT), port(lambda number: b"SSH-" if number == 2 else None) as (number, seen):
        (await knocking.answered("127.0.0.1", number)).close()
        assert seen == [0, 1, 2]


async def test_a_wait_that_is_cancelled_leaves_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knocking, "INTERVAL", 0.02)
    async with asyncio.timeout(LIMIT), port(lambda _: None) as (number, seen):
        waiting = asyncio.ensure_future(knocking.answered("127.0.0.1", number))
        while len(seen) < 3:
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    # An open one would be warned of, which is an error here.
    gc.collect()
