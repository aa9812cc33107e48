"""Agents that are down and breakers that are open are like real ones, to the client and in what is counted."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from asgi_agents import (
    AgentConfig,
    AgentsError,
    AuditRecord,
    CircuitBreakerConfig,
    EventType,
    FailureMode,
    guarded_by,
    protect,
)
from asgi_agents.guardrails import Guardrail, TextGuardrail, Window
from asgi_agents.placement import middlewares_of
from asgi_agents.testing import FakeAgent, agent_down, assert_failed_closed, breaker_open, override_agents

from .apps import HEADS, NOBODY, get, protected, remote

BREAKER = CircuitBreakerConfig(failure_threshold=3, reset_timeout=7.5)


@pytest.fixture
def refused() -> Iterator[str]:
    """A URL whose connections are refused: the port is taken, and nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/"


class Words(TextGuardrail):
    async def check(self, window: Window) -> None:
        return None


def seen(app: Starlette, requests: int) -> Any:
    """What there is to see of an app whose agent is asked so many times."""
    records: list[AuditRecord] = []
    with override_agents(app) as recorded, TestClient(app) as client:
        responses = [client.get("/orders") for _ in range(requests)]
        records.extend(recorded.records)
    [middleware] = middlewares_of(app)
    metrics = middleware.manager.metrics["waf"]
    return (
        [(response.status_code, response.text, response.headers.get("retry-after")) for response in responses],
        [[(each.failure, each.failure_mode) for each in record.answers] for record in records],
        [(record.decision, record.decided_by, record.passed_open) for record in records],
        (metrics.outcomes, metrics.passed_open, metrics.breaker_transitions),
        middleware.manager.statistics()["waf"].breaker,
    )


@pytest.mark.parametrize("failure_mode", FailureMode)
@pytest.mark.parametrize("where", ["http", "unix"])
@pytest.mark.parametrize("config", [None, {"rules": 1}])
def test_an_agent_that_is_down_is_like_one_that_nobody_serves(
    failure_mode: FailureMode, where: str, config: object, refused: str, tmp_path: Path
) -> None:
    url = refused if where == "http" else f"unix://{tmp_path}/nobody.sock"
    options: dict[str, Any] = {"failure_mode": failure_mode, "circuit_breaker": BREAKER, "config": config}
    real = seen(protected(remote("waf", url, **options)), 5)
    app = protected(remote("waf", url, **options))
    with agent_down(app, "waf"):
        down = seen(app, 5)
    assert down == real


def test_an_agent_that_is_required_is_missed_at_startup_where_it_would_be() -> None:
    app = protected(remote(require_at_startup=True, config={}))
    with agent_down(app, "waf"), pytest.raises(AgentsError, match="'waf' is required at startup"), TestClient(app):
        pass


def test_an_agent_that_goes_down_while_the_app_runs_was_configured_and_opens_its_breaker() -> None:
    app = protected(AgentConfig("waf", FakeAgent(events=HEADS), config={"a": 1}, circuit_breaker=BREAKER))
    with TestClient(app) as client:
        assert client.get("/orders").status_code == 200
        with agent_down(app, "waf"):
            texts = [client.get("/orders").text for _ in range(4)]
        assert texts == ["Agent unavailable"] * 3 + ["Service unavailable"]
        assert client.get("/orders").status_code == 200


def test_several_agents_are_down_at_once() -> None:
    app = protected(remote("a", failure_mode="open"), remote("b", failure_mode="open"))
    with agent_down(app, "a", "b") as recorded:
        assert get(app).status_code == 200
    assert recorded.records[0].passed_open == ["a", "b"]


@pytest.mark.parametrize("transport", [Words(), NOBODY])
@pytest.mark.parametrize("failing", [agent_down, breaker_open])
def test_a_guardrail_that_fails_for_a_test_gets_no_advice(
    failing: Callable[..., Any], transport: Any, caplog: pytest.LogCaptureFixture
) -> None:
    # Nobody can give the hold of what only stands in: the log has advice about the real agent alone.
    config = AgentConfig("words", transport, events={EventType.GUARDRAIL_INSPECT})

    @guarded_by("words", guardrails=[Guardrail("words", on={"output"})])
    async def orders(request: Request) -> PlainTextResponse:
        return PlainTextResponse("lamp")

    app = Starlette(routes=[Route("/orders", orders)])
    protect(app, agents=[config])
    with override_agents(app), TestClient(app) as client:
        client.get("/orders")
    assert ("hold is not given" in caplog.text) is (transport is NOBODY)
    caplog.clear()
    with failing(app, "words"), TestClient(app) as client:
        assert_failed_closed(client.get("/orders"), "words")
    assert "hold" not in caplog.text


@pytest.mark.parametrize("failure_mode", FailureMode)
def test_an_open_breaker_is_like_one_that_failures_have_opened(failure_mode: FailureMode, refused: str) -> None:
    config = remote("waf", refused, failure_mode=failure_mode, circuit_breaker=BREAKER)
    responses, answers, decisions, _, state = seen(protected(config), 4)
    app = protected(config)
    with breaker_open(app, "waf"):
        found = seen(app, 1)
    assert found[:3] == (responses[3:], answers[3:], decisions[3:])
    assert found[4] == state == "open"


@pytest.mark.parametrize("config", [None, {"rules": 1}])
@pytest.mark.parametrize("transport", [FakeAgent(), FakeAgent(events=HEADS), NOBODY])
def test_an_open_breaker_stays_open_however_often_the_app_is_started(transport: Any, config: Any) -> None:
    agent = AgentConfig("waf", transport, events=HEADS, config=config, require_at_startup=True)
    app = protected(agent)
    with breaker_open(app, "waf"):
        for _ in range(3):
            with TestClient(app) as client:
                assert client.get("/orders").text == "Service unavailable"


def test_an_open_breaker_stays_open_and_its_agent_is_not_asked() -> None:
    fake = FakeAgent(events=HEADS)
    # Its real breaker would let calls through again at once.
    breaker = CircuitBreakerConfig(failure_threshold=1000, reset_timeout=0.001)
    app = protected(AgentConfig("waf", fake, circuit_breaker=breaker, config={"a": 1}))
    with breaker_open(app, "waf"), TestClient(app) as client:
        for _ in range(20):
            response = client.get("/orders")
            assert_failed_closed(response, "waf")
            assert response.headers["retry-after"] == "1"
    assert (fake.received, fake.configurations) == ([], [])
    assert get(app).status_code == 200
