"""The answers of agents. The codec maps them to the nested form on the wire."""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, Literal, Self

from msgspec import Struct
from msgspec.structs import force_setattr

from .redacted_repr import RedactedRepr, names_of, redacted_repr, size_of, without_query

PROTOCOL_VERSION = 2


def _freeze(value: Struct, *fields: str) -> None:
    """Turn the values that were given for sequences into tuples. Validation reports those that are no sequences."""
    for field in fields:
        items = getattr(value, field)
        if type(items) is not tuple and isinstance(items, Iterable) and not isinstance(items, str | bytes):
            force_setattr(value, field, tuple(items))


class Allow(Struct, frozen=True):
    """Let the event pass."""


class Block(RedactedRepr, frozen=True):
    """Answer instead of the app. ``headers`` override those that the middleware would set."""

    status: int = 403
    body: str | None = None
    headers: Mapping[str, str] | None = None

    def __repr__(self) -> str:
        return redacted_repr(self, body=size_of(self.body), headers=names_of(self.headers))


class Redirect(RedactedRepr, frozen=True):
    """Redirect the client."""

    url: str
    status: int = 302

    def __repr__(self) -> str:
        return redacted_repr(self, url=repr(without_query(self.url)))


class Challenge(RedactedRepr, frozen=True):
    """Ask the client for credentials or another proof.

    The type is an HTTP auth scheme (``basic``, ``bearer``, …) or one of the agent's own.
    """

    challenge_type: str
    params: Mapping[str, str] = {}

    def __repr__(self) -> str:
        return redacted_repr(self, params=names_of(self.params))


Decision = Allow | Block | Redirect | Challenge


class WebSocketDrop(Struct, frozen=True):
    """Drop the frame: it is not passed on."""


class WebSocketClose(Struct, frozen=True):
    """Close the websocket."""

    code: int = 1008
    reason: str = ""


WebSocketDecision = WebSocketDrop | WebSocketClose


class HeaderOp(RedactedRepr, frozen=True):
    """One change to a set of headers; make one with :meth:`set`, :meth:`add` or :meth:`remove`.

    ``always`` matters in ``response_headers``. With it, the change is also made to the reply that the middleware sends
    when another agent denies or fails, as the headers of a rate limit need it. An agent that was not asked sets
    nothing: agents behind one that denies at once are not, so that one whose headers are for all responses comes first.
    """

    kind: Literal["set", "add", "remove"]
    name: str
    value: str = ""
    always: bool = False

    @classmethod
    def set(cls, name: str, value: str, *, always: bool = False) -> Self:
        """Replace every field of that name by one."""
        return cls("set", name, value, always)

    @classmethod
    def add(cls, name: str, value: str, *, always: bool = False) -> Self:
        """Append a field, keeping those already there."""
        return cls("add", name, value, always)

    @classmethod
    def remove(cls, name: str, *, always: bool = False) -> Self:
        """Remove every field of that name."""
        return cls("remove", name, always=always)

    def __repr__(self) -> str:
        return redacted_repr(self, value="…")


class BodyMutation(RedactedRepr, frozen=True):
    """A change to the chunk that the agent was shown. ``data`` replaces it; empty drops it, None leaves it unchanged.

    ``chunk_index`` of a websocket message is its ``frame_index``. That of a chunk of a body is part of the wire format
    and is ignored: there is only one chunk that an answer can change.
    """

    data: bytes | None = None
    chunk_index: int = 0

    def __repr__(self) -> str:
        return redacted_repr(self, data=size_of(self.data))


class ForgottenMutation(BodyMutation, frozen=True):
    """What is kept of a mutation after it was applied: ``size``, the number of bytes of its data."""

    size: int = 0


class AuditMetadata(RedactedRepr, frozen=True, kw_only=True):
    """What the agent wants recorded about its decision."""

    tags: Sequence[str] = ()
    rule_ids: Sequence[str] = ()
    confidence: float | None = None
    reason_codes: Sequence[str] = ()
    custom: Mapping[str, Any] = {}

    def __post_init__(self) -> None:
        for field in ("tags", "rule_ids", "reason_codes"):
            if isinstance(getattr(self, field), str):
                # A str is a sequence of strings too, but is never meant as one.
                raise TypeError(f"{field}: expected a sequence of strings, got the string {getattr(self, field)!r}")
        _freeze(self, "tags", "rule_ids", "reason_codes")

    def __repr__(self) -> str:
        return redacted_repr(self, custom=names_of(self.custom))


_ALLOW = Allow()
_NO_AUDIT = AuditMetadata()


