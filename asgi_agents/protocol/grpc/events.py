"""Events as messages of agent.proto, and back. No I/O."""

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from ...errors import AgentProtocolError
from ..events import (
    Event,
    EventType,
    Opcode,
    RequestBodyChunkEvent,
    RequestCompleteEvent,
    RequestHeadersEvent,
    RequestMetadata,
    ResponseBodyChunkEvent,
    ResponseHeadersEvent,
    WebSocketFrameEvent,
)
from ..headers import Headers
from .messages import ProxyToAgent

#: The events that can be judged over this wire. The published agents answer no others, or their answers can't be said
#: on it: it has no field for the decision about a websocket message, nor for what a guardrail has found.
CARRIED: Final = frozenset(
    {
        EventType.REQUEST_HEADERS,
        EventType.REQUEST_BODY_CHUNK,
        EventType.RESPONSE_HEADERS,
        EventType.RESPONSE_BODY_CHUNK,
        EventType.REQUEST_COMPLETE,
    }
)

_OPCODES: Final[Mapping[int, Opcode]] = {
    1: Opcode.TEXT,
    2: Opcode.BINARY,
    3: Opcode.PING,
    4: Opcode.PONG,
    5: Opcode.CLOSE,
}
_MAX_PORT: Final = 65535


def encode_event(event: Event) -> bytes:
    """A ``ProxyToAgent``; raises :class:`AgentProtocolError` for an event that can't be said in one."""
    message = ProxyToAgent()
    try:
        match event:
            case RequestHeadersEvent():
                _put_request(message.request_headers, event)
            case ResponseHeadersEvent():
                head = message.response_headers
                head.correlation_id = event.correlation_id
                head.status_code = event.status
                _put_headers(head.headers, event.headers)
            case RequestBodyChunkEvent():
                _put_chunk(message.request_body_chunk, event, event.bytes_received)
            case ResponseBodyChunkEvent():
                _put_chunk(message.response_body_chunk, event, event.bytes_sent)
            case RequestCompleteEvent():
                complete = message.request_complete
                complete.correlation_id = event.correlation_id
                complete.status_code = event.status
                complete.duration_ms = event.duration_ms
                complete.bytes_received = event.request_body_size
                complete.bytes_sent = event.response_body_size
                if event.error is not None:
                    complete.error = event.error
            case _:
                raise AgentProtocolError(f"gRPC carries no {event.event_type.value}")
        encoded: bytes = message.SerializeToString()
    except (TypeError, ValueError) as exc:
        # A UnicodeError is a ValueError; it quotes the text, which may be anything.
        raise AgentProtocolError(f"the event can't be encoded for gRPC: {type(exc).__name__}") from None
    return encoded


def _put_request(head: Any, event: RequestHeadersEvent) -> None:
    given, metadata = event.metadata, head.metadata
    metadata.correlation_id = given.correlation_id
    metadata.request_id = given.request_id
    metadata.client_ip = given.client_ip
    metadata.client_port = given.client_port
    metadata.protocol = given.protocol
    metadata.timestamp_ms = _milliseconds(given.timestamp)
    for name in ("server_name", "tls_version", "route_id", "upstream_id", "traceparent"):
        value = getattr(given, name)
        if value is not None:
            setattr(metadata, name, value)
    head.method = event.method
    head.uri = event.uri
    head.http_version = given.protocol
    _put_headers(head.headers, event.headers)


def _put_headers(fields: Any, headers: Headers) -> None:
    add = fields.add
    for name, values in headers.items():
        for value in values:
            add(name=name, value=value)


def _put_chunk(chunk: Any, event: RequestBodyChunkEvent | ResponseBodyChunkEvent, so_far: int) -> None:
    chunk.correlation_id = event.correlation_id
    chunk.chunk_index = event.chunk_index
    chunk.data = event.data
    chunk.is_last = event.is_last
    if event.total_size is not None:
        chunk.total_size = event.total_size
    chunk.bytes_transferred = so_far


def decode_event(message: Any, kind: str) -> Event:
    """The event in the field ``kind`` of a ``ProxyToAgent``; raises :class:`AgentProtocolError` for what is none."""
    return _DECODERS[kind](getattr(message, kind))


def is_event(kind: str) -> bool:
    """Whether the field ``kind`` of a ``ProxyToAgent`` is an event that is answered."""
    return kind in _DECODERS


