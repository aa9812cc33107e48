"""Failures of what ready-made agents ask say where and why, and nothing of credentials."""

import socket
import ssl
from collections.abc import Callable
from typing import Any

import pytest

from asgi_agents import Agent, AgentError
from asgi_agents.agents import JwtAuth, Opa, RateLimit
from asgi_agents.agents.reasons import place_of, reason_of
from asgi_agents.testing import configure_event, request_headers_event


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("redis://:hunter2@redis.example:6379/0?password=hunter2", "redis.example:6379"),
        ("https://user:hunter2@id.example/hunter2/jwks.json", "id.example"),
        ("http://[::1]:8181/v1/data/a", "[::1]:8181"),
        ("unix:///run/redis.sock?password=hunter2", "/run/redis.sock"),
        ("redis://", "localhost"),
        ("http://a:b:c/hunter2", "its address"),
    ],
)
def test_of_a_url_only_the_place_is_said(url: str, place: str) -> None:
    assert place_of(url) == place


def caused(exc: BaseException, cause: BaseException) -> BaseException:
    exc.__cause__ = cause
    return exc


@pytest.mark.parametrize(
    ("exc", "reason"),
    [
        (ValueError("hunter2"), "ValueError"),
        (caused(ValueError("hunter2"), ConnectionRefusedError(111, "hunter2")), "ValueError (Connection refused)"),
        (caused(ValueError(), socket.gaierror(-2, "hunter2")), "ValueError (no such host)"),
        (caused(ValueError(), ExceptionGroup("hunter2", [OSError(111, "")])), "ValueError (Connection refused)"),
        (caused(ValueError(), ssl.SSLError("hunter2")), "ValueError (tls)"),
        (caused(ValueError(), OSError("hunter2")), "ValueError"),
    ],
)
def test_of_an_exception_only_its_kind_and_what_the_system_says(exc: BaseException, reason: str) -> None:
    assert reason_of(exc) == reason


def test_a_cause_that_has_itself_for_one_ends() -> None:
    exc = ValueError()
    exc.__context__ = other = KeyError()
    other.__context__ = exc
    assert reason_of(exc) == "ValueError"


def refused() -> str:
    """A port that nobody listens at."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{bound.getsockname()[1]}"


def rate(place: str) -> Agent:
    pytest.importorskip("redis")
    return RateLimit("1/minute", storage=f"redis://:hunter2@{place}")


def jwt(place: str) -> Agent:
    pytest.importorskip("joserfc")
    return JwtAuth(f"http://user:hunter2@{place}/keys", issuer="a", audience="b", allow_http=True)


def opa(place: str) -> Agent:
    return Opa(f"http://{place}/v1/data/a", token="hunter2")


@pytest.mark.parametrize("make", [rate, jwt, opa])
@pytest.mark.parametrize("known", [True, False])
async def test_a_failure_names_the_place_and_the_reason(
    make: Callable[[str], Agent], known: bool, anyio_backend_name: str
) -> None:
    if make is rate and anyio_backend_name == "trio":
        pytest.skip("the client of Redis is for asyncio")
    place = refused() if known else "no-such-host.invalid:1"
    agent: Any = make(place)

    async def asked() -> None:
        await agent.on_configure(configure_event())
        await agent.on_request_headers(request_headers_event(headers={"authorization": "Bearer a.b.c"}))

    with pytest.raises(AgentError) as raised:
        await asked()

    assert place in str(raised.value)
    assert ("Connection refused" if known else "no such host") in str(raised.value)
    assert "hunter2" not in str(raised.value)