class AgentResponse(Struct, frozen=True, kw_only=True):
    """An agent's whole answer to one event.

    Header operations and mutations that don't apply to the event, or that arrive after the head was sent, are a failure
    of the agent.
    """

    version: int = PROTOCOL_VERSION
    decision: Decision = _ALLOW
    request_headers: Sequence[HeaderOp] = ()
    response_headers: Sequence[HeaderOp] = ()
    routing_metadata: Mapping[str, str] = {}
    audit: AuditMetadata = _NO_AUDIT
    needs_more: bool = False
    request_body_mutation: BodyMutation | None = None
    response_body_mutation: BodyMutation | None = None
    websocket_decision: WebSocketDecision | None = None
    skip_body: bool = False

    def __post_init__(self) -> None:
        _freeze(self, "request_headers", "response_headers")

    @property
    def is_allow(self) -> bool:
        """Whether neither the decision nor the websocket decision stops the event."""
        return type(self.decision) is Allow and self.websocket_decision is None

    @classmethod
    def allow(
        cls,
        *,
        request_headers: Sequence[HeaderOp] = (),
        response_headers: Sequence[HeaderOp] = (),
        routing_metadata: Mapping[str, str] | None = None,
        audit: AuditMetadata = _NO_AUDIT,
        needs_more: bool = False,
        request_body_mutation: BodyMutation | None = None,
        response_body_mutation: BodyMutation | None = None,
        skip_body: bool = False,
    ) -> Self:
        """Let the event pass, with the given changes.

        ``skip_body`` in an answer to the head of a request or response: the agent does not receive its body.
        """
        if (
            cls is AgentResponse
            and audit is _NO_AUDIT
            and needs_more is False
            and skip_body is False
            and request_body_mutation is None
            and response_body_mutation is None
            and request_headers == ()
            and response_headers == ()
            and not routing_metadata
        ):
            # What most hooks answer, and what a hook means that returns None.
            return ALLOW  # type: ignore[return-value]
        return cls(
            request_headers=request_headers,
            response_headers=response_headers,
            routing_metadata=routing_metadata or {},
            audit=audit,
            needs_more=needs_more,
            request_body_mutation=request_body_mutation,
            response_body_mutation=response_body_mutation,
            skip_body=skip_body,
        )

    @classmethod
    def block(
        cls,
        status: int = 403,
        body: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        response_headers: Sequence[HeaderOp] = (),
        audit: AuditMetadata = _NO_AUDIT,
        needs_more: bool = False,
    ) -> Self:
        """Answer ``status`` (200 to 599) with ``body`` instead of the app. None: the standard phrase of the status."""
        return cls(
            decision=Block(status, body, headers),
            response_headers=response_headers,
            audit=audit,
            needs_more=needs_more,
        )

    @classmethod
    def redirect(
        cls,
        url: str,
        status: int = 302,
        *,
        response_headers: Sequence[HeaderOp] = (),
        audit: AuditMetadata = _NO_AUDIT,
    ) -> Self:
        """Redirect to ``url`` with 301, 302, 303, 307 or 308."""
        return cls(decision=Redirect(url, status), response_headers=response_headers, audit=audit)

    @classmethod
    def challenge(
        cls,
        challenge_type: str,
        params: Mapping[str, str] | None = None,
        *,
        response_headers: Sequence[HeaderOp] = (),
        audit: AuditMetadata = _NO_AUDIT,
    ) -> Self:
        """Challenge the client: ``challenge("bearer", {"realm": "api"})`` becomes 401 with ``www-authenticate``."""
        return cls(
            decision=Challenge(challenge_type, params or {}),
            response_headers=response_headers,
            audit=audit,
        )

    @classmethod
    def websocket_drop(cls, *, audit: AuditMetadata = _NO_AUDIT) -> Self:
        """Drop the frame: it is not passed on."""
        return cls(websocket_decision=WebSocketDrop(), audit=audit)

    @classmethod
    def websocket_close(cls, code: int = 1008, reason: str = "", *, audit: AuditMetadata = _NO_AUDIT) -> Self:
        """Close the websocket; ``reason`` is cut to 123 bytes of UTF-8 (RFC 6455, section 5.5.1)."""
        return cls(websocket_decision=WebSocketClose(code, reason), audit=audit)


#: The plain allow, which a hook also gives by returning None. The fast path recognises it by identity.
ALLOW = AgentResponse()


#: Why a configuration is refused by an agent that no client may configure. Those that ask it know it by these words.
NOT_CONFIGURABLE: Final = "it is configured where it is served, and by no client"


def reason_of(refusal: AgentResponse) -> str:
    """Why an agent refuses its configuration, in the agent's words. It is logged, and never sent to a client."""
    decision = refusal.decision
    if isinstance(decision, Block) and decision.body:
        return decision.body
    return ", ".join(refusal.audit.reason_codes) or "no reason given"


class Severity(StrEnum):
    """The severity of a detection."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


_SEVERITIES: Mapping[str, Severity] = {severity.value: severity for severity in Severity}


class TextSpan(Struct, frozen=True):
    """A part of the inspected content, in code points: start inclusive, end exclusive.

    These are the indices of a Python str: ``event.content[span.start:span.end]`` is what was found. A remote agent that
    counts bytes of UTF-8 needs a transport with ``span_unit="bytes"``.
    """

    start: int
    end: int


class Detection(RedactedRepr, frozen=True, kw_only=True):
    """One thing that a guardrail agent found.

    ``severity`` may be given as text. ``confidence`` is 0 to 1. ``replacement`` is what a :class:`Guardrail` is to put
    in place of the span when it redacts. ``action`` is what it is to do, whatever it does otherwise. Other hosts of the
    protocol know neither of the two.
    """

    category: str
    description: str
    severity: Severity = Severity.MEDIUM
    confidence: float | None = None
    span: TextSpan | None = None
    replacement: str | None = None
    action: Literal["redact", "block", "flag"] | None = None

    def __post_init__(self) -> None:
        if type(self.severity) is str:
            # Validation reports a text that is no severity.
            force_setattr(self, "severity", _SEVERITIES.get(self.severity, self.severity))

    def __repr__(self) -> str:
        return redacted_repr(self, description=size_of(self.description), replacement=size_of(self.replacement))


class GuardrailResponse(RedactedRepr, frozen=True, kw_only=True):
    """The answer to a guardrail inspection. ``confidence`` is 0 to 1."""

    detected: bool
    confidence: float = 0.0
    detections: Sequence[Detection] = ()
    redacted_content: str | None = None

    def __post_init__(self) -> None:
        _freeze(self, "detections")

    def __repr__(self) -> str:
        return redacted_repr(self, redacted_content=size_of(self.redacted_content))


class Acknowledgement(Struct, frozen=True, kw_only=True):
    """The short answer to ``configure`` and ``request_complete``."""

    success: bool
    error: str | None = None


Answer = AgentResponse | GuardrailResponse | Acknowledgement
