"""What a handler, or a middleware around, finds at ``request.state.agents``."""

from collections.abc import Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route as AppRoute
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentContext,
    AgentMiddleware,
    AgentResponse,
    AuditMetadata,
    BodyMode,
    BodyMutation,
    CircuitBreakerConfig,
    Detection,
    EventType,
    FailureMode,
    GuardrailInspectEvent,
    GuardrailResponse,
    GuardrailUnavailableError,
    HeaderOp,
    InspectionType,
    Route,
    UnknownAgentError,
)
from tests.support.asgi import Answer, App, Client, Probe, body, guarded, settle, start

STREAM = BodyMode.STREAM


async def context_of(middleware: AgentMiddleware, client: Client | None = None) -> AgentContext:
    """The context of a request, after its end."""
    client = client or Client("POST", body=[b"one", b"two"])
    await client.call(middleware)
    context: AgentContext = client.scope["state"]["agents"]
    return context


async def test_a_handler_finds_its_context_in_the_request() -> None:
    seen: list[AgentContext] = []

    async def endpoint(request: Request) -> Response:
        seen.append(request.state.agents)
        return PlainTextResponse("hello")

    app = Starlette(routes=[AppRoute("/items/{id}", endpoint)])
    client = Client(path="/items/1", headers=[(b"x-request-id", b"abc")])
    agent = Probe(request_headers=None)
    await client.call(guarded(app, AgentConfig("a", agent), routes=[Route("/items/{id}", agents=["a"])]))
    assert seen[0].correlation_id == "abc"
    assert seen[0].route == "/items/{id}"
    assert seen[0].decision.is_allow


async def test_a_context_is_there_even_if_only_handlers_ask_agents() -> None:
    class Guardrail(Agent):
        async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> None:
            return None

    assert isinstance(await context_of(guarded(App(), AgentConfig("a", Guardrail()))), AgentContext)


async def test_the_state_of_an_outer_middleware_is_kept() -> None:
    client = Client()
    client.scope["state"]["user"] = "alice"
    await context_of(guarded(App(), AgentConfig("a", Probe(request_headers=None))), client)
    assert client.scope["state"]["user"] == "alice"


async def test_the_decision_so_far_has_a_verdict_of_every_agent(probe: type[Probe]) -> None:
    during: list[AgentContext] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        context: AgentContext = scope["state"]["agents"]
        during.append(context)
        assert [verdict.event_type for verdict in context.decision.verdicts] == [EventType.REQUEST_HEADERS] * 2
        await App()(scope, receive, send)

    agents = [AgentConfig(f"a{i}", probe(request_headers=None, response_headers=None)) for i in range(2)]
    context = await context_of(guarded(app, *agents))
    assert context is during[0]
    assert [(verdict.agent_id, verdict.event_type.value) for verdict in context.decision.verdicts] == [
        ("a0", "request_headers"),
        ("a1", "request_headers"),
        ("a0", "response_headers"),
        ("a1", "response_headers"),
    ]


async def test_chunks_that_pass_without_a_word_are_not_kept() -> None:
    quiet = Probe(request_body=None, response_body=None)
    context = await context_of(
        guarded(App(), AgentConfig("a", quiet, request_body_mode=STREAM, response_body_mode=STREAM))
    )
    assert context.decision.verdicts == ()
    whole = await context_of(guarded(App(), AgentConfig("a", Probe(request_body=None, response_body=None))))
    assert len(whole.decision.verdicts) == 2


async def test_only_the_newest_thousand_verdicts_are_kept() -> None:
    talkative = Probe(
        response_body=lambda event: AgentResponse.allow(audit=AuditMetadata(tags=[str(event.chunk_index)]))
    )
    app = App(start(), *(body(b"x", more=index < 1199) for index in range(1200)))
    context = await context_of(guarded(app, AgentConfig("a", talkative, response_body_mode=STREAM)))
    assert len(context.decision.verdicts) == 1000
    assert context.audit[-1] == ("a", AuditMetadata(tags=["1199"]))
    assert context.audit[0] == ("a", AuditMetadata(tags=["200"]))


@pytest.mark.parametrize("event", ["request_headers", "request_body", "response_headers", "response_body"])
async def test_audit_of_every_agent_that_answered_is_kept_when_another_denies(event: str, probe: type[Probe]) -> None:
    noting = probe(**{event: AgentResponse.allow(audit=AuditMetadata(tags=["seen"]))})
    denial = AgentResponse.block(403, audit=AuditMetadata(rule_ids=["7"], confidence=0.9))

    async def deny_last(event: Any) -> Answer:
        await settle()
        return denial

    denying = probe(**{event: denial if probe is Probe else deny_last})
    # Nobody waits for a shadow agent that is slow, once the others have decided.
    shadow = Probe(**{event: AgentResponse.block(403, audit=AuditMetadata(reason_codes=["shadow"]))})
    context = await context_of(
        guarded(
            App(),
            AgentConfig("noting", noting),
            AgentConfig("shadow", shadow, enforce=False),
            AgentConfig("denying", denying),
        )
    )
    assert context.decision.decided_by == "denying"
    assert list(context.audit) == [
        ("noting", AuditMetadata(tags=["seen"])),
        ("shadow", AuditMetadata(reason_codes=["shadow"])),
        ("denying", AuditMetadata(rule_ids=["7"], confidence=0.9)),
    ]


