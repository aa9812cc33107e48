"""Whether a body that is not called a stream of events is one all the same, and nothing else.

Some apps send events and call them text. What a reader of events passes over is judged by nobody, and a reader of text
sees it. So a body is only read as events while all of its lines are an event's.
"""

import re
from typing import Final

# How many bytes are held until it is known whether they are events.
_MAX_HELD: Final = 16 * 1024
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")
# A line of an event (WHATWG HTML, section 9.2.5). Names and comments are as servers write them, and too short for more.
_EVENT_LINE: Final = re.compile(
    rb"data(?::.*)?|(?:event|id)(?:: ?[\w.:/-]{0,64})?|retry(?:: ?\d{0,10})?|:[\w .:+/-]{0,80}|", re.DOTALL
)
# The beginning of one.
_MAYBE_EVENT_LINE: Final = re.compile(_EVENT_LINE.pattern + rb"|d|da|dat|e|ev|eve|even|i|r|re|ret|retr")
_BOM: Final = b"\xef\xbb\xbf"


class EventLines:
    """Reads what may be events, line by line.

    :ivar events: how many events with data have ended.
    """

    __slots__ = ("_first", "_has_data", "_rest", "events")

    def __init__(self) -> None:
        self._first = True
        # The line that has not ended; of one of data, how it begins.
        self._rest = b""
        # Whether the event that has not ended has data.
        self._has_data = False
        self.events = 0

    def feed(self, data: bytes, last: bool) -> bool:
        """Whether the next bytes go on with events and nothing else. ``last``: there are no more."""
        data = self._rest + data
        if self._first:
            if not last and len(data) < len(_BOM) and _BOM.startswith(data):
                self._rest = data
                return True
            data = data.removeprefix(_BOM)
            self._first = False
        at = 0
        for end in _LINE_END.finditer(data):
            line, at = data[at : end.start()], end.end()
            if not _EVENT_LINE.fullmatch(line):
                return False
            if line:
                self._has_data = self._has_data or line.startswith(b"data")
            elif self._has_data:
                self.events += 1
                self._has_data = False
        rest = data[at:]
        if rest.startswith(b"data:"):
            rest = b"data:"
        self._rest = rest
        if not last:
            return _MAYBE_EVENT_LINE.fullmatch(rest) is not None
        self.events += self._has_data or rest.startswith(b"data")
        return _EVENT_LINE.fullmatch(rest) is not None


def is_events(data: bytes, last: bool) -> bool | None:
    """Whether a body that begins with ``data`` is a stream of events. None: that can't be told yet."""
    lines = EventLines()
    if not lines.feed(data, last):
        return False
    if lines.events:
        return True
    return False if last or len(data) > _MAX_HELD else None
