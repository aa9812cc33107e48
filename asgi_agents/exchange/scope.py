"""What an ASGI scope says, in the agent protocol's words."""

import os
import time
from collections.abc import Awaitable, Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from starlette.types import Receive, Scope, Send

from ..protocol import TOKEN, Headers, RequestHeadersEvent, RequestMetadata

RawHeaders = list[tuple[bytes, bytes]]
# As starlette.types.ASGIApp, but whatever the app returns is returned.
App = Callable[[Scope, Receive, Send], Awaitable[Any]]

#: The header that clients and proxies name a request by.
CORRELATION_HEADER = b"x-request-id"
_MAX_CORRELATION_ID_LENGTH = 128
# RFC 8446, section 4.2.1, and RFC 8996.
_TLS_VERSIONS = {0x0301: "TLSv1", 0x0302: "TLSv1.1", 0x0303: "TLSv1.2", 0x0304: "TLSv1.3"}

_second = (0, "")


def headers_of(scope: Scope) -> RawHeaders:
    """The connection's headers; a scope made by hand may have none."""
    headers: RawHeaders = scope.get("headers") or []
    return headers


@contextmanager
def changed(scope: Scope, changes: Mapping[str, Any]) -> Iterator[None]:
    """The very same scope with other values, while the app runs.

    Not a copy: middlewares around this one read what the app has put there (``scope["route"]``). But they are to find
    their own values again.
    """
    before = {key: scope[key] for key in changes if key in scope}
    scope.update(changes)
    try:
        yield
    finally:
        for key in changes:
            scope.pop(key, None)
        scope.update(before)


def header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str | None:
    """The first value of a header, ``name`` in lower case, or None."""
    length = len(name)
    for key, value in headers:
        if key == name or (len(key) == length and key.lower() == name):
            return value.decode("latin-1")
    return None


def content_length(headers: Iterable[tuple[bytes, bytes]]) -> int | None:
    """The declared body size in bytes, or None where there is none or it makes no sense."""
    value = header(headers, b"content-length")
    # isdigit alone would let other scripts' digits through, and nobody has a body of 10 ** 19 bytes.
    if value is None or not value.isascii() or not value.isdigit() or len(value) > 18:
        return None
    return int(value)


def declares_body(scope: Scope) -> bool:
    """Whether the request can have a body, going by its head.

    In HTTP/1 a request without content-length and transfer-encoding has none (RFC 9112, section 6.3); later versions
    need not declare it.
    """
    headers = headers_of(scope)
    if header(headers, b"content-length") is not None:
        return content_length(headers) != 0
    return not str(scope.get("http_version", "1.1")).startswith("1") or (
        header(headers, b"transfer-encoding") is not None
    )


def correlation_id(scope: Scope, taken: Container[str] = (), name: bytes = CORRELATION_HEADER) -> str:
    """The header of that ``name`` where it is a sane token that no connection has ``taken``, else a new UUIDv7.

    Agents keep state under this id: a client that could choose another's would reach into it.
    """
    given = header(headers_of(scope), name) if name else None
    if given is not None and len(given) <= _MAX_CORRELATION_ID_LENGTH and TOKEN.match(given) and given not in taken:
        return given
    return new_id()


def new_id() -> str:
    """A UUIDv7 (RFC 9562, section 5.7): sorts by time."""
    milliseconds = time.time_ns() // 1_000_000
    chance = _randomness.take()
    return (
        f"{milliseconds >> 16:08x}-{milliseconds & 0xFFFF:04x}-7{chance & 0xFFF:03x}"
        f"-{0x8000 | chance >> 12 & 0x3FFF:04x}-{chance >> 26 & 0xFFFFFFFFFFFF:012x}"
    )


class _Randomness:
    """80 random bits at a time from the operating system, which is asked for many at once: it answers slowly."""

    def __init__(self) -> None:
        self._left: list[int] = []
        # A child process must not make its parent's ids.
        os.register_at_fork(after_in_child=self._left.clear)

    def take(self) -> int:
        if not self._left:
            block = os.urandom(10 * 128)
            self._left.extend(int.from_bytes(block[start : start + 10]) for start in range(0, len(block), 10))
        return self._left.pop()


_randomness = _Randomness()


def timestamp() -> str:
    """Now, as RFC 3339 in UTC with milliseconds."""
    global _second
    milliseconds = time.time_ns() // 1_000_000
    second, milliseconds = divmod(milliseconds, 1000)
    if _second[0] != second:
        # What a second's requests have in common takes longer to write than the rest of their event.
        _second = second, datetime.fromtimestamp(second, UTC).isoformat()[:-6]
    return f"{_second[1]}.{milliseconds:03d}+00:00"


def uri(scope: Scope) -> str:
    """Path and query as received. Where the server gives no raw path it is quoted anew."""
    raw_path: bytes | None = scope.get("raw_path")
    path = quote(scope["path"], errors="surrogatepass") if raw_path is None else raw_path.decode("latin-1")
    query: bytes = scope.get("query_string", b"")
    return f"{path}?{query.decode('latin-1')}" if query else path


def client_ip(scope: Scope) -> str:
    """The peer's address as the server tells it; empty on Unix sockets."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def request_headers_event(
    scope: Scope,
    correlation: str,
    route: str | None,
    *,
    name: bytes = CORRELATION_HEADER,
    traceparent: str | None = None,
) -> RequestHeadersEvent:
    """The event of an http request or a websocket handshake.

    Without a ``traceparent`` of ours it has the client's.
    """
    headers = headers_of(scope)
    client, server = scope.get("client"), scope.get("server")
    tls = (scope.get("extensions") or {}).get("tls") or {}
    version = str(scope.get("http_version", "1.1"))
    cipher = tls.get("cipher_suite")
    # An id that we have made names this request and no other already.
    given = bool(name) and header(headers, name) == correlation
    return RequestHeadersEvent(
        metadata=RequestMetadata(
            correlation_id=correlation,
            request_id=new_id() if given else correlation,
            client_ip=str(client[0]) if client else "",
            client_port=int(client[1] or 0) if client else 0,
            server_name=header(headers, b"host") or (str(server[0]) if server else None),
            protocol=f"HTTP/{version}",
            tls_version=_TLS_VERSIONS.get(tls.get("tls_version", 0)),
            tls_cipher=None if cipher is None else f"0x{cipher:04x}",
            route_id=route,
            timestamp=timestamp(),
            traceparent=traceparent or header(headers, b"traceparent"),
        ),
        method=str(scope.get("method", "GET")),
        uri=uri(scope),
        headers=Headers.from_raw(headers),
    )
