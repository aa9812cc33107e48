"""What agents may do to headers, and what clients may pretend with them."""

from typing import Any

import pytest
from fastapi import FastAPI, Header, Request
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route as AppRoute
from starlette.testclient import TestClient
from starlette.types import ASGIApp

from asgi_agents import Agent, AgentConfig, AgentMiddleware, AgentResponse, HeaderOp, RequestHeadersEvent
from tests.support.servers import serve

from .raw import get, head_of, status_of


class Says(Agent):
    """Gives the same answer to every request."""

    def __init__(self, answer: AgentResponse) -> None:
        self.answer = answer
        self.heard: list[RequestHeadersEvent] = []

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
        self.heard.append(event)
        return self.answer


def behind(app: ASGIApp, answer: AgentResponse) -> AgentMiddleware:
    return AgentMiddleware(app, agents=[AgentConfig("agent", Says(answer), circuit_breaker=None)])


async def hello(request: Request) -> Response:
    return PlainTextResponse("hello")


async def show_headers(request: Request) -> Response:
    return JSONResponse([[name.decode("latin-1"), value.decode("latin-1")] for name, value in request.headers.raw])


APP = Starlette(routes=[AppRoute("/", hello), AppRoute("/headers", show_headers)])

# Each as a name and a value.
UNSENDABLE = [
    ("x-a", "1\r\nset-cookie: stolen=1"),
    ("x-a", "1\nset-cookie: stolen=1"),
    ("x-a", "1\rset-cookie: stolen=1"),
    ("x-a", "1\r\n\tfolded"),
    ("x-a", "1\x00"),
    ("x-a", "1\x0b2"),
    ("x-a", "\x1b[2J"),
    ("x-a", "1\u010d\u010aset-cookie: stolen=1"),  # CR LF for those who cut code points to a byte
    ("set-cookie: stolen=1\r\nx-a", "1"),
    ("x-a:", "1"),
    ("x-a ", "1"),
    (" x-a", "1"),
    ("", "1"),
    (":status", "200"),
    (":authority", "evil"),
]
FRAMING = [
    "Content-Length",
    "Transfer-Encoding",
    "Connection",
    "Keep-Alive",
    "Upgrade",
    "TE",
    "Trailer",
    "Proxy-Connection",
    "Sec-WebSocket-Accept",
    "HTTP2-Settings",
    "Content-Length\u200b",
    "\uff43ontent-length",  # fullwidth c
    "connection\u212a",  # the Kelvin sign is k in lower case
]


def everywhere(name: str, value: str) -> list[AgentResponse]:
    """All answers that could bring this header to the client or to the app."""
    op = HeaderOp.set(name, value)
    return [
        AgentResponse.allow(request_headers=[op]),
        AgentResponse.allow(response_headers=[HeaderOp.add(name, value)]),
        AgentResponse.block(403, "no", headers={name: value}),
        AgentResponse.block(403, "no", response_headers=[op]),
        AgentResponse.redirect("/elsewhere", response_headers=[op]),
        AgentResponse.challenge("custom", response_headers=[op]),
        AgentResponse.challenge("bearer", {name: value}) if name == "x-a" else AgentResponse.block(headers={name: "1"}),
    ]


@pytest.mark.parametrize(("name", "value"), UNSENDABLE, ids=repr)
def test_an_agent_can_not_split_a_response(name: str, value: str) -> None:
    for answer in everywhere(name, value):
        answered = TestClient(behind(APP, answer)).get("/headers")

        assert (answered.status_code, answered.text) == (503, "Agent unavailable")
        assert "set-cookie" not in answered.headers
        assert "x-a" not in answered.headers


@pytest.mark.parametrize("name", FRAMING, ids=ascii)
def test_an_agent_can_not_change_how_a_message_is_framed(name: str) -> None:
    for answer in everywhere(name, "5")[:-1]:
        answered = TestClient(behind(APP, answer)).get("/headers")

        assert (answered.status_code, answered.text) == (503, "Agent unavailable")


