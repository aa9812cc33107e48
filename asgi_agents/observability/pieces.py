"""Looking for patterns in long texts, piece by piece, and replacing parts of them. No I/O."""

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

# Long texts are looked at in pieces of so many characters, and in so many more where a secret may end. What is of a
# limited length in a pattern, between parts of any length, is no longer than the tail of these.
_PIECE: Final = 16 * 1024
_OVERLAP: Final = 4096
_TAIL: Final = 2048
# What a pattern may match the beginning of, by the characters that such a beginning may go on with.
Begun = Mapping[re.Pattern[str], re.Pattern[str]]


def begun(patterns: Mapping[str, str], flags: re.RegexFlag = re.NOFLAG) -> Begun:
    """Those of verbose patterns, each of which matches to the end of a text."""
    return {
        re.compile(rf"(?:{each})*+\Z", flags): re.compile(pattern, flags | re.VERBOSE)
        for each, pattern in patterns.items()
    }


def matches(
    pattern: re.Pattern[str], text: str, at: int = 0, *, undecided: Begun | None = None
) -> Iterator[re.Match[str]]:
    """All matches of a pattern that matches no empty text, in order, from ``at`` on.

    A long text is looked at piece by piece. Python's ``re`` keeps all other threads waiting while it looks at one, an
    event loop too. What is found is the same.

    :param undecided: matches, to the end of a text, what ``pattern`` may match the beginning of where more than a
        limited number of characters decides. Few such beginnings are in one text. None: such a number always decides.
    """
    size = len(text)
    while size - at > _PIECE:
        end = at + _PIECE
        look = min(end + _OVERLAP, size)
        # What is not undecided here is decided before the end of what is looked at.
        near = look - _TAIL if look < size else size
        crossing = [
            each
            for run, each in (undecided or {}).items()
            if look < size and run.match(text, (end + near) // 2, near) is not None
        ]
        while at < end:
            first = pattern.match(text, at, look)
            if first is not None and first.end() > near:
                # What has begun behind it does not matter.
                starts = [at]
            else:
                starts = [unsure.start() for each in crossing if (unsure := each.search(text, at, near)) is not None]
            stop = min((end, *starts))
            for found in pattern.finditer(text, at, look):
                if found.start() >= stop:
                    break
                if found.end() > near:
                    # It may go on.
                    stop = found.start()
                    break
                at = found.end()
                yield found
            at = max(at, stop)
            if at == stop < end:
                match = pattern.match(text, stop)
                at = stop + 1 if match is None else match.end()
                if match is not None:
                    yield match
        # The others have their turn.
        time.sleep(0)
    yield from pattern.finditer(text, at)


def replaced(text: str, found: Iterable[tuple[int, int, str]]) -> str:
    """``text`` with others in the places of parts of it: start, end, and what comes there, in their order."""
    pieces: list[str] = []
    done = 0
    for start, end, new in found:
        pieces += (text[done:start], new)
        done = end
    return "".join((*pieces, text[done:])) if pieces else text