def correlation_id_in(message: Any, kind: str) -> str:
    """That of an event or of a cancellation."""
    inner = getattr(message, kind)
    found: str = inner.metadata.correlation_id if kind == "request_headers" else inner.correlation_id
    return found


def event_type_of(kind: str) -> EventType:
    """The type of the events in the field ``kind``."""
    return _TYPES[kind]


def _request_headers(head: Any) -> RequestHeadersEvent:
    metadata = head.metadata
    if metadata.client_port > _MAX_PORT:
        raise AgentProtocolError(f"metadata.client_port: expected 0 to {_MAX_PORT}, got {metadata.client_port}")
    return RequestHeadersEvent(
        metadata=RequestMetadata(
            correlation_id=metadata.correlation_id,
            request_id=metadata.request_id,
            client_ip=metadata.client_ip,
            client_port=metadata.client_port,
            server_name=_optional(metadata, "server_name"),
            protocol=metadata.protocol or head.http_version,
            tls_version=_optional(metadata, "tls_version"),
            route_id=_optional(metadata, "route_id"),
            upstream_id=_optional(metadata, "upstream_id"),
            timestamp=_timestamp(metadata.timestamp_ms),
            traceparent=_optional(metadata, "traceparent"),
        ),
        method=head.method,
        uri=head.uri,
        headers=_headers(head.headers),
    )


def _response_headers(head: Any) -> ResponseHeadersEvent:
    return ResponseHeadersEvent(
        correlation_id=head.correlation_id, status=head.status_code, headers=_headers(head.headers)
    )


def _request_body_chunk(chunk: Any) -> RequestBodyChunkEvent:
    return RequestBodyChunkEvent(
        correlation_id=chunk.correlation_id,
        data=chunk.data,
        is_last=chunk.is_last,
        total_size=_optional(chunk, "total_size"),
        chunk_index=chunk.chunk_index,
        bytes_received=chunk.bytes_transferred,
    )


def _response_body_chunk(chunk: Any) -> ResponseBodyChunkEvent:
    return ResponseBodyChunkEvent(
        correlation_id=chunk.correlation_id,
        data=chunk.data,
        is_last=chunk.is_last,
        total_size=_optional(chunk, "total_size"),
        chunk_index=chunk.chunk_index,
        bytes_sent=chunk.bytes_transferred,
    )


def _request_complete(complete: Any) -> RequestCompleteEvent:
    return RequestCompleteEvent(
        correlation_id=complete.correlation_id,
        status=complete.status_code,
        duration_ms=complete.duration_ms,
        request_body_size=complete.bytes_received,
        response_body_size=complete.bytes_sent,
        upstream_attempts=1,
        error=_optional(complete, "error"),
    )


def _websocket_frame(frame: Any) -> WebSocketFrameEvent:
    opcode = _OPCODES.get(frame.frame_type)
    if opcode is None:
        raise AgentProtocolError(f"websocket_frame.frame_type: expected 1 to 5, got {frame.frame_type}")
    return WebSocketFrameEvent(
        correlation_id=frame.correlation_id,
        opcode=opcode,
        data=frame.payload,
        client_to_server=frame.client_to_server,
        frame_index=0,
        client_ip="",
    )


_DECODERS: Final[Mapping[str, Callable[[Any], Event]]] = {
    "request_headers": _request_headers,
    "request_body_chunk": _request_body_chunk,
    "response_headers": _response_headers,
    "response_body_chunk": _response_body_chunk,
    "websocket_frame": _websocket_frame,
    "request_complete": _request_complete,
}
_TYPES: Final[Mapping[str, EventType]] = {
    **{event_type.value: event_type for event_type in EventType},
    "guardrail": EventType.GUARDRAIL_INSPECT,
}


def _headers(fields: Iterable[Any]) -> Headers:
    found: dict[str, list[str]] = {}
    for field in fields:
        found.setdefault(field.name, []).append(field.value)
    return Headers(found)


def _optional(message: Any, name: str) -> Any:
    return getattr(message, name) if message.HasField(name) else None


def _milliseconds(timestamp: str) -> int:
    try:
        return max(0, int(datetime.fromisoformat(timestamp).timestamp() * 1000))
    except (ValueError, OverflowError):
        return 0


def _timestamp(milliseconds: int) -> str:
    try:
        at = datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        raise AgentProtocolError(f"metadata.timestamp_ms: {milliseconds} is no time") from None
    return at.isoformat(timespec="milliseconds")
