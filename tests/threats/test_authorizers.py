"""Clients of apps that an authorization service guards: a real uvicorn, and a service that remembers its questions."""

from typing import Any, Final

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as AppRoute
from starlette.types import ASGIApp

from asgi_agents import AgentConfig, AgentMiddleware, EventType, ForwardAuthTransport
from asgi_agents.protocol.headers import as_one_spelling
from tests.support.servers import serve

from .raw import get, status_of

_USER: Final = "remote-user"


class Service:
    """Says that everybody is alice, or fails, and remembers what it was asked."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.asked: list[tuple[str, str, list[tuple[str, str]]]] = []

    async def check(self, request: Request) -> Response:
        fields = [(name.decode().lower(), value.decode("latin-1")) for name, value in request.headers.raw]
        path = request.scope["raw_path"].decode()
        self.asked.append((request.method, path, fields))
        status = 200 if await request.body() == b"please" else self.status
        return Response(status_code=status, headers={_USER: "alice"})

    @property
    def app(self) -> ASGIApp:
        return Starlette(routes=[AppRoute("/{rest:path}", self.check, methods=["GET", "POST"])])


async def show(request: Request) -> Response:
    await request.body()
    users = [value for name, value in request.headers.items() if as_one_spelling(name) == _USER]
    return JSONResponse(users)


APP: Final = Starlette(routes=[AppRoute("/{rest:path}", show, methods=["GET", "POST"])])


def behind(url: str, *, failure_mode: Any = "closed", events: Any = None, **options: Any) -> AgentMiddleware:
    service = ForwardAuthTransport(url, upstream_headers={_USER}, **options)
    agent = AgentConfig("sso", service, failure_mode=failure_mode, events=events, circuit_breaker=None)
    return AgentMiddleware(APP, agents=[agent])


FORGED: Final = [b"remote-user: root", b"REMOTE-USER: root", b"Remote_User: root", b"remote_user: root"]


@pytest.mark.parametrize("status", [200, 500])
def test_a_client_can_not_pretend_what_an_authorization_service_says(server: dict[str, Any], status: int) -> None:
    service = Service(status)
    expected = b'["alice"]' if status == 200 else b"[]"
    with serve(service.app) as url, serve(behind(f"{url}auth", failure_mode="open"), **server) as front:
        for forged in (*[[each] for each in FORGED], FORGED):
            answer = get(front, b"/", *forged, b"connection: close")
            assert (status_of(answer), answer.endswith(expected)) == (200, True)
    assert len(service.asked) == 5
    assert not any(as_one_spelling(name) == _USER for _, _, fields in service.asked for name, _ in fields)


LIES: Final = [
    [b"x-forwarded-uri: /public"],
    [b"X_Forwarded_Uri: /public", b"x_forwarded_method: OPTIONS"],
    [b"x-original-url: http://shop.example/public", b"X_ORIGINAL_URL: http://shop.example/public"],
    [b"x-forwarded-host: evil.example", b"forwarded: host=evil.example"],
    [b"x-rewrite-url: /public", b"x-envoy-original-path: /public", b"x-real-ip: 10.0.0.1"],
    [b"connection: close, x-forwarded-uri, x-original-url"],
]


@pytest.mark.parametrize("style", ["forward_auth", "auth_request", "ext_authz"])
def test_a_client_can_not_change_what_an_authorization_service_is_asked(server: dict[str, Any], style: Any) -> None:
    service = Service()
    with serve(service.app) as url, serve(behind(f"{url}auth", style=style), **server) as front:
        for lies in LIES:
            assert status_of(get(front, b"/admin?a=b", *lies, b"connection: close")) == 200
        truths = [_told(fields) for _, _, fields in service.asked]
        assert all(truth == truths[0] for truth in truths)
        assert {path for _, path, _ in service.asked} == {"/auth/admin" if style == "ext_authz" else "/auth"}
        told = dict(truths[0])
        if style == "ext_authz":
            assert told["host"] == "app"
        else:
            assert (told["x-forwarded-uri"], told["x-forwarded-host"]) == ("/admin?a=b", "app")
        if style == "auth_request":
            assert told["x-original-url"] == "http://app/admin?a=b"
        before = len(service.asked)
        for target in (b"/../admin", b"/%2e%2e/admin", b"/..;/admin", b"/..%5cadmin"):
            answer = status_of(get(front, target, b"connection: close"))
            assert answer == (400 if style == "ext_authz" else 200)
        assert len(service.asked) == before + (0 if style == "ext_authz" else 4)


def _told(fields: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """What a service could take for the word of a proxy."""
    return sorted(field for field in fields if as_one_spelling(field[0]).startswith(("host", "x-", "forwarded")))


def test_a_body_that_does_not_come_is_no_way_past_an_authorization_service(server: dict[str, Any]) -> None:
    service = Service(403)
    both = {EventType.REQUEST_HEADERS, EventType.REQUEST_BODY_CHUNK}
    with serve(service.app) as url, serve(behind(url, style="ext_authz", events=both), **server) as front:
        chunked, close = b"transfer-encoding: chunked", b"connection: close"
        for fields, body, status in (
            ((b"content-length: 6",), b"please", 200),
            ((chunked,), b"6\r\nplease\r\n0\r\n\r\n", 200),
            ((chunked,), b"0\r\n\r\n", 403),
            ((b"content-length: 0",), b"", 403),
            ((), b"", 403),
        ):
            assert status_of(get(front, b"/", *fields, close, method=b"POST", body=body)) == status
