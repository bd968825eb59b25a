"""What every route has in common: who is let in, JSON in and out, and what is said when something cannot be had."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Concatenate, ParamSpec, cast

import msgspec
from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from tornado import web

from ..errors import (
    ConfigurationError,
    HostError,
    InstanceError,
    LimaKernelsError,
    NotFound,
    PhaseTimeout,
    printable,
)
from ..lima.limactl import check_name

P = ParamSpec("P")

# What an authorizer is asked about.
AUTH_RESOURCE = "lima_kernels"
EVENT_SCHEMA = "urn:lima-kernels:events:action"
# Bytes of a request's body, and of a client's message: whatever can be asked for is far shorter.
LONGEST = 64 * 1024
# Characters of a name that an error repeats; no name that Lima takes is as long.
_SHOWN = 100
# The first that fits; what is none of them is a failure beyond this server: of limactl, or of a guest.
_STATUS: Sequence[tuple[type[LimaKernelsError], HTTPStatus]] = (
    (NotFound, HTTPStatus.NOT_FOUND),
    (ConfigurationError, HTTPStatus.BAD_REQUEST),
    (InstanceError, HTTPStatus.CONFLICT),
    (HostError, HTTPStatus.INTERNAL_SERVER_ERROR),
    (PhaseTimeout, HTTPStatus.GATEWAY_TIMEOUT),
)


class Refusal(msgspec.Struct, frozen=True):
    """What a client is told when it cannot have what it asked for; one line each, and lines that help to see why."""

    message: str
    hint: str = ""
    context: Sequence[str] = ()


def refusal(error: LimaKernelsError) -> Refusal:
    """Return an error as a client is told it."""
    return Refusal(printable(error.message), printable(error.hint), error.context)


def status(error: LimaKernelsError) -> HTTPStatus:
    """Return the HTTP status that says whose fault an error is."""
    return next((found for kind, found in _STATUS if isinstance(error, kind)), HTTPStatus.BAD_GATEWAY)


class Route(APIHandler):
    """A route of ours: for who is authenticated, authorized, and no other site's page."""

    auth_resource = AUTH_RESOURCE

    async def prepare(self) -> None:  # type: ignore[override]
        await super().prepare()
        if self.request.method == "GET":
            # Jupyter itself looks at what changes something only.
            self.check_xsrf_cookie()
        if len(self.request.body) > LONGEST:
            raise web.HTTPError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The request is longer than {LONGEST} bytes.")

    def body(self) -> Mapping[str, Any]:
        """Return the JSON object that a client sent; an empty one when it sent nothing.

        :raises ConfigurationError: when it is none.
        """
        try:
            return msgspec.json.decode(self.request.body or b"{}", type=dict[str, Any])
        except (ValueError, RecursionError) as error:
            # Also text that is no UTF-8, and what is nested without end.
            raise ConfigurationError(
                f"The request is no JSON object: {error}.", hint='Send one, such as {"force": true}.'
            ) from None

    def refuse(self, code: int, said: Refusal) -> None:
        """Answer that a client cannot have what it asked for, and why."""
        self.set_status(code)
        self.finish(msgspec.json.encode(said))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer a request that Jupyter's or our own code could not, without telling what went on inside."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        phrase = HTTPStatus(status_code).phrase
        if isinstance(error, web.HTTPError):
            self.refuse(status_code, Refusal(printable(str(error.log_message or phrase)[:LONGEST])))
        else:
            self.refuse(status_code, Refusal("The server could not answer.", "Its log says why."))


def answers(
    method: Callable[Concatenate[Any, P], Awaitable[object]],
) -> Callable[Concatenate[Any, P], Awaitable[None]]:
    """Have what a route's method returns sent as JSON, nothing when it is None, to whom is let in; so its errors."""

    @functools.wraps(method)
    async def answered(self: Route, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            found = await method(self, *args, **kwargs)
        except LimaKernelsError as error:
            self.refuse(status(error), refusal(error))
            return
        if found is None:
            self.set_status(HTTPStatus.NO_CONTENT)
            self.finish()
        else:
            self.finish(msgspec.json.encode(found))

    return cast("Callable[Concatenate[Any, P], Awaitable[None]]", web.authenticated(authorized(answered)))


def named(name: str) -> str:
    """Return what a client says is an instance's name.

    :raises ConfigurationError: when it cannot be one.
    """
    check_name(name if len(name) <= _SHOWN else f"{name[:_SHOWN]}\N{HORIZONTAL ELLIPSIS}")
    return name


class Nowhere(Route):
    """All that is no route of ours."""

    @answers
    async def get(self, path: str) -> None:
        raise NotFound(f"There is nothing at {path[:_SHOWN]!r}.", hint="See the routes in docs/server.md.")

    post = put = patch = delete = get
