"""What of events and answers goes into a recording: no secrets, and bodies only where they are asked for. No I/O."""

import json
import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from ..audit import Redact
from ..guardrails.text_guardrail import CONTEXT, FINAL, GOING_ON, KIND, ROLE, START, TOOL
from ..messages.throttle import Throttle
from ..observability.redaction import (
    REDACTED,
    is_challenge_header,
    redact_challenge,
    redact_patterns,
    redact_secrets,
    redact_subprotocols,
)
from ..observability.secret_names import is_secret_member
from ..protocol import (
    ALLOW,
    Acknowledgement,
    AgentResponse,
    Allow,
    Answer,
    AuditMetadata,
    Block,
    BodyMutation,
    Challenge,
    ConfigureEvent,
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
    WebSocketDrop,
    WebSocketFrameEvent,
)
from ..protocol.events import EVENT_CLASSES
from .compressed import is_compressed
from .format import RecordingLine, Redaction
from .forms import fields_without_secrets
from .members import json_in, names_of
from .texts import without_named_secrets

logger: Final = logging.getLogger("asgi_agents")

# What an app does with an answer depends on these, and not on the other things that are left out.
_APPLIED: Final = frozenset(
    {"request_body_mutation", "response_body_mutation", "redacted_content", "detections.replacement"}
)
_EVENTS: Final = frozenset(EVENT_CLASSES.values()) - {ConfigureEvent}
_ANSWERS: Final = frozenset({AgentResponse, GuardrailResponse, Acknowledgement})
_DECISIONS: Final = frozenset({Allow, Block, Redirect, Challenge})
_CLOSES: Final = frozenset({WebSocketClose, WebSocketDrop, type(None)})
_DETECTIONS: Final = frozenset({Detection})
_OPS: Final = frozenset({HeaderOp})
# Of the metadata of a question, what a guardrail says of a window; all but the text that precedes it.
_OF_WINDOWS: Final = frozenset({START, FINAL, KIND, ROLE, TOOL})
_TEXTS_OF_WINDOWS: Final = frozenset({CONTEXT, GOING_ON})
_SUBPROTOCOLS: Final = "sec-websocket-protocol"
# A text that is longer is not looked at: it would keep the app waiting.
MAX_TEXT: Final = 1024 * 1024
# A value that is longer is not remembered.
_SHORT: Final = 200
# Values are looked at so deep. A text in a text, such as JSON in the field of a form, counts as so many levels.
_MAX_DEPTH: Final = 100
_TEXT: Final = 20


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

    def text(self, given: str, depth: int = 0) -> str:
        """A text of any kind without secrets: those that look like some, and those whose names say so.

        Names are those of members of JSON, at any depth, of fields of forms, of parameters of a query, of headers, and
        of elements of XML.

        :param depth: how deep it is within another.
        """
        if self._redact is None or not given:
            return given
        if len(given) > MAX_TEXT or depth > _MAX_DEPTH:
            return REDACTED
        cleaned = self._json(given, depth)
        if cleaned is not None:
            return cleaned
        return self._own(without_named_secrets(given, partial(self.text, depth=depth + _TEXT)))

    def url(self, given: str) -> str:
        """The same of a URL, or of the target of a request: all of the value of a parameter has its name."""
        if self._redact is None or len(given) > MAX_TEXT:
            return self.text(given)
        return self.text(fields_without_secrets(given, partial(self.text, depth=_TEXT)))

    def looks_at(self, size: int) -> bool:
        """Whether a content of that size is looked at; otherwise it is left out."""
        return self._redact is None or size <= MAX_TEXT

    def data(self, given: bytes) -> bytes | None:
        """A body or a message without secrets. None: it can't be looked at, and is left out."""
        if self._redact is None:
            return given
        # Nobody sees a secret in what is compressed.
        if not self.looks_at(len(given)) or is_compressed(given):
            return None
        encoding = json.detect_encoding(given)
        wide = None if encoding.startswith("utf-8") else self._wide(given, encoding)
        if wide is not None:
            return wide
        # A body need not be text for a secret to be found in it.
        text = given.decode("utf-8", "surrogateescape")
        cleaned = self.text(text)
        return given if cleaned == text else cleaned.encode("utf-8", "surrogateescape")

    def _wide(self, given: bytes, encoding: str) -> bytes | None:
        """A text in UTF-16 or UTF-32 without secrets; None where nothing is found in it as such."""
        # A piece may end in the middle of a character.
        size = len(given) - len(given) % (2 if encoding.startswith("utf-16") else 4)
        try:
            text = given[:size].decode(encoding, "surrogatepass")
        except UnicodeDecodeError:
            return None
        cleaned = self.text(text)
        return None if cleaned == text else cleaned.encode(encoding, "surrogatepass") + given[size:]

    def _own(self, given: str) -> str:
        """What :attr:`_redact` makes of a text."""
        assert self._redact is not None
        if self._redact is redact_secrets:
            # The parameters have been looked at.
            return redact_patterns(given)
        try:
            text = self._redact(given)
            if not isinstance(text, str):
                raise TypeError(f"redact returned {type(text).__name__}, expected str")
        except Exception:
            if self._complaints.due("redact"):
                logger.exception("redact failed; the recording leaves out what it was given (logged once a minute)")
            return REDACTED
        return text

    def _json(self, given: str, depth: int) -> str | None:
        """JSON without secrets; None for what is no JSON, or would not be the same: that is text."""
        bare = given.lstrip("\ufeff")
        try:
            value = json_in(bare)
            if value is None:
                return None
            found = _Cleaning(self).plain(value, depth + _TEXT if depth else 0)
            cleaned = bare if found == value else json.dumps(found, separators=(",", ":"))
        except (ValueError, RecursionError):
            return None
        return given[: len(given) - len(bare)] + cleaned

    def named(self, name: str, value: str, depth: int = 0) -> str:
        """The value of a header, or of something that is named like one."""
        if self._redact is None:
            return value
        if is_secret_member(name, value):
            return REDACTED
        if is_challenge_header(name):
            cleaned = redact_challenge(value)
            return cleaned if self._redact is redact_secrets else self._own(cleaned)
        if name.lower() == _SUBPROTOCOLS:
            value = redact_subprotocols(value)
        # Most headers of most requests are the same.
        if self._redact is redact_secrets and len(value) <= _SHORT:
            return _cleaned(value)
        return self.text(value, depth)

    def is_secret(self, name: str, value: object) -> bool:
        """Whether what has that name is replaced, whatever it looks like."""
        return self._redact is not None and is_secret_member(name, value)


