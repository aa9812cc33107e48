"""The events that agents receive. Names of fields and values are those on the wire (protocol version 2)."""

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, ClassVar

from msgspec import Struct
from msgspec.structs import force_setattr

from .headers import Headers
from .redacted_repr import RedactedRepr, names_of, redacted_repr, size_of, without_query
from .validation import TOKEN


class EventType(StrEnum):
    """The events that an agent can receive; the values are those on the wire."""

    CONFIGURE = "configure"
    REQUEST_HEADERS = "request_headers"
    REQUEST_BODY_CHUNK = "request_body_chunk"
    RESPONSE_HEADERS = "response_headers"
    RESPONSE_BODY_CHUNK = "response_body_chunk"
    REQUEST_COMPLETE = "request_complete"
    WEBSOCKET_FRAME = "websocket_frame"
    GUARDRAIL_INSPECT = "guardrail_inspect"


class Opcode(StrEnum):
    """Opcodes of websocket frames. ASGI servers pass text and binary only; other hosts also send the rest."""

    TEXT = "text"
    BINARY = "binary"
    PING = "ping"
    PONG = "pong"
    CLOSE = "close"
    CONTINUATION = "continuation"


class InspectionType(StrEnum):
    """What a guardrail agent is asked to look for: the types that the protocol names.

    Any other token is an inspection type too, if the agent knows it.
    """

    PROMPT_INJECTION = "prompt_injection"
    PII_DETECTION = "pii_detection"


class RequestMetadata(Struct, frozen=True, kw_only=True):
    """The client, the protocol and the ids. ``timestamp`` is RFC 3339, ``traceparent`` W3C trace context."""

    correlation_id: str
    request_id: str
    client_ip: str
    client_port: int
    server_name: str | None = None
    protocol: str
    tls_version: str | None = None
    tls_cipher: str | None = None
    route_id: str | None = None
    upstream_id: str | None = None
    timestamp: str
    traceparent: str | None = None


class ConfigureEvent(RedactedRepr, frozen=True, kw_only=True):
    """Sent once to each agent when it connects."""

    event_type: ClassVar[EventType] = EventType.CONFIGURE

    agent_id: str
    config: Any = None

    def __repr__(self) -> str:
        return redacted_repr(self, config="…")


class RequestHeadersEvent(RedactedRepr, frozen=True, kw_only=True):
    """A request's head, or a websocket handshake. ``uri`` is path and query as received, still percent-encoded."""

    event_type: ClassVar[EventType] = EventType.REQUEST_HEADERS

    metadata: RequestMetadata
    method: str
    uri: str
    headers: Headers

    @property
    def correlation_id(self) -> str:
        return self.metadata.correlation_id

    def header(self, name: str) -> str | None:
        """The value that a Starlette or FastAPI app reads for a header, or None. It is the first of several fields.

        Several ``cookie`` fields are joined with ``; ``, for the app too. All values of a name are in ``headers``. This
        is how apps read several fields of one name:

        =====================================  =====================================================================
        ``request.headers[…]``, ``.get(…)``,   the first
        ``request.url`` (``host``), FastAPI's
        ``Header()``, its security schemes
        ``headers.getlist(…)``, FastAPI's      all; an agent finds the same in ``event.headers[…]``
        ``Header()`` of a list or model
        ``request.cookies``, ``Cookie()``,     all: the middleware joins them to one
        ``APIKeyCookie``
        Django                                 all, joined with ``,``; names with underscores are dropped
        WSGI apps                              all, joined with ``,``; ``x_user`` is taken for ``x-user``
        =====================================  =====================================================================

        An agent in front of a Django or WSGI app has to judge all values, and under WSGI both spellings.
        """
        return self.headers.first(name)

    def __repr__(self) -> str:
        return redacted_repr(self, uri=repr(without_query(self.uri)))


class RequestBodyChunkEvent(RedactedRepr, frozen=True, kw_only=True):
    """A piece of the request body; in buffer mode all of it. ``bytes_received`` counts this chunk too."""

    event_type: ClassVar[EventType] = EventType.REQUEST_BODY_CHUNK

    correlation_id: str
    data: bytes
    is_last: bool
    total_size: int | None = None
    chunk_index: int = 0
    bytes_received: int = 0

    def __repr__(self) -> str:
        return redacted_repr(self, data=size_of(self.data))


class ResponseHeadersEvent(Struct, frozen=True, kw_only=True):
    """The head of the app's response."""

    event_type: ClassVar[EventType] = EventType.RESPONSE_HEADERS

    correlation_id: str
    status: int
    headers: Headers

    def header(self, name: str) -> str | None:
        """The first value of a header, or None."""
        return self.headers.first(name)


