"""No token, no cookie of ours, another site's page, or another user than the authorizer lets in: nothing is had."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
from jupyter_server.auth import Authorizer
from jupyter_server.serverapp import ServerApp
from tornado.httpclient import HTTPClientError

from lima_kernels.server.app import ROUTES
from tests.unit.conftest import Machine

from .conftest import API, Ask, Open

METHODS = ("GET", "POST", "PATCH", "DELETE", "PUT")
PATHS = [re.sub(r"\(.*?\)", "one", route).removeprefix("/".join(API)).strip("/") for route, _ in ROUTES]


def test_every_route_is_tried() -> None:
    assert {"vms", "vms/one/log", "vms/one/one", "jobs/one", "kernels/one/vm", "events"} <= set(PATHS)


@pytest.mark.parametrize("token", ["", "token", "token wrong"])
@pytest.mark.parametrize("path", PATHS)
async def test_nobody_without_the_token(ask: Ask, machine: Machine, path: str, token: str) -> None:
    for method in METHODS:
        answer = await ask(method, *path.split("/"), headers={"Authorization": token}, body="{}")
        assert answer.code == 403, method
        if path != "events":
            assert set(answer.said) == {"message", "hint", "context"}
    # Nobody even looked.
    assert not (machine.lima_home / "_calls").exists()


@pytest.mark.parametrize("token", ["", "token wrong"])
async def test_no_events_without_the_token(page: Open, machine: Machine, token: str) -> None:
    with pytest.raises(HTTPClientError) as caught:
        async with page({"Authorization": token}):
            pass
    assert caught.value.code == 403
    assert not (machine.lima_home / "_calls").exists()


async def cookies(jp_fetch: Any, jp_serverapp: ServerApp) -> dict[str, str]:
    """The cookies of a page that was opened with the token."""
    token = jp_serverapp.identity_provider.token
    login = await jp_fetch("api", "me", params={"token": token}, headers={"Authorization": ""})
    # Only a page brings the XSRF cookie.
    form = await jp_fetch("login", headers={"Authorization": ""})
    pairs = [line.split(";")[0] for answer in (login, form) for line in answer.headers.get_list("Set-Cookie")]
    return dict(pair.split("=", 1) for pair in pairs)


def headers(known: Mapping[str, str], **more: str) -> dict[str, str]:
    return {"Authorization": "", "Cookie": "; ".join(f"{name}={value}" for name, value in known.items()), **more}


async def test_a_page_of_another_site_that_brings_our_cookies(
    ask: Ask, jp_fetch: Any, jp_serverapp: ServerApp, machine: Machine
) -> None:
    known = await cookies(jp_fetch, jp_serverapp)
    assert "_xsrf" in known
    for method, path in (
        ("GET", "vms"),
        ("GET", "vms/one/log"),
        ("GET", "templates"),
        ("GET", "environments"),
        ("POST", "vms"),
        ("POST", "vms/one/start"),
        ("PATCH", "vms/one"),
        ("DELETE", "vms/one"),
        ("DELETE", "jobs/one"),
    ):
        for more in ({}, {"X-XSRFToken": "guessed"}, {"Referer": "http://elsewhere.invalid/"}):
            answer = await ask(method, *path.split("/"), headers=headers(known, **more), body="{}")
            assert answer.code == 403, (method, path, more)
    assert not (machine.lima_home / "_calls").exists()


async def test_our_page_with_our_cookies(ask: Ask, jp_fetch: Any, jp_serverapp: ServerApp) -> None:
    known = await cookies(jp_fetch, jp_serverapp)
    ours = headers(known, **{"X-XSRFToken": known["_xsrf"]})
    assert (await ask("GET", "environments", headers=ours)).code == 200
    assert (await ask("POST", "vms/one/start", headers=ours, body="no JSON")).code == 404
    assert (await ask("POST", "vms", headers=ours, body="no JSON")).code == 400


async def test_no_events_for_a_page_of_another_site(page: Open, jp_fetch: Any, jp_serverapp: ServerApp) -> None:
    known = await cookies(jp_fetch, jp_serverapp)
    with pytest.raises(HTTPClientError) as caught:
        async with page(headers(known, Origin="http://elsewhere.invalid")):
            pass
    assert caught.value.code == 403


class Refusing(Authorizer):
    """Lets in who reads."""

    asked: list[tuple[str, str]] = []  # noqa: RUF012

    def is_authorized(self, handler: Any, user: Any, action: str, resource: str) -> bool:
        self.asked.append((action, resource))
        return action == "read"


async def test_whom_the_authorizer_lets_in(
    ask: Ask, page: Open, jp_serverapp: ServerApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jp_serverapp, "authorizer", Refusing(parent=jp_serverapp))
    monkeypatch.setitem(jp_serverapp.web_app.settings, "authorizer", Refusing(parent=jp_serverapp))
    Refusing.asked.clear()
    assert (await ask("GET", "environments")).code == 200
    for method, path in (("POST", "vms"), ("POST", "vms/one/stop"), ("PATCH", "vms/one"), ("DELETE", "vms/one")):
        assert (await ask(method, *path.split("/"), body="{}")).code == 403
    with pytest.raises(HTTPClientError) as caught:
        async with page():
            pass
    assert caught.value.code == 403
    assert Refusing.asked == [
        ("read", "lima_kernels"),
        *[("write", "lima_kernels")] * 4,
        ("execute", "lima_kernels"),
    ]
