"""What an agent answers. The codec maps these to the wire's nested spelling."""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Literal, Self

from msgspec import Struct
from msgspec.structs import force_setattr

from .redacted_repr import RedactedRepr, names_of, redacted_repr, size_of, without_query

PROTOCOL_VERSION = 2


def _freeze(value: Struct, *fields: str) -> None:
    """Turn what was given for sequences into tuples; what makes no sense is left for validation to complain about."""
    for field in fields:
        items = getattr(value, field)
        if type(items) is not tuple and isinstance(items, Iterable) and not isinstance(items, str | bytes):
            force_setattr(value, field, tuple(items))


class Allow(Struct, frozen=True):
    """Let it pass."""


class Block(RedactedRepr, frozen=True):
    """Answer in the app's place. ``headers`` win over what the middleware would have set."""

    status: int = 403
    body: str | None = None
    headers: Mapping[str, str] | None = None

    def __repr__(self) -> str:
        return redacted_repr(self, body=size_of(self.body), headers=names_of(self.headers))


class Redirect(RedactedRepr, frozen=True):
    """Send the client elsewhere."""

    url: str
    status: int = 302

    def __repr__(self) -> str:
        return redacted_repr(self, url=repr(without_query(self.url)))


class Challenge(RedactedRepr, frozen=True):
    """Ask the client to prove something.

    The type is an HTTP auth scheme (``basic``, ``bearer``, …) or one of the agent's own.
    """

    challenge_type: str
    params: Mapping[str, str] = {}

    def __repr__(self) -> str:
        return redacted_repr(self, params=names_of(self.params))


Decision = Allow | Block | Redirect | Challenge


class WebSocketDrop(Struct, frozen=True):
    """Swallow this frame."""


class WebSocketClose(Struct, frozen=True):
    """Close the websocket."""

    code: int = 1008
    reason: str = ""


WebSocketDecision = WebSocketDrop | WebSocketClose


class HeaderOp(RedactedRepr, frozen=True):
    """One change to a set of headers; make one with :meth:`set`, :meth:`add` or :meth:`remove`.

    ``always`` matters among ``response_headers``: the change is made as well where the client is answered in the app's
    place, because another agent denies or fails. The headers of a rate limit are wanted there, for one.
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
    """A change to the chunk just shown: ``data`` None passes it, empty drops it, anything else replaces it.

    ``chunk_index`` is part of the wire format and is ignored: there is only one chunk that an answer can change.
    """

    data: bytes | None = None
    chunk_index: int = 0

    def __repr__(self) -> str:
        return redacted_repr(self, data=size_of(self.data))


class ForgottenMutation(BodyMutation, frozen=True):
    """What is remembered of a mutation that had data, once it was applied: ``size``, how many bytes it had."""

    size: int = 0


class AuditMetadata(RedactedRepr, frozen=True, kw_only=True):
    """What the agent wants remembered about its decision."""

    tags: Sequence[str] = ()
    rule_ids: Sequence[str] = ()
    confidence: float | None = None
    reason_codes: Sequence[str] = ()
    custom: Mapping[str, Any] = {}

    def __post_init__(self) -> None:
        for field in ("tags", "rule_ids", "reason_codes"):
            if isinstance(getattr(self, field), str):
                # A sequence of strings as well, and never meant as one.
                raise TypeError(f"{field}: expected a sequence of strings, got the string {getattr(self, field)!r}")
        _freeze(self, "tags", "rule_ids", "reason_codes")

    def __repr__(self) -> str:
        return redacted_repr(self, custom=names_of(self.custom))


_ALLOW = Allow()
_NO_AUDIT = AuditMetadata()


class AgentResponse(Struct, frozen=True, kw_only=True):
    """An agent's whole answer to one event.

    Header operations and mutations that the event has no use for, or that come when the head is gone, are a failure of
    the agent.
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
        """Whether nothing here stops the event: neither the decision nor the websocket decision."""
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
        """Let it pass, perhaps changed.

        ``skip_body`` in an answer to a head: the agent is not shown the body that follows, a request's or a response's.
        """
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
        """Answer ``status`` (200 to 599) with ``body`` in the app's place; None is the status' standard phrase."""
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
        """Swallow the frame."""
        return cls(websocket_decision=WebSocketDrop(), audit=audit)

    @classmethod
    def websocket_close(cls, code: int = 1008, reason: str = "", *, audit: AuditMetadata = _NO_AUDIT) -> Self:
        """Close the websocket; ``reason`` is cut to 123 bytes of UTF-8 (RFC 6455, section 5.5.1)."""
        return cls(websocket_decision=WebSocketClose(code, reason), audit=audit)


#: The answer of an agent that has nothing to say; recognised by identity on the fast path.
ALLOW = AgentResponse()


def reason_of(refusal: AgentResponse) -> str:
    """Why an agent does not take its configuration, in its own words. The log shows it, and no client."""
    decision = refusal.decision
    if isinstance(decision, Block) and decision.body:
        return decision.body
    return ", ".join(refusal.audit.reason_codes) or "no reason given"


class Severity(StrEnum):
    """How bad a detection is."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


_SEVERITIES: Mapping[str, Severity] = {severity.value: severity for severity in Severity}


class TextSpan(Struct, frozen=True):
    """Where in the inspected content, in code points: start inclusive, end exclusive.

    These are the indices of a Python str: ``event.content[span.start:span.end]`` is what was found. A remote agent that
    counts bytes of UTF-8 needs a transport with ``span_unit="bytes"``.
    """

    start: int
    end: int


class Detection(RedactedRepr, frozen=True, kw_only=True):
    """One thing that a guardrail agent found.

    ``severity`` may be given as its word. ``confidence`` is 0 to 1.
    """

    category: str
    description: str
    severity: Severity = Severity.MEDIUM
    confidence: float | None = None
    span: TextSpan | None = None

    def __post_init__(self) -> None:
        if type(self.severity) is str:
            # A word that is none is left for validation to complain about.
            force_setattr(self, "severity", _SEVERITIES.get(self.severity, self.severity))

    def __repr__(self) -> str:
        return redacted_repr(self, description=size_of(self.description))


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
