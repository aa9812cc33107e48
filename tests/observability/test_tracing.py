"""Spans around calls to agents: what they say, whose children they are, and that they end whatever happens."""

import asyncio
import gc
import json
import subprocess
import sys
import types
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager, suppress
from contextvars import copy_context
from typing import Any

import anyio
import httpx
import pytest
from anyio.lowlevel import checkpoint
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import SpanKind, StatusCode
from starlette.types import Message, Receive, Scope, Send

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentConnectionError,
    AgentContext,
    AgentManager,
    AgentMiddleware,
    AgentResponse,
    BodyMode,
    BodyMutation,
    CircuitBreakerConfig,
    ConfigurationError,
    Event,
    EventType,
    FailureMode,
    GuardrailInspectEvent,
    GuardrailResponse,
    HttpTransport,
    RequestBodyChunkEvent,
    RequestCompleteEvent,
    RequestHeadersEvent,
    ResponseAborted,
    ResponseBodyChunkEvent,
    ResponseHeadersEvent,
    Route,
    WebSocketFrameEvent,
)
from asgi_agents.errors import AgentUnavailableError
from asgi_agents.observability.correlation import outside_name
from asgi_agents.serve import agent_app
from tests.exchange.test_websocket import App as SocketApp
from tests.exchange.test_websocket import Server, accept, run, send_frame
from tests.support.asgi import App, Client, Held, Probe, SlowProbe, body, pull, push, settle, start
from tests.support.servers import serve

from .spans import (
    ALL,
    CLIENTS_TRACEPARENT,
    DENIED,
    STREAM,
    Spans,
    assert_cancelled,
    assert_failed,
    attributes,
    context_of,
    each_probe,
    is_child,
    serving,
    traceparent,
)

each_failure_mode = pytest.mark.parametrize("mode", FailureMode, ids=lambda mode: mode.value)


def guarded(spans: Spans, app: Any, *agents: AgentConfig, **options: Any) -> AgentMiddleware:
    return AgentMiddleware(app, agents=agents, tracer_provider=spans.provider, **options)


def patient(agent_id: str, agent: Any, **options: Any) -> AgentConfig:
    """With deadlines that no machine is too slow for."""
    return AgentConfig(agent_id, agent, **{"timeout": 30.0, "chunk_timeout": 30.0} | options)


def raise_(error: BaseException) -> Callable[[Any], Any]:
    def reaction(event: Event) -> Any:
        raise error

    return reaction


class Transport:
    """A remote agent's, in so far as it says so."""

    kind = "test"
    remote = True
    events: frozenset[EventType] | None = frozenset({EventType.REQUEST_HEADERS})
    carries = frozenset(EventType)

    def __init__(self, reaction: Callable[[Event], Any]) -> None:
        self._reaction = reaction

    def may_suspend(self, event_type: EventType) -> bool:
        return True

    async def call(self, event: Event) -> Any:
        await checkpoint()
        return self._reaction(event)

    async def aclose(self) -> None:
        pass


# What a span says


@each_probe
async def test_a_call_has_a_span_that_tells_what_was_asked_and_what_came_of_it(
    probe: type[Probe], spans: Spans
) -> None:
    middleware = guarded(
        spans, App(), AgentConfig("waf", probe(request_headers=None)), routes=[Route("/api/{rest:path}", ["waf"])]
    )
    await Client(path="/api/users", headers=[(b"x-request-id", b"abc-1")]).call(middleware)
    span = spans.one("request_headers waf")
    assert spans.finished == [span]
    assert span.kind is SpanKind.INTERNAL
    assert span.status.status_code is StatusCode.UNSET
    assert attributes(span) == {
        "asgi_agents.agent.id": "waf",
        "asgi_agents.event": "request_headers",
        "asgi_agents.route": "/api/{rest:path}",
        "asgi_agents.decision": "allow",
        "asgi_agents.correlation_id": "abc-1",
    }
    assert not span.events


@each_probe
async def test_where_no_route_matches_the_span_names_none(probe: type[Probe], spans: Spans) -> None:
    agent = AgentConfig("a", probe(request_headers=None))
    await Client(path="/x").call(guarded(spans, App(), agent))
    await Client(path="/x").call(guarded(spans, App(), agent, routes=[Route("/y", [])], default_agents=["a"]))
    assert len(spans.ours) == 2
    assert all("asgi_agents.route" not in attributes(span) for span in spans.ours)


@each_probe
async def test_each_route_of_an_agent_is_told_apart(probe: type[Probe], spans: Spans) -> None:
    routes = [Route("/one", ["a"]), Route("/two", ["a"])]
    middleware = guarded(spans, App(), AgentConfig("a", probe(request_headers=None)), routes=routes)
    for path in ("/one", "/two", "/one"):
        await Client(path=path).call(middleware)
    assert [attributes(span)["asgi_agents.route"] for span in spans.ours] == ["/one", "/two", "/one"]


@each_probe
async def test_each_event_with_buffered_bodies_is_one_call_and_one_span(probe: type[Probe], spans: Spans) -> None:
    app = App(start(), body(b"one", more=True), body(b"two", more=True), body(b""))
    client = Client("POST", body=[b"one", b"two", b""])
    with spans.server() as server:
        await client.call(guarded(spans, app, AgentConfig("a", probe(**ALL))))
    assert spans.names == [
        "request_headers a",
        "request_body_chunk a",
        "response_headers a",
        "response_body_chunk a",
        "request_complete a",
    ]
    assert all(is_child(span, server) for span in spans.ours)
    assert {attributes(span)["asgi_agents.decision"] for span in spans.ours} == {"allow"}
    assert len({attributes(span)["asgi_agents.correlation_id"] for span in spans.ours}) == 1


@each_probe
@pytest.mark.parametrize(
    ("answer", "decision"),
    [
        (DENIED, "block"),
        (AgentResponse.redirect("/login", 307), "redirect"),
        (AgentResponse.challenge("captcha"), "challenge"),
    ],
    ids=["block", "redirect", "challenge"],
)
@pytest.mark.parametrize("event", ["request_headers", "request_body", "response_headers", "response_body"])
async def test_what_an_agent_decides_is_no_error(
    event: str, answer: AgentResponse, decision: str, probe: type[Probe], spans: Spans
) -> None:
    with spans.server():
        await Client("POST", body=b"x").call(guarded(spans, App(), AgentConfig("a", probe(**{event: answer}))))
    (span,) = spans.ours
    assert span.status.status_code is StatusCode.UNSET
    assert attributes(span)["asgi_agents.decision"] == decision
    assert "error.type" not in attributes(span)
    assert "asgi_agents.failure_mode" not in attributes(span)


@each_probe
async def test_a_shadow_agent_has_spans_that_say_so(probe: type[Probe], spans: Spans) -> None:
    client = Client()
    shadow = AgentConfig("shadow", probe(request_headers=DENIED), enforce=False)
    await client.call(guarded(spans, App(), shadow, AgentConfig("real", probe(request_headers=None))))
    assert client.status == 200
    found = attributes(spans.one("request_headers shadow"))
    assert found["asgi_agents.enforced"] is False
    assert found["asgi_agents.decision"] == "block"
    assert "asgi_agents.enforced" not in attributes(spans.one("request_headers real"))


@each_probe
async def test_a_shadow_agent_that_fails_is_an_error_all_the_same(probe: type[Probe], spans: Spans) -> None:
    agent = probe(request_headers=raise_(ValueError("x")))
    await Client().call(guarded(spans, App(), AgentConfig("shadow", agent, enforce=False)))
    span = spans.one("request_headers shadow")
    assert_failed(span, "error")
    assert attributes(span)["asgi_agents.enforced"] is False


async def test_a_guardrail_question_has_a_span(spans: Spans) -> None:
    class Guardrail(Agent):
        async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> GuardrailResponse:
            with spans.tracer.start_as_current_span("in the agent"):
                return GuardrailResponse(detected=True, confidence=1.0)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        agents: AgentContext = scope["state"]["agents"]
        with spans.tracer.start_as_current_span("handler") as handler:
            await agents.inspect_guardrail("g", "text", inspection_type="prompt_injection")
            assert trace.get_current_span() is handler
        await App()(scope, receive, send)

    routes = [Route("/", ["g"])]
    with spans.server() as server:
        await Client().call(guarded(spans, app, AgentConfig("g", Guardrail()), routes=routes))
    span = spans.one("guardrail_inspect g")
    assert is_child(span, spans.one("handler"))
    assert is_child(spans.one("handler"), server)
    assert is_child(spans.one("in the agent"), span)
    assert attributes(span)["asgi_agents.decision"] == "detected"
    assert attributes(span)["asgi_agents.route"] == "/"
    assert attributes(span)["asgi_agents.correlation_id"]