class ResponseBodyChunkEvent(RedactedRepr, frozen=True, kw_only=True):
    """A piece of the response body; in buffer mode all of it. ``bytes_sent`` counts this chunk too."""

    event_type: ClassVar[EventType] = EventType.RESPONSE_BODY_CHUNK

    correlation_id: str
    data: bytes
    is_last: bool
    total_size: int | None = None
    chunk_index: int = 0
    bytes_sent: int = 0

    def __repr__(self) -> str:
        return redacted_repr(self, data=size_of(self.data))


class RequestCompleteEvent(Struct, frozen=True, kw_only=True):
    """Sent after the last byte.

    Sizes in bytes, as they crossed the client's side; ``duration_ms`` ends with the last byte.
    """

    event_type: ClassVar[EventType] = EventType.REQUEST_COMPLETE

    correlation_id: str
    status: int
    duration_ms: int
    request_body_size: int
    response_body_size: int
    upstream_attempts: int
    error: str | None = None


class WebSocketFrameEvent(RedactedRepr, frozen=True, kw_only=True):
    """One websocket message.

    ``frame_index`` counts from 0 in each direction; text is UTF-8 (lone surrogates encoded as such).
    """

    event_type: ClassVar[EventType] = EventType.WEBSOCKET_FRAME

    correlation_id: str
    opcode: Opcode
    data: bytes
    client_to_server: bool
    frame_index: int
    fin: bool = True
    route_id: str | None = None
    client_ip: str

    def __repr__(self) -> str:
        return redacted_repr(self, data=size_of(self.data))


class GuardrailInspectEvent(RedactedRepr, frozen=True, kw_only=True):
    """A piece of content that a handler wants inspected.

    ``inspection_type`` is a token (RFC 9110, section 5.6.2); where it is one of :class:`InspectionType`, it is that
    member.

    Each lone surrogate, which JSON from a client can smuggle into a str, is replaced by one replacement character. No
    encoded text can have surrogates, and the spans of detections fit the given text as well.

    :raises TypeError: for a field that is not of its type.
    :raises ValueError: for an ``inspection_type`` that is no token.
    """

    event_type: ClassVar[EventType] = EventType.GUARDRAIL_INSPECT

    correlation_id: str
    inspection_type: str
    content: str
    model: str | None = None
    categories: Sequence[str] = ()
    route_id: str | None = None
    metadata: Mapping[str, str] = {}

    def __post_init__(self) -> None:
        force_setattr(self, "inspection_type", _inspection_type(self.inspection_type))
        force_setattr(self, "content", _sendable("content", self.content))
        if self.model is not None:
            force_setattr(self, "model", _sendable("model", self.model))
        if isinstance(self.categories, str):
            # A str is a sequence of strings too, but is never meant as one.
            raise TypeError("categories: expected a sequence of strings, got str")
        force_setattr(self, "categories", tuple(_sendable("categories", category) for category in self.categories))
        if not isinstance(self.metadata, Mapping):
            raise TypeError(f"metadata: expected a mapping of strings to strings, got {type(self.metadata).__name__}")
        if self.metadata:
            metadata = {
                _sendable("metadata", name): _sendable("metadata", value) for name, value in self.metadata.items()
            }
            force_setattr(self, "metadata", metadata)

    def __repr__(self) -> str:
        return redacted_repr(self, content=size_of(self.content), metadata=names_of(self.metadata))


_INSPECTION_TYPES: Mapping[str, InspectionType] = {kind.value: kind for kind in InspectionType}
_SURROGATES = re.compile("[\ud800-\udfff]")


def _inspection_type(given: object) -> str:
    if not isinstance(given, str):
        raise TypeError(f"inspection_type: expected a str, got {type(given).__name__}")
    if not TOKEN.match(given):
        raise ValueError(f"inspection_type: expected a token such as 'pii_detection', got {given!r:.60}")
    return _INSPECTION_TYPES.get(given, given)


def _sendable(field: str, text: object) -> str:
    if not isinstance(text, str):
        raise TypeError(f"{field}: expected str, got {type(text).__name__}")
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)


BodyChunkEvent = RequestBodyChunkEvent | ResponseBodyChunkEvent

Event = (
    ConfigureEvent
    | RequestHeadersEvent
    | RequestBodyChunkEvent
    | ResponseHeadersEvent
    | ResponseBodyChunkEvent
    | RequestCompleteEvent
    | WebSocketFrameEvent
    | GuardrailInspectEvent
)

EVENT_CLASSES: Mapping[EventType, type[Event]] = {
    cls.event_type: cls
    for cls in (
        ConfigureEvent,
        RequestHeadersEvent,
        RequestBodyChunkEvent,
        ResponseHeadersEvent,
        ResponseBodyChunkEvent,
        RequestCompleteEvent,
        WebSocketFrameEvent,
        GuardrailInspectEvent,
    )
}
