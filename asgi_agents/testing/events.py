"""Events as the middleware makes them, with defaults for all that a test does not care about."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ..protocol import (
    ConfigureEvent,
    GuardrailInspectEvent,
    Headers,
    Opcode,
    RequestBodyChunkEvent,
    RequestCompleteEvent,
    RequestHeadersEvent,
    RequestMetadata,
    ResponseBodyChunkEvent,
    ResponseHeadersEvent,
    WebSocketFrameEvent,
)

#: One value for each name, or several.
GivenHeaders = Mapping[str, str | Sequence[str]] | Headers | None

_ID: Final = "test"
_CLIENT: Final = "127.0.0.1"


def request_metadata(
    *,
    correlation_id: str = _ID,
    request_id: str | None = None,
    client_ip: str = _CLIENT,
    client_port: int = 50000,
    server_name: str | None = "testserver",
    protocol: str = "HTTP/1.1",
    tls_version: str | None = None,
    tls_cipher: str | None = None,
    route_id: str | None = None,
    timestamp: str = "2026-01-01T00:00:00Z",
    traceparent: str | None = None,
) -> RequestMetadata:
    """The metadata of a request.

    :param request_id: None: the same as ``correlation_id``.
    """
    return RequestMetadata(
        correlation_id=correlation_id,
        request_id=correlation_id if request_id is None else request_id,
        client_ip=client_ip,
        client_port=client_port,
        server_name=server_name,
        protocol=protocol,
        tls_version=tls_version,
        tls_cipher=tls_cipher,
        route_id=route_id,
        timestamp=timestamp,
        traceparent=traceparent,
    )


def request_headers_event(
    method: str = "GET",
    uri: str = "/",
    headers: GivenHeaders = None,
    *,
    metadata: RequestMetadata | None = None,
) -> RequestHeadersEvent:
    """The head of a request.

    :param uri: path and query, percent-encoded.
    :param headers: one value for each name, or a list of values. Names are put into lower case.
    :param metadata: None: that of :func:`request_metadata` without arguments.
    """
    return RequestHeadersEvent(
        metadata=request_metadata() if metadata is None else metadata,
        method=method,
        uri=uri,
        headers=_headers(headers),
    )


def request_body_chunk_event(
    data: bytes | str = b"", *, is_last: bool = True, chunk_index: int = 0, correlation_id: str = _ID
) -> RequestBodyChunkEvent:
    """A request body, all of it unless ``is_last`` is False. A str is encoded as UTF-8."""
    data = _bytes(data)
    return RequestBodyChunkEvent(
        correlation_id=correlation_id,
        data=data,
        is_last=is_last,
        total_size=len(data) if is_last and not chunk_index else None,
        chunk_index=chunk_index,
        bytes_received=len(data),
    )


def response_headers_event(
    status: int = 200, headers: GivenHeaders = None, *, correlation_id: str = _ID
) -> ResponseHeadersEvent:
    """The head of a response. ``headers`` are as in :func:`request_headers_event`."""
    return ResponseHeadersEvent(correlation_id=correlation_id, status=status, headers=_headers(headers))


def response_body_chunk_event(
    data: bytes | str = b"", *, is_last: bool = True, chunk_index: int = 0, correlation_id: str = _ID
) -> ResponseBodyChunkEvent:
    """A response body, all of it unless ``is_last`` is False. A str is encoded as UTF-8."""
    data = _bytes(data)
    return ResponseBodyChunkEvent(
        correlation_id=correlation_id,
        data=data,
        is_last=is_last,
        total_size=len(data) if is_last and not chunk_index else None,
        chunk_index=chunk_index,
        bytes_sent=len(data),
    )


def request_complete_event(
    status: int = 200,
    *,
    duration_ms: int = 1,
    request_body_size: int = 0,
    response_body_size: int = 0,
    error: str | None = None,
    correlation_id: str = _ID,
) -> RequestCompleteEvent:
    """The end of a request."""
    return RequestCompleteEvent(
        correlation_id=correlation_id,
        status=status,
        duration_ms=duration_ms,
        request_body_size=request_body_size,
        response_body_size=response_body_size,
        upstream_attempts=1,
        error=error,
    )


def websocket_frame_event(
    data: bytes | str = "",
    *,
    client_to_server: bool = True,
    frame_index: int = 0,
    route_id: str | None = None,
    client_ip: str = _CLIENT,
    correlation_id: str = _ID,
) -> WebSocketFrameEvent:
    """A message of a websocket: text for a str, binary for bytes."""
    return WebSocketFrameEvent(
        correlation_id=correlation_id,
        opcode=Opcode.TEXT if isinstance(data, str) else Opcode.BINARY,
        data=_bytes(data),
        client_to_server=client_to_server,
        frame_index=frame_index,
        route_id=route_id,
        client_ip=client_ip,
    )


def guardrail_inspect_event(
    content: str = "",
    inspection_type: str = "pii_detection",
    *,
    model: str | None = None,
    categories: Sequence[str] = (),
    route_id: str | None = None,
    metadata: Mapping[str, str] | None = None,
    correlation_id: str = _ID,
) -> GuardrailInspectEvent:
    """A piece of content that is to be inspected. Raises what the class raises for wrong fields."""
    return GuardrailInspectEvent(
        correlation_id=correlation_id,
        inspection_type=inspection_type,
        content=content,
        model=model,
        categories=categories,
        route_id=route_id,
        metadata=metadata or {},
    )


def configure_event(config: Any = None, agent_id: str = "agent") -> ConfigureEvent:
    """The configuration of an agent."""
    return ConfigureEvent(agent_id=agent_id, config=config)


def _headers(given: GivenHeaders) -> Headers:
    if isinstance(given, Headers):
        return given
    values = (given or {}).items()
    return Headers({name.lower(): [value] if isinstance(value, str) else list(value) for name, value in values})


def _bytes(data: bytes | str) -> bytes:
    return data.encode() if isinstance(data, str) else bytes(data)
