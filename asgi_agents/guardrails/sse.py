"""Server-sent events that keep their bytes, by the grammar of WHATWG HTML, section 9.2.5.

A unit is what ends with a blank line: the fields of one event, or comments alone. A line ends with CRLF, LF or CR.
Where a chunk ends between the CR and the LF of a blank line, the unit ends with the CR and the LF is one of its own:
nothing waits for a byte that may never come.

Not all clients go by the grammar, so that what stands beside the data of an event is no place to hide text. Types, ids
and comments are judged, in their order, unless they look like what they are there for: names, and comments of a few
words and the time, which keep a connection open and wait for nothing. Lines that are no field can't be read.
"""

import re
from collections.abc import Mapping
from typing import Final

from .framing import MAX_UNIT_BYTES, Beside, Unit, too_large

# Possessive, for a CRLF is one end and never two.
_LINE_END: Final = rb"(?>\r\n|\n|\r)"
_LINE: Final = re.compile(rb"([^\r\n]*+)(" + _LINE_END + rb"|\Z)")
# A blank line is also what begins with an end: behind the CR of an event whose LF came late that is the LF alone.
_UNIT_END: Final = re.compile(_LINE_END + _LINE_END)
_ANY_LINE_END: Final = re.compile(_LINE_END)
# The type of an event.
_IN_NAMES: Final = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./:-"
_MAX_NAME: Final = 64
# Lines beside that of which nobody makes text: ids that look like one, times, and comments that keep a connection
# open, of a few words and the time. Such a comment may be as long as it likes, if it is of blanks.
_NO_TEXT: Final = re.compile(
    rb"id(?::[ ]?[\w./:|+=-]{0,128})?|retry(?::[ ]?[0-9]{0,10})?"
    rb"|:\s*+(?:[A-Za-z_]{1,16}+[ ,.:!-]*+){0,6}+(?:[0-9]{1,13}(?:\.[0-9]{1,9})?"
    rb"|[0-9]{4}-[0-9]{2}-[0-9]{2}(?:[T ][0-9:.]{1,15}(?:Z|[+-][0-9:]{1,5})?)?)?\s*"
)
# What is left of a line where a stream breaks off.
_BEGUN: Final = frozenset(
    name[:length] for name in (b"data", b"event", b"id", b"retry") for length in range(1, len(name) + 1)
)
_ENDS: Final = (b"\n\n", b"\r\n\r\n", b"\r\r", b"\r\n\r")
_BOM: Final = b"\xef\xbb\xbf"


class EventUnit(Unit):
    """One event, or comments: what ends with a blank line. ``start`` is 0 where the data stands in several lines."""

    __slots__ = ("beside", "bom")

    def __init__(
        self,
        raw: bytes,
        data: bytes | None,
        start: int,
        event: bytes | None = None,
        bom: int = 0,
        beside: Beside | None = None,
    ) -> None:
        super().__init__(raw, data, start, event)
        #: How many bytes of a byte order mark it begins with.
        self.bom = bom
        self.beside = beside

    def with_texts(self, changes: Mapping[tuple[int, int], bytes]) -> Unit:
        raw = self.raw
        for (start, end), text in sorted(changes.items(), reverse=True):
            raw = raw[:start] + text + raw[end:]
        return self.again(raw)

    def again(self, raw: bytes) -> Unit:
        return parse(raw, first=self.bom > 0)

    def put_back(self, data: bytes) -> bytes:
        """The event with other data: line ends, order and spelling of its fields stay.

        Lines beyond those that it had are prefixes as its last one. Where there are fewer, the last ones are left out.
        """
        if data == self.data:
            return self.raw
        if self.start and b"\n" not in data and b"\r" not in data:
            # A reader takes one blank away behind the colon.
            blank = b" " if data.startswith(b" ") and self.raw.startswith(b":", self.start - 1) else b""
            return Unit.put_back(self, blank + data)
        lines = _ANY_LINE_END.split(data)
        fields = _fields(self.raw, self.bom)
        last = max(index for index, (name, _, _) in enumerate(fields) if name == b"data")
        pieces: list[bytes] = []
        for index, (name, prefix, line) in enumerate(fields):
            if name != b"data":
                pieces.append(line)
                continue
            line_end = line[len(line.rstrip(b"\r\n")) :]
            these = lines if index == last else lines[:1]
            prefixes = [prefix + (b" " if text.startswith(b" ") and prefix.endswith(b":") else b"") for text in these]
            pieces.append((line_end or b"\n").join(map(bytes.__add__, prefixes, these)))
            if these:
                pieces.append(line_end)
            lines = lines[1:]
        return b"".join(pieces)


def _fields(raw: bytes, at: int) -> list[tuple[bytes | None, bytes, bytes]]:
    """Of each line: the name of its field (None for blank lines and comments), what precedes its value, and itself."""
    fields: list[tuple[bytes | None, bytes, bytes]] = []
    if at:
        fields.append((None, b"", _BOM))
    while at < len(raw):
        match = _LINE.match(raw, at)
        assert match is not None
        at = match.end()
        line = match[1]
        name, colon, value = line.partition(b":")
        if not name:
            fields.append((None, b"", match[0]))
            continue
        prefix = name + colon + (b" " if value.startswith(b" ") else b"")
        if name == b"data" and not colon:
            prefix = b"data: "
        fields.append((name, prefix, match[0]))
    return fields


