"""The stream transport's frames and messages, for both ends. No I/O.

A frame is a 4-byte big-endian length, and as many bytes: a type byte and a payload. In the older framing
(``envelope``) there is no type byte, and the payload is what the HTTP transport posts.
"""

import math
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum, StrEnum
from io import BytesIO
from typing import Any, Final

from msgspec import UNSET, Raw, Struct, UnsetType
from msgspec.structs import asdict, force_setattr

from ..errors import AgentProtocolError, EventTooLargeError
from .codec import Encoding, answer_to_wire, answer_with, decode_value, encode_value
from .events import EVENT_CLASSES, ConfigureEvent, Event, EventType, RequestHeadersEvent
from .extraction import LONG, extract_data
from .responses import ALLOW, PROTOCOL_VERSION, AgentResponse, Answer, AuditMetadata

#: The longest frame, type byte included, and the longest of the older framing.
MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
MAX_ENVELOPE_BYTES: Final = 10 * 1024 * 1024
#: The longest frame before a peer has introduced itself: a client's, which may carry a configuration, and an agent's.
MAX_HANDSHAKE_REQUEST_BYTES: Final = 1024 * 1024
MAX_HANDSHAKE_RESPONSE_BYTES: Final = 64 * 1024
#: The longest ping, which is sent back as it is.
MAX_PING_BYTES: Final = 1024
#: Seconds for a frame to come, from its first byte to its last.
FRAME_TIMEOUT: float = 30.0

_LENGTH_BYTES: Final = 4
_FRAME_HEAD: Final = struct.Struct(">IB")
# They carry their correlation id further in, or none.
_WITHOUT_ID: Final = (RequestHeadersEvent, ConfigureEvent)
#: What this transport adds to `audit.custom`.
ANSWER_IDS: Final = ("correlation_id", "call_id")


class Framing(StrEnum):
    """Which of the two streams a peer speaks. It can't be told from the bytes."""

    V2 = "v2"
    ENVELOPE = "envelope"

    @property
    def max_bytes(self) -> int:
        """The longest frame."""
        return MAX_FRAME_BYTES if self is Framing.V2 else MAX_ENVELOPE_BYTES


class MessageType(IntEnum):
    """The type byte."""

    HANDSHAKE_REQUEST = 0x01
    HANDSHAKE_RESPONSE = 0x02
    REQUEST_HEADERS = 0x10
    REQUEST_BODY_CHUNK = 0x11
    RESPONSE_HEADERS = 0x12
    RESPONSE_BODY_CHUNK = 0x13
    REQUEST_COMPLETE = 0x14
    WEBSOCKET_FRAME = 0x15
    GUARDRAIL_INSPECT = 0x16
    CONFIGURE = 0x17
    AGENT_RESPONSE = 0x20
    HEALTH_STATUS = 0x30
    METRICS_REPORT = 0x31
    CONFIG_UPDATE_REQUEST = 0x32
    FLOW_CONTROL = 0x33
    CANCEL = 0x40
    PING = 0x41
    PONG = 0x42


MESSAGE_OF_EVENT: Final[Mapping[EventType, MessageType]] = {
    event_type: MessageType[event_type.name] for event_type in EventType
}
_MESSAGE_NUMBERS: Final = {event_type: int(message_type) for event_type, message_type in MESSAGE_OF_EVENT.items()}
# To look a member of an enumeration up by its name takes long (CPython 3.11).
_JSON: Final = Encoding.JSON
EVENT_OF_MESSAGE: Final[Mapping[int, EventType]] = {
    int(message_type): event_type for event_type, message_type in MESSAGE_OF_EVENT.items()
}

_MESSAGES_WITH_DATA: Final = frozenset(
    {MessageType.REQUEST_BODY_CHUNK, MessageType.RESPONSE_BODY_CHUNK, MessageType.WEBSOCKET_FRAME}
)

#: The numbers by which a handshake names events.
EVENT_NUMBERS: Final[Mapping[EventType, int]] = {
    EventType.REQUEST_HEADERS: 1,
    EventType.REQUEST_BODY_CHUNK: 2,
    EventType.RESPONSE_HEADERS: 3,
    EventType.RESPONSE_BODY_CHUNK: 4,
    EventType.REQUEST_COMPLETE: 5,
    EventType.WEBSOCKET_FRAME: 6,
    EventType.GUARDRAIL_INSPECT: 7,
    EventType.CONFIGURE: 8,
}
# Older agents say 0 for configure.
_EVENT_OF_NUMBER: Final[Mapping[int, EventType]] = {
    0: EventType.CONFIGURE,
    **{number: event_type for event_type, number in EVENT_NUMBERS.items()},
}


