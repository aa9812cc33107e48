"""Messages for decoders: as good as what a peer would send, almost as good, and anything at all."""

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from asgi_agents import AgentError, AgentResponse, AuditMetadata, BodyMutation, HeaderOp
from asgi_agents.errors import printable
from asgi_agents.protocol import (
    Acknowledgement,
    Answer,
    Block,
    Challenge,
    ConfigureEvent,
    Detection,
    Encoding,
    Event,
    EventType,
    GuardrailInspectEvent,
    GuardrailResponse,
    Headers,
    InspectionType,
    Opcode,
    Redirect,
    RequestBodyChunkEvent,
    RequestCompleteEvent,
    RequestHeadersEvent,
    RequestMetadata,
    ResponseBodyChunkEvent,
    ResponseHeadersEvent,
    Severity,
    TextSpan,
    WebSocketClose,
    WebSocketDrop,
    WebSocketFrameEvent,
    encode_answer,
    encode_event,
)

from .choices import Choices

#: Every name and word of the protocol.
NAMES: Final[Sequence[str]] = tuple(
    sorted(
        {
            field
            for kind in (
                *(RequestMetadata, ConfigureEvent, RequestHeadersEvent, RequestBodyChunkEvent, ResponseHeadersEvent),
                *(ResponseBodyChunkEvent, RequestCompleteEvent, WebSocketFrameEvent, GuardrailInspectEvent),
                *(AgentResponse, AuditMetadata, BodyMutation, Block, Redirect, Challenge, WebSocketClose),
                *(GuardrailResponse, Detection, TextSpan, Acknowledgement),
            )
            for field in kind.__struct_fields__
        }
        | {"block", "redirect", "challenge", "allow", "drop", "close", "set", "add", "remove", "name", "value"}
        | {"event_type", "payload", "version", "call_id", "correlation_id", "metadata", *EventType, *Opcode}
        | {*InspectionType, *Severity}
    )
)
HEADER_NAMES: Final = (
    *("x-a", "X-B", "set-cookie", "content-type", "host", "Host", "content-length", "Transfer-Encoding"),
    *("connection", "keep-alive", "upgrade", "TE", "trailer", "proxy-authorization", "sec-websocket-key"),
    *("Sec-WebSocket-Accept", "", ":path", "x a", "x-é", "x\n", "http2-settings", "proxy-connection", "date"),
)


def spelt(value: Any, encoding: Encoding) -> bytes:
    """``value`` in ``encoding``, with as little care as a foreign implementation may take."""
    if encoding is Encoding.MSGPACK:
        try:
            return msgspec.msgpack.encode(value)
        except (OverflowError, UnicodeError):
            return msgspec.msgpack.encode(repr(value))
    return json.dumps(value, default=lambda data: b64encode(data).decode()).encode("utf-8", "surrogatepass")


def message(choices: Choices, encoding: Encoding, names: Sequence[str] = NAMES) -> bytes:
    """Anything that could be sent as one message."""
    match choices.below(6):
        case 0:
            return choices.rest()
        case 1:
            return _nested(choices, encoding)
        case 2:
            data = spelt(choices.value(names, 4), encoding)
            return _damaged(choices, data) if choices.flag() else data
        case _:
            return spelt({choices.name(names): choices.value(names, 4) for _ in choices.times(8)}, encoding)


def _nested(choices: Choices, encoding: Encoding) -> bytes:
    """Deeper than any recursion may go, perhaps where anything is allowed."""
    depth = choices.pick((10, 600, 1200, 20_000))
    opening, closing = (b"[", b"]") if choices.flag() else (b'{"a":', b"}")
    if encoding is Encoding.MSGPACK:
        return choices.pick((b"", b"\x81\xa5audit\x81\xa6custom")) + b"\x91" * depth + b"\xc0"
    inside = opening * depth + b"null" + closing * depth
    prefix, suffix = choices.pick(
        ((b"", b""), (b'{"audit":{"custom":{"a":', b"}}}"), (b'{"version":2,"event_type":"configure","payload":', b"}"))
    )
    return prefix + inside + suffix


