"""Bytes to and from events and answers: JSON with base64 payloads, msgpack with raw ones. No I/O.

Other hosts of the protocol use base64 in msgpack too. It is accepted from them, and written for them.

On the wire, decisions and header operations are nested: ``{"block": {…}}`` and ``{"set": {…}}``. The structs of this
module have that shape. They are private: no other module depends on it.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import cache
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType
from msgspec.structs import asdict

from ..errors import AgentProtocolError
from .events import (
    EVENT_CLASSES,
    Event,
    EventType,
    RequestBodyChunkEvent,
    ResponseBodyChunkEvent,
    WebSocketFrameEvent,
)
from .headers import decode_extension, encode_extension
from .payloads import decode_base64_payloads
from .responses import (
    ALLOW,
    PROTOCOL_VERSION,
    Acknowledgement,
    AgentResponse,
    Allow,
    Answer,
    AuditMetadata,
    Block,
    BodyMutation,
    Challenge,
    Decision,
    GuardrailResponse,
    HeaderOp,
    Redirect,
    WebSocketClose,
    WebSocketDecision,
    WebSocketDrop,
)


class Encoding(StrEnum):
    """How messages are encoded on a remote transport."""

    JSON = "json"
    MSGPACK = "msgpack"

    @property
    def content_type(self) -> str:
        return f"application/{self.value}"


class _Envelope(Struct):
    version: int
    event_type: EventType
    payload: Event


class _RawEnvelope(Struct):
    version: int
    event_type: EventType
    payload: Raw


class _Field(Struct, omit_defaults=True):
    name: str
    value: str
    # An extension of the protocol, here and below. It is left out while it is False, for other hosts of the protocol.
    always: bool = False


class _FieldName(Struct, omit_defaults=True):
    name: str
    always: bool = False


class _HeaderOp(Struct, omit_defaults=True):
    set: _Field | UnsetType = UNSET
    add: _Field | UnsetType = UNSET
    remove: _FieldName | UnsetType = UNSET


class _Decision(Struct, omit_defaults=True):
    block: Block | UnsetType = UNSET
    redirect: Redirect | UnsetType = UNSET
    challenge: Challenge | UnsetType = UNSET


class _Close(Struct):
    code: int
    reason: str = ""


class _WebSocketDecision(Struct, omit_defaults=True):
    close: _Close | UnsetType = UNSET


class _Audit(Struct):
    tags: Sequence[str] = ()
    rule_ids: Sequence[str] = ()
    confidence: float | None = None
    reason_codes: Sequence[str] = ()
    custom: dict[str, Any] = {}


class _Response(Struct):
    version: int = PROTOCOL_VERSION
    # "error" is an extension of the protocol: see NO_VERDICT.
    decision: Literal["allow", "error"] | _Decision = "allow"
    request_headers: Sequence[_HeaderOp] = ()
    response_headers: Sequence[_HeaderOp] = ()
    routing_metadata: dict[str, str] = {}
    audit: _Audit | None = None
    needs_more: bool = False
    request_body_mutation: BodyMutation | None = None
    response_body_mutation: BodyMutation | None = None
    websocket_decision: Literal["allow", "drop"] | _WebSocketDecision | None = None
    # An extension of the protocol, left out unless it is True.
    skip_body: bool | UnsetType = UNSET


#: The ``decision`` of an answer without a verdict: the agent has failed, or was not asked. The protocol has no message
#: for that. Other hosts can't decode it, and apply their failure mode. ``"allow"`` would not do: some hosts take it for
#: a verdict, whatever else the answer says.
NO_VERDICT: Literal["error"] = "error"

#: The key of ``routing_metadata`` in which other hosts expect a guardrail agent's findings, as JSON.
GUARDRAIL_KEY = "guardrail_response"

# Messages with payloads, which in msgpack are raw bytes or base64.
_WITH_PAYLOADS = frozenset({RequestBodyChunkEvent, ResponseBodyChunkEvent, WebSocketFrameEvent, _Response})


class _Probe(Struct):
    """The parts of an answer that tell which shape it has."""

    detected: Raw | UnsetType = UNSET
    success: Raw | UnsetType = UNSET


_ENCODERS: dict[Encoding, msgspec.json.Encoder | msgspec.msgpack.Encoder] = {
    Encoding.JSON: msgspec.json.Encoder(enc_hook=encode_extension),
    Encoding.MSGPACK: msgspec.msgpack.Encoder(enc_hook=encode_extension),
}


@cache
def _decoder(kind: Any, encoding: Encoding) -> msgspec.json.Decoder[Any] | msgspec.msgpack.Decoder[Any]:
    make = msgspec.json.Decoder if encoding is Encoding.JSON else msgspec.msgpack.Decoder
    return make(kind, dec_hook=decode_extension)


def encode_event(event: Event, encoding: Encoding) -> bytes:
    """The envelope of the HTTP transport: ``{"version", "event_type", "payload"}``.

    Raises :class:`AgentProtocolError` for an event that can't be sent.
    """
    return encode_value(_Envelope(PROTOCOL_VERSION, event.event_type, event), encoding, "event")


def decode_event(data: bytes, encoding: Encoding) -> Event:
    """An event from its envelope; raises :class:`AgentProtocolError` naming the field at fault."""
    envelope: _RawEnvelope = decode_value(_RawEnvelope, data, encoding)
    if envelope.version != PROTOCOL_VERSION:
        raise AgentProtocolError(f"version: expected {PROTOCOL_VERSION}, got {envelope.version}")
    event: Event = decode_value(EVENT_CLASSES[envelope.event_type], bytes(envelope.payload), encoding, at="payload")
    return event


def encode_answer(answer: Answer, encoding: Encoding) -> bytes:
    """An answer as agents send it. Raises :class:`AgentProtocolError` for one that can't be sent."""
    return encode_value(answer_to_wire(answer) if isinstance(answer, AgentResponse) else answer, encoding, "answer")


