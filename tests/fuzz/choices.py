"""Bytes as a sequence of choices: the same bytes are the same case, and with a few others it is much the same."""

from collections.abc import Sequence
from typing import Any, Final, TypeVar

T = TypeVar("T")

# More than any target can use makes cases slow, not better.
_MAX_BYTES: Final = 64 * 1024

# What has been trouble before, in one place or another.
AWKWARD_TEXT: Final = (
    "",
    "a",
    "\r\n",
    "\n",
    "\x00",
    "\x1b[31m",
    "\ud800",
    "\udfff\ud800",
    "\u2028",
    "\u202e",
    "\u061c",
    "é",
    "\xff",
    "Ā",
    "\U0001f600",
    "%0d%0a",
    "a" * 300,
    " x ",
    '"',
    "\\",
    "1e999",
    "٣",
)
_INTEGERS: Final = (
    0, 1, -1, 2, 3, 7, 8, 99, 100, 127, 128, 200, 255, 256, 302, 401, 403, 500, 599, 600, 1000, 1005, 1008, 4999, 65535,
    2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**30,
)  # fmt: skip
_FLOATS: Final = (0.0, -0.0, 0.5, 1.0, -1.5, 1e-320, 1e308, float("inf"), float("-inf"), float("nan"))


class Choices:
    """Reads ``data`` from its beginning. Where it has ended every choice is the first, simplest one."""

    def __init__(self, data: bytes) -> None:
        self._data = data[:_MAX_BYTES]
        self._at = 0

    @property
    def left(self) -> int:
        """How many bytes have not been read."""
        return len(self._data) - self._at

    def byte(self) -> int:
        """0 to 255."""
        if self._at >= len(self._data):
            return 0
        self._at += 1
        return self._data[self._at - 1]

    def below(self, bound: int) -> int:
        """0 to ``bound`` - 1; ``bound`` is at most 65,536."""
        value = self.byte()
        if bound > 256:
            value = value << 8 | self.byte()
        return value % bound

    def flag(self) -> bool:
        """False first."""
        return bool(self.byte() & 1)

    def one_in(self, number: int) -> bool:
        """True for one byte in so many; never at the end of the data."""
        return self.byte() % number == number - 1

    def pick(self, options: Sequence[T]) -> T:
        """One of them."""
        return options[self.below(len(options))]

    def times(self, most: int) -> range:
        """For loops: 0 to ``most`` times."""
        return range(self.below(most + 1))

    def take(self, most: int) -> bytes:
        """So many bytes at most, as they are."""
        size = min(self.below(most + 1), self.left)
        self._at += size
        return self._data[self._at - size : self._at]

    def rest(self) -> bytes:
        """All that is left, as it is."""
        rest = self._data[self._at :]
        self._at = len(self._data)
        return rest

    def cuts(self, data: bytes) -> list[bytes]:
        """``data`` in pieces, some of them empty."""
        pieces = []
        while data:
            size = self.below(16) * self.pick((1, 1, 1, 16, 1024, 0))
            if size == 0 and self.left == 0:
                size = len(data)
            pieces.append(data[:size])
            data = data[size:]
        return pieces

    def integer(self) -> int:
        """Any, often one at the edge of something."""
        if self.flag():
            return self.pick(_INTEGERS)
        return int.from_bytes(self.take(9), "big", signed=True)

    def number(self) -> float:
        """Any, infinities and NaN included."""
        return self.pick(_FLOATS) if self.flag() else float(self.below(65536)) / 7

    def text(self, most: int = 12) -> str:
        """Any, with control characters and lone surrogates."""
        match self.below(4):
            case 0:
                return self.take(most).decode("utf-8", "replace")
            case 1:
                return self.take(most).decode("latin-1")
            case 2:
                return self.pick(AWKWARD_TEXT)
            case _:
                return self.pick(AWKWARD_TEXT) + self.take(most).decode("latin-1") + self.pick(AWKWARD_TEXT)

    def value(self, names: Sequence[str], depth: int = 3) -> Any:
        """Something that JSON or msgpack can say, with maps whose keys are mostly among ``names``."""
        match self.below(12 if depth else 7):
            case 0:
                return None
            case 1:
                return self.flag()
            case 2:
                return self.integer()
            case 3:
                return self.number()
            case 4:
                return self.text()
            case 5:
                return self.pick(names)
            case 6:
                return self.take(8)
            case 7:
                return [self.value(names, depth - 1) for _ in self.times(3)]
            case _:
                return {self.name(names): self.value(names, depth - 1) for _ in self.times(5)}

    def name(self, names: Sequence[str]) -> str:
        """A key: one of ``names``, or seldom anything."""
        return self.text() if self.one_in(16) else self.pick(names)
