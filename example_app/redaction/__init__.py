"""A demonstration: it finds e-mail addresses, card and phone numbers as the patterns have them, and nothing else.

It doesn't see what is written otherwise: encoded a second time (base64, HTML entities, percent-encoding, JSON within a
string of JSON), in digits or letters beyond ASCII, in two members or cells, or across the lines of NDJSON. Bodies that
are neither JSON, XML, JavaScript, YAML, server-sent events nor ``text/*`` by their content type pass unread, and a type
is believed. What :mod:`example_app.redaction.patterns` describes is redacted in

- JSON: keys, strings and numbers, each by itself; NDJSON likewise, line by line;
- server-sent events: each event by itself, and the texts that they make together;
- any other text, whatever it means.

Finding and replacing is pure: bytes in, bytes out. A body with nothing to redact stays as it is, to the byte.
"""

import codecs
import re
from typing import Protocol

from .errors import UnreadableError
from .event_stream import EventStreamRedactor
from .json_body import JsonRedactor, NdjsonRedactor
from .patterns import Found, find, redact
from .sniffed import SniffedRedactor
from .text import TextRedactor

__all__ = [
    "EventStreamRedactor",
    "Found",
    "JsonRedactor",
    "NdjsonRedactor",
    "Redactor",
    "SniffedRedactor",
    "TextRedactor",
    "UnreadableError",
    "find",
    "redact",
    "redactor_for",
]

_CHARSET = re.compile(r"""charset\s*=\s*["']?([^"';\s]+)""", re.IGNORECASE)
_EXTENDING_ASCII = {"ascii", "iso8859-1", "utf-8"}
_NDJSON = {"jsonl", "x-jsonl", "jsonlines", "x-jsonlines", "ndjson", "x-ndjson", "stream+json"}
_TEXT = {"xml", "javascript", "yaml", "x-yaml"}


class Redactor(Protocol):
    """Redacts one body."""

    def feed(self, data: bytes, last: bool) -> bytes:
        """Take the next piece, and give what can be passed on; with ``last``, all that is left.

        :raises UnreadableError: the body is not what it says it is. Nothing more of it may be passed on.
        """
        ...


def redactor_for(content_type: str) -> Redactor | None:
    """A redactor for one body of that type, empty for a body without one; or None for what is not text.

    :raises UnreadableError: this is text, but none that can be redacted.
    """
    media_type, _, parameters = content_type.partition(";")
    main, _, subtype = media_type.strip().lower().partition("/")
    redactor = _redactor(main, subtype)
    if redactor is not None:
        for charset in _CHARSET.findall(parameters):
            _check_charset(charset)
    return redactor


def _redactor(main: str, subtype: str) -> Redactor | None:
    if not subtype:
        return SniffedRedactor()
    if (main, subtype) == ("text", "event-stream"):
        return EventStreamRedactor()
    if subtype in _NDJSON:
        return NdjsonRedactor()
    if "json" in subtype:
        return JsonRedactor()
    if main == "multipart":
        raise UnreadableError("each part has a type of its own")
    if main == "text" or subtype in _TEXT or subtype.endswith(("+xml", "+yaml")):
        return TextRedactor()
    return None


def _check_charset(name: str) -> None:
    try:
        known = codecs.lookup(name).name in _EXTENDING_ASCII
    except (LookupError, ValueError):
        known = False
    if not known:
        raise UnreadableError("this charset is not known to extend ASCII")
