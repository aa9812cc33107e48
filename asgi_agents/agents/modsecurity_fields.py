"""Header fields for the engine."""

from collections.abc import Iterator

from ..protocol import Headers, RequestHeadersEvent
from .cookies import cookies_of


def fields_of(headers: Headers) -> Iterator[tuple[bytes, bytes]]:
    """The fields as they came."""
    for name, values in headers.items():
        for value in values:
            yield name.encode("latin-1"), value.encode("latin-1")


def request_fields_of(headers: Headers) -> Iterator[tuple[bytes, bytes]]:
    r"""The fields as they came, and cookies also as the app reads them.

    Python's frameworks read ``"\047\073"`` as ``';``, which no rule does. A semicolon in a value would end it for the
    engine: it is written as in a URL, which rules decode.
    """
    yield from fields_of(headers)
    for field in headers.get("cookie", ()):
        if "\\" in field:
            given = {part.partition("=")[2].strip() for part in field.split(";")}
            read = {name: value for name, value in cookies_of(field).items() if value not in given}
            if read:
                text = "; ".join(f"{name}={value}".replace(";", "%3B") for name, value in read.items())
                yield b"cookie", text.encode("latin-1", "replace")


def may_have_body(event: RequestHeadersEvent) -> bool:
    """HTTP/1 says so in the head, other versions need not."""
    if not event.metadata.protocol.startswith("HTTP/1") or "transfer-encoding" in event.headers:
        return True
    return event.header("content-length") not in (None, "0")