class HealthState(IntEnum):
    """How an agent says it is."""

    HEALTHY = 1
    DEGRADED = 2
    DRAINING = 3
    UNHEALTHY = 4


class FlowAction(IntEnum):
    """What an agent asks of the flow of calls."""

    PAUSE = 1
    RESUME = 2
    UPDATE_CAPACITY = 3


class CancelReason(IntEnum):
    """Why a call was given up."""

    CLIENT_DISCONNECT = 1
    TIMEOUT = 2
    BLOCKED_BY_AGENT = 3
    UPSTREAM_ERROR = 4
    SHUTDOWN = 5
    MANUAL = 6


class HandshakeRequest(Struct, kw_only=True):
    """The first frame on a connection. ``supported_encodings`` in order of preference."""

    supported_versions: Sequence[int]
    proxy_id: str = ""
    proxy_version: str = ""
    config: Any = None
    supported_encodings: Sequence[str] = ()


class AgentFeatures(Struct, frozen=True, kw_only=True):
    """What an agent can do.

    ``concurrent_requests``: calls it takes at a time on one connection, 0 where it doesn't say. ``call_ids`` is an
    extension of ours: each event has a ``call_id`` that its answer carries, so that no answer can be mistaken for
    another's.
    """

    streaming_body: bool = False
    websocket: bool = False
    guardrails: bool = False
    config_push: bool = False
    metrics_export: bool = False
    concurrent_requests: int = 0
    cancellation: bool = False
    flow_control: bool = False
    health_reporting: bool = False
    call_ids: bool = False


class AgentLimits(Struct, frozen=True, kw_only=True):
    """What an agent can take: bytes of a body shown at once, calls at a time, and the bytes of a chunk it likes."""

    max_body_size: int = 10 * 1024 * 1024
    max_concurrency: int = 100
    preferred_chunk_size: int = 64 * 1024


class AgentCapabilities(Struct, frozen=True, kw_only=True):
    """What an agent says of itself in the handshake."""

    agent_id: str = ""
    name: str = ""
    version: str = ""
    supported_events: Sequence[int] = ()
    features: AgentFeatures = AgentFeatures()
    limits: AgentLimits = AgentLimits()

    @property
    def events(self) -> frozenset[EventType]:
        """The events that it supports; numbers from the future are left out."""
        return frozenset(_EVENT_OF_NUMBER[number] for number in self.supported_events if number in _EVENT_OF_NUMBER)


class HandshakeResponse(Struct, kw_only=True):
    """The agent's answer to the handshake."""

    protocol_version: int
    success: bool
    error: str | None = None
    encoding: str = Encoding.JSON
    capabilities: AgentCapabilities | None = None


class HealthStatus(Struct, frozen=True, kw_only=True):
    """How the agent is. ``timeout_multiplier`` counts while it is degraded."""

    state: int
    agent_id: str = ""
    message: str | None = None
    timeout_multiplier: float = 1.0
    timestamp_ms: int = 0


class FlowControl(Struct, frozen=True, kw_only=True):
    """Hold calls back, or no longer: all on this connection, or those with one id.

    ``buffer_available`` is how many bytes of calls the agent can take at a time.
    """

    action: int
    correlation_id: str | None = None
    buffer_available: int | None = None
    timestamp_ms: int = 0


class Cancel(Struct, frozen=True, kw_only=True):
    """Nobody waits for the answer any more. Without ``call_id``: to none of that ``correlation_id``'s calls."""

    correlation_id: str
    reason: int = CancelReason.MANUAL
    timestamp_ms: int = 0
    call_id: int | UnsetType = UNSET


class Ping(Struct, frozen=True, kw_only=True):
    """Are you there? The pong is an echo of it."""

    sequence: int = 0
    timestamp_ms: int = 0


class CounterMetric(Struct, frozen=True, kw_only=True):
    """A count that only grows."""

    name: str
    help: str | None = None
    labels: Mapping[str, str] = {}
    value: int


class GaugeMetric(Struct, frozen=True, kw_only=True):
    """A value of the moment."""

    name: str
    help: str | None = None
    labels: Mapping[str, str] = {}
    value: float


