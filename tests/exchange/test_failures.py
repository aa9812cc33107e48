"""The failure table: what becomes of a request when an agent doesn't judge it."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
from starlette.types import Receive, Scope, Send

from asgi_agents import (
    AgentConfig,
    AgentContext,
    AgentManager,
    AgentMiddleware,
    AgentResponse,
    BodyMode,
    BodyMutation,
    BreakerState,
    CircuitBreakerConfig,
    FailureKind,
    FailureMode,
    HeaderOp,
    ResponseAborted,
    Route,
)
from asgi_agents.manager import registry_of
from tests.support.asgi import App, Client, Held, Probe, Reaction, SlowProbe, assert_nothing_left, body, guarded, start

MIB = 1024 * 1024


@dataclass(frozen=True)
class Phase:
    """When an agent fails, and what a fail-closed failure then looks like."""

    event: str
    options: dict[str, Any] = field(default_factory=dict)
    app_called: bool = True
    aborts: bool = False


PHASES = {
    "request headers": Phase("request_headers", app_called=False),
    "buffered request body": Phase("request_body", app_called=False),
    "hybrid request body": Phase("request_body", {"request_body_mode": BodyMode.hybrid(4)}, app_called=False),
    "streamed request body": Phase("request_body", {"request_body_mode": BodyMode.STREAM}),
    "response headers": Phase("response_headers"),
    "buffered response body": Phase("response_body"),
    "hybrid response body": Phase("response_body", {"response_body_mode": BodyMode.hybrid(4)}),
    "streamed response body": Phase("response_body", {"response_body_mode": BodyMode.STREAM}, aborts=True),
}


def _raise(event: object) -> AgentResponse:
    raise ValueError("the agent's own secret")


def _bad_answer(event: object) -> Any:
    return "allow"


def _forbidden_header(event: object) -> AgentResponse:
    return AgentResponse.allow(
        request_headers=[HeaderOp.set("content-length", "3")], response_headers=[HeaderOp.set("content-length", "3")]
    )


@dataclass(frozen=True)
class Fault:
    """A row of the table."""

    kind: FailureKind
    status: int
    text: str
    counts: bool
    reaction: Callable[[], Reaction]
    agent: type[Probe] = SlowProbe
    retry_after: bytes | None = None
    timeout: float = 5.0


FAULTS = {
    "breaker open": Fault(
        FailureKind.BREAKER_OPEN, 503, "Service unavailable", True, lambda: AgentResponse.allow(), retry_after=b"20"
    ),
    "no permit": Fault(
        FailureKind.QUEUE_TIMEOUT, 503, "Service unavailable", False, lambda: AgentResponse.allow(), timeout=0.01
    ),
    "raised": Fault(FailureKind.ERROR, 503, "Agent unavailable", True, lambda: _raise),
    "raised at once": Fault(FailureKind.ERROR, 503, "Agent unavailable", True, lambda: _raise, Probe),
    "bad answer": Fault(FailureKind.ERROR, 503, "Agent unavailable", True, lambda: _bad_answer),
    "forbidden header": Fault(FailureKind.ERROR, 503, "Agent unavailable", True, lambda: _forbidden_header, Probe),
    "no answer": Fault(FailureKind.TIMEOUT, 504, "Gateway timeout", True, Held, timeout=0.01),
}


def _nothing() -> None:
    pass


@dataclass
class Setting:
    """One agent with a fault, a healthy one behind it, a request and an app."""

    middleware: AgentMiddleware
    client: Client
    app: App
    other: Probe
    restore: Callable[[], None]

    @property
    def manager(self) -> AgentManager:
        return self.middleware.manager


def _arrange(phase: Phase, fault: Fault, mode: FailureMode, via: str, other: Reaction = None) -> Setting:
    now = 1000.0
    opposite = FailureMode.OPEN if mode is FailureMode.CLOSED else FailureMode.CLOSED
    healthy = Probe(**{phase.event: other})
    manager = AgentManager(
        [
            AgentConfig(
                "a",
                fault.agent(**{phase.event: fault.reaction()}),
                failure_mode=mode if via == "agent" else opposite,
                timeout=fault.timeout,
                chunk_timeout=fault.timeout,
                max_concurrent_calls=1,
                circuit_breaker=CircuitBreakerConfig(failure_threshold=1, reset_timeout=30.0),
                **phase.options,
            ),
            AgentConfig("other", healthy, **phase.options),
        ],
        clock=lambda: now,
    )
    guard = registry_of(manager).guard("a")
    restore = _nothing
    if fault.kind is FailureKind.BREAKER_OPEN:
        assert guard.breaker is not None
        guard.breaker.failure(guard.breaker.acquire() or 0)
        now += 10.5
    elif fault.kind is FailureKind.QUEUE_TIMEOUT:
        assert guard._limiter.try_acquire()
        restore = guard._limiter.release
    app = App(start(200, (b"x-app", b"1")), body(b"response ", more=True), body(b"of the app"))
    routes = None if via == "agent" else [Route("/{rest:path}", agents=[("a", mode), "other"])]
    middleware = AgentMiddleware(app, manager=manager, routes=routes)
    return Setting(middleware, Client("POST", body=[b"request ", b"body"]), app, healthy, restore)


@pytest.mark.parametrize("via", ["agent", "route"])
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("phase", PHASES.values(), ids=PHASES)
async def test_a_fail_closed_failure_stops_the_request_with_the_reply_of_the_table(
    phase: Phase, fault: Fault, via: str
) -> None:
    it = _arrange(phase, fault, FailureMode.CLOSED, via)
    if phase.aborts:
        with pytest.raises(ResponseAborted, match="agent 'a'"):
            await it.client.call(it.middleware)
        assert it.client.status == 200
        assert it.client.body == b""
        assert not it.client.complete
    else:
        await it.client.call(it.middleware)
        assert it.client.status == fault.status
        assert it.client.body.decode() == fault.text
        assert it.client.header(b"content-type") == b"text/plain; charset=utf-8"
        assert it.client.header(b"content-length") == b"%d" % len(fault.text)
        assert it.client.header(b"retry-after") == fault.retry_after
        assert it.client.header(b"x-app") is None
        assert it.client.complete
    assert it.app.calls == phase.app_called
    if not phase.event.startswith("response"):
        assert it.app.body == b""
        assert not it.app.finished
    it.restore()
    metrics = it.manager.metrics["a"]
    assert metrics.outcomes == {fault.kind.value: 1}
    assert metrics.passed_open == 0
    assert_nothing_left(it.manager)


@pytest.mark.parametrize("via", ["agent", "route"])
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("phase", PHASES.values(), ids=PHASES)
async def test_a_fail_open_failure_lets_the_request_go_on_with_the_other_agents(
    phase: Phase, fault: Fault, via: str
) -> None:
    it = _arrange(phase, fault, FailureMode.OPEN, via)
    assert await it.client.call(it.middleware) == "returned by the app"
    assert it.client.status == 200
    assert it.client.body == b"response of the app"
    assert it.client.complete
    assert it.app.body == b"request body"
    if phase.event == "request_body":
        assert b"".join(data for _, data, _ in it.other.chunks) == b"request body"
    elif phase.event == "response_body":
        assert b"".join(data for _, data, _ in it.other.chunks) == b"response of the app"
    else:
        assert len(it.other.heard) == 1
    it.restore()
    metrics = it.manager.metrics["a"]
    assert metrics.outcomes[fault.kind.value] >= 1
    assert metrics.passed_open == sum(metrics.outcomes.values())
    context: AgentContext = it.client.scope["state"]["agents"]
    failures = [verdict.failure for verdict in context.decision.verdicts if verdict.agent_id == "a"]
    assert all(failure is not None for failure in failures)
    assert failures[0] is not None
    assert failures[0].kind is fault.kind
    assert_nothing_left(it.manager)


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("mode", FailureMode)
@pytest.mark.parametrize("phase", PHASES.values(), ids=PHASES)
async def test_an_agent_that_raises_a_cancellation_of_its_own_making_is_in_error(
    phase: Phase, mode: FailureMode, anyio_backend: str
) -> None:
    """As awaiting a future that somebody else has cancelled does. Nobody has cancelled the request."""

    async def fail(event: object) -> AgentResponse:
        raise asyncio.CancelledError

    fault = Fault(FailureKind.ERROR, 503, "Agent unavailable", True, lambda: fail)
    it = _arrange(phase, fault, mode, "agent")
    if mode is FailureMode.CLOSED and phase.aborts:
        with pytest.raises(ResponseAborted):
            await it.client.call(it.middleware)
    else:
        await it.client.call(it.middleware)
        assert it.client.status == (503 if mode is FailureMode.CLOSED else 200)
    assert it.manager.metrics["a"].outcomes["error"] >= 1
    assert_nothing_left(it.manager)


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_cancellation_of_an_agents_own_making_is_not_that_of_an_app_which_polls(
    probe: type[Probe], anyio_backend: str
) -> None:
    """As ``Request.is_disconnected()`` does, which receives within a scope that is cancelled already."""

    def fail(event: object) -> AgentResponse:
        raise asyncio.CancelledError

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with anyio.CancelScope() as polling:
            polling.cancel()
            await receive()
        await App()(scope, receive, send)

    client = Client("POST", body=[b"one", b"two"])
    config = AgentConfig("a", probe(request_body=fail), request_body_mode=BodyMode.STREAM)
    await client.call(guarded(app, config))
    assert (client.status, client.body) == (503, b"Agent unavailable")


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_cancellation_of_an_agents_own_making_does_not_escape_the_scope_of_a_send(anyio_backend: str) -> None:
    went_on = False

    def fail(event: object) -> AgentResponse:
        raise asyncio.CancelledError

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal went_on
        with anyio.CancelScope() as given_up:
            given_up.cancel()
            await send(start())
        went_on = True

    with pytest.raises(ResponseAborted, match="the app cancelled a send"):
        await Client().call(guarded(app, AgentConfig("a", SlowProbe(response_headers=fail))))
    assert went_on


@pytest.mark.parametrize("mode", FailureMode)
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_errors_and_timeouts_count_for_the_breaker_and_waiting_in_vain_does_not(
    fault: Fault, mode: FailureMode
) -> None:
    it = _arrange(PHASES["request headers"], fault, mode, "agent")
    await it.client.call(it.middleware)
    breaker = registry_of(it.manager).guard("a").breaker
    assert breaker is not None
    assert breaker.state is (BreakerState.OPEN if fault.counts else BreakerState.CLOSED)


@pytest.mark.parametrize("phase", PHASES.values(), ids=PHASES)
async def test_the_denial_of_another_agent_beats_a_failure(phase: Phase) -> None:
    it = _arrange(phase, FAULTS["raised"], FailureMode.CLOSED, "agent", other=AgentResponse.block(451, "denied"))
    if phase.aborts:
        with pytest.raises(ResponseAborted, match="agent 'other'"):
            await it.client.call(it.middleware)
    else:
        await it.client.call(it.middleware)
        assert (it.client.status, it.client.body) == (451, b"denied")
    context: AgentContext = it.client.scope["state"]["agents"]
    assert context.decision.decided_by == "other"
    assert context.decision.failure is None
    assert [verdict.outcome for verdict in context.decision.verdicts] == ["error", "block"]


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("phase", PHASES.values(), ids=PHASES)
async def test_a_shadow_agent_that_fails_stops_nothing(phase: Phase, fault: Fault) -> None:
    app = App(start(), body(b"response ", more=True), body(b"of the app"))
    middleware = guarded(
        app,
        AgentConfig(
            "a",
            fault.agent(**{phase.event: fault.reaction()}),
            enforce=False,
            timeout=fault.timeout,
            chunk_timeout=fault.timeout,
            **phase.options,
        ),
    )
    client = Client("POST", body=[b"request ", b"body"])
    await client.call(middleware)
    assert client.body == b"response of the app"
    assert app.body == b"request body"


async def test_a_failure_is_logged_without_what_the_agent_choked_on(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="asgi_agents"):
        it = _arrange(PHASES["request headers"], FAULTS["raised"], FailureMode.CLOSED, "agent")
        await it.client.call(it.middleware)
    assert "agent 'a', request_headers: raised ValueError at asgi.py:" in caplog.text
    assert "(in exchange/test_failures.py:" in caplog.text
    assert "secret" not in caplog.text
    assert b"secret" not in it.client.body


# Bodies over an agent's limit


@dataclass(frozen=True)
class Limit:
    """A mode with a limit, as options for one direction, and a body that is just within."""

    mode: BodyMode
    limit: int | None
    fits: int


LIMITS = {
    "buffered": Limit(BodyMode.BUFFER, 10, 10),
    "streamed": Limit(BodyMode.STREAM, 10, 10),
    "hybrid": Limit(BodyMode.hybrid(4), 10, 10),
    "hybrid, still buffering": Limit(BodyMode.hybrid(1000), 10, 10),
    "buffered by default": Limit(BodyMode.BUFFER, None, MIB),
}


def _limited(direction: str, limit: Limit, agent: Probe, mode: FailureMode, via: str, app: App) -> AgentMiddleware:
    opposite = FailureMode.OPEN if mode is FailureMode.CLOSED else FailureMode.CLOSED
    options: dict[str, Any] = {
        f"{direction}_body_mode": limit.mode,
        f"max_{direction}_body_bytes": limit.limit,
        "failure_mode": mode if via == "agent" else opposite,
        "circuit_breaker": CircuitBreakerConfig(failure_threshold=1),
    }
    streamed: dict[str, Any] = {f"{direction}_body_mode": BodyMode.STREAM}
    return AgentMiddleware(
        app,
        agents=[
            AgentConfig("a", agent, **options),
            AgentConfig("other", Probe(**{f"{direction}_body": None}), **streamed),
        ],
        routes=None if via == "agent" else [Route("/{rest:path}", agents=[("a", mode), "other"])],
    )


def _pieces(size: int) -> list[bytes]:
    """That many bytes in three pieces."""
    return [b"a" * (size // 2), b"b" * (size - size // 2 - 1), b"c"]


def _respond(pieces: list[bytes], *headers: tuple[bytes, bytes]) -> App:
    return App(start(200, *headers), *(body(piece, more=index < len(pieces) - 1) for index, piece in enumerate(pieces)))


def _assert_marked(middleware: AgentMiddleware, client: Client, kind: FailureKind) -> None:
    metrics = middleware.manager.metrics["a"]
    assert metrics.outcomes[kind.value] == 1
    assert metrics.passed_open == 1
    context: AgentContext = client.scope["state"]["agents"]
    marks = [v for v in context.decision.verdicts if v.failure is not None]
    assert [(mark.agent_id, mark.failure and mark.failure.kind) for mark in marks] == [("a", kind)]
    breaker = registry_of(middleware.manager).guard("a").breaker
    assert breaker is not None
    assert breaker.state is BreakerState.CLOSED


@pytest.mark.parametrize("limit", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("declared", [True, False], ids=["declared", "counted"])
@pytest.mark.parametrize("mode", FailureMode)
async def test_a_request_body_of_just_the_limit_is_judged(limit: Limit, declared: bool, mode: FailureMode) -> None:
    agent, app, pieces = Probe(request_body=None), App(), _pieces(limit.fits)
    middleware = _limited("request", limit, agent, mode, "agent", app)
    client = Client("POST", body=b"".join(pieces) if declared else pieces)
    await client.call(middleware)
    assert client.status == 200
    assert app.body == b"".join(pieces)
    assert b"".join(data for _, data, _ in agent.chunks) == b"".join(pieces)


@pytest.mark.parametrize("via", ["agent", "route"])
@pytest.mark.parametrize("limit", LIMITS.values(), ids=LIMITS)
async def test_a_request_body_declared_over_the_limit_is_refused_before_it_is_read(limit: Limit, via: str) -> None:
    agent, app = Probe(request_body=None), App()
    middleware = _limited("request", limit, agent, FailureMode.CLOSED, via, app)
    client = Client("POST", body=b"x" * (limit.fits + 1))
    await client.call(middleware)
    assert (client.status, client.body) == (413, b"Payload too large for security inspection")
    assert client.received == 0
    assert agent.heard == []
    assert app.calls == 0
    assert middleware.manager.metrics["a"].outcomes == {"request_too_large": 1}


@pytest.mark.parametrize("via", ["agent", "route"])
@pytest.mark.parametrize("limit", LIMITS.values(), ids=LIMITS)
async def test_a_request_body_that_turns_out_over_the_limit_is_refused(limit: Limit, via: str) -> None:
    agent, app = Probe(request_body=None), App()
    middleware = _limited("request", limit, agent, FailureMode.CLOSED, via, app)
    pieces = _pieces(limit.fits + 1)
    client = Client("POST", body=pieces)
    await client.call(middleware)
    assert (client.status, client.body) == (413, b"Payload too large for security inspection")
    assert not app.finished
    judged = b"".join(data for _, data, _ in agent.chunks)
    assert app.body == judged
    assert len(judged) <= limit.fits
    if limit.mode is BodyMode.BUFFER:
        assert app.calls == 0


@pytest.mark.parametrize("via", ["agent", "route"])
@pytest.mark.parametrize("declared", [True, False], ids=["declared", "counted"])
@pytest.mark.parametrize("limit", LIMITS.values(), ids=LIMITS)
async def test_a_request_body_over_the_limit_goes_on_without_a_fail_open_agent(
    limit: Limit, declared: bool, via: str
) -> None:
    agent, app, pieces = Probe(request_body=None), App(), _pieces(limit.fits + 1)
    middleware = _limited("request", limit, agent, FailureMode.OPEN, via, app)
    client = Client("POST", body=b"".join(pieces) if declared else pieces)
    await client.call(middleware)
    assert client.status == 200
    assert app.body == b"".join(pieces)
    assert sum(len(data) for _, data, _ in agent.chunks) <= limit.fits
    other = middleware.manager.metrics["other"]
    assert other.outcomes == {"allow": 1 if declared or limit.mode is BodyMode.BUFFER else other.calls}
    _assert_marked(middleware, client, FailureKind.REQUEST_TOO_LARGE)


async def test_a_declared_length_that_lies_does_not_lift_the_limit() -> None:
    agent, app = Probe(request_body=None), App()
    middleware = guarded(app, AgentConfig("a", agent, max_request_body_bytes=10))
    client = Client("POST", headers=[(b"content-length", b"5")], body=b"x" * 11)
    await client.call(middleware)
    assert client.status == 413
    assert app.calls == 0


@pytest.mark.parametrize("mode", [BodyMode.STREAM, BodyMode.hybrid(1000)], ids=lambda mode: mode.name)
@pytest.mark.parametrize("declared", [True, False], ids=["declared", "counted"])
async def test_a_streamed_body_has_no_limit_unless_one_is_given(mode: BodyMode, declared: bool) -> None:
    agent = Probe(request_body=None, response_body=None)
    piece = b"x" * (MIB // 2)
    app = _respond([piece] * 3, *([(b"content-length", b"%d" % (3 * len(piece)))] if declared else []))
    middleware = guarded(app, AgentConfig("a", agent, request_body_mode=mode, response_body_mode=mode))
    client = Client("POST", body=piece * 3 if declared else [piece] * 3)
    await client.call(middleware)
    assert len(app.body) == len(client.body) == 3 * len(piece)
    assert client.complete


@pytest.mark.parametrize("limit", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("declared", [True, False], ids=["declared", "counted"])
async def test_a_response_body_of_just_the_limit_is_judged(limit: Limit, declared: bool) -> None:
    pieces = _pieces(limit.fits)
    agent = Probe(response_body=None)
    app = _respond(pieces, *([(b"content-length", b"%d" % limit.fits)] if declared else []))
    client = Client()
    await client.call(_limited("response", limit, agent, FailureMode.CLOSED, "agent", app))
    assert client.body == b"".join(pieces)
    assert client.complete


@pytest.mark.parametrize("via", ["agent", "route"])
@pytest.mark.parametrize("limit", LIMITS.values(), ids=LIMITS)
async def test_a_response_body_declared_over_the_limit_is_replaced_by_500(limit: Limit, via: str) -> None:
    agent, pieces = Probe(response_body=None), _pieces(limit.fits + 1)
    app = _respond(pieces, (b"content-length", b"%d" % (limit.fits + 1)))
    middleware = _limited("response", limit, agent, FailureMode.CLOSED, via, app)
    client = Client()
    await client.call(middleware)
    assert (client.status, client.body) == (500, b"Response too large for security inspection")
    assert agent.heard == []
    assert middleware.manager.metrics["a"].outcomes == {"response_too_large": 1}


@pytest.mark.parametrize("via", ["agent", "route"])
@pytest.mark.parametrize("limit", LIMITS.values(), ids=LIMITS)
async def test_a_response_body_that_turns_out_over_the_limit_is_replaced_or_cut_off(limit: Limit, via: str) -> None:
    agent, pieces = Probe(response_body=None), _pieces(limit.fits + 1)
    middleware = _limited("response", limit, agent, FailureMode.CLOSED, via, _respond(pieces))
    client = Client()
    held = limit.mode is BodyMode.BUFFER or limit.mode == BodyMode.hybrid(1000)
    if held:
        await client.call(middleware)
        assert (client.status, client.body) == (500, b"Response too large for security inspection")
    else:
        with pytest.raises(ResponseAborted, match="over its limit of 10 bytes"):
            await client.call(middleware)
        assert client.status == 200
        assert not client.complete
        assert client.body == b"".join(data for _, data, _ in agent.chunks)
        assert len(client.body) <= limit.fits


@pytest.mark.parametrize("via", ["agent", "route"])
@pytest.mark.parametrize("declared", [True, False], ids=["declared", "counted"])
@pytest.mark.parametrize("limit", LIMITS.values(), ids=LIMITS)
async def test_a_response_body_over_the_limit_goes_on_without_a_fail_open_agent(
    limit: Limit, declared: bool, via: str
) -> None:
    agent, pieces = Probe(response_body=None), _pieces(limit.fits + 1)
    app = _respond(pieces, *([(b"content-length", b"%d" % (limit.fits + 1))] if declared else []))
    middleware = _limited("response", limit, agent, FailureMode.OPEN, via, app)
    client = Client()
    await client.call(middleware)
    assert client.body == b"".join(pieces)
    assert client.complete
    assert client.header(b"content-length") == (b"%d" % (limit.fits + 1) if declared else None)
    assert sum(len(data) for _, data, _ in agent.chunks) <= limit.fits
    _assert_marked(middleware, client, FailureKind.RESPONSE_TOO_LARGE)


@pytest.mark.parametrize("direction", ["request", "response"])
async def test_a_shadow_agent_with_a_limit_refuses_nothing(direction: str) -> None:
    agent = Probe(**{f"{direction}_body": None})
    app = _respond([b"x" * 20])
    options: dict[str, Any] = {f"max_{direction}_body_bytes": 10}
    middleware = guarded(app, AgentConfig("a", agent, enforce=False, **options))
    client = Client("POST", body=b"y" * 20)
    await client.call(middleware)
    assert client.body == b"x" * 20
    assert app.body == b"y" * 20
    assert agent.heard == []
    assert middleware.manager.metrics["a"].shadowed == 1


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
async def test_of_two_agents_over_their_limits_the_one_that_fails_closed_decides(declared: bool) -> None:
    middleware = guarded(
        App(),
        AgentConfig("a", Probe(request_body=None), max_request_body_bytes=5, failure_mode=FailureMode.OPEN),
        AgentConfig("b", Probe(request_body=None), max_request_body_bytes=5),
    )
    client = Client("POST", body=b"123456" if declared else [b"123456"])
    await client.call(middleware)
    assert client.status == 413
    context: AgentContext = client.scope["state"]["agents"]
    assert context.decision.decided_by == "b"
    # A declared size leaves nobody out.
    assert [verdict.agent_id for verdict in context.decision.verdicts] == (["b"] if declared else ["a", "b"])


async def test_a_writer_that_shrinks_the_body_makes_it_fit_for_the_next_agent() -> None:
    def cut(event: Any) -> AgentResponse:
        return AgentResponse.allow(request_body_mutation=BodyMutation(event.data[:3]))

    app, second = App(), Probe(request_body=None)
    middleware = guarded(
        app,
        AgentConfig("writer", Probe(request_body=cut), body_access="write"),
        AgentConfig("small", second, max_request_body_bytes=5),
    )
    client = Client("POST", body=b"123456")
    await client.call(middleware)
    assert client.status == 200
    assert app.body == b"123"
    assert second.chunks == [(0, b"123", True)]


async def test_a_writer_that_grows_the_body_makes_it_too_large_for_the_next_agent() -> None:
    def double(event: Any) -> AgentResponse:
        return AgentResponse.allow(request_body_mutation=BodyMutation(event.data * 2))

    app, second = App(), Probe(request_body=None)
    middleware = guarded(
        app,
        AgentConfig("writer", Probe(request_body=double), body_access="write"),
        AgentConfig("small", second, max_request_body_bytes=5),
    )
    client = Client("POST", body=b"1234")
    await client.call(middleware)
    assert client.status == 413
    assert app.calls == 0
    assert second.heard == []