def decode_answer(data: bytes, encoding: Encoding, event_type: EventType, *, without: Sequence[str] = ()) -> Answer:
    """An agent's answer to an ``event_type``; raises :class:`AgentProtocolError` naming the field at fault.

    ``without`` names entries of ``audit.custom`` that are the transport's own. Guardrail agents may answer in the
    guardrail shape, or with that as JSON in ``routing_metadata``; the answer to ``configure`` and ``request_complete``
    may be an acknowledgement. The error for an answer without a verdict has the agent's reasons.
    """
    if event_type is EventType.GUARDRAIL_INSPECT and _probe(data, encoding).detected is not UNSET:
        verdict: GuardrailResponse = decode_value(GuardrailResponse, data, encoding)
        return verdict
    if event_type in (EventType.CONFIGURE, EventType.REQUEST_COMPLETE) and _probe(data, encoding).success is not UNSET:
        acknowledgement: Acknowledgement = decode_value(Acknowledgement, data, encoding)
        return acknowledgement
    wire: _Response = decode_value(_Response, data, encoding)
    if wire.audit is not None and wire.audit.custom:
        for name in without:
            wire.audit.custom.pop(name, None)
    if _is_plain(wire):
        return ALLOW
    if wire.decision == NO_VERDICT:
        raise AgentProtocolError("; ".join(wire.audit.reason_codes if wire.audit else ()) or "the agent failed")
    if (
        event_type is EventType.GUARDRAIL_INSPECT
        and wire.version == PROTOCOL_VERSION
        and GUARDRAIL_KEY in wire.routing_metadata
    ):
        found = wire.routing_metadata[GUARDRAIL_KEY].encode("utf-8", "surrogatepass")
        verdict = decode_value(GuardrailResponse, found, Encoding.JSON, at=f"routing_metadata.{GUARDRAIL_KEY}")
        return verdict
    return _from_wire(wire)


