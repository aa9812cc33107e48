"""Regular expressions as :mod:`re` has parsed them, and how the parts of one are written again."""

import re
from collections.abc import Callable, Mapping, Sequence
from re import _constants as ops  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any, Final

#: A code, and what it is about.
Node = tuple[Any, Any]

_CATEGORIES: Final[Mapping[Any, str]] = {
    ops.CATEGORY_DIGIT: r"\d",
    ops.CATEGORY_NOT_DIGIT: r"\D",
    ops.CATEGORY_SPACE: r"\s",
    ops.CATEGORY_NOT_SPACE: r"\S",
    ops.CATEGORY_WORD: r"\w",
    ops.CATEGORY_NOT_WORD: r"\W",
}
_AT: Final[Mapping[Any, str]] = {
    ops.AT_BEGINNING: "^",
    ops.AT_BEGINNING_STRING: r"\A",
    ops.AT_END: "$",
    ops.AT_END_STRING: r"\Z",
    ops.AT_BOUNDARY: r"\b",
    ops.AT_NON_BOUNDARY: r"\B",
}
CHARACTERS: Final = (ops.LITERAL, ops.NOT_LITERAL, ops.ANY, ops.IN)
REPEATS: Final = (ops.MAX_REPEAT, ops.MIN_REPEAT)


class UnknownError(Exception):
    """A part of a pattern is none of those that are known here."""


def parsed(pattern: re.Pattern[str]) -> Sequence[Node]:
    nodes: Sequence[Node] = parser.parse(pattern.pattern, pattern.flags)
    return nodes


def shortest(pattern: re.Pattern[str]) -> int:
    """The fewest characters that ``pattern`` matches."""
    return _width(pattern)[0]


def bounded(pattern: re.Pattern[str], longest: int) -> re.Pattern[str]:
    """What matches as ``pattern`` does, but for more than ``longest`` characters: what repeats has a limit then.

    All that repeats has the same one, which is the largest of 3200, 1600, 800 and so on with which nothing is longer.
    What is not known here is left as it is.
    """
    most, flags = 3200, pattern.flags & ~re.VERBOSE
    while most and _width(pattern)[1] > longest:
        try:
            limited = re.compile("".join(_limited(node, most) for node in parsed(pattern)), flags)
        except UnknownError:
            break
        if _width(limited)[1] <= longest:
            return limited
        most //= 2
    return pattern


def _width(pattern: re.Pattern[str]) -> tuple[int, int]:
    width: tuple[int, int] = parser.parse(pattern.pattern, pattern.flags).getwidth()
    return width


def _limited(node: Node, limit: int) -> str:
    code, argument = node
    if code in (ops.ASSERT, ops.ASSERT_NOT):
        direction, inner = argument
        kind = f"{'<' if direction < 0 else ''}{'=' if code is ops.ASSERT else '!'}"
        return f"(?{kind}{''.join(_limited(each, limit) for each in inner)})"
    if code is ops.AT:
        return _AT[argument]
    if code in CHARACTERS:
        return _WRITTEN[code](argument)
    inners = ["".join(_limited(each, limit) for each in inner) for inner in within(code, argument)]
    if code in REPEATS:
        least, most, _ = argument
        most = max(least, limit) if most is ops.MAXREPEAT else most
        return f"(?:{inners[0]}){times(least, most)}{'?' if code is ops.MIN_REPEAT else ''}"
    return f"(?:{'|'.join(inners)})"


def within(code: Any, argument: Any) -> Sequence[Sequence[Node]]:
    """The sequences that a node is made of."""
    if code is ops.SUBPATTERN and not (argument[1] or argument[2]):
        return [argument[3]]
    if code is ops.BRANCH:
        return list(argument[1])
    if code in REPEATS:
        return [argument[2]]
    raise UnknownError


def sequence(nodes: Sequence[Node]) -> str:
    return "".join(map(text_of, nodes))


def times(least: int, most: Any) -> str:
    return f"{{{least},{'' if most is ops.MAXREPEAT else most}}}"


def text_of(node: Node) -> str:
    """A node as it is written, without what it looks back at: of that, the text may have only a part."""
    code, argument = node
    if code in (ops.ASSERT, ops.ASSERT_NOT):
        direction, inner = argument
        if direction < 0:
            return ""
        return f"(?{'=' if code is ops.ASSERT else '!'}{sequence(inner)})"
    if code is ops.AT:
        # Whether something begins here, what has left already would say.
        return "" if argument is not ops.AT_END else "$"
    if code in CHARACTERS:
        return _WRITTEN[code](argument)
    inners = [sequence(inner) for inner in within(code, argument)]
    if code in REPEATS:
        least, most, _ = argument
        return f"(?:{inners[0]}){times(least, most)}{'?' if code is ops.MIN_REPEAT else ''}"
    return f"(?:{'|'.join(inners)})"


def _item(item: Node) -> str:
    code, argument = item
    if code is ops.RANGE:
        return f"{re.escape(chr(argument[0]))}-{re.escape(chr(argument[1]))}"
    if code is ops.CATEGORY and argument in _CATEGORIES:
        return _CATEGORIES[argument]
    if code is ops.LITERAL:
        return re.escape(chr(argument))
    raise UnknownError


def _class(items: Sequence[Node]) -> str:
    negated = items[0][0] is ops.NEGATE
    return f"[{'^' if negated else ''}{''.join(map(_item, items[negated:]))}]"


_WRITTEN: Final[Mapping[Any, Callable[[Any], str]]] = {
    ops.LITERAL: lambda code: re.escape(chr(code)),
    ops.NOT_LITERAL: lambda code: f"[^{re.escape(chr(code))}]",
    ops.ANY: lambda _: ".",
    ops.IN: _class,
}
