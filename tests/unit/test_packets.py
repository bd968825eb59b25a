"""What an SSH connection sends, packet by packet, as asyncssh logs it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import asyncssh
import pytest

from tests.sshd import Sshd, connected


@pytest.fixture
def sent(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """What is sent during the test, as lines of a log."""
    asyncssh.set_debug_level(3)
    try:
        with caplog.at_level(logging.DEBUG, "asyncssh"):
            yield caplog.messages
    finally:
        asyncssh.set_debug_level(1)


def of_kind(sent: list[str], kind: str) -> list[str]:
    return [line for line in sent if "Sent" in line and kind in line]


async def test_nothing_is_sent_only_to_be_ignored(
    sshd: Sshd, sent: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(sshd) as connection:
        caplog.clear()
        assert (await connection.run("cat", stdin="text", timeout=30)).stdout == "text"
        lines = caplog.messages
        assert of_kind(lines, "MSG_CHANNEL_DATA")
        assert not of_kind(lines, "MSG_IGNORE")


async def test_asyncssh_by_itself_does_send_such(sshd: Sshd, sent: list[str], caplog: pytest.LogCaptureFixture) -> None:
    place = sshd.endpoint
    keys = [str(place.identity)]
    options = {"username": place.user, "client_keys": keys, "known_hosts": None, "config": None, "agent_path": None}
    async with asyncssh.connect(place.host, place.port, **options) as ssh:
        caplog.clear()
        await ssh.run("cat", input="text")
        assert of_kind(caplog.messages, "MSG_IGNORE")
