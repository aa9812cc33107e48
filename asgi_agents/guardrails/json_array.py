"""An array of JSON that arrives element by element, as streams without server-sent events are written."""

import re
from typing import Final

from .framing import MAX_UNIT_BYTES, Unit, too_large

# What matters outside of strings, and inside of them.
_OUTSIDE: Final = re.compile(rb'["\[\]{},]')
_BETWEEN: Final = re.compile(rb"[\s,\[]*+")
_INSIDE: Final = re.compile(rb'["\\]')


class ArrayFramer:
    """Cuts an array into its elements.

    What stands between them goes with the element behind it; what is behind the last one is a unit of its own, whose
    data is empty. A document that is no array is one unit.
    """

    __slots__ = ("_at", "_depth", "_first", "_in_string", "_rest", "_start")

    def __init__(self) -> None:
        self._rest = bytearray()
        # How much of the rest was looked at, and where the element in it begins.
        self._at = 0
        self._start: int | None = None
        self._depth = 0
        self._in_string = False
        self._first = True

    @property
    def held(self) -> int:
        """How many bytes of an element that has not ended yet there are."""
        return len(self._rest)

    def feed(self, data: bytes) -> list[Unit]:
        """The elements that end with ``data``.

        :raises UnreadableError: when one grows over :data:`~asgi_agents.guardrails.framing.MAX_UNIT_BYTES`.
        """
        self._rest += data
        units: list[Unit] = []
        while (end := self._end_of_element()) is not None:
            units.append(self._cut(end))
        if len(self._rest) > MAX_UNIT_BYTES:
            raise too_large(len(self._rest))
        return units

    def end(self) -> list[Unit]:
        """What is left at the end of the stream."""
        raw = self.rest()
        text = raw.strip(b" \t\r\n")
        return [Unit(raw, b"" if text in (b"]", b"[]", b",]") else text, raw.index(text))] if raw else []

    def rest(self) -> bytes:
        """What is left, as it came. Nothing is left afterwards."""
        raw = bytes(self._rest)
        self._rest.clear()
        self._at = 0
        self._start = None
        return raw

    def between(self, sent: bytes) -> bytes:
        """Nothing: the dialect knows what it has sent."""
        return b""

    def _cut(self, end: int) -> Unit:
        raw = bytes(self._rest[:end])
        # What is no white space there is read, and refused, with the element.
        start = (self._start or 0) if _BETWEEN.fullmatch(raw, 0, self._start or 0) else 0
        element = raw[start:].rstrip(b" \t\r\n")
        del self._rest[:end]
        self._at = 0
        self._start = None
        return Unit(raw, element, start)

    def _end_of_element(self) -> int | None:
        """Where the element that is under way ends, if it does."""
        rest = self._rest
        while True:
            match = (_INSIDE if self._in_string else _OUTSIDE).search(rest, self._at)
            if match is None:
                self._at = len(rest)
                return None
            char = match[0]
            if char == b"\\":
                if match.end() == len(rest):
                    self._at = match.start()
                    return None
                self._at = match.end() + 1
                continue
            self._at = match.end()
            if char == b'"':
                self._in_string = not self._in_string
                if self._start is None:
                    self._start = match.start()
            elif char in b"[{":
                if self._first and char == b"[":
                    self._first = False
                    continue
                self._first = False
                self._depth += 1
                if self._start is None:
                    self._start = match.start()
            elif char in b"]}" and self._depth:
                self._depth -= 1
                if not self._depth:
                    return self._at
