"""What an ASGI scope says, in the agent protocol's words."""

import os
import time
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

from starlette.types import Message, Receive, Scope, Send

from ..protocol import TOKEN, Headers, RequestHeadersEvent, RequestMetadata
from ..protocol.headers import as_one_spelling, join_cookies
from ..protocol.target import NoPathError, is_path, shown_path

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

# What is changed for the app. Those around it have their own.
_NOT_HANDED_BACK = frozenset({"headers", "extensions"})
_STARTS = frozenset({"http.response.start", "websocket.accept", "websocket.close", "websocket.http.response.start"})
_MISSING: Final = object()

# What the requests of a millisecond have in common takes longer to write than the rest of their event. The limits are
# nanoseconds since the epoch: comparing these with the clock takes less than to divide what it says.
_written_from = _written_until = 0
_timestamp = ""
_id_prefix = ""


def cleaned(headers: RawHeaders, sets: Container[str]) -> RawHeaders:
    """A client's headers without those that are for others to set; the same object where they may stay as they are.

    Several fields of cookies become one.

    :param sets: names, spelled as :func:`as_one_spelling` returns them.
    """
    kept = [pair for pair in headers if as_one_spelling(pair[0].decode("latin-1")) not in sets] if sets else headers
    return join_cookies(kept) or (kept if len(kept) < len(headers) else headers)


def headers_of(scope: Scope) -> RawHeaders:
    """The connection's headers; a scope made by hand may have none.

    ASGI allows any iterable, and some can be read only once. What is neither a list nor a tuple becomes a list, in the
    scope as well, for the app is not the only one that reads it.
    """
    headers: RawHeaders = scope.get("headers") or []
    if type(headers) is not list and not isinstance(headers, list | tuple):
        headers = scope["headers"] = [(name, value) for name, value in headers]
    return headers


class OwnScope:
    """The app's own scope: a shallow copy of the ``given`` one, with other headers or extensions.

    Its headers stay as they are for tasks that the app leaves behind, however late they read them. Middlewares around
    this one read in their scope what the app has put into its own (``scope["route"]``), so that this is handed back.
    """

    def __init__(self, given: Scope, changes: Mapping[str, Any]) -> None:
        self.scope: Scope = {**given, **changes}
        self._given = given
        self._known: dict[str, Any] = dict(self.scope)

    def hand_back(self) -> None:
        """Copy what the app has set since the last time into the given scope, apart from headers and extensions."""
        for key, value in tuple(self.scope.items()):
            if self._known.get(key, _MISSING) is not value and key not in _NOT_HANDED_BACK:
                self._known[key] = self._given[key] = value

    def sending(self, send: Send) -> Send:
        """``send``, by which the given scope is up to date when the response starts, or a websocket's session."""

        async def send_handing_back(message: Message) -> None:
            if message["type"] in _STARTS:
                self.hand_back()
            await send(message)

        return send_handing_back


def header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str | None:
    """The first value of a header, ``name`` in lower case, or None."""
    length = len(name)
    for key, value in headers:
        if key == name or (len(key) == length and key.lower() == name):
            return value.decode("latin-1")
    return None


def declared_length(headers: Iterable[tuple[bytes, bytes]]) -> int | None:
    """The size of the body in bytes as the head declares it, or None where it declares none that makes sense.

    A hint, and nothing to rely on: what counts is what arrives. Beside transfer-encoding a content-length means nothing
    (RFC 9112, section 6.3); neither do several that differ.
    """
    declared: bytes | None = None
    for key, value in headers:
        length = len(key)
        if length == 17 and key.lower() == b"transfer-encoding":
            return None
        if length == 14 and key.lower() == b"content-length":
            if declared is not None and declared != value:
                return None
            declared = value
    # No body has 10 ** 18 bytes.
    if declared is None or not declared.isdigit() or len(declared) > 18:
        return None
    return int(declared)


def may_have_body(scope: Scope) -> bool:
    """Whether the request's head says that a body may follow.

    In HTTP/1 a request without content-length and transfer-encoding has none (RFC 9112, section 6.3); HTTP/2 and 3 need
    not declare any. A hint like :func:`declared_length`: one that declares a length of 0 may have a body.
    """
    headers = headers_of(scope)
    return (
        not _is_http_1(scope)
        or header(headers, b"content-length") is not None
        or header(headers, b"transfer-encoding") is not None
    )


def certainly_bodiless(scope: Scope) -> bool:
    """Whether no body can arrive, so that there is nothing to wait for.

    What the head declares does not make it certain: gateways that get their requests in other ways than HTTP/1 call it
    1.1 all the same, and leave the fields of framing out. None leaves out all fields.
    """
    return not headers_of(scope) and _is_http_1(scope)


def _is_http_1(scope: Scope) -> bool:
    return str(scope.get("http_version", "1.1")).startswith("1")


def raises_when_gone(scope: Scope) -> bool:
    """Whether the server's ``send`` raises once the client is gone (ASGI HTTP spec 2.4).

    Apps then count on it to end streams.
    """
    version = str((scope.get("asgi") or {}).get("spec_version", "2.0"))
    return tuple(int(part) for part in version.split(".") if part.isdigit()) >= (2, 4)


def given_correlation_id(
    headers: Headers | None, taken: Container[str] = (), name: str = CORRELATION_HEADER
) -> str | None:
    """The header of that ``name`` where it is a sane token that no connection has ``taken``, else None.

    Agents keep state under this id: a client that could choose another's would reach into it.
    """
    given = headers.first(name) if name and headers is not None else None
    if given is not None and len(given) <= _MAX_CORRELATION_ID_LENGTH and TOKEN.match(given) and given not in taken:
        return given
    return None