@pytest.mark.parametrize("value", [" a", "a ", "\ta\t", ""], ids=repr)
def test_what_an_agent_puts_into_a_header_arrives_or_is_an_agent_error(server: dict[str, Any], value: str) -> None:
    """Servers break off what they won't send, after the app has run: that would be no failure of the agent's."""
    for answer in (
        AgentResponse.allow(response_headers=[HeaderOp.set("x-a", value)]),
        AgentResponse.block(403, "no", headers={"x-a": value}),
    ):
        with serve(behind(APP, answer), **server) as url:
            answered = get(url)

        assert status_of(answered) in (200, 403)
        assert b"x-a: " + value.strip().encode() in head_of(answered)


def test_an_agent_can_not_change_the_host_unless_it_may() -> None:
    answer = AgentResponse.allow(request_headers=[HeaderOp.set("Host", "evil.example")])

    assert TestClient(behind(APP, answer)).get("/headers").status_code == 503
    permitted = AgentMiddleware(APP, agents=[AgentConfig("agent", Says(answer), may_set_host=True)])
    assert ["host", "evil.example"] in TestClient(permitted).get("/headers").json()
    # Never of a response.
    answer = AgentResponse.allow(response_headers=[HeaderOp.set("Host", "evil.example")])
    permitted = AgentMiddleware(APP, agents=[AgentConfig("agent", Says(answer), may_set_host=True)])
    assert TestClient(permitted).get("/headers").status_code == 503


@pytest.mark.parametrize("url", ["/\r\nset-cookie: a=1", "/ x", "/\x0b", "/\x00", "", "/\x7f", "/\ud800"], ids=ascii)
def test_a_redirect_or_a_challenge_can_not_split_a_response(url: str) -> None:
    quote_breaker = {"realm": 'a", evil="1', "other": "back\\slash"}

    redirected = TestClient(behind(APP, AgentResponse.redirect(url)), follow_redirects=False).get("/")
    challenged = TestClient(behind(APP, AgentResponse.challenge("bearer", quote_breaker))).get("/")

    assert redirected.status_code == 503
    assert challenged.headers["www-authenticate"] == 'Bearer realm="a\\", evil=\\"1", other="back\\\\slash"'


SPOOFED = [b"x-user: admin", b"X-User: admin", b"x-USER: admin", b"x-user:admin", b"x-user: a,admin", b"X-User:"]


@pytest.mark.parametrize("spoofed", SPOOFED, ids=repr)
def test_a_client_can_not_pretend_a_header_that_an_agent_sets(server: dict[str, Any], spoofed: bytes) -> None:
    app = FastAPI()

    @app.get("/")
    def whoami(request: Request, x_user: str = Header()) -> dict[str, Any]:
        return {"user": x_user, "all": request.headers.getlist("x-user")}

    with serve(behind(app, AgentResponse.allow(request_headers=[HeaderOp.set("x-user", "alice")])), **server) as url:
        answered = get(url, b"/", spoofed, b"x-user: mallory", spoofed)

    assert answered.endswith(b'{"user":"alice","all":["alice"]}')


def test_an_underscore_makes_another_header_that_agents_see_as_it_is(server: dict[str, Any]) -> None:
    """`X_User` is not `X-User`: only WSGI and CGI mix them up, and there the server has to drop it."""
    agent = Says(AgentResponse.allow(request_headers=[HeaderOp.set("x-user", "alice"), HeaderOp.remove("x_user")]))
    with serve(AgentMiddleware(APP, agents=[AgentConfig("agent", agent)]), **server) as url:
        answered = get(url, b"/headers", b"X_User: admin")

    assert agent.heard[0].header("x_user") == "admin"
    assert agent.heard[0].header("x-user") is None
    assert b"admin" not in answered
    assert b'["x-user","alice"]' in answered
