"""Where lists and objects end in a text that may be cut or broken. No I/O."""

import re
from collections.abc import Mapping
from typing import Final

from .pieces import matches

# A run of backslashes is taken whole, with the quotation mark behind it or without one.
NESTING: Final[Mapping[str, re.Pattern[str]]] = {
    quote: re.compile(rf"(?P<slashes>\\*+){quote}|\\++|[{{}}\[\]]") for quote in ('"', "'")
}


def closes(slashes: int, level: int) -> bool:
    """Whether a quotation mark behind so many backslashes ends a string that has begun behind ``level`` of them."""
    return slashes <= level or (slashes - level) % (2 * (level + 1)) == 0


def end_of_nested(text: str, at: int, level: int, quote: str = '"') -> int:
    """Behind the bracket that closes the one at ``at``, or the end of the text.

    :param level: how many backslashes are in front of quotation marks.
    :param quote: the quotation mark of strings, in which brackets don't count.
    """
    end = end_of_closed(text, at, level, quote)
    return len(text) if end is None else end


def end_of_closed(text: str, at: int, level: int, quote: str) -> int | None:
    """The same; None where no bracket closes it."""
    depth, within = 0, False
    for found in matches(NESTING[quote], text, at):
        if found["slashes"] is not None:
            within = not within if closes(len(found["slashes"]), level) else within
        elif not within and found[0][0] != "\\":
            depth += 1 if found[0] in "{[" else -1
            if not depth:
                return found.end()
    return None
