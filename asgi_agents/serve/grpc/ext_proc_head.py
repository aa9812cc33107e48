"""What Envoy says of a request, as an ASGI scope. No I/O."""

import ipaddress
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote

from starlette.types import Scope

from ...transports.grpc.ext_proc_messages import (
    PROTOCOL,
    SOURCE_ADDRESS,
    SOURCE_PORT,
    TLS_VERSION,
    RawHeaders,
    pairs_of,
    plain,
)

_VERSIONS: Final = {f"HTTP/{version}": version for version in ("1.0", "1.1", "2", "3")}
_TLS_VERSIONS: Final = {"TLSv1": 0x0301, "TLSv1.1": 0x0302, "TLSv1.2": 0x0303, "TLSv1.3": 0x0304}


def scope_of(request: Any | None) -> Scope:
    """The scope of a request, from the ``ProcessingRequest`` with its head.

    None: of one whose head is not known. Envoy itself may answer before the processor was asked about the request, and
    sends what it answers through its filters.
    """
    attributes = attributes_of(request)
    pairs: RawHeaders = [] if request is None else pairs_of(request.request_headers.headers)
    pseudo: dict[bytes, bytes] = {}
    headers: RawHeaders = []
    for pair in pairs:
        if pair[0].startswith(b":"):
            pseudo.setdefault(*pair)
        else:
            headers.append(pair)
    path, _, query = pseudo.get(b":path", b"").partition(b"?")
    version = _VERSIONS.get(str(attributes.get(PROTOCOL, "")), "1.1")
    authority = pseudo.get(b":authority")
    if authority:
        # It says where a request goes, and a Host beside it does not (RFC 9113, section 8.3.1).
        headers = [(b"host", authority), *(pair for pair in headers if pair[0] != b"host")]
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": version,
        "method": pseudo.get(b":method", b"").decode("latin-1") or "GET",
        "scheme": pseudo.get(b":scheme", b"").decode("latin-1") or "http",
        "path": unquote(path.decode("latin-1")) or "/",
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": headers,
        "client": _client(attributes),
        "server": None,
        "state": {},
        "extensions": {},
    }
    tls = _TLS_VERSIONS.get(str(attributes.get(TLS_VERSION, "")))
    if tls is not None:
        scope["extensions"]["tls"] = {"tls_version": tls, "cipher_suite": None}
    ends = request is None or request.request_headers.end_of_stream
    if not ends and not _declares_body(headers) and not is_tunnel(scope):
        # HTTP/1 has no body without one of the two, and of a version that Envoy does not tell nothing is known.
        headers.append((b"transfer-encoding", b"chunked"))
    return scope


def attributes_of(request: Any | None) -> Mapping[str, Any]:
    """The attributes that come with a message, whatever filter sends them."""
    found: dict[str, Any] = {}
    for values in () if request is None else request.attributes.values():
        found |= plain(values)
    return found


def without_pseudo(pairs: RawHeaders) -> RawHeaders:
    """The fields without the pseudo-headers."""
    return [(name, value) for name, value in pairs if not name.startswith(b":")]


def is_upgrade(scope: Scope) -> bool:
    """Whether the request asks for another protocol on its connection, as a websocket's handshake does.

    To its filters, Envoy shows that of HTTP/2 and HTTP/3 (RFC 8441) as one of HTTP/1.1.
    """
    if scope["method"] == "CONNECT":
        return True
    # Not a generator: this is asked about every request.
    for name, _ in scope["headers"]:  # noqa: SIM110
        if name == b"upgrade":
            return True
    return False


def is_tunnel(scope: Scope) -> bool:
    """Whether what follows the head is another protocol's, and no body.

    A client may ask for another protocol with any request, and an app that has none takes it for what it is otherwise.
    So an upgrade is one of ``GET`` (RFC 6455, section 4.1) that declares no body.
    """
    if scope["method"] == "CONNECT":
        return True
    if scope["method"] != "GET" or not is_upgrade(scope):
        return False
    lengths = [value for name, value in scope["headers"] if name == b"content-length"]
    chunked = any(name == b"transfer-encoding" for name, _ in scope["headers"])
    return not chunked and all(each == b"0" for each in lengths)


def is_open(scope: Scope, status: int) -> bool:
    """Whether a response of ``status`` opens the tunnel. With any other, what follows its head is its body."""
    return status == 101 or (scope["method"] == "CONNECT" and 200 <= status <= 299)


def _declares_body(headers: RawHeaders) -> bool:
    return any(name in (b"content-length", b"transfer-encoding") for name, _ in headers)


def _client(attributes: Mapping[str, Any]) -> tuple[str, int] | None:
    """The client, as Envoy sees it. Not from a header: those that Envoy did not check come from the client."""
    address = str(attributes.get(SOURCE_ADDRESS, ""))
    if not address:
        return None
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdecimal() or (":" in host and not host.startswith("[")):
        host, port = address, str(attributes.get(SOURCE_PORT, 0))
    host = host.removeprefix("[").removesuffix("]")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        # A Unix socket, or nothing at all.
        return None
    return host, int(port) if port.isascii() and port.isdecimal() and len(port) < 6 else 0