# Failures


@each_failure_mode
async def test_an_agent_that_is_too_slow_is_an_error(mode: FailureMode, spans: Spans) -> None:
    agent = SlowProbe(request_headers=Held())
    with spans.server():
        await Client().call(guarded(spans, App(), AgentConfig("a", agent, timeout=0.01, failure_mode=mode)))
    assert_failed(spans.one("request_headers a"), "timeout", mode.value)


@each_failure_mode
@each_probe
async def test_an_agent_that_raises_is_an_error(mode: FailureMode, probe: type[Probe], spans: Spans) -> None:
    agent = probe(request_headers=raise_(KeyError("secret")))
    with spans.server():
        await Client().call(guarded(spans, App(), AgentConfig("a", agent, failure_mode=mode)))
    span = spans.one("request_headers a")
    assert_failed(span, "error", mode.value)
    assert "secret" not in str(span.status.description)
    assert not span.events


@each_failure_mode
async def test_an_agent_that_answers_what_it_must_not_is_an_error(mode: FailureMode, spans: Spans) -> None:
    agent = Probe(request_body=AgentResponse.allow(request_body_mutation=BodyMutation(data=b"x")))
    client = Client("POST", body=b"x")
    await client.call(guarded(spans, App(), AgentConfig("a", agent, failure_mode=mode)))
    assert_failed(spans.one("request_body_chunk a"), "error", mode.value)


@each_failure_mode
@each_probe
async def test_an_agent_whose_breaker_is_open_is_an_error(mode: FailureMode, probe: type[Probe], spans: Spans) -> None:
    config = AgentConfig(
        "a",
        probe(request_headers=raise_(ValueError("x"))),
        circuit_breaker=CircuitBreakerConfig(failure_threshold=1, reset_timeout=3600),
        failure_mode=mode,
    )
    middleware = guarded(spans, App(), config)
    await Client().call(middleware)
    await Client().call(middleware)
    first, second = spans.ours
    assert_failed(first, "error", mode.value)
    assert_failed(second, "breaker_open", mode.value)


@each_failure_mode
async def test_an_agent_that_has_no_permit_left_is_an_error(mode: FailureMode, spans: Spans) -> None:
    held = Held()
    config = AgentConfig(
        "a",
        SlowProbe(request_headers=None, request_body=held),
        timeout=0.02,
        chunk_timeout=30.0,
        request_body_mode=STREAM,
        max_concurrent_calls=1,
        failure_mode=mode,
    )
    middleware = guarded(spans, App(), config)
    first = Client("POST", body=[b"x"])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(first.call, middleware)
        await held.reached.wait()
        await Client().call(middleware)
        held.gate.set()
    assert_failed(spans.ours[1], "queue_timeout", mode.value)


@each_failure_mode
@pytest.mark.parametrize(
    ("error", "kind"),
    [(AgentUnavailableError("it is unwell"), "unavailable"), (AgentConnectionError("it is gone"), "error")],
    ids=["unavailable", "connection lost"],
)
async def test_a_remote_agent_that_cannot_be_reached_is_an_error(
    error: Exception, kind: str, mode: FailureMode, spans: Spans
) -> None:
    transport = Transport(raise_(error))
    await Client().call(guarded(spans, App(), AgentConfig("a", transport, failure_mode=mode)))
    span = spans.one("request_headers a")
    assert span.kind is SpanKind.CLIENT
    assert_failed(span, kind, mode.value)


@each_failure_mode
@each_probe
@pytest.mark.parametrize("given", [b"12345", [b"123", b"45"]], ids=["declared", "chunked"])
async def test_a_request_body_that_is_too_large_is_an_error(
    given: Any, mode: FailureMode, probe: type[Probe], spans: Spans
) -> None:
    config = AgentConfig("a", probe(request_body=None), max_request_body_bytes=4, failure_mode=mode)
    with spans.server() as server:
        await Client("POST", body=given).call(guarded(spans, App(), config, routes=[Route("/", ["a"])]))
    span = spans.one("request_body_chunk a")
    assert_failed(span, "request_too_large", mode.value)
    assert is_child(span, server)
    assert attributes(span)["asgi_agents.correlation_id"]
    assert attributes(span)["asgi_agents.route"] == "/"
    assert spans.ours == [span]


@each_failure_mode
async def test_a_response_body_that_is_too_large_is_an_error(mode: FailureMode, spans: Spans) -> None:
    config = AgentConfig("a", Probe(response_body=None), max_response_body_bytes=4, failure_mode=mode)
    with spans.server():
        await Client().call(guarded(spans, App(), config))
    assert_failed(spans.one("response_body_chunk a"), "response_too_large", mode.value)


@each_probe
async def test_a_shadow_agent_that_is_shown_no_body_has_a_span_that_says_so(probe: type[Probe], spans: Spans) -> None:
    config = AgentConfig("a", probe(request_body=None), max_request_body_bytes=1, enforce=False)
    await Client("POST", body=b"123").call(guarded(spans, App(), config))
    span = spans.one("request_body_chunk a")
    assert_failed(span, "request_too_large")
    assert attributes(span)["asgi_agents.enforced"] is False


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_call_whose_task_was_cancelled_from_inside_has_one_span(anyio_backend: str, spans: Spans) -> None:
    async def cancel_oneself(event: Event) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    middleware = guarded(
        spans,
        App(),
        patient("other", SlowProbe(request_headers=None)),
        patient("a", SlowProbe(request_headers=cancel_oneself)),
    )
    with spans.server():
        await Client().call(middleware)
    assert sorted(spans.names) == ["request_headers a", "request_headers other"]
    # That nobody else has cancelled it is only known when the span is over.
    assert attributes(spans.one("request_headers a"))["asgi_agents.cancelled"] is True


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_cancellederror_of_the_agents_own_is_an_error_and_no_cancellation(
    anyio_backend: str, spans: Spans
) -> None:
    agent = SlowProbe(request_headers=raise_(asyncio.CancelledError()))
    with spans.server():
        await Client().call(guarded(spans, App(), patient("a", agent)))
    assert_failed(spans.one("request_headers a"), "error")


# Cancelled calls


async def test_a_call_that_a_siblings_denial_ends_is_cancelled(spans: Spans) -> None:
    held = Held()

    async def deny_when_the_other_is_asked(event: Event) -> AgentResponse:
        await held.reached.wait()
        return DENIED

    client = Client()
    with spans.server() as server:
        await client.call(
            guarded(
                spans,
                App(),
                patient("denies", SlowProbe(request_headers=deny_when_the_other_is_asked)),
                patient("held", SlowProbe(request_headers=held)),
            )
        )
    assert client.status == 403
    denies, other = spans.one("request_headers denies"), spans.one("request_headers held")
    assert_cancelled(other)
    assert attributes(denies)["asgi_agents.decision"] == "block"
    assert "asgi_agents.cancelled" not in attributes(denies)
    assert is_child(denies, server)
    assert is_child(other, server)


async def test_a_call_that_fails_over_its_own_cancellation_is_cancelled(spans: Spans) -> None:
    reached = anyio.Event()

    async def fail_when_cancelled(event: Event) -> None:
        reached.set()
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("over it")

    async def deny_when_the_other_is_asked(event: Event) -> AgentResponse:
        await reached.wait()
        return DENIED

    client = Client()
    with spans.server():
        await client.call(
            guarded(
                spans,
                App(),
                patient("denies", SlowProbe(request_headers=deny_when_the_other_is_asked)),
                patient("fails", SlowProbe(request_headers=fail_when_cancelled)),
            )
        )
    assert client.status == 403
    assert attributes(spans.one("request_headers fails"))["asgi_agents.cancelled"] is True


async def test_a_call_that_waits_for_a_permit_and_is_not_wanted_any_more_is_cancelled(spans: Spans) -> None:
    held = Held()
    middleware = guarded(spans, App(), patient("a", SlowProbe(request_headers=held), max_concurrent_calls=1))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Client().call, middleware)
        await held.reached.wait()
        async with anyio.create_task_group() as waiting:
            waiting.start_soon(Client().call, middleware)
            await settle()
            waiting.cancel_scope.cancel()
        (span,) = spans.ours
        assert_cancelled(span)
        held.gate.set()


