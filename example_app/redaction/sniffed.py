"""Bodies of which the app doesn't say what they are."""

import re

from .errors import UnreadableError
from .event_stream import EventStreamRedactor
from .json_body import JsonRedactor, NdjsonRedactor
from .text import TextRedactor

# White space and the bytes of UTF-8's byte order mark: passed on before it is known what follows.
_SKIPPED = b" \t\r\n\xef\xbb\xbf"
_EVENTS = re.compile(rb"(?:data|event|id|retry)?:")
# As many bytes as the longest of these has.
_ENOUGH = 6


class SniffedRedactor:
    """Redacts what begins like JSON or events as such, anything else as text."""

    def __init__(self) -> None:
        self._begun = b""
        self._redactor: EventStreamRedactor | TextRedactor | _JsonOrText | None = None

    def feed(self, data: bytes, last: bool) -> bytes:
        """See :class:`example_app.redaction.Redactor`."""
        passed = b""
        if self._redactor is None:
            data = self._begun + data
            content = data.lstrip(_SKIPPED)
            passed, data = data[: len(data) - len(content)], content
            if len(content) < _ENOUGH and not last:
                self._begun = content
                return passed
            if _EVENTS.match(content):
                self._redactor = EventStreamRedactor()
            else:
                self._redactor = _JsonOrText() if content[:1] in (b"{", b"[", b'"') else TextRedactor()
        return passed + self._redactor.feed(data, last)


class _JsonOrText:
    """Redacts a document, or several of them, or else a text that begins like one."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def feed(self, data: bytes, last: bool) -> bytes:
        self._pieces.append(data)
        if not last:
            return b""
        body = b"".join(self._pieces)
        for redactor in (JsonRedactor(), NdjsonRedactor()):
            try:
                return redactor.feed(body, True)
            except UnreadableError:
                continue
        return TextRedactor().feed(body, True)
