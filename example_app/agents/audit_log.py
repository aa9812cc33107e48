"""What happened."""

import json
import logging

from asgi_agents import Agent, RequestCompleteEvent, RequestHeadersEvent

logger = logging.getLogger("example_app.audit")


class AuditLog(Agent):
    """Logs one line of JSON for each connection, when it has ended.

    No bodies, no header values, no query strings: those are where the secrets are. It comes first on every route, so
    that it has heard of a request before another agent's refusal ends it.
    """

    def __init__(self) -> None:
        self._open: dict[str, RequestHeadersEvent] = {}

    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        self._open[event.correlation_id] = event

    async def on_request_complete(self, event: RequestCompleteEvent) -> None:
        line = {
            "id": event.correlation_id,
            "status": event.status,
            "ms": event.duration_ms,
            "bytes_in": event.request_body_size,
            "bytes_out": event.response_body_size,
            "reached_app": event.upstream_attempts > 0,
        }
        head = self._open.pop(event.correlation_id, None)
        if head is not None:
            line = {
                "time": head.metadata.timestamp,
                "client": head.metadata.client_ip,
                "method": head.method,
                "path": head.uri.partition("?")[0],
                "route": head.metadata.route_id,
            } | line
        # JSON escapes line breaks, so that no path can forge a line.
        logger.info("%s", json.dumps(line))
