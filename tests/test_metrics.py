import time
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route as StarletteRoute
from starlette.testclient import TestClient

from asgi_agents import Agent, AgentMiddleware, Route
from asgi_agents.config import AgentConfig
from asgi_agents.decision import Verdict
from asgi_agents.errors import AgentUnavailableError
from asgi_agents.failures import Failure, FailureKind
from asgi_agents.manager import AgentManager, registry_of
from asgi_agents.observability.metrics import AgentMetrics, Incident, Tally
from asgi_agents.policy import CircuitBreakerConfig, FailureMode
from asgi_agents.protocol import AgentResponse, EventType, RequestBodyChunkEvent, RequestHeadersEvent

from .support.sample_events import COMPLETE
from .test_manager import (
    FRAME,
    HEARD,
    QUESTION,
    REQUEST,
    RESPONSE,
    Fake,
    answering,
    body,
    hang,
    raising,
    settle,
)
from .test_manager import response_body as answer_body

NOTHING = AgentMetrics(
    calls=0,
    outcomes={},
    shadowed=0,
    passed_open=0,
    skipped_bodies=0,
    in_flight=0,
    waiting=0,
    duration=0.0,
    queue_duration=0.0,
    inspected={},
    breaker_transitions={},
)


def answered(response: AgentResponse, *, enforced: bool = True, duration: float = 0.5) -> Verdict:
    return Verdict("waf", EventType.REQUEST_HEADERS, response, None, True, enforced, duration)


def failed(kind: FailureKind, *, closed: bool = True, enforced: bool = True) -> Verdict:
    return Verdict("waf", EventType.REQUEST_HEADERS, None, Failure(kind, "…"), closed, enforced, 0.25)


def test_nothing_is_counted_at_first() -> None:
    tally = Tally()

    assert tally.summary(0, 0) == NOTHING


@pytest.mark.parametrize(
    ("response", "outcome"),
    [
        (AgentResponse.allow(), "allow"),
        (AgentResponse.allow(needs_more=True), "allow"),
        (AgentResponse.block(), "block"),
        (AgentResponse.redirect("/"), "redirect"),
        (AgentResponse.challenge("captcha"), "challenge"),
        (AgentResponse.websocket_drop(), "drop"),
        (AgentResponse.websocket_close(), "close"),
    ],
)
def test_answers_are_counted_by_outcome(response: AgentResponse, outcome: str) -> None:
    tally = Tally()
    tally.count(answered(response), 0.0)
    tally.count(answered(response), 0.0)

    assert tally.summary(0, 0).outcomes == {outcome: 2}
    assert tally.summary(0, 0).duration == 1.0
    assert (tally.summary(0, 0).shadowed, tally.summary(0, 0).passed_open) == (0, 0)


@pytest.mark.parametrize("kind", FailureKind)
def test_failures_are_counted_by_kind(kind: FailureKind) -> None:
    tally = Tally()
    tally.count(failed(kind), 0.0)

    assert tally.summary(0, 0).outcomes == {kind.value: 1}
    assert (tally.summary(0, 0).shadowed, tally.summary(0, 0).passed_open) == (0, 0)


@pytest.mark.parametrize("kind", FailureKind)
def test_failures_that_were_let_through_are_counted_as_such(kind: FailureKind) -> None:
    tally = Tally()
    tally.count(failed(kind, closed=False), 0.0)

    assert tally.summary(0, 0).outcomes == {kind.value: 1}
    assert (tally.summary(0, 0).shadowed, tally.summary(0, 0).passed_open) == (0, 1)


def test_what_a_shadow_agent_would_have_stopped_is_counted_as_such() -> None:
    tally = Tally()
    tally.count(answered(AgentResponse.allow(), enforced=False), 0.0)
    tally.count(answered(AgentResponse.block(), enforced=False), 0.0)
    tally.count(answered(AgentResponse.websocket_drop(), enforced=False), 0.0)
    tally.count(failed(FailureKind.ERROR, enforced=False), 0.0)
    tally.count(failed(FailureKind.ERROR, enforced=False, closed=False), 0.0)

    assert tally.summary(0, 0).outcomes == {"allow": 1, "block": 1, "drop": 1, "error": 2}
    assert tally.summary(0, 0).shadowed == 3


def test_metrics_are_frozen() -> None:
    with pytest.raises(AttributeError):
        NOTHING.calls = 1  # type: ignore[misc]


# Incidents


def incident_of(tally: Tally, verdict: Verdict, **about: Any) -> Incident:
    tally.count(verdict, 0.0, **about)
    (incident,) = (*tally.failures, *tally.refusals, *tally.denials)
    return incident


