"""A Jupyter server with our extension, on the test's machine, and clients of it.

pytest-jupyter's plug-in would run every test of this suite on a loop of its own, so its fixtures are taken one by one;
they are given pytest-asyncio's loop, and the machine's directories.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import jupyter_core.paths
import pytest
from pytest_jupyter.jupyter_server import (
    http_server,
    http_server_client,
    http_server_port,
    jp_argv,
    jp_auth_header,
    jp_base_url,
    jp_configurable_serverapp,
    jp_fetch,
    jp_http_port,
    jp_logging_stream,
    jp_server_cleanup,
    jp_serverapp,
    jp_web_app,
    jp_ws_fetch,
)
from tornado.websocket import WebSocketClientConnection

from tests.unit.conftest import Machine

FIXTURES = (
    http_server,
    http_server_client,
    http_server_port,
    jp_argv,
    jp_auth_header,
    jp_base_url,
    jp_configurable_serverapp,
    jp_fetch,
    jp_http_port,
    jp_logging_stream,
    jp_server_cleanup,
    jp_serverapp,
    jp_web_app,
    jp_ws_fetch,
)
API = ("lima-kernels", "api")
# Seconds, against hanging only.
LIMIT = 30.0


@pytest.fixture
async def jp_asyncio_loop(machine: Machine) -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


@pytest.fixture
def jp_environ(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of what is installed beside us is loaded."""
    for name in ("SYSTEM_JUPYTER_PATH", "ENV_JUPYTER_PATH", "SYSTEM_CONFIG_PATH", "ENV_CONFIG_PATH"):
        monkeypatch.setattr(jupyter_core.paths, name, [str(machine.root / "none")])


@pytest.fixture
def jp_nbconvert_templates() -> None:
    """None are needed."""


@pytest.fixture
def jp_root_dir(machine: Machine) -> Path:
    return machine.notebooks


@pytest.fixture
def jp_server_config() -> dict[str, Any]:
    return {"ServerApp": {"jpserver_extensions": {"lima_kernels": True, "jupyter_server_terminals": False}}}


class Answer(NamedTuple):
    """What a route answered."""

    code: int
    said: Any


Ask = Callable[..., Awaitable[Answer]]


@pytest.fixture
def ask(http_server_client: Any, jp_auth_header: Mapping[str, str], jp_base_url: str) -> Ask:
    """Ask a route of ours: ``await ask("GET", "vms", "one")``; a body that is no text is sent as JSON.

    Each part of a route is quoted whole, so that it may hold what a path cannot.
    """

    async def asked(
        method: str,
        *route: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> Answer:
        if body is not None and not isinstance(body, str | bytes):
            body = json.dumps(body)
        path = "/".join([*API, *(quote(part, safe="") for part in route)])
        request = {"method": method, "body": body, "headers": dict(headers or jp_auth_header)}
        answer = await http_server_client.fetch(
            f"{jp_base_url}{path}?{urlencode(params or {})}",
            raise_error=False,
            allow_nonstandard_methods=True,
            request_timeout=LIMIT,
            **request,
        )
        is_json = answer.headers.get("Content-Type") == "application/json"
        return Answer(answer.code, json.loads(answer.body) if answer.body and is_json else None)

    return asked


class Page:
    """A page that listens to the server's events."""

    def __init__(self, connection: WebSocketClientConnection) -> None:
        self.connection = connection

    async def message(self) -> dict[str, Any] | None:
        """The next message, None when the server has closed."""
        async with asyncio.timeout(LIMIT):
            said = await self.connection.read_message()
        return None if said is None else json.loads(said)

    async def until(self, is_so: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """The next message of which something is so."""
        async with asyncio.timeout(LIMIT):
            while (said := await self.message()) is not None:
                if is_so(said):
                    return said
        raise AssertionError("the server closed")

    async def told(self, type_: str) -> dict[str, Any]:
        return await self.until(lambda said: said["type"] == type_)

    async def say(self, **message: Any) -> None:
        await self.connection.write_message(json.dumps(message))


Open = Callable[..., Any]


@pytest.fixture
def page(jp_ws_fetch: Any) -> Open:
    """Open a page: ``async with page() as one``."""

    @asynccontextmanager
    async def opened(headers: Mapping[str, str] | None = None, **options: Any) -> AsyncIterator[Page]:
        connection = await jp_ws_fetch(*API, "events", headers=dict(headers or {}), **options)
        try:
            yield Page(connection)
        finally:
            connection.close()

    return opened
