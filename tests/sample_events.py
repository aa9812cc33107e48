"""One event of a kind, for tests to which its content does not matter."""

from typing import Final

from asgi_agents.protocol import (
    GuardrailInspectEvent,
    Headers,
    RequestBodyChunkEvent,
    RequestCompleteEvent,
    RequestHeadersEvent,
    RequestMetadata,
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
CHUNK: Final = RequestBodyChunkEvent(correlation_id="c", data=b"x", is_last=True)
QUESTION: Final = GuardrailInspectEvent(correlation_id="c", inspection_type="pii_detection", content="three")
COMPLETE: Final = RequestCompleteEvent(
    correlation_id="c", status=200, duration_ms=0, request_body_size=0, response_body_size=0, upstream_attempts=1
)
