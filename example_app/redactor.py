"""A demonstration of body mutations: keeps e-mail addresses, card and phone numbers from leaving the house.

What it finds, in which bodies, and what it does not see is said in :mod:`example_app.redaction`.
"""

from collections.abc import Iterable

import anyio

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

from .redaction import Redactor, UnreadableError, find, redact, redactor_for

# Bytes. What takes longer to read would be felt by everyone else on the event loop.
_AT_ONCE = 32 * 1024
_REFUSAL = "The response can't be inspected"


class PiiRedactor(Agent):
    """Redacts JSON, text and event streams on their way to the client; needs ``body_access="write"``.

    A response that it would have to redact and can't read is refused with 500: one that is compressed, a part of a
    whole, in an unusual charset, or JSON only by its content type.

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
            request_headers=[
                HeaderOp.set("accept-encoding", "identity"),
                HeaderOp.remove("range"),
                HeaderOp.remove("if-range"),
            ]
        )

    async def on_response_headers(self, event: ResponseHeadersEvent) -> AgentResponse | None:
        types = set(event.headers.get("content-type", ()))
        try:
            if len(types) > 1:
                raise UnreadableError("which of its types a client believes is anybody's guess")
            redactor = redactor_for("".join(types))
            if redactor is not None and (event.status == 206 or _encoded(event.headers.get("content-encoding", ()))):
                raise UnreadableError("a part of a body, or an encoded one")
        except UnreadableError:
            return AgentResponse.block(500, _REFUSAL)
        self._redactors[event.correlation_id] = redactor
        return None

    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> AgentResponse | None:
        # A KeyError, and with it the failure mode, for a body whose head was never seen: there is nothing to guess.
        redactor = self._redactors[event.correlation_id]
        if redactor is None:
            return None
        try:
            if len(event.data) <= _AT_ONCE:
                data = redactor.feed(event.data, event.is_last)
            else:
                data = await anyio.to_thread.run_sync(redactor.feed, event.data, event.is_last)
        except UnreadableError:
            return AgentResponse.block(500, _REFUSAL)
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


def _encoded(values: Iterable[str]) -> bool:
    codings = {coding.strip().lower() for value in values for coding in value.split(",")}
    return not codings <= {"", "identity"}