def new_id() -> str:
    """A UUIDv7 (RFC 9562, section 5.7): sorts by time."""
    if not _written_from <= time.time_ns() < _written_until:
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
    # 48 random bits for each, and 26 for all of a block.
    digits = os.urandom(6 * _BLOCK + 4).hex()
    middle = f"-7{digits[-8:-5]}-{'89ab'[int(digits[-5], 16) & 3]}{digits[-4:-1]}-"
    _id_suffixes.extend([middle + digits[start : start + 12] for start in range(0, 12 * _BLOCK, 12)])


def timestamp(nanoseconds: int) -> str:
    """A time since the epoch, as RFC 3339 in UTC with milliseconds."""
    seconds, milliseconds = divmod(nanoseconds // 1_000_000, 1000)
    return f"{_write_second(seconds)}.{milliseconds:03d}+00:00"


def timestamp_now() -> str:
    """The current time, likewise."""
    if not _written_from <= time.time_ns() < _written_until:
        _write_now()
    return _timestamp


@lru_cache(maxsize=2)
def _write_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:-6]


def _write_now() -> None:
    global _written_from, _written_until, _timestamp, _id_prefix
    now = time.time_ns()
    milliseconds = now // 1_000_000
    digits = f"{milliseconds:012x}"
    _id_prefix = f"{digits[:8]}-{digits[8:]}"
    _timestamp = timestamp(now)
    # Last: other threads have event loops of their own.
    _written_until = milliseconds * 1_000_000 + 1_000_000
    _written_from = milliseconds * 1_000_000


def uri(scope: Scope) -> str:
    """Path and query as received, unless they lead elsewhere than the app goes (:func:`shown_path`).

    Raises :class:`NoPathError`.
    """
    path = shown_path(scope["path"], scope.get("raw_path"), scope.get("root_path") or "")
    query: bytes = scope.get("query_string", b"")
    return f"{path}?{query.decode('latin-1')}" if query else path


def has_target(scope: Scope) -> bool:
    """Whether the connection can be judged by its target: what agents are shown leads where the app goes."""
    path: str = scope["path"]
    if not is_path(path, scope.get("root_path") or ""):
        return False
    raw_path: bytes | None = scope.get("raw_path")
    if raw_path is None or raw_path.decode("latin-1") == path:
        return True
    try:
        uri(scope)
    except NoPathError:
        return False
    return True


def client_ip(scope: Scope) -> str:
    """The peer's address as the server tells it; empty on Unix sockets."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def request_headers_event(
    scope: Scope,
    correlation: str | None,
    route: str | None,
    *,
    headers: Headers | None = None,
    name: str = CORRELATION_HEADER,
    traceparent: str | None = None,
    request_id: str | None = None,
) -> RequestHeadersEvent:
    """The event of an http request or a websocket handshake. ``headers`` are the scope's, if they are known already.

    ``correlation`` None: it gets a new id, which names the request as well. Without a ``traceparent`` of ours it has
    the client's. ``request_id`` is one that was given to this request before. Raises :class:`NoPathError`.
    """
    # All of it in one place: each call of a function would take as long as what it does.
    if correlation is None:
        correlation = request_id = new_id()
    elif not _written_from <= time.time_ns() < _written_until:
        _write_now()
    if headers is None:
        headers = Headers.from_raw(headers_of(scope))
    firsts = headers.firsts
    if firsts is None:
        host, parent = headers.first("host"), headers.first("traceparent")
    else:
        host, parent = firsts.get(b"host"), firsts.get(b"traceparent")  # type: ignore[assignment]
        host = None if host is None else host.decode("latin-1")  # type: ignore[attr-defined]
        parent = None if parent is None else parent.decode("latin-1")  # type: ignore[attr-defined]
    get = scope.get
    client, raw_path, extensions = get("client"), get("raw_path"), get("extensions")
    tls = extensions.get("tls") if extensions else None
    version = get("http_version", "1.1")
    target = "" if raw_path is None else raw_path.decode("latin-1")
    if target == scope["path"] and target.isascii():
        query = get("query_string")
        if query:
            target = f"{target}?{query.decode('latin-1')}"
    else:
        target = uri(scope)
    return RequestHeadersEvent(
        metadata=RequestMetadata(
            correlation_id=correlation,
            # An id that we have made names this request and no other already.
            request_id=request_id or (new_id() if name and headers.first(name) == correlation else correlation),
            client_ip=str(client[0]) if client else "",
            client_port=int(client[1] or 0) if client else 0,
            server_name=host or _server_name(scope),
            protocol=_PROTOCOLS.get(version) or f"HTTP/{version}",
            tls_version=_TLS_VERSIONS.get(tls.get("tls_version", 0)) if tls else None,
            tls_cipher=_tls_cipher(tls) if tls else None,
            route_id=route,
            timestamp=_timestamp,
            traceparent=traceparent or parent,
        ),
        method=str(get("method", "GET")),
        uri=target,
        headers=headers,
    )


def _server_name(scope: Scope) -> str | None:
    server = scope.get("server")
    return str(server[0]) if server else None


def _tls_cipher(tls: Mapping[str, Any]) -> str | None:
    cipher = tls.get("cipher_suite")
    return None if cipher is None else f"0x{cipher:04x}"
