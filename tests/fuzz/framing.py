"""The stream transport's frames and messages, on their own."""

from typing import Any, Final

from asgi_agents.errors import AgentProtocolError
from asgi_agents.protocol import Encoding, EventType
from asgi_agents.protocol.codec import decode_value, encode_value
from asgi_agents.protocol.stream import (
    MAX_FRAME_BYTES,
    AgentCapabilities,
    AgentFeatures,
    AgentLimits,
    CallIds,
    Cancel,
    ConfigUpdateRequest,
    CounterMetric,
    FlowControl,
    FrameReader,
    Framing,
    GaugeMetric,
    HandshakeRequest,
    HandshakeResponse,
    HealthStatus,
    HistogramBucket,
    HistogramMetric,
    MessageType,
    MetricsReport,
    Ping,
    decode_answer_ids,
    decode_payload,
    decode_payload_ids,
    encode_answer_frame,
    encode_event_frame,
)

from . import wire
from .choices import Choices

MESSAGES: Final[tuple[Any, ...]] = (
    *(HandshakeRequest, HandshakeResponse, HealthStatus, MetricsReport, ConfigUpdateRequest, FlowControl, Cancel, Ping),
)
NAMES: Final = tuple(
    sorted(
        {
            field
            for kind in (
                *MESSAGES,
                *(AgentCapabilities, AgentFeatures, AgentLimits),
                *(CounterMetric, GaugeMetric, HistogramMetric, HistogramBucket),
            )
            for field in kind.__struct_fields__
        }
        | {"json", "msgpack", "+Inf", "Inf", "audit", "custom", "metadata", "traceparent"}
    )
)


def frames(data: bytes) -> None:
    """A stream is cut into the same frames however it comes, and no more is kept than the frame under way."""
    choices = Choices(data)
    framing = choices.pick(tuple(Framing))
    stream = bytearray()
    for _ in choices.times(6):
        payload = choices.take(40)
        stream += choices.pick((len(payload), 1, 0, 2**24, 2**24 + 1, 10 * 2**20 + 1, 2**32 - 1)).to_bytes(4, "big")
        stream += payload
    stream += choices.take(8)
    pieces = choices.cuts(bytes(stream))
    whole, whole_error = _read(FrameReader(framing), [bytes(stream)])
    reader = FrameReader(framing)
    cut, cut_error = _read(reader, pieces)
    assert (cut, cut_error) == (whole, whole_error), "the cuts make a difference"
    assert all(0 < len(frame) <= framing.max_bytes for frame in cut)
    consumed = b"".join(len(frame).to_bytes(4, "big") + frame for frame in cut)
    assert stream.startswith(consumed)
    if not cut_error:
        assert reader.held == len(stream) - len(consumed), "more is kept than the frame under way"


def _read(reader: FrameReader, pieces: list[bytes]) -> tuple[list[bytes], str]:
    found: list[bytes] = []
    try:
        for piece in pieces:
            found.extend(reader.feed(piece))
    except AgentProtocolError as exc:
        return found, str(exc)
    return found, ""


def messages(data: bytes) -> None:
    """Every kind of message is one or a protocol error, and can be sent on."""
    choices = Choices(data)
    encoding, kind = choices.pick(tuple(Encoding)), choices.pick(MESSAGES)
    names = (*kind.__struct_fields__, *kind.__struct_fields__, *NAMES)
    try:
        message = decode_value(kind, wire.message(choices, encoding, names), encoding, at="message")
    except AgentProtocolError as exc:
        wire.explained(exc)
        return
    said = encode_value(message, encoding, "message")
    again = decode_value(kind, said, encoding)
    assert encode_value(again, encoding, "message") == said, "a message that changes on its way"
    if isinstance(message, HandshakeResponse) and message.capabilities is not None:
        assert message.capabilities.events <= set(EventType)


def ids(data: bytes) -> None:
    """Whose a message is can be told without understanding the rest of it, or is a protocol error."""
    choices = Choices(data)
    encoding = choices.pick(tuple(Encoding))
    if choices.flag():
        _own_ids(choices, encoding)
        return
    names = ("audit", "custom", "correlation_id", "call_id", "metadata", "traceparent", *wire.NAMES)
    payload = wire.message(choices, encoding, names)
    for decode in (decode_answer_ids, decode_payload_ids):
        try:
            found = decode(payload, encoding)
        except AgentProtocolError as exc:
            wire.explained(exc)
            continue
        assert isinstance(found.correlation_id, str)
        assert isinstance(found.traceparent, str)
        assert found.call_id == CallIds().call_id or type(found.call_id) is int


def _own_ids(choices: Choices, encoding: Encoding) -> None:
    """Ours come back from the other end."""
    event = wire.event(choices, encoding)
    given = CallIds(choices.pick(("c-1", "é")), choices.integer() % 2**63)
    traceparent = choices.pick((None, "00-a-b-01"))
    frame = encode_event_frame(event, encoding, given, traceparent)
    assert len(frame) - 4 == int.from_bytes(frame[:4], "big") <= MAX_FRAME_BYTES
    payload = frame[5:]
    assert decode_payload(event.event_type, payload, encoding) == event
    found = decode_payload_ids(payload, encoding)
    assert found.call_id == given.call_id
    answer = wire.answer(choices, event.event_type, encoding)
    frame = encode_answer_frame(answer, encoding, given)
    assert frame[4] == MessageType.AGENT_RESPONSE
    assert decode_answer_ids(frame[5:], encoding) == given
