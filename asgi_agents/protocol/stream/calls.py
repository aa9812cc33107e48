"""Events and answers in frames, with the ids that say which answer is for which event. No I/O."""

from typing import Any, Final

from msgspec import UNSET, Raw, Struct, UnsetType
from msgspec.structs import asdict

from ...errors import AgentProtocolError
from ..codec import Encoding, answer_to_wire, answer_with, decode_value, encode_value
from ..events import EVENT_CLASSES, ConfigureEvent, Event, EventType, RequestHeadersEvent
from ..responses import ALLOW, PROTOCOL_VERSION, AgentResponse, Answer, AuditMetadata
from .framing import encode_frame
from .messages import MESSAGE_OF_EVENT, MessageType

#: What this transport adds to `audit.custom`.
ANSWER_IDS: Final = ("correlation_id", "call_id")
# Their payloads have no correlation id at the top.
_WITHOUT_ID: Final = (RequestHeadersEvent, ConfigureEvent)
_MESSAGE_NUMBERS: Final = {event_type: int(message_type) for event_type, message_type in MESSAGE_OF_EVENT.items()}
# To look a member of an enumeration up by its name takes long (CPython 3.11).
_JSON: Final = Encoding.JSON


class CallIds(Struct, frozen=True):
    """Which call an event or an answer belongs to, and which trace an event belongs to."""

    correlation_id: str = ""
    call_id: int | UnsetType = UNSET
    traceparent: str = ""


class _AnswerIdFields(Struct):
    # Others may have entries of these names for something else.
    correlation_id: Any = ""
    call_id: Any = UNSET


class _Custom(Struct):
    custom: _AnswerIdFields | None = None


class _AnswerIds(Struct):
    audit: _Custom | None = None


class _PayloadIds(Struct):
    correlation_id: str = ""
    call_id: int | UnsetType = UNSET
    # Not decoded here: a peer may send anything in these fields, and most of it is not needed.
    traceparent: Raw | UnsetType = UNSET
    metadata: Raw | UnsetType = UNSET


class _MetadataIds(Struct):
    correlation_id: Raw | UnsetType = UNSET
    traceparent: Raw | UnsetType = UNSET


def correlation_id_of(event: Event) -> str:
    """The correlation id of the request that an event is about; empty for ``configure``, which is about none."""
    return "" if isinstance(event, ConfigureEvent) else event.correlation_id


def encode_event_frame(event: Event, encoding: Encoding, ids: CallIds, traceparent: str | None = None) -> bytes:
    """An event's frame: its own payload, with the ids at the top.

    ``traceparent`` is an extension of the protocol like ``call_id``, for events that have no field for it. A peer
    without call ids belongs to another host of the protocol, and those encode bytes in base64 in msgpack too.
    """
    payload = encode_value(event, encoding, "event", for_others=ids.call_id is UNSET)
    without_id = isinstance(event, _WITHOUT_ID)
    if encoding is _JSON and without_id and ids.call_id is not UNSET and traceparent is None:
        name = encode_value(ids.correlation_id, encoding, "event")
        payload = b'{"correlation_id":%b,"call_id":%d,%b' % (name, ids.call_id, payload[1:])
        return encode_frame(_MESSAGE_NUMBERS[event.event_type], payload)
    added: dict[str, Any] = {}
    if without_id:
        added["correlation_id"] = ids.correlation_id
    if ids.call_id is not UNSET:
        added["call_id"] = ids.call_id
    if traceparent is not None:
        added["traceparent"] = traceparent
    if added:
        payload = _with_fields(payload, encode_value(added, encoding, "event"), encoding)
    return encode_frame(_MESSAGE_NUMBERS[event.event_type], payload)


def _with_fields(payload: bytes, added: bytes, encoding: Encoding) -> bytes:
    """Two encoded maps as one: to encode an event as a dictionary for a field more would take twice as long."""
    if encoding is _JSON:
        return b"%b,%b" % (added[:-1], payload[1:])
    # Both are fixmaps, of at most 15 fields together: a byte 0x80 + fields, and the fields.
    return b"%c%b%b" % (payload[0] + (added[0] & 0x0F), added[1:], payload[1:])