async def test_a_call_that_is_about_to_configure_its_agent_and_is_not_wanted_any_more_is_cancelled(
    spans: Spans,
) -> None:
    reached = anyio.Event()

    class Slow(Probe):
        @property
        def events(self) -> frozenset[EventType]:
            return super().events | {EventType.CONFIGURE}

        async def on_configure(self, event: Any) -> None:
            reached.set()
            await anyio.sleep_forever()

    middleware = guarded(spans, App(), patient("a", Slow(request_headers=None), config={"x": 1}))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Client().call, middleware)
        await reached.wait()
        tasks.cancel_scope.cancel()
    assert_cancelled(spans.one("request_headers a"))


PHASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "request headers": ("request_headers", {}, "request_headers a"),
    "buffered request body": ("request_body", {}, "request_body_chunk a"),
    "streamed request body": ("request_body", {"request_body_mode": STREAM}, "request_body"),
    "hybrid request body": ("request_body", {"request_body_mode": BodyMode.hybrid(2)}, "request_body"),
    "response headers": ("response_headers", {}, "response_headers a"),
    "buffered response body": ("response_body", {}, "response_body_chunk a"),
    "streamed response body": ("response_body", {"response_body_mode": STREAM}, "response_body"),
    "hybrid response body": ("response_body", {"response_body_mode": BodyMode.hybrid(2)}, "response_body"),
}
each_phase = pytest.mark.parametrize(("event", "options", "name"), PHASES.values(), ids=PHASES)


def _app() -> App:
    return App(start(), body(b"one", more=True), body(b"two"))


@pytest.mark.parametrize("others", [0, 2], ids=["one agent", "three agents"])
@each_phase
async def test_a_request_that_is_cancelled_in_the_middle_of_a_call_ends_its_spans(
    event: str, options: dict[str, Any], name: str, others: int, spans: Spans
) -> None:
    held = Held()
    middleware = guarded(
        spans,
        _app(),
        patient("a", SlowProbe(**{event: held}), **options),
        *(patient(f"b{index}", SlowProbe(**{event: Held()}), **options) for index in range(others)),
    )

    async def call() -> None:
        with spans.server():
            await Client("POST", body=[b"one", b"two"]).call(middleware)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await held.reached.wait()
        await settle()
        tasks.cancel_scope.cancel()
    span = spans.one(name)
    assert is_child(span, next(span for span in spans.finished if span.name == "server"))
    if name.endswith(" a"):
        assert_cancelled(span)
        assert len(spans.ours) == 1 + others
        for each in spans.ours:
            assert_cancelled(each)
    else:
        assert spans.ours == [span]
        assert attributes(span)["asgi_agents.events"] == 0


@each_phase
async def test_a_client_that_leaves_in_the_middle_of_a_call_leaves_no_span_unended(
    event: str, options: dict[str, Any], name: str, spans: Spans
) -> None:
    held = Held()
    middleware = guarded(spans, _app(), patient("a", SlowProbe(**{event: held}), **options))
    client = Client("POST", body=[b"one", b"two"], spec_version="2.4")

    async def call() -> None:
        with spans.server(), suppress(OSError):
            await client.call(middleware)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await held.reached.wait()
        client.leave()
        await settle()
        held.gate.set()
    assert spans.one(name)
    assert spans.unended == []


async def test_an_app_that_gives_up_a_send_while_it_is_judged_leaves_no_span_unended(spans: Spans) -> None:
    held = Held()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(push, send, body(b"one"))
            await held.reached.wait()
            tasks.cancel_scope.cancel()

    middleware = guarded(spans, app, patient("a", SlowProbe(response_body=held), response_body_mode=STREAM))
    with spans.server(), pytest.raises(ResponseAborted):
        await Client().call(middleware)
    assert spans.names == ["response_body"]


async def test_an_app_that_gives_up_a_receive_changes_nothing_for_its_body(spans: Spans) -> None:
    held = Held()
    got: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pull, receive)
            await held.reached.wait()
            tasks.cancel_scope.cancel()
        assert trace.get_current_span() is server
        held.gate.set()
        got.append(await receive())
        await send(start())
        await send(body())

    middleware = guarded(spans, app, patient("a", SlowProbe(request_body=held), request_body_mode=STREAM))
    with spans.server() as server:
        await Client("POST", body=[b"one"]).call(middleware)
    assert got[0]["body"] == b"one"
    span = spans.one("request_body")
    assert attributes(span)["asgi_agents.events"] == 1
    assert spans.ours == [span]


@each_probe
@pytest.mark.parametrize("mode", [BodyMode.BUFFER, STREAM], ids=lambda mode: mode.name)
async def test_an_app_that_raises_leaves_no_span_unended(mode: BodyMode, probe: type[Probe], spans: Spans) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(start())
        await send(body(b"one", more=True))
        raise KeyError("app")

    config = AgentConfig("a", probe(**ALL), request_body_mode=mode, response_body_mode=mode)
    with spans.server() as server, pytest.raises(KeyError):
        await Client("POST", body=[b"x"]).call(guarded(spans, app, config))
    assert is_child(spans.one("request_complete a"), server)


@each_probe
async def test_a_response_that_is_broken_off_ends_its_span(probe: type[Probe], spans: Spans) -> None:
    def deny_the_second(event: ResponseBodyChunkEvent) -> AgentResponse | None:
        return DENIED if event.chunk_index == 1 else None

    config = AgentConfig("a", probe(response_body=deny_the_second), response_body_mode=STREAM)
    with spans.server(), pytest.raises(ResponseAborted):
        await Client().call(guarded(spans, _app(), config))
    span = spans.one("response_body")
    assert attributes(span)["asgi_agents.events"] == 2
    assert [(event.name, dict(event.attributes or {})) for event in span.events] == [
        ("asgi_agents.decision", {"asgi_agents.agent.id": "a", "asgi_agents.decision": "block"})
    ]
    assert span.status.status_code is StatusCode.UNSET


@each_probe
async def test_a_request_body_that_is_broken_off_ends_its_span(probe: type[Probe], spans: Spans) -> None:
    client = Client("POST", body=[b"one"], unfinished=True)
    app = App(start(), body())
    config = AgentConfig("a", probe(request_body=None), request_body_mode=STREAM)

    async def call() -> None:
        with spans.server(), suppress(OSError):
            await client.call(guarded(spans, app, config))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await settle()
        client.leave()
    assert app.disconnected
    assert attributes(spans.one("request_body"))["asgi_agents.events"] == 1


# Whose children


@each_probe
async def test_agents_that_are_asked_at_once_are_siblings_under_the_servers_span(
    probe: type[Probe], spans: Spans
) -> None:
    agents = [AgentConfig(agent_id, probe(**ALL)) for agent_id in ("a", "b", "c")]
    with spans.server() as server:
        await Client("POST", body=b"x").call(guarded(spans, App(), *agents))
    assert len(spans.ours) == 15
    assert all(is_child(span, server) for span in spans.ours)


@each_probe
async def test_without_a_servers_span_each_call_is_a_trace_of_its_own(probe: type[Probe], spans: Spans) -> None:
    await Client("POST", body=b"x").call(guarded(spans, App(), AgentConfig("a", probe(**ALL))))
    assert [span.parent for span in spans.ours] == [None] * 5
    assert trace.get_current_span() is trace.INVALID_SPAN


@each_probe
@pytest.mark.parametrize("mode", [BodyMode.BUFFER, STREAM, BodyMode.hybrid(2)], ids=lambda mode: mode.name)
async def test_the_app_never_sees_another_span_than_the_servers(
    mode: BodyMode, probe: type[Probe], spans: Spans
) -> None:
    seen: list[object] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(trace.get_current_span())
        while (await receive()).get("more_body"):
            seen.append(trace.get_current_span())
        for message in (start(), body(b"one", more=True), body(b"two")):
            await send(message)
            seen.append(trace.get_current_span())

    agents = [
        AgentConfig(agent_id, probe(**ALL), request_body_mode=mode, response_body_mode=mode) for agent_id in "abc"
    ]
    with spans.server() as server:
        await Client("POST", body=[b"one", b"two", b"three"]).call(guarded(spans, app, *agents))
    assert len(seen) >= 4
    assert all(span is server for span in seen)