def _damaged(choices: Choices, data: bytes) -> bytes:
    """With a byte changed, a piece repeated, or the end missing."""
    at = choices.below(min(len(data), 60_000) or 1)
    match choices.below(3):
        case 0:
            return data[:at] + bytes([choices.byte()]) + data[at + 1 :]
        case 1:
            return data[:at] + data[at // 2 :]
        case _:
            return data[:at]


def event(choices: Choices, encoding: Encoding) -> Event:
    """A legal event."""
    correlation_id = choices.pick(("c-1", "c-2", "", "é"))
    size = choices.below(300)
    match choices.pick(tuple(EventType)):
        case EventType.CONFIGURE:
            return ConfigureEvent(agent_id=choices.pick(("waf", "")), config=plain(choices.value(NAMES), encoding))
        case EventType.REQUEST_HEADERS:
            return RequestHeadersEvent(
                metadata=RequestMetadata(
                    correlation_id=correlation_id,
                    request_id="r",
                    client_ip="192.0.2.1",
                    client_port=size,
                    protocol="HTTP/1.1",
                    timestamp="2026-01-01T00:00:00.000+00:00",
                    traceparent=choices.pick((None, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "x")),
                ),
                method=choices.pick(("GET", "POST", "")),
                uri="/" + sendable(choices.text()),
                headers=headers(choices),
            )
        case EventType.REQUEST_BODY_CHUNK:
            return RequestBodyChunkEvent(
                correlation_id=correlation_id, data=choices.take(64), is_last=choices.flag(), bytes_received=size
            )
        case EventType.RESPONSE_HEADERS:
            return ResponseHeadersEvent(correlation_id=correlation_id, status=size, headers=headers(choices))
        case EventType.RESPONSE_BODY_CHUNK:
            return ResponseBodyChunkEvent(
                correlation_id=correlation_id, data=choices.take(64), is_last=choices.flag(), total_size=size
            )
        case EventType.REQUEST_COMPLETE:
            return RequestCompleteEvent(
                correlation_id=correlation_id,
                status=size,
                duration_ms=1,
                request_body_size=2,
                response_body_size=3,
                upstream_attempts=1,
                error=choices.pick((None, "ValueError")),
            )
        case EventType.WEBSOCKET_FRAME:
            return WebSocketFrameEvent(
                correlation_id=correlation_id,
                opcode=choices.pick(tuple(Opcode)),
                data=choices.take(64),
                client_to_server=choices.flag(),
                frame_index=size,
                client_ip="",
            )
        case EventType.GUARDRAIL_INSPECT:
            return GuardrailInspectEvent(
                correlation_id=correlation_id,
                inspection_type=choices.pick(tuple(InspectionType)),
                content=sendable(choices.text()),
                categories=tuple(sendable(choices.text()) for _ in choices.times(2)),
                metadata={"k": sendable(choices.text())},
            )


def answer(choices: Choices, event_type: EventType, encoding: Encoding) -> Answer:
    """A legal answer to such an event, as far as spelling goes: whether it may be applied is another question."""
    if event_type is EventType.GUARDRAIL_INSPECT and choices.flag():
        return GuardrailResponse(
            detected=choices.flag(),
            confidence=choices.pick((0.0, 0.5, 1.0)),
            detections=[
                Detection(category=sendable(choices.text()), description="d", severity=choices.pick(tuple(Severity)))
                for _ in choices.times(2)
            ],
        )
    if event_type in (EventType.CONFIGURE, EventType.REQUEST_COMPLETE) and choices.flag():
        return Acknowledgement(success=choices.flag(), error=choices.pick((None, "no")))
    return AgentResponse(
        decision=choices.pick(
            (
                AgentResponse().decision,
                Block(choices.integer() % 2**63, sendable(choices.text()), {choices.pick(HEADER_NAMES): "v"}),
                Redirect(sendable(choices.text()), choices.pick((302, 200, 307))),
                Challenge(sendable(choices.text()), {"realm": sendable(choices.text())}),
            )
        ),
        request_headers=[_op(choices) for _ in choices.times(3)],
        response_headers=[_op(choices) for _ in choices.times(3)],
        routing_metadata={"k": sendable(choices.text())} if choices.flag() else {},
        audit=AuditMetadata(
            tags=[sendable(choices.text()) for _ in choices.times(2)],
            confidence=choices.pick((None, 0.5, 2.0)),
            custom={"x": plain(choices.value(NAMES, 2), encoding)} if choices.flag() else {},
        ),
        needs_more=choices.flag(),
        request_body_mutation=choices.pick((None, BodyMutation(), BodyMutation(b""), BodyMutation(b"x", 3))),
        response_body_mutation=choices.pick((None, BodyMutation(), BodyMutation(b""), BodyMutation(b"x", 3))),
        websocket_decision=choices.pick((None, WebSocketDrop(), WebSocketClose(choices.integer() % 2**63, "r"))),
    )


def _op(choices: Choices) -> HeaderOp:
    name = choices.pick(HEADER_NAMES)
    if choices.one_in(4):
        return HeaderOp.remove(name)
    return choices.pick((HeaderOp.set, HeaderOp.add))(name, sendable(choices.text()))


def headers(choices: Choices) -> Headers:
    """Fields as an event has them."""
    return Headers.from_raw(
        [(sendable(choices.text()).encode(), choices.text().encode("utf-8", "replace")) for _ in choices.times(3)]
    )


def sendable(text: str) -> str:
    """Without what UTF-8 can't carry."""
    return text.encode("utf-8", "replace").decode()


def plain(value: Any, encoding: Encoding) -> Any:
    """As it comes out at the other end of the wire."""
    match value:
        case str():
            return sendable(value)
        case bytes() if encoding is Encoding.JSON:
            return b64encode(value).decode()
        case float() if value != value or (encoding is Encoding.JSON and value in (float("inf"), float("-inf"))):
            return None
        case int() if not -(2**63) <= value < 2**64:
            return 0
        case list():
            return [plain(item, encoding) for item in value]
        case Mapping():
            return {sendable(name): plain(item, encoding) for name, item in value.items()}
        case _:
            return value


def explained(exc: AgentError) -> None:
    """An error says what is wrong, in words that can be written down."""
    assert str(exc)
    printable(str(exc)).encode()


def seeds() -> list[bytes]:
    """Inputs from which every kind of message is near."""
    spread = bytes(range(256))
    return [b"", *(bytes([kind]) + spread[start : start + 96] for kind in range(8) for start in (0, 50, 128, 160))]


def legal_payloads() -> list[bytes]:
    """Envelopes and answers as they are, in both encodings."""
    made = []
    for encoding in Encoding:
        for number in range(24):
            choices = Choices(bytes((number * 37 + index * 11) % 256 for index in range(80)))
            sent = event(choices, encoding)
            made.append(encode_event(sent, encoding))
            made.append(encode_answer(answer(choices, sent.event_type, encoding), encoding))
    return made
