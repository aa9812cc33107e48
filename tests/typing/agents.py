"""Agents whose hooks are annotated, and what they answer."""

from collections.abc import Mapping, Sequence
from typing import assert_type

from asgi_agents import (
    Agent,
    AgentResponse,
    Allow,
    AuditMetadata,
    BadInput,
    Block,
    BodyMutation,
    Challenge,
    ConfigureEvent,
    Decision,
    Detection,
    Event,
    EventType,
    GuardrailInspectEvent,
    GuardrailResponse,
    HeaderOp,
    Headers,
    InspectionType,
    Opcode,
    Redirect,
    RequestBodyChunkEvent,
    RequestCompleteEvent,
    RequestHeadersEvent,
    RequestMetadata,
    ResponseBodyChunkEvent,
    ResponseHeadersEvent,
    Severity,
    TextSpan,
    WebSocketClose,
    WebSocketDecision,
    WebSocketDrop,
    WebSocketFrameEvent,
)


class Everything(Agent):
    """Hears all there is."""

    async def on_configure(self, event: ConfigureEvent) -> AgentResponse | None:
        if event.config is None:
            raise ValueError("no config")
        return None

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        assert_type(event.correlation_id, str)
        assert_type(event.header("x-user"), str | None)
        assert_type(event.headers, Headers)
        assert_type(event.metadata, RequestMetadata)
        assert_type(event.metadata.route_id, str | None)
        if event.method == "TRACE":
            return AgentResponse.block(405, "no", headers={"allow": "GET"}, audit=AuditMetadata(tags=["trace"]))
        if event.uri == "/old":
            return AgentResponse.redirect("/new")
        return AgentResponse.allow(
            request_headers=[HeaderOp.set("x-user", "alice"), HeaderOp.remove("x-key")],
            response_headers=[HeaderOp.add("vary", "x-user", always=True)],
            routing_metadata={"tenant": "a"},
        )

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse | None:
        assert_type(event.data, bytes)
        assert_type(event.is_last, bool)
        if not event.data:
            raise BadInput("empty", status=422)
        return AgentResponse.allow(request_body_mutation=BodyMutation(event.data.upper()))

    async def on_response_headers(self, event: ResponseHeadersEvent) -> AgentResponse | None:
        assert_type(event.status, int)
        return AgentResponse.challenge("bearer", {"realm": "admin"}) if event.status == 500 else None

    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> AgentResponse | None:
        return AgentResponse.allow(response_body_mutation=BodyMutation(event.data))

    async def on_websocket_frame(self, event: WebSocketFrameEvent) -> AgentResponse | None:
        assert_type(event.opcode, Opcode)
        return AgentResponse.websocket_drop() if event.data else AgentResponse.websocket_close(1008, "no")

    async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> AgentResponse | GuardrailResponse | None:
        if event.inspection_type != InspectionType.PROMPT_INJECTION:
            return None
        span = TextSpan(0, len(event.content))
        found = Detection(category="injection", description="all of it", severity=Severity.HIGH, span=span)
        return GuardrailResponse(detected=True, detections=[found])

    async def on_request_complete(self, event: RequestCompleteEvent) -> None:
        assert_type(event.correlation_id, str)


class Narrower(Agent):
    """What a hook returns may be said more closely than the base class says it."""

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
        return AgentResponse.allow()

    async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> GuardrailResponse:
        return GuardrailResponse(detected=False)


class Synchronous(Agent):
    def on_request_headers(self, event: RequestHeadersEvent) -> None: ...  # type: ignore[override]


class OfAnotherEvent(Agent):
    async def on_request_headers(self, event: ResponseHeadersEvent) -> None: ...  # type: ignore[override]


class AnswersText(Agent):
    async def on_request_headers(self, event: RequestHeadersEvent) -> str: ...  # type: ignore[override, empty-body]


def decide(answer: AgentResponse) -> str:
    """Every kind of decision; a type checker knows that there are no others."""
    decision: Decision = answer.decision
    match decision:
        case Allow():
            return "allow"
        case Block(status=status, body=body):
            assert_type(status, int)
            return f"{status} {body}"
        case Redirect(url=url):
            return url
        case Challenge(challenge_type=challenge_type):
            return challenge_type


def judge(decision: WebSocketDecision | None) -> int | None:
    """Every kind of decision about a websocket message."""
    match decision:
        case WebSocketClose(code=code):
            return code
        case WebSocketDrop() | None:
            return None


def which(event: Event) -> EventType:
    """Any event has its type, and the id of its connection, but for the configuration."""
    if isinstance(event, ConfigureEvent):
        return event.event_type
    assert_type(event.correlation_id, str)
    return event.event_type


def look(headers: Headers) -> Mapping[str, Sequence[str]]:
    """Headers are a mapping of names to all values."""
    assert_type(headers.first("host"), str | None)
    return headers


AgentResponse.allow(request_headers={"x-user": "alice"})  # type: ignore[arg-type]
AgentResponse.block("403")  # type: ignore[arg-type]
HeaderOp.set("x-count", 1)  # type: ignore[arg-type]
BodyMutation("text")  # type: ignore[arg-type]
GuardrailResponse()  # type: ignore[call-arg]