def test_an_incident_says_what_happened_to_whom() -> None:
    before = time.time()
    verdict = Verdict(
        "waf", EventType.RESPONSE_HEADERS, None, Failure(FailureKind.TIMEOUT, "no answer"), False, False, 0.25
    )
    incident = incident_of(Tally("waf"), verdict, correlation_id="c-1", route="/api")

    assert before <= incident.time <= time.time()
    assert incident == Incident(
        time=incident.time,
        correlation_id="c-1",
        route="/api",
        event="response_headers",
        outcome="timeout",
        failed=True,
        failure_mode="open",
        enforced=False,
        duration=0.25,
        message="no answer",
    )


@pytest.mark.parametrize("enforced", [True, False])
def test_a_denial_is_an_incident_without_a_message(enforced: bool) -> None:
    tally = Tally("waf")
    incident = incident_of(tally, answered(AgentResponse.block(401, "secret"), enforced=enforced), correlation_id="c-1")

    assert (incident.outcome, incident.failed, incident.message) == ("block", False, "")
    assert (incident.failure_mode, incident.enforced, incident.route) == ("closed", enforced, None)
    assert list(tally.denials) == [incident]


@pytest.mark.parametrize("kind", FailureKind)
@pytest.mark.parametrize("closed", [True, False])
def test_each_failure_is_an_incident(closed: bool, kind: FailureKind) -> None:
    tally = Tally("waf")
    incident = incident_of(tally, failed(kind, closed=closed), correlation_id="c-1")

    assert (incident.outcome, incident.failed) == (kind.value, True)
    assert incident.failure_mode == ("closed" if closed else "open")
    refused = incident.outcome == "breaker_open"
    assert [list(tally.failures), list(tally.refusals)] == ([[], [incident]] if refused else [[incident], []])


def test_what_is_allowed_is_no_incident() -> None:
    tally = Tally("waf")
    tally.count(answered(AgentResponse.allow()), 0.0, correlation_id="c-1")

    assert (list(tally.failures), list(tally.denials)) == ([], [])
    assert [series.latest for series in tally.series] == [None]


def test_only_the_latest_incidents_are_remembered_and_failures_dont_push_denials_out() -> None:
    tally = Tally("waf")
    tally.count(answered(AgentResponse.block()), 0.0, correlation_id="denied")
    for number in range(10_000):
        tally.count(failed(FailureKind.ERROR), 0.0, correlation_id=str(number))

    assert 10 <= len(tally.failures) <= 100
    numbers = [int(incident.correlation_id) for incident in tally.failures]
    assert numbers == list(range(10_000 - len(numbers), 10_000))
    assert [incident.correlation_id for incident in tally.denials] == ["denied"]
    assert tally.summary(0, 0).outcomes == {"block": 1, "error": 10_000}


def test_bytes_are_inspected_only_by_an_agent_that_has_judged_them() -> None:
    tally = Tally("waf")
    tally.count(answered(AgentResponse.allow()), 0.0, size=10)
    tally.count(answered(AgentResponse.block()), 0.0, size=5)
    tally.count(answered(AgentResponse.block(), enforced=False), 0.0, size=1)
    tally.count(failed(FailureKind.TIMEOUT), 0.0, size=100)
    tally.count(answered(AgentResponse.allow()), 0.0)

    assert tally.summary(0, 0).inspected == {"request_headers": 16}


@pytest.mark.parametrize("kind", [FailureKind.REQUEST_TOO_LARGE, FailureKind.RESPONSE_TOO_LARGE])
@pytest.mark.parametrize(
    ("closed", "enforced", "skipped"), [(True, True, 0), (False, True, 1), (True, False, 1), (False, False, 1)]
)
def test_a_body_is_skipped_where_it_went_on_without_the_agent(
    closed: bool, enforced: bool, skipped: int, kind: FailureKind
) -> None:
    tally = Tally("waf")
    tally.count(failed(kind, closed=closed, enforced=enforced), 0.0)
    tally.count(failed(FailureKind.ERROR, closed=closed, enforced=enforced), 0.0)

    assert tally.summary(0, 0).skipped_bodies == skipped


# Of agents that are asked


def managed(behaviour: Any = None, **fields: Any) -> AgentManager:
    return AgentManager([AgentConfig("waf", Fake(behaviour), **{"timeout": 60.0} | fields)])


async def test_each_outcome_is_counted_and_nothing_is_left_under_way() -> None:
    manager = managed(answering(AgentResponse.block()))
    for event in (REQUEST, REQUEST):
        await manager.process_request_headers(event)
    await manager.process_response_headers(RESPONSE)
    await manager.process_websocket_frame(FRAME)
    metrics = manager.metrics["waf"]

    assert metrics == AgentMetrics(
        calls=4,
        outcomes={"block": 4},
        shadowed=0,
        passed_open=0,
        skipped_bodies=0,
        in_flight=0,
        waiting=0,
        duration=metrics.duration,
        queue_duration=0.0,
        inspected={"websocket_frame": 1},
        breaker_transitions={},
    )
    assert metrics.duration > 0.0


