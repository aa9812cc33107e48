"""What of events and answers goes into a recording: no secrets, and bodies only where they are asked for. No I/O."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from ..audit import Redact
from ..messages.throttle import Throttle
from ..observability.redaction import REDACTED, is_secret_header, is_secret_parameter, redact_secrets
from ..protocol import (
    ALLOW,
    Acknowledgement,
    AgentResponse,
    Answer,
    AuditMetadata,
    Block,
    BodyMutation,
    Challenge,
    Decision,
    Detection,
    Event,
    GuardrailInspectEvent,
    GuardrailResponse,
    HeaderOp,
    Headers,
    Redirect,
    RequestBodyChunkEvent,
    RequestCompleteEvent,
    RequestHeadersEvent,
    RequestMetadata,
    ResponseBodyChunkEvent,
    ResponseHeadersEvent,
    WebSocketClose,
    WebSocketFrameEvent,
)
from .format import RecordingLine, Redaction

logger: Final = logging.getLogger("asgi_agents")

# What an app does with an answer depends on these, and not on the other things that are left out.
_APPLIED: Final = frozenset(
    {"request_body_mutation", "response_body_mutation", "redacted_content", "detections.replacement"}
)


class Cleaned(Struct, frozen=True):
    """An event or an answer as it may be written down.

    :ivar left_out: what is not in it, by name, with its length in bytes or characters.
    :ivar redacted: whether a secret was replaced in it.
    """

    value: Any
    left_out: Mapping[str, int]
    redacted: bool


class Cleaner:
    """Takes secrets and bodies out of events and answers.

    :param bodies: keep bodies, websocket messages and inspected texts, and what answers put in their places.
    :param redact: what is done to every text. None: nothing at all, secret headers stay too.
    """

    def __init__(self, *, bodies: bool, redact: Redact | None = redact_secrets) -> None:
        self.bodies = bodies
        self._redact = redact
        self._complaints = Throttle()

    @property
    def redaction(self) -> Redaction:
        """What is done to texts, in a word."""
        if self._redact is None:
            return "none"
        return "default" if self._redact is redact_secrets else "custom"

    def event(self, event: Event) -> Cleaned:
        """An event as it may be written down."""
        return _Cleaning(self).event(event)

    def answer(self, answer: Answer) -> Cleaned:
        """An answer as it may be written down."""
        return Cleaned(ALLOW, {}, False) if answer is ALLOW else _Cleaning(self).answer(answer)

    def plain(self, value: Any) -> Any:
        """Plain values without secrets, at any depth."""
        return _Cleaning(self).plain(value)

    def text(self, given: str) -> str:
        """A text without secrets."""
        if self._redact is None or not given:
            return given
        try:
            text = self._redact(given)
            if not isinstance(text, str):
                raise TypeError(f"redact returned {type(text).__name__}, expected str")
        except Exception:
            if self._complaints.due("redact"):
                logger.exception("redact failed; the recording leaves out what it was given (logged once a minute)")
            return REDACTED
        return text

    def url(self, given: str) -> str:
        """A URL, or the target of a request, without secrets. Parameters of the query can have the names of some."""
        path, mark, query = given.partition("?")
        if not mark or self._redact is None:
            return self.text(given)
        return self.text(f"{path}?{'&'.join(map(_parameter, query.split('&')))}")

    def named(self, name: str, value: str) -> str:
        """The value of a header, or of something that is named like one."""
        return REDACTED if self.is_secret(name) else self.text(value)

    def is_secret(self, name: str) -> bool:
        """Whether what has that name is replaced, whatever it looks like."""
        return self._redact is not None and is_secret_header(name)


def cleaner_of(opening: RecordingLine, redact: Redact | None) -> Cleaner:
    """What takes out of events and answers what was taken out of those in a recording.

    :param redact: what was done to texts, where the recording was made with a function of the application's own.
    """
    functions: dict[Redaction, Redact | None] = {"default": redact_secrets, "none": None, "custom": redact}
    return Cleaner(bodies=opening.bodies, redact=functions[opening.redaction])


def _parameter(given: str) -> str:
    name, _, value = given.partition("=")
    return f"{name}={REDACTED}" if value and is_secret_parameter(name) else given


def applied_parts(left_out: Mapping[str, int]) -> Sequence[str]:
    """Those of the parts that are not in an answer without which it can't be given again."""
    return [name for name in left_out if name in _APPLIED]


