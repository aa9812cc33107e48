"""An agent that refuses what is too large."""

from typing import Final

from ..agent import Agent
from ..errors import ConfigurationError
from ..policy import require_int
from ..protocol import (
    AgentResponse,
    AuditMetadata,
    EventType,
    RequestBodyChunkEvent,
    RequestHeadersEvent,
    WebSocketFrameEvent,
)

_TOO_LARGE: Final = AuditMetadata(reason_codes=("too_large",))
_BODY: Final = AgentResponse.block(413, "Body too large", audit=_TOO_LARGE)
_HEADERS: Final = AgentResponse.block(431, "Headers too large", audit=_TOO_LARGE)
_URI: Final = AgentResponse.block(414, "URI too long", audit=_TOO_LARGE)
_MESSAGE: Final = AgentResponse.websocket_close(1009, "Message too big", audit=_TOO_LARGE)
# No body has 10 ** 18 bytes, and no more digits are read as a number.
_MAX_DIGITS: Final = 18


class SizeLimit(Agent):
    """Refuses bodies (413), headers (431) and URIs (414) that are too large, and closes on websocket messages (1009).

    A body is refused by its declared length before the app is called, and by what arrives where none is declared, or a
    wrong one. Shown in stream mode, nothing of it is kept::

        AgentConfig("size", SizeLimit(max_body_bytes=10_000_000), request_body_mode="stream")

    :param max_body_bytes: of a request, as it comes; with ``decode=True`` of its :class:`~asgi_agents.AgentConfig`
        decoded. None: as large as the configuration lets bodies be.
    :param max_headers_bytes: of all names and values of a request together. Servers have limits of their own.
    :param max_uri_bytes: of path and query.
    :param max_message_bytes: of a websocket message of the client.
    :raises ConfigurationError: for what is no size, and where no limit is given.
    """

    def __init__(
        self,
        *,
        max_body_bytes: int | None = None,
        max_headers_bytes: int | None = None,
        max_uri_bytes: int | None = None,
        max_message_bytes: int | None = None,
    ) -> None:
        given = {
            "max_body_bytes": max_body_bytes,
            "max_headers_bytes": max_headers_bytes,
            "max_uri_bytes": max_uri_bytes,
            "max_message_bytes": max_message_bytes,
        }
        if all(value is None for value in given.values()):
            raise ConfigurationError(f"SizeLimit: no limit, expected at least one of {', '.join(given)}")
        for name, value in given.items():
            if value is not None:
                require_int("SizeLimit", name, value, at_least=1)
        self._max_body = max_body_bytes
        self._max_headers = max_headers_bytes
        self._max_uri = max_uri_bytes
        self._max_message = max_message_bytes

    @property
    def events(self) -> frozenset[EventType]:
        """Those that a limit was given for: what nobody asks for is not read."""
        events = {EventType.REQUEST_HEADERS}
        if self._max_body is not None:
            events.add(EventType.REQUEST_BODY_CHUNK)
        if self._max_message is not None:
            events.add(EventType.WEBSOCKET_FRAME)
        return frozenset(events)

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        if self._max_uri is not None and len(event.uri) > self._max_uri:
            return _URI
        if self._max_headers is not None:
            # Values are decoded latin-1: a character is a byte.
            size = sum(len(name) + len(value) for name, values in event.headers.items() for value in values)
            if size > self._max_headers:
                return _HEADERS
        if self._max_body is not None and _declares_more(event.header("content-length"), self._max_body):
            return _BODY
        return None

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse | None:
        return _BODY if self._max_body is not None and event.bytes_received > self._max_body else None

    async def on_websocket_frame(self, event: WebSocketFrameEvent) -> AgentResponse | None:
        too_large = self._max_message is not None and len(event.data) > self._max_message
        return _MESSAGE if too_large and event.client_to_server else None


def _declares_more(length: str | None, limit: int) -> bool:
    """A hint that saves the upload. What counts is what arrives, so that a length that makes no sense says nothing."""
    if length is None or not length.isascii() or not length.isdigit():
        return False
    digits = length.lstrip("0")
    return len(digits) > _MAX_DIGITS or int(digits or "0") > limit