def decode_payload_ids(payload: bytes | memoryview, encoding: Encoding) -> CallIds:
    """The ids at the top of an event's payload, or within its metadata."""
    found: _PayloadIds = decode_value(_PayloadIds, payload, encoding)
    correlation_id, traceparent = found.correlation_id, _text(found.traceparent, encoding)
    if found.metadata is not UNSET and not (correlation_id and traceparent):
        try:
            within: _MetadataIds = decode_value(_MetadataIds, memoryview(found.metadata), encoding)
        except AgentProtocolError:
            # No map.
            within = _MetadataIds()
        correlation_id = correlation_id or _text(within.correlation_id, encoding)
        traceparent = traceparent or _text(within.traceparent, encoding)
    return CallIds(correlation_id, found.call_id, traceparent)


def _text(encoded: Raw | UnsetType, encoding: Encoding) -> str:
    """The text in ``encoded``; empty where it is anything else."""
    if encoded is UNSET:
        return ""
    assert isinstance(encoded, Raw)
    try:
        text: str = decode_value(str, memoryview(encoded), encoding)
    except AgentProtocolError:
        return ""
    return text


def decode_payload(event_type: EventType, payload: bytes | memoryview, encoding: Encoding) -> Event:
    """An event from its payload; raises :class:`AgentProtocolError` naming the field at fault."""
    event: Event = decode_value(EVENT_CLASSES[event_type], payload, encoding)
    return event


def plain_allow(correlation_id: str, call_id: int) -> bytes:
    """A plain allow as our own serving end encodes it in JSON: the content of a frame, without its length.

    Most answers are this. The client compares bytes and need not decode them.
    """
    name = encode_value(correlation_id, _JSON, "answer")
    return b'\x20{"version":%d,"decision":"allow","audit":{"custom":{"correlation_id":%b,"call_id":%d}}}' % (
        PROTOCOL_VERSION,
        name,
        call_id,
    )


def encode_answer_frame(
    answer: Answer, encoding: Encoding, ids: CallIds, *, fields: dict[str, Any] | None = None
) -> bytes:
    """An answer's frame. All its shapes carry the ids in ``audit.custom``.

    ``fields`` are added to an AgentResponse. A client without call ids belongs to another host of the protocol, and
    those encode bytes in base64 in msgpack too.
    """
    if answer is ALLOW and encoding is _JSON and ids.call_id is not UNSET and not fields:
        assert isinstance(ids.call_id, int)
        content = plain_allow(ids.correlation_id, ids.call_id)
        return encode_frame(content[0], content[1:])
    custom: dict[str, Any] = {"correlation_id": ids.correlation_id}
    if ids.call_id is not UNSET:
        custom["call_id"] = ids.call_id
    wire: Any
    if fields and isinstance(answer, AgentResponse):
        wire = answer_with(answer, fields, custom)
    elif answer is ALLOW:
        wire = {"version": PROTOCOL_VERSION, "decision": "allow", "audit": {"custom": custom}}
    elif isinstance(answer, AgentResponse):
        wire = answer_to_wire(answer, custom)
    else:
        wire = {**asdict(answer), "audit": AuditMetadata(custom=custom)}
    payload = encode_value(wire, encoding, "answer", for_others=ids.call_id is UNSET)
    return encode_frame(MessageType.AGENT_RESPONSE, payload)


def decode_answer_ids(payload: bytes, encoding: Encoding) -> CallIds:
    """Which call an answer is for, as far as it says."""
    found: _AnswerIds = decode_value(_AnswerIds, payload, encoding)
    if found.audit is None or found.audit.custom is None:
        return CallIds()
    correlation_id, call_id = found.audit.custom.correlation_id, found.audit.custom.call_id
    return CallIds(
        correlation_id if type(correlation_id) is str else "",
        call_id if type(call_id) is int else UNSET,
    )