def parse(raw: bytes, *, first: bool = False) -> Unit:
    """The unit whose bytes are ``raw``.

    :param first: whether it is the first one of its stream: a byte order mark stands in no other.
    """
    if raw.startswith(b"data: ") and raw.endswith(b"\n\n") and raw.count(b"\n") == 2 and b"\r" not in raw:
        return EventUnit(raw, raw[6:-2], 6)
    # As most that have a type are.
    if raw.startswith(b"event: ") and raw.endswith(b"\n\n") and raw.count(b"\n") == 3 and b"\r" not in raw:
        at = raw.index(b"\n")
        if raw.startswith(b"data: ", at + 1) and not raw[7:at].translate(None, _IN_NAMES) and at <= _MAX_NAME:
            return EventUnit(raw, raw[at + 7 : -2], at + 7, raw[7:at])
    start = len(_BOM) if first and raw.startswith(_BOM) else 0
    event: bytes | None = None
    data: list[bytes] = []
    texts: list[tuple[int, int]] = []
    strays = False
    at = data_start = start
    end = len(raw)
    while at < end:
        match = _LINE.match(raw, at)
        assert match is not None
        line = match[1]
        name, _, value = line.partition(b":")
        if name == b"data":
            if value.startswith(b" "):
                value = value[1:]
            data.append(value)
            data_start = match.end(1) - len(value)
        elif name == b"event":
            event = value[1:] if value.startswith(b" ") else value
            if event.translate(None, _IN_NAMES) or len(event) > _MAX_NAME:
                texts.append((match.end(1) - len(event), match.end(1)))
        elif line and line not in _BEGUN and not _NO_TEXT.fullmatch(line):
            if name and name != b"id":
                strays = True
            else:
                texts.append((match.end(1) - len(value), match.end(1)))
        at = match.end()
    beside = Beside(tuple(texts), strays) if texts or strays else None
    if not data:
        return EventUnit(raw, None, 0, event, start, beside)
    # A field without a colon has an empty value, and no place for another.
    if len(data) > 1 or raw[data_start - 1 : data_start] not in (b":", b" "):
        data_start = 0
    return EventUnit(raw, b"\n".join(data), data_start, event, start, beside)


class SSEFramer:
    """Cuts a stream of server-sent events into units."""

    __slots__ = ("_after_cr", "_first", "_looked_at", "_rest")

    def __init__(self) -> None:
        self._rest = bytearray()
        # How much of the rest was searched for the end of a unit.
        self._looked_at = 0
        self._first = True
        # Whether the latest unit ended with a CR, so that an LF is still part of its blank line.
        self._after_cr = False

    @property
    def held(self) -> int:
        """How many bytes of a unit that has not ended yet there are."""
        return len(self._rest)

    def feed(self, data: bytes) -> list[Unit]:
        """The units that end with ``data``.

        :raises UnreadableError: when a unit grows over :data:`~asgi_agents.guardrails.framing.MAX_UNIT_BYTES`.
        """
        if not data:
            return []
        if (
            not self._rest
            and data.startswith((b"data: ", b"event: "))
            and not self._first
            and data.endswith(b"\n\n")
            and data.index(b"\n\n") == len(data) - 2
            and b"\r" not in data
        ):
            return [self._unit(data)]
        self._rest += data
        units: list[Unit] = []
        start = 0
        while (end := self._end_of_unit(start)) >= 0:
            units.append(self._unit(bytes(self._rest[start:end])))
            start = end
            self._looked_at = end
        del self._rest[:start]
        # Of what has no end yet, at most these bytes can be part of one.
        self._looked_at = max(0, len(self._rest) - 3)
        if len(self._rest) > MAX_UNIT_BYTES:
            raise too_large(len(self._rest))
        return units

    def end(self) -> list[Unit]:
        """What is left at the end of the stream. Clients differ in whether they take it for an event."""
        raw = self.rest()
        return [self._unit(raw)] if raw else []

    def rest(self) -> bytes:
        """What is left, as it came. Nothing is left afterwards."""
        raw = bytes(self._rest)
        self._rest.clear()
        self._looked_at = 0
        return raw

    def between(self, sent: bytes) -> bytes:
        """What has to precede an event behind ``sent``."""
        return b"" if not sent or sent.endswith(_ENDS) else b"\n\n"

    def _unit(self, raw: bytes) -> Unit:
        unit = parse(raw, first=self._first)
        self._first = False
        self._after_cr = raw.endswith(b"\r")
        return unit

    def _end_of_unit(self, start: int) -> int:
        """Where the unit that begins at ``start`` ends; -1 where it does not yet."""
        rest = self._rest
        at = start
        if start == len(rest):
            return -1
        if self._first:
            if len(rest) - start < len(_BOM) and _BOM.startswith(rest[start:]):
                return -1
            if rest.startswith(_BOM, start):
                at += len(_BOM)
        elif self._after_cr and rest.startswith(b"\n", start):
            # The other half of that line end.
            return start + 1
        # Blank lines before the first field are units of their own: nobody waits for what comes behind them.
        if rest.startswith((b"\n", b"\r"), at):
            return at + (2 if rest.startswith(b"\r\n", at) else 1)
        match = _UNIT_END.search(rest, max(at, self._looked_at))
        return -1 if match is None else match.end()