async def test_what_a_shadow_agent_would_have_done_is_in_the_verdicts_alone() -> None:
    shadow = Probe(
        request_headers=AgentResponse.block(403, response_headers=[HeaderOp.set("x-shadow", "1")]),
        response_body=AgentResponse.allow(response_body_mutation=BodyMutation(b"changed")),
    )
    client = Client()
    context = await context_of(guarded(App(), AgentConfig("a", shadow, enforce=False, body_access="write")), client)
    assert client.body == b"hello"
    assert client.header(b"x-shadow") is None
    assert context.decision.is_allow
    assert [verdict.outcome for verdict in context.decision.verdicts] == ["block", "allow"]


async def test_routing_metadata_of_later_agents_wins(probe: type[Probe]) -> None:
    first = probe(request_headers=AgentResponse.allow(routing_metadata={"pool": "a", "zone": "1"}))
    second = probe(request_headers=AgentResponse.allow(routing_metadata={"pool": "b"}))
    context = await context_of(guarded(App(), AgentConfig("a", first), AgentConfig("b", second)))
    assert context.routing_metadata == {"pool": "b", "zone": "1"}


async def test_the_final_decision_keeps_all_verdicts_so_far() -> None:
    agent = Probe(
        request_headers=AgentResponse.allow(audit=AuditMetadata(tags=["head"])),
        response_body=AgentResponse.block(451, "denied"),
    )
    context = await context_of(guarded(App(), AgentConfig("a", agent)))
    assert context.decision.decision.status == 451  # type: ignore[union-attr]
    assert [verdict.event_type.value for verdict in context.decision.verdicts] == [
        "request_headers",
        "response_body_chunk",
    ]


# Guardrails


Verdict = GuardrailResponse | AgentResponse | None


class Guardrail(Agent):
    def __init__(self, react: Callable[[GuardrailInspectEvent], Verdict]) -> None:
        self.heard: list[GuardrailInspectEvent] = []
        self._react = react

    async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> Verdict:
        self.heard.append(event)
        return self._react(event)


class Inspecting:
    """An app that asks a guardrail, and remembers the answer or the error."""

    def __init__(self, agent_id: str = "a", **options: Any) -> None:
        self.answer: GuardrailResponse | None = None
        self.error: Exception | None = None
        self._agent_id = agent_id
        self._options = {"content": "text", "inspection_type": "pii_detection"} | options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self.answer = await scope["state"]["agents"].inspect_guardrail(self._agent_id, **self._options)
        except Exception as exc:
            self.error = exc
        await App()(scope, receive, send)


def fail(event: GuardrailInspectEvent) -> GuardrailResponse:
    raise ValueError


async def test_a_guardrail_is_asked_with_all_that_the_handler_says() -> None:
    answer = GuardrailResponse(detected=True, confidence=0.8, detections=[Detection(category="email", description="x")])
    agent = Guardrail(lambda event: answer)
    app = Inspecting(
        content="a@example.com",
        inspection_type=InspectionType.PII_DETECTION,
        model="m",
        categories=["email"],
        metadata={"k": "v"},
    )
    client = Client(headers=[(b"x-request-id", b"abc")])
    await context_of(guarded(app, AgentConfig("a", agent), routes=[Route("/", agents=["a"])]), client)
    assert app.answer is answer
    (event,) = agent.heard
    assert event == GuardrailInspectEvent(
        correlation_id="abc",
        inspection_type=InspectionType.PII_DETECTION,
        content="a@example.com",
        model="m",
        categories=("email",),
        route_id="/",
        metadata={"k": "v"},
    )


async def test_a_guardrail_is_told_nothing_that_the_handler_does_not_say() -> None:
    agent = Guardrail(lambda event: None)
    await context_of(guarded(Inspecting(), AgentConfig("a", agent)))
    (event,) = agent.heard
    assert (event.model, event.categories, event.metadata, event.route_id) == (None, (), {}, None)


async def test_a_guardrail_may_be_asked_for_what_the_protocol_does_not_name() -> None:
    agent = Guardrail(lambda event: None)
    await context_of(guarded(Inspecting(inspection_type="astrology"), AgentConfig("a", agent)))
    assert agent.heard[0].inspection_type == "astrology"


async def test_a_kind_of_inspection_that_is_no_token_is_a_value_error() -> None:
    app = Inspecting(inspection_type="pii detection")
    await context_of(guarded(app, AgentConfig("a", Guardrail(lambda event: None))))
    assert isinstance(app.error, ValueError)
    assert str(app.error) == "inspection_type: expected a token such as 'pii_detection', got 'pii detection'"