async def test_a_failing_agent_is_counted_by_how_it_fails_and_its_breaker_by_its_states() -> None:
    manager = managed(raising(ValueError()), circuit_breaker=CircuitBreakerConfig(failure_threshold=2))
    for _ in range(5):
        await manager.process_request_headers(REQUEST)
    metrics = manager.metrics["waf"]

    assert metrics.outcomes == {"error": 2, "breaker_open": 3}
    assert metrics.breaker_transitions == {"open": 1}
    assert (metrics.calls, metrics.passed_open, metrics.shadowed) == (5, 0, 0)


async def test_fail_open_and_shadow_are_counted_by_what_they_mean() -> None:
    lenient = managed(raising(AgentUnavailableError("paused")), failure_mode=FailureMode.OPEN)
    shadow = managed(raising(AgentUnavailableError("paused")), enforce=False)
    lenient_shadow = managed(raising(AgentUnavailableError("x")), enforce=False, failure_mode=FailureMode.OPEN)
    for manager in (lenient, shadow, lenient_shadow):
        assert (await manager.process_request_headers(REQUEST)).is_allow

    counted = [manager.metrics["waf"] for manager in (lenient, shadow, lenient_shadow)]
    assert [(each.passed_open, each.shadowed) for each in counted] == [(1, 0), (0, 1), (1, 0)]
    assert [each.outcomes for each in counted] == [{"unavailable": 1}] * 3


async def test_bodies_over_the_limit_are_counted_and_their_bytes_are_not() -> None:
    manager = managed(max_request_body_bytes=3, max_response_body_bytes=3, failure_mode=FailureMode.OPEN)
    await manager.process_request_body(body(b"1234"))
    await manager.process_request_body(body(b"123"))
    await manager.process_response_body_streaming(answer_body(b"12"))
    metrics = manager.metrics["waf"]

    assert metrics.outcomes == {"request_too_large": 1, "allow": 2}
    assert metrics.inspected == {"request_body_chunk": 3, "response_body_chunk": 2}
    assert (metrics.skipped_bodies, metrics.passed_open) == (1, 1)
    (incident,) = registry_of(manager).guard("waf").tally.failures
    assert (incident.correlation_id, incident.event, incident.outcome, incident.failure_mode) == (
        "c",
        "request_body_chunk",
        "request_too_large",
        "open",
    )


async def test_questions_and_endings_are_counted_as_well() -> None:
    manager = managed()
    await manager.call_guardrail_agent("waf", QUESTION)
    await manager.process_request_complete(COMPLETE)

    assert manager.metrics["waf"].outcomes == {"allow": 2}
    assert {series.event for series in registry_of(manager).guard("waf").tally.series} == {
        "guardrail_inspect",
        "request_complete",
    }


async def test_calls_under_way_and_waiting_are_of_the_moment() -> None:
    manager = managed(hang, max_concurrent_calls=2)
    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(manager.process_request_headers, REQUEST)
        await settle()
        metrics = manager.metrics["waf"]
        assert (metrics.in_flight, metrics.waiting, metrics.calls) == (2, 3, 0)
        tasks.cancel_scope.cancel()

    metrics = manager.metrics["waf"]
    assert (metrics.in_flight, metrics.waiting, metrics.calls) == (0, 0, 0)


