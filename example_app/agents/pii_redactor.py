"""Keeps addresses, phone and card numbers from leaving the house."""

from asgi_agents import (
    Agent,
    AgentResponse,
    AuditMetadata,
    BodyMutation,
    Detection,
    GuardrailInspectEvent,
    GuardrailResponse,
    HeaderOp,
    InspectionType,
    RequestCompleteEvent,
    RequestHeadersEvent,
    ResponseBodyChunkEvent,
    ResponseHeadersEvent,
    Severity,
    TextSpan,
)

from ..redaction import Redactor, find, redact, redactor_for


class PiiRedactor(Agent):
    """Redacts JSON, text and event streams on their way to the client; needs ``body_access="write"``.

    What comes out, joined, doesn't depend on how the body was cut into chunks: the end of a chunk that may be the
    beginning of something is held back until more of it has come.

    As a guardrail agent it tells a handler what is in a text, and what the text is without it.
    """

    def __init__(self) -> None:
        # None for a response that isn't text.
        self._redactors: dict[str, Redactor | None] = {}

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
        # What is compressed can't be read, and half a document can't be parsed: have the app send neither.
        return AgentResponse.allow(
            request_headers=[HeaderOp.set("accept-encoding", "identity"), HeaderOp.remove("range")]
        )

    async def on_response_headers(self, event: ResponseHeadersEvent) -> AgentResponse | None:
        redactor = redactor_for(event.header("content-type") or "")
        if redactor is not None and event.header("content-encoding") not in (None, "identity"):
            return AgentResponse.block(500, "The response can't be inspected")
        self._redactors[event.correlation_id] = redactor
        return None

    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> AgentResponse | None:
        # A KeyError, and with it the failure mode, for a body whose head was never seen: there is nothing to guess.
        redactor = self._redactors[event.correlation_id]
        if redactor is None:
            return None
        data = redactor.feed(event.data, event.is_last)
        if data == event.data:
            return None
        return AgentResponse.allow(
            response_body_mutation=BodyMutation(data, event.chunk_index), audit=AuditMetadata(tags=("pii",))
        )

    async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> GuardrailResponse | None:
        if event.inspection_type is not InspectionType.PII_DETECTION:
            return None
        detections = tuple(
            Detection(
                category=found.kind,
                description=f"looks like a {found.kind}",
                severity=Severity.HIGH,
                span=TextSpan(found.start, found.end),
            )
            for found in find(event.content)
        )
        return GuardrailResponse(
            detected=bool(detections),
            confidence=0.9 if detections else 0.0,
            detections=detections,
            redacted_content=redact(event.content),
        )

    async def on_request_complete(self, event: RequestCompleteEvent) -> None:
        # However the response ended, also when the client left in the middle of it.
        self._redactors.pop(event.correlation_id, None)
