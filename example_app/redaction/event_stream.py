"""Server-sent events."""

import re

from .patterns import settled

# WHATWG HTML, section 9.2.6: the value of a data field begins after the colon and one blank.
_DATA = re.compile(r"^data: ?([^\r\n]*)", re.MULTILINE)
_PREFIX = "data: "


class EventStreamRedactor:
    """Redacts the text that the ``data`` of all events make together: a model cuts an address into many of them.

    Every event stays; one that had a part of an address may come out with less text, or none. Lines end with LF or
    CRLF.
    """

    def __init__(self) -> None:
        # What was not passed on yet, behind a line of our own with the last character of text that was.
        self._lines = ""
        self._passed = 0  # how much of `_lines` is our own
        self._start = 0  # how much of its text is

    def feed(self, data: bytes, last: bool) -> bytes:
        """See :class:`example_app.redaction.Redactor`."""
        lines = self._lines + data.decode("latin-1")
        complete = len(lines) if last else lines.rfind("\n") + 1
        # The text, and where in the stream each of its characters is.
        places = [place for value in _DATA.finditer(lines, 0, complete) for place in range(*value.span(1))]
        text = "".join(lines[place] for place in places)
        found, end = settled(text, self._start, last)

        edits = {places[index]: "" for _, start, stop in found for index in range(start, stop)}
        edits |= {places[start]: f"[{kind}]" for kind, start, _ in found}
        inside = end < len(text)
        passed = places[end] if inside else complete
        result = "".join(edits.get(place, lines[place]) for place in range(self._passed, passed))

        context = text[max(0, end - 1) : end]
        head = _PREFIX + context + ("" if inside else "\n")
        self._lines, self._passed, self._start = head + lines[passed:], len(head), len(context)
        return result.encode("latin-1")