@pytest.mark.parametrize("pause", [False, True], ids=["prompt", "slow"])
@pytest.mark.parametrize("agents", [1, 2], ids=["one agent", "two agents"])
async def test_what_an_agent_in_the_process_does_is_below_its_call(pause: bool, agents: int, spans: Spans) -> None:
    class Tracing(Agent):
        def __init__(self, name: str) -> None:
            self.name = name

        async def work(self, event: Event) -> None:
            with spans.tracer.start_as_current_span(f"{event.event_type.value} in {self.name}"):
                if pause:
                    await checkpoint()

        async def on_request_headers(self, event: RequestHeadersEvent) -> None:
            await self.work(event)

        async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> None:
            await self.work(event)

        async def on_response_headers(self, event: ResponseHeadersEvent) -> None:
            await self.work(event)

        async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> None:
            await self.work(event)

        async def on_request_complete(self, event: RequestCompleteEvent) -> None:
            await self.work(event)

    configs = [patient(name, Tracing(name)) for name in "ab"[:agents]]
    with spans.server():
        await Client("POST", body=b"x").call(guarded(spans, App(), *configs))
    assert len(spans.ours) == 5 * agents
    for span in spans.ours:
        event, _, name = span.name.partition(" ")
        assert is_child(spans.one(f"{event} in {name}"), span)


@each_probe
async def test_one_guarded_app_around_another_keeps_their_calls_apart(probe: type[Probe], spans: Spans) -> None:
    agent = probe(**ALL)
    inner = guarded(spans, _app(), AgentConfig("inner", agent, request_body_mode=STREAM, response_body_mode=STREAM))
    outer = guarded(spans, inner, AgentConfig("outer", agent, request_body_mode=STREAM, response_body_mode=STREAM))
    with spans.server() as server:
        await Client("POST", body=[b"one", b"two"]).call(outer)
    assert sorted(spans.names) == sorted(
        [f"{event} {name}" for event in ("request_headers", "response_headers", "request_complete")
         for name in ("inner", "outer")] + ["request_body", "response_body"] * 2
    )  # fmt: skip
    assert all(is_child(span, server) for span in spans.ours)


@types.coroutine
def _pause() -> Generator[None, None, None]:
    yield


