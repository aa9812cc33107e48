"""Text that comes in pieces."""

from .errors import UnreadableError
from .patterns import CONTEXT, replace, settled

_UTF_16 = ("\xff\xfe", "\xfe\xff")


class TextRedactor:
    """Redacts a text; holds back no more than the word or number at its end."""

    def __init__(self) -> None:
        self._text = ""
        self._start = 0
        self._beginning = ""

    def feed(self, data: bytes, last: bool) -> bytes:
        """See :class:`example_app.redaction.Redactor`."""
        # Latin-1 maps bytes to characters one to one: a character may be cut in two, the patterns are ASCII.
        new = data.decode("latin-1")
        self._beginning = (self._beginning + new[:2])[:2]
        if "\0" in new or self._beginning in _UTF_16:
            raise UnreadableError("this is no text, or UTF-16")
        text = self._text + new
        found, end = settled(text, self._start, last)
        result = replace(text, self._start, end, found)
        context = max(0, end - CONTEXT)
        self._text, self._start = text[context:], end - context
        return result.encode("latin-1")