def encode_value(value: Any, encoding: Encoding, what: str, *, for_others: bool = False) -> bytes:
    """``value`` in ``encoding``. Raises :class:`AgentProtocolError`, which calls it ``what``, if it can't be encoded.

    ``for_others``: with payloads in base64, as other hosts of the protocol expect them.
    """
    try:
        if for_others and encoding is Encoding.MSGPACK:
            value = msgspec.to_builtins(value, enc_hook=encode_extension)
        return _ENCODERS[encoding].encode(value)
    except (TypeError, ValueError, OverflowError, NotImplementedError, RecursionError) as exc:
        # The data may be of other types, nested too deeply, or have text that UTF-8 can't encode. A UnicodeError
        # quotes the whole text, which may be anything.
        fault = "text with lone surrogates" if isinstance(exc, UnicodeError) else str(exc)
        raise AgentProtocolError(f"the {what} can't be encoded as {encoding}: {fault}") from exc


def _probe(data: bytes, encoding: Encoding) -> _Probe:
    probe: _Probe = decode_value(_Probe, data, encoding)
    return probe


def decode_value(kind: Any, data: bytes | memoryview, encoding: Encoding, *, at: str = "") -> Any:
    """A ``kind`` from its bytes; raises :class:`AgentProtocolError` naming the field at fault, within ``at``."""
    try:
        try:
            return _decoder(kind, encoding).decode(data)
        except msgspec.ValidationError:
            if encoding is not Encoding.MSGPACK or kind not in _WITH_PAYLOADS:
                raise
        return decode_base64_payloads(data, kind, BodyMutation, decode_extension)
    except msgspec.ValidationError as exc:
        raise AgentProtocolError(f"{at}: {exc}" if at else str(exc)) from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        fault = f"not {encoding}: {exc}"
        raise AgentProtocolError(f"{at}: {fault}" if at else fault) from exc


def _from_wire(wire: _Response) -> AgentResponse:
    return AgentResponse(
        version=wire.version,
        decision=_decision_from_wire(wire.decision),
        request_headers=_ops_from_wire("request_headers", wire.request_headers),
        response_headers=_ops_from_wire("response_headers", wire.response_headers),
        routing_metadata=wire.routing_metadata,
        audit=_audit_from_wire(wire.audit),
        needs_more=wire.needs_more,
        request_body_mutation=wire.request_body_mutation,
        response_body_mutation=wire.response_body_mutation,
        websocket_decision=_websocket_decision_from_wire(wire.websocket_decision),
        skip_body=wire.skip_body is True,
    )


def _is_plain(wire: _Response) -> bool:
    """Whether an answer is a plain allow, as most are."""
    return (
        wire.decision == "allow"
        and not wire.request_headers
        and not wire.response_headers
        and not wire.routing_metadata
        and not wire.needs_more
        and wire.skip_body is not True
        and wire.request_body_mutation is None
        and wire.response_body_mutation is None
        and wire.websocket_decision is None
        and wire.version == PROTOCOL_VERSION
        and (wire.audit is None or _is_empty(wire.audit))
    )


def _is_empty(audit: _Audit) -> bool:
    # Not by comparison: an empty list that was decoded is not equal to the empty tuple of a default.
    return not (audit.tags or audit.rule_ids or audit.reason_codes or audit.custom) and audit.confidence is None


def _audit_from_wire(wire: _Audit | None) -> AuditMetadata:
    if wire is None:
        return ALLOW.audit
    return AuditMetadata(
        tags=wire.tags,
        rule_ids=wire.rule_ids,
        confidence=wire.confidence,
        reason_codes=wire.reason_codes,
        custom=wire.custom,
    )


