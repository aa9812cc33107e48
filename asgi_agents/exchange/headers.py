"""Changes to ASGI header lists, and what is read from them.

What may be in header operations is settled by ``protocol.check_response``.
"""

from collections.abc import Container, Iterable, Sequence

from ..protocol import TOKEN, HeaderOp
from ..protocol.headers import join_cookies, without_blanks
from .decoding import canonical, known_codings
from .scope import RawHeaders, header

_LENGTH = frozenset({b"content-length"})
_UTF_8 = frozenset({b"utf-8", b"utf8", b"us-ascii", b"ascii"})
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


def apply_request_ops(headers: Iterable[tuple[bytes, bytes]], ops: Sequence[HeaderOp]) -> RawHeaders:
    """:func:`apply_header_ops` for the app: a cookie that is added is in one field with those that were there."""
    result = apply_header_ops(headers, ops)
    if any(op.kind == "add" and op.name.lower() == "cookie" for op in ops):
        return join_cookies(result) or result
    return result


def field_value(given: str) -> bytes:
    """``given`` as a server takes it: with blanks around it, it would break the response off."""
    return without_blanks(given).encode("latin-1")


def without_headers(headers: Iterable[tuple[bytes, bytes]], names: Container[bytes]) -> RawHeaders:
    """A new header list without the fields of these ``names``, which are in lower case."""
    return [pair for pair in headers if pair[0].lower() not in names]


def media_type(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The ``content-type`` without its parameters, in lower case; None where it is missing or unreadable."""
    given = [value for name, value in headers if name.lower() == b"content-type"]
    if len(given) != 1:
        return None
    essence = given[0].partition(b";")[0].decode("latin-1").strip().lower()
    main, slash, sub = essence.partition("/")
    return essence if slash and TOKEN.match(main) and TOKEN.match(sub) else None


def in_utf_8(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether the ``content-type`` names no other charset than UTF-8, or ASCII, which is a part of it."""
    given = b";".join(value for name, value in headers if name.lower() == b"content-type").lower()
    charsets = [
        part.partition(b"=")[2].strip(b' "') for part in given.split(b";") if part.strip().startswith(b"charset")
    ]
    return all(charset in _UTF_8 for charset in charsets)


def without_body_claims(
    headers: Iterable[tuple[bytes, bytes]], length: int | None, *, decoded: bool = False
) -> RawHeaders:
    """A new header list for a body that was changed: no validators, and ``length`` as content-length, if known.

    ``decoded``: the body has lost its content coding, too.
    """
    outdated = _VALIDATORS | {b"content-encoding"} if decoded else _VALIDATORS
    return with_length(without_headers(headers, outdated), length)


def with_length(headers: Iterable[tuple[bytes, bytes]], length: int | None) -> RawHeaders:
    """A new header list with ``length`` as its only content-length, or with none: where it is None, and beside
    transfer-encoding (RFC 9112, section 6.2).
    """
    result = without_headers(headers, _LENGTH)
    if length is not None and header(result, b"transfer-encoding") is None:
        result.append((b"content-length", b"%d" % length))
    return result


def codings_of(headers: Iterable[tuple[bytes, bytes]]) -> tuple[str, ...]:
    """The codings of a body in the order in which they were applied, in lower case; empty for a body without any."""
    given = b",".join(value for name, value in headers if name.lower() == b"content-encoding")
    if not given:
        return ()
    names = (name.strip().lower() for name in given.decode("latin-1").split(","))
    return tuple(canonical(name) for name in names if name not in ("", "identity"))


def acceptable(headers: Iterable[tuple[bytes, bytes]]) -> RawHeaders:
    """A new header list that accepts no content coding but those that can be decoded here.

    Preferences stay as the client has them.
    """
    result: RawHeaders = []
    for name, value in headers:
        if name.lower() != b"accept-encoding":
            result.append((name, value))
            continue
        items = [item for item in value.decode("latin-1").split(",") if _is_known(item.partition(";")[0])]
        # An empty value asks for a body without a coding; no field at all would leave it to the app.
        result.append((name, ",".join(items).strip().encode("latin-1") or b"identity"))
    return result


def _is_known(item: str) -> bool:
    coding = item.strip().lower()
    return coding == "identity" or canonical(coding) in known_codings()
