"""SecurityHeaders, in front of an app."""

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from fastapi.testclient import TestClient

from asgi_agents import Agent, AgentConfig, AgentResponse, ConfigurationError, RequestHeadersEvent, protect
from asgi_agents.agents import SecurityHeaders
from asgi_agents.agents.security_headers import DEFAULTS


class Denies(Agent):
    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        if event.uri == "/fails":
            raise RuntimeError
        return AgentResponse.block(403) if event.uri == "/denied" else None


def client_of(agent: SecurityHeaders) -> TestClient:
    app = FastAPI()

    @app.get("/")
    async def framed() -> PlainTextResponse:
        return PlainTextResponse("hello", headers={"x-frame-options": "SAMEORIGIN", "x-own": "1"})

    @app.get("/raises")
    async def raises() -> None:
        raise RuntimeError

    protect(app, agents=[AgentConfig("headers", agent), AgentConfig("deny", Denies())])
    return TestClient(app, raise_server_exceptions=False)


@pytest.mark.parametrize(
    ("path", "status"), [("/", 200), ("/missing", 404), ("/raises", 500), ("/denied", 403), ("/fails", 503)]
)
def test_every_response_has_the_headers(path: str, status: int) -> None:
    answer = client_of(SecurityHeaders()).get(path)
    assert answer.status_code == status
    assert {name: answer.headers.get(name) for name in DEFAULTS} == DEFAULTS


def test_what_is_given_stands_beside_the_defaults_or_in_their_place() -> None:
    agent = SecurityHeaders({"Content-Security-Policy": "default-src 'self'", "x-frame-options": None, "x-more": "1"})
    headers = client_of(agent).get("/").headers
    assert headers["content-security-policy"] == "default-src 'self'"
    assert headers["x-frame-options"] == "SAMEORIGIN"
    assert (headers["x-more"], headers["x-own"], headers["x-content-type-options"]) == ("1", "1", "nosniff")


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"x-a": "1\r\nset-cookie: a=b"}, "the value of 'x-a'"),
        ({"x-a": "ł"}, "the value of 'x-a'"),
        ({"x-a": ""}, "the value of 'x-a'"),
        ({"x-a": 1}, "the value of 'x-a'"),
        ({"content-length": "1"}, "a name='content-length' belongs to the server"),
        ({"x a": "1"}, "a name='x a'"),
        ([("x-a", "1")], "headers is a list"),
    ],
)
def test_what_can_not_be_sent_is_a_configuration_error(headers: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^SecurityHeaders: {message}"):
        SecurityHeaders(headers)