def _decision_from_wire(wire: Literal["allow", "error"] | _Decision) -> Decision:
    if isinstance(wire, str):
        return Allow()
    given: list[Decision] = [d for d in (wire.block, wire.redirect, wire.challenge) if not isinstance(d, UnsetType)]
    if len(given) != 1:
        raise AgentProtocolError(
            f'decision: expected "allow" or exactly one of block, redirect and challenge, got {len(given)} of them'
        )
    return given[0]


def _ops_from_wire(field: str, wire: Sequence[_HeaderOp]) -> tuple[HeaderOp, ...]:
    return tuple(_op_from_wire(field, index, op) for index, op in enumerate(wire))


def _op_from_wire(field: str, index: int, wire: _HeaderOp) -> HeaderOp:
    ops: list[HeaderOp] = []
    if not isinstance(wire.set, UnsetType):
        ops.append(HeaderOp.set(wire.set.name, wire.set.value, always=wire.set.always))
    if not isinstance(wire.add, UnsetType):
        ops.append(HeaderOp.add(wire.add.name, wire.add.value, always=wire.add.always))
    if not isinstance(wire.remove, UnsetType):
        ops.append(HeaderOp.remove(wire.remove.name, always=wire.remove.always))
    if len(ops) != 1:
        raise AgentProtocolError(f"{field}[{index}]: expected exactly one of set, add and remove, got {len(ops)}")
    return ops[0]


def _websocket_decision_from_wire(
    wire: Literal["allow", "drop"] | _WebSocketDecision | None,
) -> WebSocketDecision | None:
    if wire is None or wire == "allow":
        return None
    if wire == "drop":
        return WebSocketDrop()
    if isinstance(wire, str) or isinstance(wire.close, UnsetType):
        raise AgentProtocolError('websocket_decision: expected "allow", "drop" or {"close": {…}}')
    return WebSocketClose(wire.close.code, wire.close.reason)


def answer_to_wire(response: AgentResponse, custom: Mapping[str, Any] | None = None) -> Struct:
    """What is encoded of an AgentResponse; ``custom`` is added to ``audit.custom``."""
    audit = response.audit
    return _Response(
        version=response.version,
        decision=_decision_to_wire(response.decision),
        request_headers=[_op_to_wire(op) for op in response.request_headers],
        response_headers=[_op_to_wire(op) for op in response.response_headers],
        routing_metadata=dict(response.routing_metadata),
        audit=_Audit(
            audit.tags, audit.rule_ids, audit.confidence, audit.reason_codes, {**audit.custom, **(custom or {})}
        ),
        needs_more=response.needs_more,
        request_body_mutation=response.request_body_mutation,
        response_body_mutation=response.response_body_mutation,
        websocket_decision=_websocket_decision_to_wire(response.websocket_decision),
        skip_body=response.skip_body or UNSET,
    )


def answer_with(response: AgentResponse, fields: dict[str, Any], custom: Mapping[str, Any]) -> dict[str, Any]:
    """What is encoded of an AgentResponse with other ``fields`` beside its own, or in their place."""
    wire = asdict(answer_to_wire(response, custom))
    return {name: value for name, value in wire.items() if value is not UNSET} | fields


def _decision_to_wire(decision: Decision) -> Literal["allow"] | _Decision:
    match decision:
        case Block():
            return _Decision(block=decision)
        case Redirect():
            return _Decision(redirect=decision)
        case Challenge():
            return _Decision(challenge=decision)
        case Allow():
            return "allow"


def _op_to_wire(op: HeaderOp) -> _HeaderOp:
    if op.kind == "remove":
        return _HeaderOp(remove=_FieldName(op.name, op.always))
    field = _Field(op.name, op.value, op.always)
    return _HeaderOp(set=field) if op.kind == "set" else _HeaderOp(add=field)


def _websocket_decision_to_wire(
    decision: WebSocketDecision | None,
) -> Literal["drop"] | _WebSocketDecision | None:
    match decision:
        case None:
            return None
        case WebSocketDrop():
            return "drop"
        case WebSocketClose(code, reason):
            return _WebSocketDecision(close=_Close(code, reason))