class HistogramBucket(Struct, frozen=True):
    """How many values were at most ``le``."""

    le: float | str
    count: int

    def __post_init__(self) -> None:
        if isinstance(self.le, str):
            if self.le not in ("+Inf", "Inf"):
                raise ValueError(f'expected a number or "+Inf", got {self.le!r:.40}')
            force_setattr(self, "le", math.inf)


class HistogramMetric(Struct, frozen=True, kw_only=True):
    """A distribution; the buckets are cumulative."""

    name: str
    help: str | None = None
    labels: Mapping[str, str] = {}
    sum: float
    count: int
    buckets: Sequence[HistogramBucket] = ()


class MetricsReport(Struct, frozen=True, kw_only=True):
    """Figures that an agent sends of its own accord."""

    agent_id: str = ""
    timestamp_ms: int = 0
    interval_ms: int = 0
    counters: Sequence[CounterMetric] = ()
    gauges: Sequence[GaugeMetric] = ()
    histograms: Sequence[HistogramMetric] = ()


class ConfigUpdateRequest(Struct, frozen=True, kw_only=True):
    """An agent asks for a change of its configuration. What ``update_type`` holds is between it and the callback."""

    request_id: str = ""
    update_type: Any = None
    timestamp_ms: int = 0


class CallIds(Struct, frozen=True):
    """By what an event or an answer says which call it is, and an event of which trace."""

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
    # As they are spelt: whatever else they are must not be built for nothing.
    traceparent: Raw | UnsetType = UNSET
    metadata: Raw | UnsetType = UNSET


class _MetadataIds(Struct):
    correlation_id: Raw | UnsetType = UNSET
    traceparent: Raw | UnsetType = UNSET