class _Pausing(Agent):
    """Suspends in a way that needs no event loop."""

    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        await _pause()

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> None:
        await _pause()


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_an_exchange_that_is_thrown_away_where_it_began_leaves_the_current_span_as_it_was(
    anyio_backend: str, spans: Spans
) -> None:
    with spans.server() as server:
        exchange = Client().call(guarded(spans, App(), patient("a", _Pausing())))
        exchange.send(None)
        exchange.close()
        assert trace.get_current_span() is server
    assert_cancelled(spans.one("request_headers a"))


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_receive_that_is_thrown_away_leaves_the_current_span_as_it_was(
    anyio_backend: str, spans: Spans
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        # Not in a task group: judged within the app's own call.
        await send(start())
        call = send(body(b"x", more=True))
        call.send(None)  # type: ignore[attr-defined]
        call.close()  # type: ignore[attr-defined]
        assert trace.get_current_span() is server

    class Pausing(Agent):
        async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> None:
            await _pause()

    middleware = guarded(spans, app, patient("a", Pausing(), response_body_mode=STREAM))
    with spans.server() as server, suppress(ResponseAborted):
        await Client().call(middleware)
    assert spans.names == ["response_body"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_an_exchange_that_is_thrown_away_elsewhere_ends_its_span_without_a_word(
    anyio_backend: str, spans: Spans
) -> None:
    exchange = Client().call(guarded(spans, App(), patient("a", _Pausing())))
    copy_context().run(exchange.send, None)
    with spans.server():
        del exchange
        gc.collect()
    assert_cancelled(spans.one("request_headers a"))


@pytest.mark.parametrize("mode", [BodyMode.BUFFER, STREAM], ids=lambda mode: mode.name)
async def test_what_an_app_has_left_running_begins_no_span_that_never_ends(mode: BodyMode, spans: Spans) -> None:
    went_on: list[str] = []

    async with anyio.create_task_group() as tasks:
        ended = anyio.Event()

        async def send_later(send: Send) -> None:
            await ended.wait()
            with suppress(Exception):
                await send(start())
                await send(body(b"late", more=True))
                await send(body(b"later"))
            went_on.append("yes")

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            tasks.start_soon(send_later, send)

        config = patient("a", SlowProbe(response_headers=None, response_body=None), response_body_mode=mode)
        with spans.server():
            await Client(lenient=True).call(guarded(spans, app, config))
        ended.set()
    assert went_on
    assert spans.unended == []


async def test_a_send_that_outlives_the_exchange_writes_nothing_into_a_span_that_has_ended(spans: Spans) -> None:
    held = Held(DENIED)
    async with anyio.create_task_group() as tasks:

        async def send_it(send: Send) -> None:
            with suppress(Exception):
                await send(body(b"x", more=True))

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await send(start())
            tasks.start_soon(send_it, send)
            await held.reached.wait()

        config = patient("a", SlowProbe(response_body=held), response_body_mode=STREAM)
        with spans.server(), suppress(ResponseAborted):
            await Client(lenient=True).call(guarded(spans, app, config))
        held.gate.set()
    # The fixture looks for complaints: the SDK makes one of each attribute and event that comes too late.
    assert spans.names == ["response_body"]


# Bodies in pieces


@each_probe
@pytest.mark.parametrize("mode", [STREAM, BodyMode.hybrid(2)], ids=lambda mode: mode.name)
async def test_a_body_in_pieces_has_one_span_in_each_direction(
    mode: BodyMode, probe: type[Probe], spans: Spans
) -> None:
    app = App(start(), *(body(b"%03d" % number, more=True) for number in range(50)), body(b"end"))
    agent = probe(request_body=None, response_body=None)
    config = AgentConfig("a", agent, request_body_mode=mode, response_body_mode=mode)
    client = Client("POST", body=[b"%03d" % number for number in range(30)], headers=[(b"x-request-id", b"abc-1")])
    with spans.server() as server:
        await client.call(guarded(spans, app, config, routes=[Route("/", ["a"])]))
    assert sorted(spans.names) == ["request_body", "response_body"]
    for direction, count in (("request", 30), ("response", 51)):
        span = spans.one(f"{direction}_body")
        assert is_child(span, server)
        assert span.kind is SpanKind.INTERNAL
        assert span.status.status_code is StatusCode.UNSET
        assert not span.events
        assert attributes(span) == {
            "asgi_agents.event": f"{direction}_body_chunk",
            "asgi_agents.route": "/",
            "asgi_agents.correlation_id": "abc-1",
            "asgi_agents.events": count,
        }


@each_probe
async def test_buffered_and_streamed_agents_of_one_body_have_a_span_each(probe: type[Probe], spans: Spans) -> None:
    configs = [
        AgentConfig("a", probe(request_body=None), request_body_mode=STREAM),
        AgentConfig("b", probe(request_body=None)),
        AgentConfig("c", probe(request_body=None), request_body_mode=STREAM),
    ]
    with spans.server() as server:
        await Client("POST", body=[b"one", b"two"]).call(guarded(spans, App(), *configs))
    assert sorted(spans.names) == ["request_body", "request_body_chunk b"]
    assert all(is_child(span, server) for span in spans.ours)


@each_probe
async def test_what_an_agent_does_for_a_piece_is_below_the_span_of_the_body(probe: type[Probe], spans: Spans) -> None:
    def work(event: Event) -> None:
        spans.tracer.start_span("work").end()

    agents = [AgentConfig(name, probe(request_body=work), request_body_mode=STREAM) for name in "ab"]
    with spans.server():
        await Client("POST", body=[b"one", b"two"]).call(guarded(spans, App(), *agents))
    works = [span for span in spans.finished if span.name == "work"]
    assert len(works) == 4
    assert all(is_child(span, spans.one("request_body")) for span in works)


@each_failure_mode
@each_probe
async def test_an_agent_that_fails_over_a_piece_makes_an_error_of_the_bodys_span(
    mode: FailureMode, probe: type[Probe], spans: Spans
) -> None:
    agent = probe(request_body=raise_(KeyError("secret")))
    config = AgentConfig("a", agent, request_body_mode=STREAM, failure_mode=mode)
    with spans.server():
        await Client("POST", body=[b"one"]).call(guarded(spans, App(), config))
    span = spans.one("request_body")
    assert span.status.status_code is StatusCode.ERROR
    assert "secret" not in str(span.status.description)
    assert attributes(span)["error.type"] == "error"
    assert dict(span.events[0].attributes or {}) == {
        "asgi_agents.agent.id": "a",
        "error.type": "error",
        "asgi_agents.failure_mode": mode.value,
    }


@each_probe
async def test_the_span_of_a_body_is_the_servers_child_whatever_the_app_is_doing(
    probe: type[Probe], spans: Spans
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with spans.tracer.start_as_current_span("read the first piece"):
            await receive()
        while (await receive()).get("more_body"):
            pass
        await send(start())
        with spans.tracer.start_as_current_span("send the first piece"):
            await send(body(b"one", more=True))
        await send(body(b"two"))

    agent = probe(request_body=None, response_body=None)
    config = AgentConfig("a", agent, request_body_mode=STREAM, response_body_mode=STREAM)
    with spans.server() as server:
        await Client("POST", body=[b"one", b"two"]).call(guarded(spans, app, config))
    assert is_child(spans.one("request_body"), server)
    assert is_child(spans.one("response_body"), server)


@each_probe
async def test_what_is_in_the_context_besides_spans_is_not_held_for_later_pieces(
    probe: type[Probe], spans: Spans
) -> None:
    seen: list[object] = []

    def look(event: Event) -> None:
        seen.append(baggage.get_baggage("piece"))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        for piece in ("one", "two"):
            token = context.attach(baggage.set_baggage("piece", piece))
            await send(body(piece.encode(), more=True))
            context.detach(token)
        await send(body())

    config = AgentConfig("a", probe(response_body=look), response_body_mode=STREAM)
    with spans.server():
        await Client().call(guarded(spans, app, config))
    assert seen == ["one", "two", None]


# Websockets


class Frames(Agent):
    """Reacts to messages by what is in them, at once."""

    def __init__(self, reaction: Callable[[bytes], Any] = lambda data: None) -> None:
        self.reaction = reaction

    async def on_websocket_frame(self, event: WebSocketFrameEvent) -> AgentResponse | None:
        answer: AgentResponse | None = self.reaction(event.data)
        return answer


class SlowFrames(Frames):
    async def on_websocket_frame(self, event: WebSocketFrameEvent) -> AgentResponse | None:
        await checkpoint()
        return await super().on_websocket_frame(event)


each_frames = pytest.mark.parametrize("frames", [Frames, SlowFrames], ids=["prompt", "slow"])


def answers(**by_data: AgentResponse) -> Callable[[bytes], AgentResponse | None]:
    return lambda data: by_data.get(data.decode())


@each_frames
async def test_a_websocket_session_has_one_span_and_its_messages_have_none(frames: type[Frames], spans: Spans) -> None:
    session = Server("one", b"two", "three", then_leaves=True)
    middleware = guarded(spans, SocketApp("a", "b"), patient("a", frames()), routes=[Route("/ws", ["a"])])
    with spans.server() as server:
        await run(middleware, session, headers=[(b"x-request-id", b"abc-1")])
    span = spans.one("websocket_session")
    assert spans.ours == [span]
    assert is_child(span, server)
    assert span.kind is SpanKind.INTERNAL
    assert attributes(span) == {
        "asgi_agents.event": "websocket_frame",
        "asgi_agents.route": "/ws",
        "asgi_agents.correlation_id": "abc-1",
        "asgi_agents.events": 5,
    }
    assert not span.events


@each_frames
async def test_verdicts_on_messages_are_events_of_the_session(frames: type[Frames], spans: Spans) -> None:
    reaction = answers(two=AgentResponse.websocket_drop(), four=AgentResponse.websocket_close(4001, "enough"))
    session = Server("one", "two", "three", "four")
    with spans.server():
        await run(guarded(spans, SocketApp(), patient("a", frames(reaction))), session)
    span = spans.one("websocket_session")
    assert [(event.name, dict(event.attributes or {})) for event in span.events] == [
        ("asgi_agents.decision", {"asgi_agents.agent.id": "a", "asgi_agents.decision": decision})
        for decision in ("drop", "close")
    ]
    assert attributes(span)["asgi_agents.events"] == 4
    assert span.status.status_code is StatusCode.UNSET


@each_frames
async def test_a_session_counts_a_message_once_however_many_steps_it_takes(frames: type[Frames], spans: Spans) -> None:
    reaction = answers(two=AgentResponse.websocket_drop())
    session = Server("one", "two", "three", then_leaves=True)
    agents = [
        patient("first", frames(), body_access="write"),
        patient("second", frames(reaction)),
        patient("third", frames(), body_access="write"),
    ]
    with spans.server():
        await run(guarded(spans, SocketApp(), *agents), session)
    span = spans.one("websocket_session")
    assert attributes(span)["asgi_agents.events"] == 3
    assert [dict(event.attributes or {})["asgi_agents.agent.id"] for event in span.events] == ["second"]


@each_frames
async def test_a_session_tells_of_a_hundred_verdicts_and_counts_them_all(frames: type[Frames], spans: Spans) -> None:
    session = Server(*[str(number) for number in range(150)], then_leaves=True)
    drop = AgentResponse.websocket_drop()
    with spans.server():
        await run(guarded(spans, SocketApp(), patient("a", frames(lambda data: drop))), session)
    span = spans.one("websocket_session")
    assert len(span.events) == 100
    assert attributes(span)["asgi_agents.events"] == 150


@each_frames
async def test_a_failure_behind_the_hundredth_verdict_makes_an_error_of_the_session(
    frames: type[Frames], spans: Spans
) -> None:
    def reaction(data: bytes) -> AgentResponse:
        if data == b"100":
            raise ValueError("x")
        return AgentResponse.websocket_drop()

    session = Server(*[str(number) for number in range(101)], then_leaves=True)
    agent = patient("a", frames(reaction), failure_mode=FailureMode.OPEN)
    with spans.server():
        await run(guarded(spans, SocketApp(), agent), session)
    span = spans.one("websocket_session")
    assert len(span.events) == 100
    assert span.status.status_code is StatusCode.ERROR
    assert attributes(span)["error.type"] == "error"


@each_frames
@each_failure_mode
async def test_an_agent_that_fails_over_a_message_makes_an_error_of_the_session(
    mode: FailureMode, frames: type[Frames], spans: Spans
) -> None:
    def reaction(data: bytes) -> None:
        raise KeyError("secret")

    session = Server("one", then_leaves=True)
    with spans.server():
        await run(guarded(spans, SocketApp(), patient("a", frames(reaction), failure_mode=mode)), session)
    span = spans.one("websocket_session")
    assert span.status.status_code is StatusCode.ERROR
    assert "secret" not in str(span.status.description)
    assert attributes(span)["error.type"] == "error"
    assert dict(span.events[0].attributes or {})["asgi_agents.failure_mode"] == mode.value


@each_frames
async def test_a_shadow_agents_verdict_on_a_message_says_that_it_is_one(frames: type[Frames], spans: Spans) -> None:
    agent = patient("a", frames(lambda data: AgentResponse.websocket_drop()), enforce=False)
    session, app = Server("one", then_leaves=True), SocketApp()
    await run(guarded(spans, app, agent), session)
    assert app.got == ["one"]
    (event,) = spans.one("websocket_session").events
    assert dict(event.attributes or {})["asgi_agents.enforced"] is False


@each_frames
async def test_the_app_of_a_websocket_never_sees_another_span_than_the_servers(
    frames: type[Frames], spans: Spans
) -> None:
    seen: list[object] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        seen.append(trace.get_current_span())
        while (await receive())["type"] == "websocket.receive":
            seen.append(trace.get_current_span())
            await send_frame(send, "x")
            seen.append(trace.get_current_span())

    agents = [patient(name, frames()) for name in "ab"]
    with spans.server() as server:
        await run(guarded(spans, app, *agents), Server("one", "two", then_leaves=True))
    assert len(seen) == 5
    assert all(span is server for span in seen)


@each_frames
async def test_what_an_agent_does_for_a_message_is_below_the_session(frames: type[Frames], spans: Spans) -> None:
    def work(data: bytes) -> None:
        spans.tracer.start_span("work").end()

    agents = [patient(name, frames(work)) for name in "ab"]
    with spans.server():
        await run(guarded(spans, SocketApp("out"), *agents), Server("in", then_leaves=True))
    works = [span for span in spans.finished if span.name == "work"]
    assert len(works) == 4
    assert all(is_child(span, spans.one("websocket_session")) for span in works)


@each_frames
async def test_a_session_is_the_servers_child_whatever_the_app_is_doing(frames: type[Frames], spans: Spans) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        with spans.tracer.start_as_current_span("greet"):
            await send_frame(send, "hello")
        await receive()

    with spans.server() as server:
        await run(guarded(spans, app, patient("a", frames())), Server(then_leaves=True))
    assert is_child(spans.one("greet"), server)
    assert is_child(spans.one("websocket_session"), server)


async def test_a_session_that_is_cancelled_while_a_message_is_judged_ends_its_span(spans: Spans) -> None:
    reached = anyio.Event()

    class Stuck(Agent):
        async def on_websocket_frame(self, event: WebSocketFrameEvent) -> None:
            reached.set()
            await anyio.sleep_forever()

    async def call() -> None:
        with spans.server():
            await run(guarded(spans, SocketApp(), patient("a", Stuck()), patient("b", Stuck())), Server("one"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await reached.wait()
        await settle()
        tasks.cancel_scope.cancel()
    assert spans.names == ["websocket_session"]


@each_frames
async def test_a_session_whose_app_raises_ends_its_span(frames: type[Frames], spans: Spans) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await receive()
        raise KeyError("app")

    with spans.server(), pytest.raises(KeyError):
        await run(guarded(spans, app, patient("a", frames())), Server("one"))
    assert spans.names == ["websocket_session"]


@each_probe
async def test_a_handshake_that_is_denied_has_the_span_of_its_call_alone(probe: type[Probe], spans: Spans) -> None:
    class Both(Frames):
        async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
            if probe is SlowProbe:
                await checkpoint()
            return DENIED

    session = Server()
    with spans.server():
        await run(guarded(spans, SocketApp(), patient("a", Both())), session)
    assert session.types == ["close"]
    assert spans.names == ["request_headers a"]
    assert attributes(spans.ours[0])["asgi_agents.decision"] == "block"


async def test_a_refusal_of_the_apps_own_is_a_body_like_any_other(spans: Spans) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.http.response.start", "status": 403, "headers": []})
        for more in (True, False):
            await send({"type": "websocket.http.response.body", "body": b"no", "more_body": more})

    agent = Probe(response_headers=None, response_body=None)
    config = patient("a", agent, response_body_mode=STREAM)
    with spans.server() as server:
        await run(guarded(spans, app, config), Server(), extensions={"websocket.http.response": {}})
    assert spans.names == ["response_headers a", "response_body"]
    assert all(is_child(span, server) for span in spans.ours)


@each_frames
async def test_a_message_that_is_sent_after_the_session_begins_no_span_that_never_ends(
    frames: type[Frames], spans: Spans
) -> None:
    async with anyio.create_task_group() as tasks:
        ended = anyio.Event()

        async def send_later(send: Send) -> None:
            await ended.wait()
            with suppress(Exception):
                await send_frame(send, "late")

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await accept(receive, send)
            tasks.start_soon(send_later, send)

        with spans.server():
            await run(guarded(spans, app, patient("a", frames())), Server())
        ended.set()
    assert spans.unended == []


# What agents are told of the trace


@each_probe
async def test_each_agent_is_told_the_span_of_its_own_call(probe: type[Probe], spans: Spans) -> None:
    agents = {name: probe(request_headers=None) for name in "abc"}
    client = Client(headers=[(b"traceparent", CLIENTS_TRACEPARENT.encode())])
    with spans.server():
        await client.call(guarded(spans, App(), *(patient(name, agent) for name, agent in agents.items())))
    for name, agent in agents.items():
        (event,) = agent.of("request_headers")
        assert event.metadata.traceparent == traceparent(spans.one(f"request_headers {name}"))


@each_probe
async def test_nothing_else_of_the_event_is_changed(probe: type[Probe], spans: Spans) -> None:
    agents = [probe(request_headers=None), probe(request_headers=None)]
    client = Client("POST", "/x?y=1", headers=[(b"a", b"1"), (b"A", b"2")])
    await client.call(guarded(spans, App(), patient("a", agents[0]), patient("b", agents[1])))
    first, second = (agent.of("request_headers")[0] for agent in agents)
    assert first.metadata.traceparent != second.metadata.traceparent
    assert (first.method, first.uri, list(first.headers)) == (second.method, second.uri, list(second.headers))
    assert first.metadata.request_id == second.metadata.request_id
    assert first.metadata.timestamp == second.metadata.timestamp


class Seen(Agent):
    """Makes a span of its own in each hook, and remembers what was current."""

    def __init__(self, spans: Spans, *, pause: bool = False) -> None:
        self.spans = spans
        self.pause = pause
        self.traceparents: dict[str, str] = {}

    async def look(self, event: Event) -> None:
        self.traceparents[event.event_type.value] = traceparent(trace.get_current_span())
        with self.spans.tracer.start_as_current_span(f"hook {event.event_type.value}"):
            if self.pause:
                await checkpoint()

    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        assert event.metadata.traceparent is not None
        self.traceparents["event"] = event.metadata.traceparent
        await self.look(event)

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> None:
        await self.look(event)

    async def on_response_headers(self, event: ResponseHeadersEvent) -> None:
        await self.look(event)

    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> None:
        await self.look(event)

    async def on_request_complete(self, event: RequestCompleteEvent) -> None:
        await self.look(event)


REMOTE_EVENTS = (
    "request_headers",
    "request_body_chunk",
    "response_headers",
    "response_body_chunk",
    "request_complete",
)
each_pause = pytest.mark.parametrize("pause", [False, True], ids=["prompt", "slow"])


@asynccontextmanager
async def reached(how: str, agent: Agent) -> AsyncIterator[Any]:
    """What to give an AgentConfig for ``agent`` at the other end of something."""
    if how == "http":
        with serve(agent_app(agent)) as url:
            yield url
    else:
        async with serving(agent) as address:
            yield address


# A server has a thread of its own.
each_way = pytest.mark.parametrize("how", [pytest.param("http", marks=pytest.mark.real_time), "unix"])


async def ask_remotely(spans: Spans, how: str, agent: Agent, **options: Any) -> None:
    """One request with a body in pieces past ``agent``, which hears everything about it."""
    hears = {EventType(name) for name in REMOTE_EVENTS}
    async with reached(how, agent) as address:
        manager = AgentManager([patient("far", address, events=hears, **options)], tracer_provider=spans.provider)
        async with manager:
            with spans.server():
                client = Client("POST", body=[b"one", b"two"])
                await client.call(AgentMiddleware(_app(), manager=manager))
            assert client.status == 200


@each_way
@each_pause
async def test_what_a_remote_agent_does_is_below_its_call(how: str, pause: bool, spans: Spans) -> None:
    agent = Seen(spans, pause=pause)
    await ask_remotely(spans, how, agent)
    server = spans.one("server")
    for event in REMOTE_EVENTS:
        span = spans.one(f"{event} far")
        assert span.kind is SpanKind.CLIENT
        assert is_child(span, server)
        assert agent.traceparents[event] == traceparent(span)
        # Nothing is configured for the agent's end, which makes no span of its own, then.
        assert is_child(spans.one(f"hook {event}"), span)
    assert agent.traceparents["event"] == traceparent(spans.one("request_headers far"))


@each_way
async def test_what_a_remote_agent_does_for_a_piece_is_below_the_span_of_the_body(how: str, spans: Spans) -> None:
    agent = Seen(spans)
    await ask_remotely(spans, how, agent, request_body_mode=STREAM, response_body_mode=STREAM)
    for direction in ("request", "response"):
        span = spans.one(f"{direction}_body")
        hooks = [found for found in spans.finished if found.name == f"hook {direction}_body_chunk"]
        assert len(hooks) == 2
        assert all(is_child(hook, span) for hook in hooks)


@each_way
async def test_what_a_remote_agent_does_for_a_message_is_below_the_session(how: str, spans: Spans) -> None:
    class Remote(Agent):
        async def on_websocket_frame(self, event: WebSocketFrameEvent) -> None:
            spans.tracer.start_span("hook").end()

    async with reached(how, Remote()) as address:
        config = patient("far", address, events={EventType.WEBSOCKET_FRAME})
        manager = AgentManager([config], tracer_provider=spans.provider)
        async with manager:
            with spans.server():
                session = Server("one", "two", then_leaves=True)
                await run(AgentMiddleware(SocketApp(), manager=manager), session)
    hooks = [found for found in spans.finished if found.name == "hook"]
    assert len(hooks) == 2
    assert all(is_child(hook, spans.one("websocket_session")) for hook in hooks)


async def test_the_http_transport_sends_the_calls_span_and_not_the_clients(spans: Spans) -> None:
    sent: list[httpx.Headers] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers)
        return httpx.Response(200, json={"version": 2, "decision": "allow"})

    transport = HttpTransport("http://agent/", transport=httpx.MockTransport(answer))
    client = Client(headers=[(b"traceparent", CLIENTS_TRACEPARENT.encode())])
    config = patient("a", transport, events={EventType.REQUEST_HEADERS})
    with spans.server():
        await client.call(guarded(spans, App(), config))
    (headers,) = sent
    assert headers.get_list("traceparent") == [traceparent(spans.one("request_headers a"))]


async def test_a_stream_keeps_nothing_of_the_trace_of_whoever_opened_it(spans: Spans) -> None:
    agent = Seen(spans)
    async with serving(agent) as address:
        manager = AgentManager([patient("far", address)], tracer_provider=spans.provider)
        middleware = AgentMiddleware(_app(), manager=manager)
        async with manager:
            for _ in range(2):
                with spans.server():
                    await Client("POST", body=b"x").call(middleware)
    servers = [span for span in spans.finished if span.name == "server"]
    for event in REMOTE_EVENTS:
        calls = [span for span in spans.finished if span.name == f"{event} far"]
        hooks = [span for span in spans.finished if span.name == f"hook {event}"]
        assert [is_child(*pair) for pair in zip(calls, servers, strict=True)] == [True, True]
        assert [is_child(*pair) for pair in zip(hooks, calls, strict=True)] == [True, True]


async def test_two_calls_over_one_stream_at_once_are_told_apart(spans: Spans) -> None:
    class Slow(Agent):
        def __init__(self) -> None:
            self.both = anyio.Event()
            self.calls = 0

        async def on_response_headers(self, event: ResponseHeadersEvent) -> None:
            self.calls += 1
            if self.calls == 2:
                self.both.set()
            with spans.tracer.start_as_current_span(f"hook {event.correlation_id}"):
                await self.both.wait()

    async with serving(Slow()) as address:
        manager = AgentManager([patient("far", address)], tracer_provider=spans.provider)
        middleware = AgentMiddleware(App(), manager=manager)

        async def call(correlation_id: str) -> None:
            with spans.server():
                await Client(headers=[(b"x-request-id", correlation_id.encode())]).call(middleware)

        async with manager, anyio.create_task_group() as tasks:
            tasks.start_soon(call, "one")
            tasks.start_soon(call, "two")
    for span in spans.ours:
        name = outside_name(str(attributes(span)["asgi_agents.correlation_id"]))
        assert is_child(spans.one(f"hook {name}"), span)
    assert len({context_of(span).trace_id for span in spans.ours}) == 2


async def test_a_call_over_a_stream_that_nobody_wants_any_more_is_cancelled_at_both_ends(
    spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_serving_spans(spans, monkeypatch)
    began, gone = anyio.Event(), anyio.Event()

    class Stuck(Agent):
        async def on_request_headers(self, event: RequestHeadersEvent) -> None:
            began.set()
            try:
                await anyio.sleep_forever()
            finally:
                gone.set()

    async with serving(Stuck()) as address:
        manager = AgentManager([patient("far", address)], tracer_provider=spans.provider)
        async with manager:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(Client().call, AgentMiddleware(App(), manager=manager))
                await began.wait()
                tasks.cancel_scope.cancel()
            await gone.wait()
            await settle()
    assert_cancelled(spans.one("request_headers far"))
    served = spans.one("request_headers Stuck")
    assert attributes(served)["asgi_agents.cancelled"] is True
    assert served.status.status_code is StatusCode.UNSET


# The agent's end


def make_serving_spans(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    """Serving ends take the global provider, which can be set but once in a process."""
    monkeypatch.setattr("asgi_agents.observability.tracing._serving", spans.provider.get_tracer("asgi_agents"))


@each_way
@each_pause
async def test_a_served_agent_has_a_span_of_its_own_between_the_call_and_its_hook(
    how: str, pause: bool, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_serving_spans(spans, monkeypatch)
    agent = Seen(spans, pause=pause)
    await ask_remotely(spans, how, agent)
    for event in REMOTE_EVENTS:
        call, served = spans.one(f"{event} far"), spans.one(f"{event} Seen")
        assert served.kind is SpanKind.SERVER
        assert served.parent is not None
        assert served.parent.is_remote
        assert is_child(served, call)
        assert is_child(spans.one(f"hook {event}"), served)
        assert served.status.status_code is StatusCode.UNSET
        assert attributes(served) == {
            "asgi_agents.agent.id": "Seen",
            "asgi_agents.event": event,
            "asgi_agents.correlation_id": attributes(call)["asgi_agents.correlation_id"],
        }


@each_way
@each_probe
async def test_a_served_agent_that_raises_has_an_error_at_both_ends(
    how: str, probe: type[Probe], spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_serving_spans(spans, monkeypatch)
    agent = probe(request_headers=raise_(KeyError("secret")))
    async with reached(how, agent) as address:
        config = patient("far", address, events={EventType.REQUEST_HEADERS})
        async with AgentManager([config], tracer_provider=spans.provider) as manager:
            await Client().call(AgentMiddleware(App(), manager=manager))
    assert_failed(spans.one("request_headers far"), "error")
    served = spans.one(f"request_headers {probe.__name__}")
    assert served.status.status_code is StatusCode.ERROR
    assert "secret" not in str(served.status.description)
    assert attributes(served)["error.type"] == "KeyError"
    assert "asgi_agents.cancelled" not in attributes(served)


@each_way
async def test_a_served_agent_that_answers_what_it_must_not_has_an_error(
    how: str, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_serving_spans(spans, monkeypatch)
    agent = Probe(request_headers="nonsense")  # type: ignore[arg-type]
    async with reached(how, agent) as address:
        config = patient("far", address, events={EventType.REQUEST_HEADERS})
        async with AgentManager([config], tracer_provider=spans.provider) as manager:
            await Client().call(AgentMiddleware(App(), manager=manager))
    assert spans.one("request_headers Probe").status.status_code is StatusCode.ERROR


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@each_probe
async def test_a_served_agent_that_raises_cancellederror_has_an_error(
    probe: type[Probe], anyio_backend: str, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_serving_spans(spans, monkeypatch)
    agent = probe(request_headers=raise_(asyncio.CancelledError()))
    async with serving(agent) as address:
        config = patient("far", address, events={EventType.REQUEST_HEADERS})
        async with AgentManager([config], tracer_provider=spans.provider) as manager:
            await Client().call(AgentMiddleware(App(), manager=manager))
    assert_failed(spans.one("request_headers far"), "error")
    assert spans.one(f"request_headers {probe.__name__}").status.status_code is StatusCode.ERROR


async def test_a_served_agent_that_is_called_without_a_trace_begins_one(
    spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_serving_spans(spans, monkeypatch)
    async with serving(Probe(request_headers=None)) as address, AgentManager([patient("far", address)]) as manager:
        await Client().call(AgentMiddleware(App(), manager=manager))
    served = spans.one("request_headers Probe")
    assert served.parent is None
    assert served.kind is SpanKind.SERVER


async def test_a_served_agent_of_a_caller_that_does_not_sample_makes_no_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    callers, served = Spans(ParentBased(ALWAYS_OFF)), Spans(ParentBased(Spans().provider.sampler))
    make_serving_spans(served, monkeypatch)
    agent = Seen(served)
    async with (
        serving(agent) as address,
        AgentManager([patient("far", address)], tracer_provider=callers.provider) as manager,
    ):
        await Client("POST", body=b"x").call(AgentMiddleware(App(), manager=manager))
    assert agent.traceparents
    assert callers.finished == []
    assert served.finished == []


# Sampling


def _unsampled(traceparent: str | None) -> bool:
    # The flag beside it says that the trace's id is random.
    return traceparent is not None and int(traceparent[-2:], 16) & trace.TraceFlags.SAMPLED == 0


@each_probe
@pytest.mark.parametrize("sampler", [ALWAYS_OFF, ParentBased(ALWAYS_OFF)], ids=["off", "parent based"])
async def test_what_is_not_sampled_is_not_recorded_and_says_so_to_the_agents(sampler: Any, probe: type[Probe]) -> None:
    spans = Spans(sampler)
    agents = [probe(**ALL), probe(**ALL)]
    configs = [patient("a", agents[0]), patient("b", agents[1], request_body_mode=STREAM, response_body_mode=STREAM)]
    with spans.server():
        await Client("POST", body=[b"one"]).call(guarded(spans, App(), *configs))
    assert spans.finished == []
    for agent in agents:
        assert _unsampled(agent.of("request_headers")[0].metadata.traceparent)


async def test_what_the_server_does_not_sample_no_call_samples() -> None:
    spans = Spans(ParentBased(Spans().provider.sampler))
    agent = Probe(request_headers=None)
    server = trace.NonRecordingSpan(trace.SpanContext(1, 2, is_remote=True, trace_flags=trace.TraceFlags(0)))
    with trace.use_span(server):
        await Client().call(guarded(spans, App(), patient("a", agent)))
    assert spans.finished == []
    told = agent.of("request_headers")[0].metadata.traceparent
    assert told is not None
    assert told.startswith(f"00-{1:032x}-")
    assert _unsampled(told)


async def test_what_is_not_sampled_goes_out_unsampled_over_http_and_streams() -> None:
    spans = Spans(ALWAYS_OFF)
    sent: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers["traceparent"])
        return httpx.Response(200, json={"version": 2, "decision": "allow"})

    agent = Seen(spans)
    async with serving(agent) as address:
        configs = [
            patient(
                "http",
                HttpTransport("http://agent/", transport=httpx.MockTransport(answer)),
                events={EventType(event) for event in REMOTE_EVENTS},
            ),
            patient("far", address),
        ]
        async with AgentManager(configs, tracer_provider=spans.provider) as manager:
            with spans.server() as server:
                await Client("POST", body=b"x").call(AgentMiddleware(App(), manager=manager))
    trace_id = f"{context_of(server).trace_id:032x}"
    told = [*sent, *agent.traceparents.values()]
    assert len(told) == 11
    assert all(_unsampled(each) and trace_id in each for each in told)


@each_frames
async def test_an_unsampled_websocket_works_like_any_other(frames: type[Frames]) -> None:
    spans = Spans(ALWAYS_OFF)
    session, app = Server("one", "two", "three", then_leaves=True), SocketApp()
    reaction = answers(two=AgentResponse.websocket_drop())
    with spans.server():
        await run(guarded(spans, app, patient("a", frames(reaction))), session)
    assert app.got == ["one", "three"]
    assert spans.finished == []


# The server's span


@each_probe
async def test_the_servers_span_has_the_correlation_id(probe: type[Probe], spans: Spans) -> None:
    middleware = guarded(spans, App(), patient("a", probe(request_headers=None)))
    with spans.server():
        await Client(headers=[(b"x-request-id", b"abc-1")]).call(middleware)
    assert attributes(spans.one("server")) == {"asgi_agents.correlation_id": "abc-1"}


async def test_the_servers_span_of_a_websocket_has_the_correlation_id(spans: Spans) -> None:
    middleware = guarded(spans, SocketApp(), patient("a", Frames()))
    with spans.server():
        await run(middleware, Server(then_leaves=True), headers=[(b"x-request-id", b"abc-1")])
    assert attributes(spans.one("server")) == {"asgi_agents.correlation_id": "abc-1"}


async def test_the_servers_span_of_an_unguarded_connection_is_left_alone(spans: Spans) -> None:
    agent = patient("a", Probe(request_headers=None))
    with spans.server():
        await Client().call(guarded(spans, App(), agent, routes=[Route("/x", ["a"])]))
    assert attributes(spans.one("server")) == {}
    assert spans.ours == []


async def test_a_connection_whose_events_no_agent_hears_has_the_mark_and_no_spans(spans: Spans) -> None:
    class Guardrail(Agent):
        async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> None:
            pass

    with spans.server():
        await Client(headers=[(b"x-request-id", b"abc-1")]).call(guarded(spans, App(), patient("g", Guardrail())))
    assert attributes(spans.one("server")) == {"asgi_agents.correlation_id": "abc-1"}
    assert spans.ours == []


# Providers


def test_a_provider_beside_a_manager_is_a_configuration_error(spans: Spans) -> None:
    manager = AgentManager([])
    with pytest.raises(ConfigurationError):
        AgentMiddleware(App(), manager=manager, tracer_provider=spans.provider)


async def test_two_managers_keep_to_their_own_providers(spans: Spans) -> None:
    other = Spans()
    agent = Probe(request_headers=None)
    await Client().call(guarded(spans, App(), patient("a", agent)))
    await Client().call(guarded(other, App(), patient("b", agent)))
    assert (spans.names, other.names) == (["request_headers a"], ["request_headers b"])


@each_probe
async def test_without_an_sdk_the_clients_traceparent_reaches_the_agents(probe: type[Probe]) -> None:
    agents = [probe(**ALL), probe(**ALL)]
    client = Client("POST", body=b"x", headers=[(b"traceparent", CLIENTS_TRACEPARENT.encode())])
    await client.call(AgentMiddleware(App(), agents=[patient("a", agents[0]), patient("b", agents[1])]))
    assert client.status == 200
    for agent in agents:
        assert agent.of("request_headers")[0].metadata.traceparent == CLIENTS_TRACEPARENT
    assert trace.get_current_span() is trace.INVALID_SPAN


@each_probe
async def test_without_an_sdk_or_a_traceparent_the_agents_are_told_none(probe: type[Probe]) -> None:
    agent = probe(request_headers=None)
    await Client().call(AgentMiddleware(App(), agents=[patient("a", agent)]))
    assert agent.of("request_headers")[0].metadata.traceparent is None


async def test_without_an_sdk_the_servers_span_is_what_the_agents_are_told() -> None:
    spans, agent = Spans(), Probe(request_headers=None)
    with spans.server() as server:
        await Client().call(AgentMiddleware(App(), agents=[patient("a", agent)]))
        assert agent.of("request_headers")[0].metadata.traceparent == traceparent(server)
    assert spans.ours == []


@each_probe
async def test_without_an_sdk_a_piece_is_judged_in_the_span_that_the_app_is_in(probe: type[Probe]) -> None:
    spans = Spans()
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with spans.tracer.start_as_current_span("app") as span:
            await send(start())
            await send(body(b"one"))
            assert seen == [traceparent(span)]

    agent = probe(response_body=lambda event: seen.append(traceparent(trace.get_current_span())))
    with spans.server():
        await Client().call(AgentMiddleware(app, agents=[patient("a", agent, response_body_mode=STREAM)]))
    assert spans.ours == []


_SUBPROCESS = """
import json, sys
import anyio
from opentelemetry import trace
import asgi_agents
from asgi_agents import Agent, AgentConfig, AgentManager, AgentMiddleware, EventType
from asgi_agents.serve import agent_app, serve_stream
from tests.support.asgi import App, Client
from tests.observability.spans import Spans, context_of, parent_id, serving


class Hook(Agent):
    async def on_request_headers(self, event):
        with trace.get_tracer("hook").start_as_current_span("hook"):
            self.traceparent = event.metadata.traceparent


async def main():
    agent = Hook()
    manager = AgentManager([AgentConfig("near", agent)])
    spans = Spans()
    if sys.argv[1] == "late":
        trace.set_tracer_provider(spans.provider)
    async with serving(Hook()) as address:
        await manager.add_agent(AgentConfig("far", address, timeout=30.0))
        async with manager:
            client = Client(headers=[(b"traceparent", sys.argv[2].encode())])
            await client.call(AgentMiddleware(App(), manager=manager))
    print(json.dumps({
        "status": client.status,
        "traceparent": agent.traceparent,
        "unended": spans.unended,
        "spans": [[s.name, s.kind.name, context_of(s).span_id, parent_id(s)] for s in spans.finished],
    }))


anyio.run(main)
"""


def _in_a_process_of_its_own(when: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _SUBPROCESS, when, CLIENTS_TRACEPARENT],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_a_global_provider_that_is_set_later_gets_the_spans_of_both_ends() -> None:
    told = _in_a_process_of_its_own("late")
    assert told["status"] == 200
    assert told["unended"] == []
    found = {name: (kind, own, parent) for name, kind, own, parent in told["spans"] if name != "hook"}
    assert {name: kind for name, (kind, _, _) in found.items()} == {
        "request_headers near": "INTERNAL",
        "request_headers far": "CLIENT",
        "request_headers Hook": "SERVER",
    }
    hooks = {parent for name, _, _, parent in told["spans"] if name == "hook"}
    assert hooks == {found["request_headers near"][1], found["request_headers Hook"][1]}
    assert found["request_headers Hook"][2] == found["request_headers far"][1]


def test_where_no_global_provider_is_ever_set_there_are_no_spans() -> None:
    told = _in_a_process_of_its_own("never")
    assert told == {"status": 200, "traceparent": CLIENTS_TRACEPARENT, "unended": [], "spans": []}
