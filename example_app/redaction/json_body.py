"""Bodies of JSON: one document, or one in each line."""

from .edits import edited
from .json_text import edits_for, scan
from .lines import Lines


class JsonRedactor:
    """Redacts the keys, strings and numbers of a document, which it holds back until it is whole."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def feed(self, data: bytes, last: bool) -> bytes:
        """See :class:`example_app.redaction.Redactor`."""
        self._pieces.append(data)
        if not last:
            return b""
        return _redacted(b"".join(self._pieces).decode("latin-1")).encode("latin-1")


class NdjsonRedactor:
    """Redacts a document in each line, and holds back none but the last line."""

    def __init__(self) -> None:
        self._lines = Lines()

    def feed(self, data: bytes, last: bool) -> bytes:
        """See :class:`example_app.redaction.Redactor`."""
        return "".join(map(_redacted, self._lines.feed(data, last))).encode("latin-1")


def _redacted(text: str) -> str:
    # A byte order mark is no part of the document, but many tolerate it.
    start = len("\xef\xbb\xbf") if text.startswith("\xef\xbb\xbf") else 0
    document = text[start:]
    return text[:start] + edited(document, [edit for scalar in scan(document) for edit in edits_for(document, scalar)])
