"""The messages of the stream transport, and their type bytes. No I/O."""

import math
import time
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, Final

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import force_setattr

from ...errors import AgentProtocolError
from ..codec import Encoding, decode_value
from ..events import EventType

#: The longest ping, which is sent back as it is.
MAX_PING_BYTES: Final = 1024


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
EVENT_OF_MESSAGE: Final[Mapping[int, EventType]] = {
    int(message_type): event_type for event_type, message_type in MESSAGE_OF_EVENT.items()
}

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
    """The health that an agent reports."""

    HEALTHY = 1
    DEGRADED = 2
    DRAINING = 3
    UNHEALTHY = 4


class FlowAction(IntEnum):
    """What a :class:`FlowControl` message asks for."""

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

    ``concurrent_requests``: calls it takes at a time on one connection, 0 where it doesn't say. ``call_ids`` is our
    extension of the protocol: each event has a ``call_id``, and its answer repeats it, so that each answer can be
    matched with its event.
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
    """What an agent can take: bytes of a body at once, calls at a time, and the bytes of a chunk that it prefers."""

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
        """The events that it supports; numbers that this version does not know are left out."""
        return frozenset(_EVENT_OF_NUMBER[number] for number in self.supported_events if number in _EVENT_OF_NUMBER)


class HandshakeResponse(Struct, kw_only=True):
    """The agent's answer to the handshake."""

    protocol_version: int
    success: bool
    error: str | None = None
    encoding: str = Encoding.JSON
    capabilities: AgentCapabilities | None = None


class HealthStatus(Struct, frozen=True, kw_only=True):
    """The agent's health. ``timeout_multiplier`` applies while it is degraded."""

    state: int
    agent_id: str = ""
    message: str | None = None
    timeout_multiplier: float = 1.0
    timestamp_ms: int = 0


class FlowControl(Struct, frozen=True, kw_only=True):
    """Ask the client to hold calls back, or to go on: all on this connection, or those with one correlation id.

    ``buffer_available`` is how many bytes of calls the agent can take at a time.
    """

    action: int
    correlation_id: str | None = None
    buffer_available: int | None = None
    timestamp_ms: int = 0


class Cancel(Struct, frozen=True, kw_only=True):
    """Nobody waits for an answer any more: to one call, or without ``call_id`` to all with the ``correlation_id``."""

    correlation_id: str
    reason: int = CancelReason.MANUAL
    timestamp_ms: int = 0
    call_id: int | UnsetType = UNSET


class Ping(Struct, frozen=True, kw_only=True):
    """Asks whether the peer is there. The pong repeats its payload."""

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
    """Metrics that an agent sends without being asked."""

    agent_id: str = ""
    timestamp_ms: int = 0
    interval_ms: int = 0
    counters: Sequence[CounterMetric] = ()
    gauges: Sequence[GaugeMetric] = ()
    histograms: Sequence[HistogramMetric] = ()


class ConfigUpdateRequest(Struct, frozen=True, kw_only=True):
    """An agent asks for a change of its configuration. ``update_type`` is passed to the callback as it is."""

    request_id: str = ""
    update_type: Any = None
    timestamp_ms: int = 0


def check_ping(payload: bytes | memoryview) -> None:
    """Raise :class:`AgentProtocolError` for a ping that is too long to be sent back."""
    if len(payload) > MAX_PING_BYTES:
        raise AgentProtocolError(f"a ping of {len(payload)} bytes, expected {MAX_PING_BYTES} at most")


def decode_message(kind: Any, payload: bytes, encoding: Encoding, *, at: str = "") -> Any:
    """Decode a message that is no event and no answer. Other hosts encode some of these in JSON at any time.

    Raises :class:`AgentProtocolError` naming the field at fault, within ``at``.
    """
    # Every map of msgpack begins with a byte of 0x80 or more; no JSON does.
    return decode_value(kind, payload, Encoding.JSON if payload[:1] < b"\x80" else encoding, at=at)


def now_ms() -> int:
    """Milliseconds since the epoch, for the messages that carry their time."""
    return time.time_ns() // 1_000_000
