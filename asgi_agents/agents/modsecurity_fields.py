"""Header fields for the engine."""

from collections.abc import Iterator
from typing import Final

from ..protocol import Headers, RequestHeadersEvent
from .cookies import cookies_of

#: A cookie that apps read under no name, for the engine, which leaves out such a one.
NAMELESS: Final = "empty-key"
# As C has them.
_BLANKS: Final = " \t\n\v\f\r"


def fields_of(headers: Headers) -> Iterator[tuple[bytes, bytes]]:
    """The fields as they came."""
    for name, values in headers.items():
        for value in values:
            yield name.encode("latin-1"), value.encode("latin-1")


def request_fields_of(headers: Headers) -> Iterator[tuple[bytes, bytes]]:
    r"""The fields as they came, and cookies that the app reads otherwise than the engine, as the app reads them.

    Python's frameworks read ``"\047\073"`` as ``';``, which no rule does, and leave out quotes and blanks. A semicolon
    in a value would end it for the engine: it is written as in a URL, which rules decode.
    """
    yield from fields_of(headers)
    for field in headers.get("cookie", ()):
        given = _pairs_of(field)
        read = [pair for pair in cookies_of(field).items() if pair not in given]
        if read:
            # Blanks at the end of the field are none of a value: behind a semicolon, they are of none.
            text = "".join(f"{name or NAMELESS}={value}".replace(";", "%3B") + "; " for name, value in read)
            yield b"cookie", text.encode("latin-1", "replace")


def _pairs_of(field: str) -> frozenset[tuple[str, str]]:
    """The cookies of a field, as the engine finds them."""
    pairs = (pair.partition("=") for pair in field.removesuffix(";").rstrip(_BLANKS).split(";"))
    found = ((name.lstrip(_BLANKS), value) for name, _, value in pairs)
    return frozenset((name, value) for name, value in found if name)


def may_have_body(event: RequestHeadersEvent) -> bool:
    """HTTP/1 says so in the head, other versions need not."""
    if not event.metadata.protocol.startswith("HTTP/1") or "transfer-encoding" in event.headers:
        return True
    return event.header("content-length") not in (None, "0")
