"""Text that comes in pieces."""

from .patterns import replace, settled


class TextRedactor:
    """Redacts a text; holds back no more than the word or number at its end."""

    def __init__(self) -> None:
        self._text = ""
        self._start = 0

    def feed(self, data: bytes, last: bool) -> bytes:
        """See :class:`example_app.redaction.Redactor`."""
        # Latin-1 maps bytes to characters one to one: a character may be cut in two, the patterns are ASCII.
        text = self._text + data.decode("latin-1")
        found, end = settled(text, self._start, last)
        result = replace(text, self._start, end, found)
        context = max(0, end - 1)
        self._text, self._start = text[context:], end - context
        return result.encode("latin-1")
