"""Which texts a pattern could match the beginning of, if only more text came.

Made from the pattern itself, as :mod:`re` has parsed it: what is not known here counts as matched by any text. So the
answer may be that a text could go on where it could not, and never the other way round.
"""

import re
from collections.abc import Sequence
from re import _constants as ops  # type: ignore[attr-defined]
from typing import Final

from .parsed_patterns import CHARACTERS, REPEATS, Node, UnknownError, parsed, sequence, text_of, times, within

_END: Final = r"\Z"
_NEVER: Final = "(?!)"
_ANYTHING: Final = r"[\s\S]*\Z"


def unfinished(pattern: re.Pattern[str]) -> re.Pattern[str]:
    """A pattern that matches from where ``pattern`` may match, to the end of a text that may go on.

    It also matches nothing at the end of any text.
    """
    flags = pattern.flags & ~re.VERBOSE
    try:
        found = re.compile(_beginning(list(parsed(pattern))), flags)
    except UnknownError:
        return re.compile(_ANYTHING)
    # Most characters begin nothing: to look that up is twenty times as fast as to try.
    first = "".join(re.escape(char) for char in map(chr, range(128)) if found.fullmatch(char))
    return re.compile(rf"(?=[{first}\x80-\U0010ffff]|\Z){found.pattern}", flags)


def may_contain(pattern: re.Pattern[str], characters: str) -> bool:
    """Whether what ``pattern`` matches, without what it looks at before and behind, may contain one of them."""
    flags = pattern.flags & ~re.VERBOSE
    try:
        return any(re.search(text, characters, flags) for text in _characters(parsed(pattern)))
    except UnknownError:
        return True


def _characters(nodes: Sequence[Node]) -> Sequence[str]:
    """The patterns of all single characters that these match."""
    found: list[str] = []
    for code, argument in nodes:
        if code in CHARACTERS:
            found.append(text_of((code, argument)))
        elif code in (ops.ASSERT, ops.ASSERT_NOT, ops.AT):
            continue
        else:
            for inner in within(code, argument):
                found += _characters(inner)
    return found


def _beginning(nodes: Sequence[Node]) -> str:
    """Matches to the end of the text what ``nodes`` could begin with."""
    found = ""
    for node in reversed(nodes):
        # Behind the last one there is nothing that could be unfinished.
        found = f"(?:{_unfinished(node)}|{text_of(node)}{found or _NEVER})"
    return found or _NEVER


def _unfinished(node: Node) -> str:
    code, argument = node
    if code in CHARACTERS:
        return _END
    if code is ops.AT:
        return _NEVER if argument in (ops.AT_BEGINNING, ops.AT_BEGINNING_STRING) else rf"\n?{_END}"
    if code in (ops.ASSERT, ops.ASSERT_NOT):
        direction, inner = argument
        return _beginning(list(inner)) if direction > 0 else _NEVER
    inners = [_beginning(list(inner)) for inner in within(code, argument)]
    if code in REPEATS:
        _, most, inner = argument
        before = "" if most == 1 else f"(?:{sequence(inner)})" + times(0, most)
        return f"{before}{inners[0]}"
    return f"(?:{'|'.join(inners)})"