class FrameReader:
    """Cuts a stream of bytes into frames.

    :param max_bytes: the longest frame that may come now; None: the longest of the framing.
    """

    def __init__(self, framing: Framing, max_bytes: int | None = None) -> None:
        #: The longest frame that may come from now on.
        self.max_bytes = framing.max_bytes if max_bytes is None else max_bytes
        #: Whether a frame has begun that has not ended.
        self.pending = False
        #: How many frames have begun to come in one read and did not end in it.
        self.divided = 0
        #: Whether long events in JSON are given without their data, which is :attr:`data` then until the next frame.
        self.extracts = False
        self.data: bytes | None = None
        # What has come of a length, and of the frame behind it. A BytesIO hands its bytes over without copying them.
        self._length = b""
        self._frame: BytesIO | None = None
        self._missing = 0

    @property
    def held(self) -> int:
        """How many bytes have come of a frame that has not ended."""
        return len(self._length) if self._frame is None else _LENGTH_BYTES + self._frame.tell()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The frames that ``data`` completes, without their lengths.

        Raises :class:`AgentProtocolError` at one that may not be; the stream can't be read any further then.
        """
        if not self.pending and len(data) - _LENGTH_BYTES == int.from_bytes(data[:_LENGTH_BYTES], "big"):
            # One frame and nothing else, as most often.
            length = len(data) - _LENGTH_BYTES
            if 0 < length <= self.max_bytes:
                return iter((data[_LENGTH_BYTES:],))
        return self._cut(data)

    def _cut(self, data: bytes) -> Iterator[bytes]:
        position = 0
        size = len(data)
        while position < size:
            if self._frame is not None:
                part = memoryview(data)[position : position + self._missing]
                self._frame.write(part)
                position += len(part)
                self._missing -= len(part)
                if not self._missing:
                    self.pending = False
                    yield self._take()
                continue
            if self._length or size - position < _LENGTH_BYTES:
                self._begin()
                wanted = _LENGTH_BYTES - len(self._length)
                self._length += data[position : position + wanted]
                position += wanted
                if len(self._length) < _LENGTH_BYTES:
                    return
                prefix, self._length = self._length, b""
            else:
                prefix = data[position : position + _LENGTH_BYTES]
                position += _LENGTH_BYTES
            length = int.from_bytes(prefix, "big")
            if not 0 < length <= self.max_bytes:
                raise AgentProtocolError(_describe_length(prefix, length, self.max_bytes))
            end = position + length
            if end <= size:
                self.pending = False
                frame = data[position:end]
                position = end
                yield frame
            else:
                self._begin()
                self._frame = BytesIO()
                self._missing = length

    def _begin(self) -> None:
        if not self.pending:
            self.pending = True
            self.divided += 1

    def _take(self) -> bytes:
        """The frame that is complete. Nothing here keeps it alive."""
        assert self._frame is not None
        buffer, self._frame = self._frame, None
        if self.extracts and buffer.tell() >= LONG and buffer.getbuffer()[0] in _MESSAGES_WITH_DATA:
            extracted = extract_data(buffer)
            if extracted is not None:
                frame, self.data = extracted
                return frame
        return buffer.getvalue()

    def take_data(self) -> bytes | None:
        """The data of the event whose frame was given last, if it was taken out."""
        data, self.data = self.data, None
        return data


def _describe_length(prefix: bytes, length: int, max_bytes: int) -> str:
    fault = f"a frame of {length} bytes, expected 1 to {max_bytes}"
    if prefix == b"HTTP":
        return f"{fault}: the peer speaks HTTP"
    return fault


def encode_frame(message_type: int, payload: bytes) -> bytes:
    """A version 2 frame. Raises :class:`EventTooLargeError` for one that would be too long."""
    length = len(payload) + 1
    if length > MAX_FRAME_BYTES:
        _check_length(length, MAX_FRAME_BYTES)
    return _FRAME_HEAD.pack(length, message_type) + payload


def encode_envelope_frame(envelope: bytes) -> bytes:
    """A frame of the older framing. Raises :class:`EventTooLargeError` for one that would be too long."""
    _check_length(len(envelope), MAX_ENVELOPE_BYTES)
    return len(envelope).to_bytes(_LENGTH_BYTES, "big") + envelope


def _check_length(length: int, max_bytes: int) -> None:
    if length > max_bytes:
        raise EventTooLargeError(f"it takes a frame of {length} bytes, expected {max_bytes} at most")


def check_ping(payload: bytes | memoryview) -> None:
    """Raise :class:`AgentProtocolError` for a ping that is too long to be sent back."""
    if len(payload) > MAX_PING_BYTES:
        raise AgentProtocolError(f"a ping of {len(payload)} bytes, expected {MAX_PING_BYTES} at most")


def encode_message(message_type: MessageType, message: Struct, encoding: Encoding = Encoding.JSON) -> bytes:
    """A frame of anything but an event or an answer."""
    return encode_frame(message_type, encode_value(message, encoding, message_type.name.lower()))


def correlation_id_of(event: Event) -> str:
    """The id of the connection that an event is about; empty for ``configure``, which is about none."""
    return "" if isinstance(event, ConfigureEvent) else event.correlation_id


def encode_event_frame(event: Event, encoding: Encoding, ids: CallIds, traceparent: str | None = None) -> bytes:
    """An event's frame: its own payload, with the ids at the top.

    ``traceparent`` is an extension like ``call_id``, for events that have no place for it. A peer without call ids is
    another host's, which has base64 in msgpack.
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


def _text(spelt: Raw | UnsetType, encoding: Encoding) -> str:
    """The text that ``spelt`` is; empty where it is anything else."""
    if spelt is UNSET:
        return ""
    assert isinstance(spelt, Raw)
    try:
        text: str = decode_value(str, memoryview(spelt), encoding)
    except AgentProtocolError:
        return ""
    return text


def decode_payload(event_type: EventType, payload: bytes | memoryview, encoding: Encoding) -> Event:
    """An event from its payload; raises :class:`AgentProtocolError` naming the field at fault."""
    event: Event = decode_value(EVENT_CLASSES[event_type], payload, encoding)
    return event


def plain_allow(correlation_id: str, call_id: int) -> bytes:
    """What a frame with a plain allow has in it where our own serving end spells it in JSON, as most answers are.

    Whoever waits for it knows it when it comes, without decoding it.
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

    ``fields`` are added to an AgentResponse. A client without call ids is another host's, which has base64 in msgpack.
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


def decode_message(kind: Any, payload: bytes, encoding: Encoding, *, at: str = "") -> Any:
    """Anything but an event or an answer: other hosts have some of these in JSON, whatever the encoding.

    Raises :class:`AgentProtocolError` naming the field at fault, within ``at``.
    """
    # Every map of msgpack begins with a byte of 0x80 or more; no JSON does.
    return decode_value(kind, payload, _JSON if payload[:1] < b"\x80" else encoding, at=at)


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


def now_ms() -> int:
    """Milliseconds since the epoch, for the messages that carry their time."""
    return time.time_ns() // 1_000_000
