"""Header operations, applied to ASGI header lists. What may be in them is settled by ``protocol.check_response``."""

from collections.abc import Iterable

from ..protocol import HeaderOp
from .scope import RawHeaders, header

# They describe the bytes that the app meant to send, and are wrong for any others.
_VALIDATORS = frozenset({b"accept-ranges", b"content-digest", b"content-md5", b"digest", b"etag", b"repr-digest"})


def apply_header_ops(headers: Iterable[tuple[bytes, bytes]], ops: Iterable[HeaderOp]) -> RawHeaders:
    """A new header list with ``ops`` done in order."""
    result = list(headers)
    for op in ops:
        name = op.name.lower().encode("latin-1")
        if op.kind != "add":
            result = [pair for pair in result if pair[0].lower() != name]
        if op.kind != "remove":
            result.append((name, field_value(op.value)))
    return result


def field_value(given: str) -> bytes:
    """``given`` without the blanks around it, which are no part of a value (RFC 9110, section 5.5).

    Servers break a response off that has them.
    """
    return given.strip(" \t").encode("latin-1")


def without_body_claims(headers: Iterable[tuple[bytes, bytes]], length: int | None) -> RawHeaders:
    """A new header list for a body that was changed: no validators, and ``length`` as content-length, if known.

    Never beside transfer-encoding (RFC 9112, section 6.2).
    """
    result = [pair for pair in headers if (name := pair[0].lower()) not in _VALIDATORS and name != b"content-length"]
    if length is not None and header(result, b"transfer-encoding") is None:
        result.append((b"content-length", b"%d" % length))
    return result