@lru_cache(maxsize=1000)
def _cleaned(value: str) -> str:
    return Cleaner(bodies=True).text(value)


def cleaner_of(opening: RecordingLine, redact: Redact | None) -> Cleaner:
    """What takes out of events and answers what was taken out of those in a recording.

    :param redact: what was done to texts, where the recording was made with a function of the application's own.
    """
    functions: dict[Redaction, Redact | None] = {"default": redact_secrets, "none": None, "custom": redact}
    return Cleaner(bodies=opening.bodies, redact=functions[opening.redaction])


def _require(given: object, known: frozenset[Any]) -> None:
    """Of what is not known it is not known where its texts are. A part that another type adds would be written too."""
    if type(given) not in known:
        raise TypeError(
            f"{type(given).__name__} can't be recorded, expected one of {sorted(t.__name__ for t in known)}"
        )


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
        _require(event, _EVENTS)
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
                    metadata={self._text(name): self._said(name, value) for name, value in event.metadata.items()},
                )
            case RequestCompleteEvent() if event.error is not None:
                event = replace(event, error=self._text(event.error))
            case _:
                pass
        return Cleaned(event, self._left_out, self._redacted)

    def answer(self, answer: Answer) -> Cleaned:
        _require(answer, _ANSWERS)
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
        _require(close, _CLOSES)
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
        _require(decision, _DECISIONS)
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

    def plain(self, value: Any, depth: int = 0) -> Any:
        """Plain values. What has the name of a secret is replaced, whatever it is."""
        match value:
            case str():
                return self._text(value, depth)
            case Mapping() | list() | tuple() if depth > _MAX_DEPTH:
                self._redacted = True
                return REDACTED
            case Mapping():
                # Of a field of a header or a form, or of whatever else has names, another member says the name.
                names = names_of(value)
                return {
                    self._name(name, depth): self._member((name, *names.get(name, ())), item, depth)
                    for name, item in value.items()
                }
            case list() | tuple():
                return [self._item(item, depth + 1) for item in value]
            case _:
                return value

    def _item(self, item: Any, depth: int) -> Any:
        """An item of a list, which may be a pair of a name and a value."""
        if isinstance(item, list | tuple) and len(item) == 2 and isinstance(item[0], str) and depth <= _MAX_DEPTH:
            return [self._name(item[0], depth), self._member((item[0],), item[1], depth)]
        return self.plain(item, depth)

    def _name(self, name: Any, depth: int) -> Any:
        return self._text(name, depth) if isinstance(name, str) else name

    def _member(self, names: tuple[Any, ...], value: Any, depth: int) -> Any:
        """What has one name or several of them, of which each counts."""
        said = [name for name in names if isinstance(name, str)]
        if any(self._cleaner.is_secret(name, value) for name in said):
            # What has such a name is as secret where it is a list.
            self._redacted = True
            return REDACTED
        if said and isinstance(value, str):
            known = (name for name in said if is_challenge_header(name) or name.lower() == _SUBPROTOCOLS)
            return self._named(next(known, said[0]), value, depth + 1)
        return self.plain(value, depth + 1)

    def _detection(self, detection: Detection) -> Detection:
        _require(detection, _DETECTIONS)
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
        return tuple(self._op(op) for op in ops)

    def _op(self, op: HeaderOp) -> HeaderOp:
        _require(op, _OPS)
        return op if op.kind == "remove" else replace(op, value=self._named(op.name, op.value))

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
        cleaned = self._cleaner.data(data)
        if cleaned is None:
            self._left_out[name] = self._left_out.get(name, 0) + len(data)
            return b""
        self._redacted = self._redacted or cleaned != data
        return cleaned

    def _content(self, name: str, text: str) -> str:
        if not text or (self._cleaner.bodies and self._cleaner.looks_at(len(text))):
            return self._text(text)
        self._left_out[name] = self._left_out.get(name, 0) + len(text)
        return ""

    def _said(self, name: str, value: str) -> str:
        """What the metadata of a question says. Beside the content, it may be what a client or a model has written."""
        if name in _OF_WINDOWS or (self._cleaner.bodies and name not in _TEXTS_OF_WINDOWS):
            return self._named(name, value)
        if name == GOING_ON and value and self._cleaner.bodies and self._cleaner.redaction != "none":
            # It is the beginning of what an agent has taken for a secret, and too little of it to be known as one.
            return self._noted(value, REDACTED)
        return self._content(name if name in _TEXTS_OF_WINDOWS else "metadata", value)

    def _optional(self, name: str, text: str | None) -> str | None:
        if text is None or (self._cleaner.bodies and self._cleaner.looks_at(len(text))):
            return None if text is None else self._text(text)
        self._left_out[name] = self._left_out.get(name, 0) + len(text)
        return None

    def _url(self, given: str) -> str:
        return self._noted(given, self._cleaner.url(given))

    def _text(self, given: str, depth: int = 0) -> str:
        return self._noted(given, self._cleaner.text(given, depth))

    def _named(self, name: str, value: str, depth: int = 0) -> str:
        return self._noted(value, self._cleaner.named(name, value, depth))

    def _noted(self, given: str, cleaned: str) -> str:
        self._redacted = self._redacted or cleaned != given
        return cleaned
