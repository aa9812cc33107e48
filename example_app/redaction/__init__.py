"""Finding and replacing personal data, in texts and in bodies that come in pieces. Pure: bytes in, bytes out."""

from typing import Protocol

from .event_stream import EventStreamRedactor
from .json_document import JsonRedactor
from .patterns import Found, find, redact
from .text import TextRedactor

__all__ = ["EventStreamRedactor", "Found", "JsonRedactor", "Redactor", "TextRedactor", "find", "redact", "redactor_for"]


class Redactor(Protocol):
    """Redacts one body."""

    def feed(self, data: bytes, last: bool) -> bytes:
        """Take the next piece, and give what can be passed on; with ``last``, all that is left."""
        ...


def redactor_for(content_type: str) -> Redactor | None:
    """A redactor for one body of that type, or None for what is not text."""
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == "text/event-stream":
        return EventStreamRedactor()
    if media_type == "application/json" or media_type.endswith("+json"):
        return JsonRedactor()
    if media_type.startswith("text/"):
        return TextRedactor()
    return None