@pytest.mark.parametrize("agent_id", ["nobody", "deaf"])
async def test_an_agent_that_is_no_guardrail_is_unknown(agent_id: str) -> None:
    app = Inspecting(agent_id)
    await context_of(
        guarded(app, AgentConfig("a", Guardrail(lambda event: None)), AgentConfig("deaf", Probe(request_headers=None)))
    )
    assert isinstance(app.error, UnknownAgentError)


async def test_lone_surrogates_reach_a_guardrail_as_replacement_characters() -> None:
    agent = Guardrail(lambda event: None)
    await context_of(guarded(Inspecting(content="a\ud800b\udfff"), AgentConfig("a", agent)))
    # One for one: spans count the same in what the handler has.
    assert agent.heard[0].content == "a\ufffdb\ufffd"


async def test_a_guardrail_verdict_is_part_of_the_context() -> None:
    agent = Guardrail(lambda event: AgentResponse.block(audit=AuditMetadata(reason_codes=["injection"])))
    app = Inspecting()
    context = await context_of(guarded(app, AgentConfig("a", agent)))
    assert app.answer is not None
    assert app.answer.detected
    assert app.answer.detections[0].category == "injection"
    assert [(verdict.agent_id, verdict.outcome) for verdict in context.decision.verdicts] == [("a", "block")]
    assert context.audit[0][1].reason_codes == ("injection",)


async def test_what_a_guardrail_finds_is_the_handlers_to_act_on() -> None:
    agent = Guardrail(lambda event: AgentResponse.block())
    client = Client()
    await context_of(guarded(Inspecting(), AgentConfig("a", agent)), client)
    assert client.body == b"hello"


@pytest.mark.parametrize("via", ["agent", "route"])
@pytest.mark.parametrize(
    ("options", "react", "status", "detail"),
    [
        ({}, fail, 503, "Agent unavailable"),
        ({"circuit_breaker": CircuitBreakerConfig(failure_threshold=1)}, fail, 503, "Service unavailable"),
    ],
    ids=["error", "breaker open"],
)
async def test_a_fail_closed_guardrail_that_fails_raises_what_would_have_been_the_reply(
    via: str, options: dict[str, Any], react: Callable[[Any], Any], status: int, detail: str
) -> None:
    config = AgentConfig(
        "a",
        Guardrail(react),
        failure_mode=FailureMode.CLOSED if via == "agent" else FailureMode.OPEN,
        **options,
    )
    app = Inspecting()
    middleware = guarded(
        app, config, routes=None if via == "agent" else [Route("/", agents=[("a", FailureMode.CLOSED)])]
    )
    for _ in range(2 if options else 1):
        await context_of(middleware)
    error = app.error
    assert isinstance(error, GuardrailUnavailableError)
    assert (error.status_code, error.detail) == (status, detail)
    assert (error.headers is not None) == bool(options)
    assert "agent 'a'" in str(error)


@pytest.mark.parametrize("mode", FailureMode)
async def test_a_guardrail_that_failed_is_among_the_verdicts_and_stops_nothing(mode: FailureMode) -> None:
    client = Client()
    context = await context_of(guarded(Inspecting(), AgentConfig("a", Guardrail(fail), failure_mode=mode)), client)
    assert [(verdict.agent_id, verdict.outcome) for verdict in context.decision.verdicts] == [("a", "error")]
    assert context.decision.is_allow
    assert client.body == b"hello"


@pytest.mark.parametrize("via", ["agent", "route"])
async def test_a_fail_open_guardrail_that_fails_detects_nothing(via: str) -> None:
    config = AgentConfig("a", Guardrail(fail), failure_mode=FailureMode.OPEN if via == "agent" else FailureMode.CLOSED)
    app = Inspecting()
    await context_of(
        guarded(app, config, routes=None if via == "agent" else [Route("/", agents=[("a", FailureMode.OPEN)])])
    )
    assert app.answer == GuardrailResponse(detected=False)


async def test_a_guardrail_that_is_not_on_the_route_is_asked_in_its_own_mode() -> None:
    app = Inspecting("other")
    await context_of(
        guarded(
            app,
            AgentConfig("a", Guardrail(lambda event: None)),
            AgentConfig("other", Guardrail(fail), failure_mode=FailureMode.OPEN),
            routes=[Route("/", agents=[("a", FailureMode.CLOSED)])],
        )
    )
    assert app.answer == GuardrailResponse(detected=False)


def test_a_guardrail_error_that_a_handler_lets_through_is_answered_as_the_middleware_would() -> None:
    async def endpoint(request: Request) -> Response:
        await request.state.agents.inspect_guardrail("a", "text", inspection_type="prompt_injection")
        raise AssertionError

    app = Starlette(routes=[AppRoute("/", endpoint)])
    app.add_middleware(AgentMiddleware, agents=[AgentConfig("a", Guardrail(fail))])
    response = TestClient(app).get("/")
    assert (response.status_code, response.text) == (503, "Agent unavailable")
