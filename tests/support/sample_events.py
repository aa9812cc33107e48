"""One event of a kind, for tests to which its content does not matter."""

from collections.abc import Mapping
from typing import Final

from asgi_agents.protocol import (
    GuardrailInspectEvent,
    Headers,
    RequestBodyChunkEvent,
    RequestCompleteEvent,
    RequestHeadersEvent,
    RequestMetadata,
    ResponseHeadersEvent,
)

METADATA: Final = RequestMetadata(
    correlation_id="c",
    request_id="r",
    client_ip="192.0.2.1",
    client_port=1,
    protocol="HTTP/1.1",
    timestamp="2026-01-01T00:00:00Z",
)
HEAD: Final = RequestHeadersEvent(metadata=METADATA, method="GET", uri="/", headers=Headers())
RESPONSE_HEAD: Final = ResponseHeadersEvent(correlation_id="c", status=200, headers=Headers())
CHUNK: Final = RequestBodyChunkEvent(correlation_id="c", data=b"x", is_last=True)
QUESTION: Final = GuardrailInspectEvent(correlation_id="c", inspection_type="pii_detection", content="three")
COMPLETE: Final = RequestCompleteEvent(
    correlation_id="c", status=200, duration_ms=0, request_body_size=0, response_body_size=0, upstream_attempts=1
)


def head(
    correlation_id: str = "c", uri: str = "/", headers: Mapping[str, list[str]] | None = None
) -> RequestHeadersEvent:
    """The head of a request, of which nothing else is known."""
    metadata = RequestMetadata(
        correlation_id=correlation_id, request_id="r", client_ip="", client_port=0, protocol="HTTP/1.1", timestamp=""
    )
    return RequestHeadersEvent(metadata=metadata, method="GET", uri=uri, headers=Headers(headers))
