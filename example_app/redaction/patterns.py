"""What personal data looks like, and how much of a text can be judged before the rest of it has come."""

import re
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

_PII = re.compile(
    r"""
    (?P<email> (?<![\w.%+-]) [\w.%+-]{1,64} @ (?:[a-z0-9-]{1,63}\.){1,8} [a-z]{2,24} )
  | (?P<card>  (?<![\w.+-]) (?: \d{4}([ -]?)\d{4}\3\d{4}\3\d{4} | 3\d{3}([ -]?)\d{6}\4\d{5} ) (?!\d) )
  | (?P<phone> (?<![\w.+-]) (?: \+\d(?:[ .()-]{0,2}\d){7,14} | \(?\d{3}\)?[ .-]{1,2}\d{3}[ .-]\d{4} ) (?!\d) )
    """,
    re.VERBOSE | re.ASCII | re.IGNORECASE,
)
# The end of a text that more text could make part of a match: nothing but characters that matches are made of.
_UNSETTLED = re.compile(r"(?: [\w.%+@-]++ | [+(\d][\d\ .()-]*+ )? \Z", re.VERBOSE | re.ASCII)
# The end of a word in which no match can begin: an address has at most 64 characters before its "@", and where one or a
# number begins, a word does.
_LONG_WORD = re.compile(r"[\w.+-]{65}", re.ASCII)
# More than the longest match and the character behind it.
_REACH: Final = 640
#: How much of what is settled has to be kept before the rest, to go on from there later.
CONTEXT: Final = 65


class Found(NamedTuple):
    """A piece of personal data: where it starts, inclusive, and ends, exclusive."""

    kind: str
    start: int
    end: int


def find(text: str, start: int = 0) -> Iterator[Found]:
    """What is in ``text``, from left to right. ``start``: where to begin; what is before it is only context."""
    while match := _PII.search(text, start):
        assert match.lastgroup is not None
        if match.lastgroup == "card" and not _passes_luhn(match[0]):
            start = match.start() + 1
            continue
        yield Found(match.lastgroup, match.start(), match.end())
        start = match.end()


def redact(text: str) -> str:
    """``text`` with all that is in it replaced."""
    return replace(text, 0, len(text), find(text))


def replace(text: str, start: int, end: int, found: Iterable[Found]) -> str:
    """``text[start:end]`` with all that was found there replaced."""
    parts = []
    for kind, found_start, found_end in found:
        parts += [text[start:found_start], f"[{kind}]"]
        start = found_end
    return "".join((*parts, text[start:end]))


def settled(text: str, start: int, last: bool) -> tuple[list[Found], int]:
    """What is in ``text[start:]`` whatever may follow it, and up to where that is all there is.

    ``last`` says that nothing follows. To go on from there later, keep ``CONTEXT`` characters before it.
    """
    edge = len(text)
    if not last:
        unsettled = _UNSETTLED.search(text, max(start, edge - _REACH))
        assert unsettled is not None
        if "@" in unsettled[0] or not _LONG_WORD.fullmatch(text, max(0, edge - CONTEXT)):
            edge = unsettled.start()
    sure: list[Found] = []
    for found in find(text, start):
        if found.start >= edge:
            break
        sure.append(found)
    return sure, max(edge, sure[-1].end) if sure else edge


def _passes_luhn(number: str) -> bool:
    """ISO/IEC 7812-1, annex B: the check digit that tells card numbers from other numbers."""
    digits = [int(char) for char in reversed(number) if char.isdigit()]
    return (sum(digits[::2]) + sum(sum(divmod(2 * digit, 10)) for digit in digits[1::2])) % 10 == 0
