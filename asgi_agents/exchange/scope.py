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
CORRELATION_HEADER = "x-request-id"
_MAX_CORRELATION_ID_LENGTH = 128
# RFC 8446, section 4.2.1, and RFC 8996.
_TLS_VERSIONS = {0x0301: "TLSv1", 0x0302: "TLSv1.1", 0x0303: "TLSv1.2", 0x0304: "TLSv1.3"}

_PROTOCOLS = {version: f"HTTP/{version}" for version in ("1.0", "1.1", "2", "3")}
_NO_EXTENSIONS: Mapping[str, Any] = {}

# What the requests of a millisecond have in common takes longer to write than the rest of their event.
_written_ms = 0
_timestamp = ""
_id_prefix = ""


def headers_of(scope: Scope) -> RawHeaders:
    """The connection's headers; a scope made by hand may have none.

    ASGI allows any iterable, and some can be read only once. What is neither a list nor a tuple becomes a list, in the
    scope as well, for the app is not the only one that reads it.
    """
    headers: RawHeaders = scope.get("headers") or []
    if type(headers) is not list and not isinstance(headers, list | tuple):
        headers = scope["headers"] = [(name, value) for name, value in headers]
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


def find_correlation_id(headers: Headers | None, taken: Container[str] = (), name: str = CORRELATION_HEADER) -> str:
    """The header of that ``name`` where it is a sane token that no connection has ``taken``, else a new UUIDv7.

    Agents keep state under this id: a client that could choose another's would reach into it.
    """
    given = headers.first(name) if name and headers is not None else None
    if given is not None and len(given) <= _MAX_CORRELATION_ID_LENGTH and TOKEN.match(given) and given not in taken:
        return given
    return new_id()


def new_id() -> str:
    """A UUIDv7 (RFC 9562, section 5.7): sorts by time."""
    if time.time_ns() // 1_000_000 != _written_ms:
        _write_now()
    while True:
        try:
            return _id_prefix + _id_suffixes.pop()
        except IndexError:
            _make_suffixes()


_BLOCK = 256
# The random ends of ids to come: the operating system answers slowly, so that it is asked for many at once.
_id_suffixes: list[str] = []
# A child process must not make its parent's ids. Where processes can't fork (Windows), there is no such function.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_id_suffixes.clear)


def _make_suffixes() -> None:
    # 48 bits that nobody can guess for each, and 26 for all of a block.
    digits = os.urandom(6 * _BLOCK + 4).hex()
    middle = f"-7{digits[-8:-5]}-{'89ab'[int(digits[-5], 16) & 3]}{digits[-4:-1]}-"
    _id_suffixes.extend([middle + digits[start : start + 12] for start in range(0, 12 * _BLOCK, 12)])


def timestamp(nanoseconds: int) -> str:
    """A time since the epoch, as RFC 3339 in UTC with milliseconds."""
    milliseconds = nanoseconds // 1_000_000
    return _timestamp if milliseconds == _written_ms else _write_time(milliseconds)


def _write_time(milliseconds: int) -> str:
    second, rest = divmod(milliseconds, 1000)
    return f"{datetime.fromtimestamp(second, UTC).isoformat()[:-6]}.{rest:03d}+00:00"


def _write_now() -> None:
    global _written_ms, _timestamp, _id_prefix
    now = time.time_ns() // 1_000_000
    _id_prefix = f"{now >> 16:08x}-{now & 0xFFFF:04x}"
    _timestamp = _write_time(now)
    # Last: other threads have event loops of their own.
    _written_ms = now


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
    headers: Headers | None = None,
    name: str = CORRELATION_HEADER,
    traceparent: str | None = None,
) -> RequestHeadersEvent:
    """The event of an http request or a websocket handshake. ``headers`` are the scope's, if they are known already.

    Without a ``traceparent`` of ours it has the client's.
    """
    if headers is None:
        headers = Headers.from_raw(headers_of(scope))
    client = scope.get("client")
    tls = (scope.get("extensions") or _NO_EXTENSIONS).get("tls")
    version = scope.get("http_version", "1.1")
    return RequestHeadersEvent(
        metadata=RequestMetadata(
            correlation_id=correlation,
            # An id that we have made names this request and no other already.
            request_id=new_id() if name and headers.first(name) == correlation else correlation,
            client_ip=str(client[0]) if client else "",
            client_port=int(client[1] or 0) if client else 0,
            server_name=headers.first("host") or _server_name(scope),
            protocol=_PROTOCOLS.get(version) or f"HTTP/{version}",
            tls_version=_TLS_VERSIONS.get(tls.get("tls_version", 0)) if tls else None,
            tls_cipher=_tls_cipher(tls) if tls else None,
            route_id=route,
            timestamp=timestamp(time.time_ns()),
            traceparent=traceparent or headers.first("traceparent"),
        ),
        method=str(scope.get("method", "GET")),
        uri=uri(scope),
        headers=headers,
    )


def _server_name(scope: Scope) -> str | None:
    server = scope.get("server")
    return str(server[0]) if server else None


def _tls_cipher(tls: Mapping[str, Any]) -> str | None:
    cipher = tls.get("cipher_suite")
    return None if cipher is None else f"0x{cipher:04x}"
