"""Looking for patterns in long texts, piece by piece, and replacing parts of them. No I/O."""

import re
import time
from collections.abc import Iterable, Iterator
from typing import Final

# Long texts are looked at in pieces of so many characters, and in so many more where a secret may end. What is of a
# limited length in a pattern, between parts of any length, is no longer than the tail of these.
_PIECE: Final = 16 * 1024
_OVERLAP: Final = 4096
_TAIL: Final = 2048


def matches(
    pattern: re.Pattern[str], text: str, at: int = 0, *, begun: re.Pattern[str] | None = None
) -> Iterator[re.Match[str]]:
    """All matches of a pattern that matches no empty text, in order, from ``at`` on.

    A long text is looked at piece by piece. Python's ``re`` keeps all other threads waiting while it looks at one, an
    event loop too. What is found is the same.

    :param begun: matches, to the end of a text, what ``pattern`` may match the beginning of where more than a limited
        number of characters decides. Few such beginnings are in one text. None: such a number always decides.
    """
    size = len(text)
    while size - at > _PIECE:
        end = at + _PIECE
        look = min(end + _OVERLAP, size)
        # What is not undecided here is decided before the end of what is looked at.
        near = look - _TAIL if look < size else size
        while at < end:
            unsure = begun.search(text, at, near) if begun is not None and look < size else None
            stop = end if unsure is None else min(unsure.start(), end)
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