class _Cleaning:
    """One event or answer."""

    def __init__(self, cleaner: Cleaner) -> None:
        self._cleaner = cleaner
        self._left_out: dict[str, int] = {}
        self._redacted = False

    def event(self, event: Event) -> Cleaned:
        match event:
            case RequestHeadersEvent():
                event = replace(
                    event,
                    metadata=self._metadata(event.metadata),
                    uri=self._url(event.uri),
                    headers=self._headers(event.headers),
                )
            case ResponseHeadersEvent():
                event = replace(event, headers=self._headers(event.headers))
            case RequestBodyChunkEvent() | ResponseBodyChunkEvent() | WebSocketFrameEvent():
                event = replace(event, data=self._bytes("data", event.data))
            case GuardrailInspectEvent():
                event = replace(
                    event,
                    content=self._content("content", event.content),
                    model=None if event.model is None else self._text(event.model),
                    categories=tuple(map(self._text, event.categories)),
                    metadata={self._text(name): self._named(name, value) for name, value in event.metadata.items()},
                )
            case RequestCompleteEvent() if event.error is not None:
                event = replace(event, error=self._text(event.error))
            case _:
                pass
        return Cleaned(event, self._left_out, self._redacted)

    def answer(self, answer: Answer) -> Cleaned:
        match answer:
            case GuardrailResponse():
                found: Answer = replace(
                    answer,
                    detections=tuple(map(self._detection, answer.detections)),
                    redacted_content=self._optional("redacted_content", answer.redacted_content),
                )
            case AgentResponse():
                found = self._response(answer)
            case Acknowledgement():
                found = answer if answer.error is None else replace(answer, error=self._text(answer.error))
        return Cleaned(found, self._left_out, self._redacted)

    def _metadata(self, metadata: RequestMetadata) -> RequestMetadata:
        # The client says for which server its request is. The ids stay, so that events of one request have the same.
        name = metadata.server_name
        return metadata if name is None else replace(metadata, server_name=self._text(name))

    def _response(self, response: AgentResponse) -> AgentResponse:
        close = response.websocket_decision
        if isinstance(close, WebSocketClose):
            close = WebSocketClose(close.code, self._text(close.reason))
        return AgentResponse(
            version=response.version,
            decision=self._decision(response.decision),
            request_headers=self._ops(response.request_headers),
            response_headers=self._ops(response.response_headers),
            routing_metadata=self._fields(response.routing_metadata),
            audit=self._audit(response.audit),
            needs_more=response.needs_more,
            request_body_mutation=self._mutation("request_body_mutation", response.request_body_mutation),
            response_body_mutation=self._mutation("response_body_mutation", response.response_body_mutation),
            websocket_decision=close,
            skip_body=response.skip_body,
        )

    def _decision(self, decision: Decision) -> Decision:
        match decision:
            case Block(status, body, headers):
                return Block(
                    status,
                    None if body is None else self._text(body),
                    None if headers is None else self._fields(headers),
                )
            case Redirect(url, status):
                return Redirect(self._url(url), status)
            case Challenge(challenge_type, params):
                return Challenge(challenge_type, self._fields(params))
            case _:
                return decision

    def _audit(self, audit: AuditMetadata) -> AuditMetadata:
        # It may quote what a client has sent, and nothing is done with it.
        custom: Any = self.plain(audit.custom) if self._cleaner.bodies else {}
        return AuditMetadata(
            tags=tuple(map(self._text, audit.tags)),
            rule_ids=tuple(map(self._text, audit.rule_ids)),
            confidence=audit.confidence,
            reason_codes=tuple(map(self._text, audit.reason_codes)),
            custom=custom,
        )

    def plain(self, value: Any) -> Any:
        """Plain values. What has the name of a secret is replaced, whatever it is."""
        match value:
            case str():
                return self._text(value)
            case {"name": str(name), "value": item}:
                # A field of a header, or of whatever else has names.
                return {**self._members(value), "value": self._member(name, item)}
            case Mapping():
                return self._members(value)
            case list() | tuple():
                return [self.plain(item) for item in value]
            case _:
                return value

    def _members(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        return {name: self._member(name, item) for name, item in values.items()}

    def _member(self, name: object, value: Any) -> Any:
        if isinstance(name, str) and self._cleaner.is_secret(name):
            # What has such a name is as secret where it is a list.
            self._redacted = True
            return REDACTED
        return self.plain(value)

    def _detection(self, detection: Detection) -> Detection:
        return replace(
            detection,
            category=self._text(detection.category),
            # These may quote what was found.
            description=self._content("detections.description", detection.description),
            replacement=self._optional("detections.replacement", detection.replacement),
        )

    def _mutation(self, name: str, mutation: BodyMutation | None) -> BodyMutation | None:
        if mutation is None or mutation.data is None:
            return mutation
        return BodyMutation(self._bytes(name, mutation.data), mutation.chunk_index)

    def _ops(self, ops: Sequence[HeaderOp]) -> Sequence[HeaderOp]:
        return tuple(op if op.kind == "remove" else replace(op, value=self._named(op.name, op.value)) for op in ops)

    def _headers(self, headers: Headers) -> Headers:
        return Headers({name: [self._named(name, value) for value in values] for name, values in headers.items()})

    def _fields(self, fields: Mapping[str, str]) -> dict[str, str]:
        return {name: self._named(name, value) for name, value in fields.items()}

    def _bytes(self, name: str, data: bytes) -> bytes:
        if not data:
            return data
        if not self._cleaner.bodies:
            self._left_out[name] = self._left_out.get(name, 0) + len(data)
            return b""
        # A body need not be text for a secret to be found in it.
        text = data.decode("utf-8", "surrogateescape")
        cleaned = self._text(text)
        return data if cleaned == text else cleaned.encode("utf-8", "surrogateescape")

    def _content(self, name: str, text: str) -> str:
        if not text or self._cleaner.bodies:
            return self._text(text)
        self._left_out[name] = self._left_out.get(name, 0) + len(text)
        return ""

    def _optional(self, name: str, text: str | None) -> str | None:
        if text is None or self._cleaner.bodies:
            return None if text is None else self._text(text)
        self._left_out[name] = self._left_out.get(name, 0) + len(text)
        return None

    def _url(self, given: str) -> str:
        return self._noted(given, self._cleaner.url(given))

    def _text(self, given: str) -> str:
        return self._noted(given, self._cleaner.text(given))

    def _named(self, name: str, value: str) -> str:
        return self._noted(value, self._cleaner.named(name, value))

    def _noted(self, given: str, cleaned: str) -> str:
        self._redacted = self._redacted or cleaned != given
        return cleaned
