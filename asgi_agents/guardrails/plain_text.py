"""Text in UTF-8 that arrives in chunks, cut so that a part of it can leave while the rest waits."""

import re
from typing import Final

from .framing import Unit

# Pieces end behind white space, so that what is settled leaves without what is not; long ones anywhere.
_PIECE: Final = re.compile(rb"[^ \t\r\n]{0,256}[ \t\r\n]*")


class TextFramer:
    """Cuts a stream of text into pieces of whole characters. What is no UTF-8 is a piece that can't be decoded."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    @property
    def held(self) -> int:
        """How many bytes of a character that has not ended yet there are."""
        return len(self._rest)

    def feed(self, data: bytes) -> list[Unit]:
        """The text up to the last whole character."""
        data = self._rest + data
        cut = len(data) - _unfinished(data)
        self._rest = data[cut:]
        return _units(data[:cut])

    def end(self) -> list[Unit]:
        """What is left: part of a character."""
        raw = self.rest()
        return [Unit(raw, raw, 0)] if raw else []

    def rest(self) -> bytes:
        """What is left, as it came. Nothing is left afterwards."""
        raw, self._rest = self._rest, b""
        return raw

    def between(self, sent: bytes) -> bytes:
        """Nothing."""
        return b""


def _units(data: bytes) -> list[Unit]:
    units: list[Unit] = []
    at = 0
    while at < len(data):
        match = _PIECE.match(data, at)
        assert match is not None
        end = match.end()
        # Not within a character.
        while end < len(data) and data[end] & 0xC0 == 0x80:
            end += 1
        units.append(Unit(data[at:end], data[at:end], 0))
        at = end
    return units


def _unfinished(data: bytes) -> int:
    """How many bytes at the end begin a character that has more (RFC 3629, section 3)."""
    for count in range(1, min(3, len(data)) + 1):
        byte = data[-count]
        if byte & 0xC0 == 0x80:
            continue
        length = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return count if length > count else 0
    return 0