async def test_the_wait_for_a_permit_is_measured_whether_one_came_or_not() -> None:
    manager = managed(hang, max_concurrent_calls=1, timeout=0.02, chunk_timeout=60.0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(manager.process_request_body_streaming, body(b"x"))
        await settle()
        assert manager.metrics["waf"].queue_duration == 0.0
        await manager.process_request_headers(REQUEST)
        tasks.cancel_scope.cancel()
    metrics = manager.metrics["waf"]

    assert metrics.outcomes == {"queue_timeout": 1}
    assert 0.015 <= metrics.queue_duration <= metrics.duration
    assert registry_of(manager).guard("waf").tally.queue_waits.count == 1


async def test_calls_that_were_cancelled_count_as_nothing() -> None:
    manager = managed(hang)
    for event in (REQUEST, REQUEST):
        with anyio.move_on_after(0.01):
            await manager.process_request_headers(event)
    metrics = manager.metrics["waf"]

    assert (metrics.calls, metrics.outcomes, metrics.in_flight, metrics.waiting) == (0, {}, 0, 0)
    assert (list(registry_of(manager).guard("waf").tally.failures), metrics.breaker_transitions) == ([], {})


async def test_counts_stay_when_an_agent_is_replaced_and_begin_anew_when_it_is_added_again() -> None:
    manager = managed(answering(AgentResponse.block()))
    await manager.process_request_headers(REQUEST)

    await manager.replace_agent(AgentConfig("waf", Fake(), timeout=60.0))
    await manager.process_request_headers(REQUEST)
    assert manager.metrics["waf"].outcomes == {"block": 1, "allow": 1}
    assert [incident.outcome for incident in registry_of(manager).guard("waf").tally.denials] == ["block"]

    await manager.remove_agent("waf")
    assert manager.metrics == {}
    await manager.add_agent(AgentConfig("waf", Fake(), timeout=60.0))
    assert manager.metrics["waf"] == NOTHING


async def test_calls_that_end_after_their_agent_was_replaced_are_counted() -> None:
    ending = anyio.Event()

    async def slow(event: Any) -> AgentResponse:
        await ending.wait()
        return AgentResponse.block()

    manager = managed(slow)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(manager.process_request_headers, REQUEST)
        await settle()
        tasks.start_soon(manager.replace_agent, AgentConfig("waf", Fake(), timeout=60.0))
        await settle()
        await manager.process_request_headers(REQUEST)
        ending.set()

    assert manager.metrics["waf"].outcomes == {"allow": 1, "block": 1}


# Behind the middleware


class Suspicious(Agent):
    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        if event.uri.endswith("fail"):
            raise ValueError("secret")
        return AgentResponse.block() if event.uri.endswith("block") else None

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> None:
        return None


def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


def client_of(manager: AgentManager) -> TestClient:
    routes = [Route("/api/{rest:path}", agents=[("waf", FailureMode.OPEN)]), Route("/{rest:path}", agents=["waf"])]
    return TestClient(
        Starlette(
            routes=[StarletteRoute("/{rest:path}", hello, methods=["GET", "POST"])],
            middleware=[Middleware(AgentMiddleware, manager=manager, routes=routes)],
        )
    )


def test_incidents_have_the_route_and_the_correlation_id_of_the_request() -> None:
    manager = AgentManager([AgentConfig("waf", Suspicious(), max_request_body_bytes=3)])
    client = client_of(manager)
    client.get("/api/fail", headers={"x-request-id": "one"})
    client.get("/fail", headers={"x-request-id": "two"})
    client.get("/api/block", headers={"x-request-id": "three"})
    client.post("/api/", headers={"x-request-id": "four"}, content=b"12345")
    client.post("/x", headers={"x-request-id": "five"}, content=iter([b"123", b"45"]))
    tally = registry_of(manager).guard("waf").tally

    assert [
        (each.correlation_id, each.route, each.event, each.outcome, each.failure_mode) for each in tally.failures
    ] == [
        ("one", "/api/{rest:path}", "request_headers", "error", "open"),
        ("two", "/{rest:path}", "request_headers", "error", "closed"),
        ("four", "/api/{rest:path}", "request_body_chunk", "request_too_large", "open"),
        ("five", "/{rest:path}", "request_body_chunk", "request_too_large", "closed"),
    ]
    assert [(each.correlation_id, each.route, each.outcome) for each in tally.denials] == [
        ("three", "/api/{rest:path}", "block")
    ]
    assert not any("secret" in each.message for each in tally.failures)
    assert all(each.message for each in tally.failures)


def test_an_agent_is_not_counted_for_events_that_it_does_not_hear() -> None:
    manager = AgentManager([AgentConfig("waf", Fake(), events=HEARD - {EventType.REQUEST_HEADERS})])
    with client_of(manager) as client:
        client.get("/")

    assert "request_headers" not in {series.event for series in registry_of(manager).guard("waf").tally.series}


def provisional(*, enforced: bool) -> Verdict:
    return answered(AgentResponse.block(needs_more=True), enforced=enforced)


@pytest.mark.parametrize("enforced", [True, False])
def test_a_denial_that_is_provisional_is_none_yet(enforced: bool) -> None:
    tally = Tally()
    tally.count(provisional(enforced=enforced), 0.0)

    assert tally.summary(0, 0).outcomes == {"needs_more": 1}
    assert tally.summary(0, 0).shadowed == 0
    assert not tally.denials
    assert not provisional(enforced=enforced).would_stop


def test_what_a_shadow_agent_says_at_the_end_would_have_stopped_nothing() -> None:
    failure = Failure(FailureKind.ERROR, "…")
    verdict = Verdict("waf", EventType.REQUEST_COMPLETE, None, failure, True, False, 0.25)
    tally = Tally()
    tally.count(verdict, 0.0)

    assert tally.summary(0, 0).shadowed == 0
    assert not verdict.would_stop


def test_refusals_of_an_open_breaker_do_not_push_out_what_has_opened_it() -> None:
    tally = Tally()
    tally.count(failed(FailureKind.TIMEOUT), 0.0, correlation_id="why")
    for _ in range(1000):
        tally.count(failed(FailureKind.BREAKER_OPEN), 0.0)

    assert [incident.correlation_id for incident in tally.failures] == ["why"]
    assert len(tally.refusals) < 1000
