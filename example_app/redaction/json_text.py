"""Reading JSON without making anything of it: where its strings and numbers are.

What is not changed stays as it was, to the byte: duplicate keys, the order of members, white space, the spelling of
numbers and escapes. The text is Latin-1 for any encoding that extends ASCII, as UTF-8 does.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, NamedTuple

from .edits import Edit
from .errors import UnreadableError
from .patterns import find

# RFC 8259; and what is no number there, but is written by many.
_TOKEN = re.compile(
    r"""[ \t\n\r]*+ (?:
        "(?P<string> [^"\\\x00-\x1f]*+ (?: \\(?: ["\\/bfnrt] | u[0-9a-fA-F]{4} ) [^"\\\x00-\x1f]*+ )*+ )"
      | (?P<number> -?(?:0|[1-9][0-9]*+) (?:\.[0-9]++)? (?:[eE][+-]?[0-9]++)? )
      | (?P<word> true | false | null | NaN | -?Infinity )
      | (?P<mark> [\[\]{}:,] )
      | (?P<end> \Z )
    )""",
    re.VERBOSE,
)
_VALUE = {"string", "number", "word", "[", "{"}
_DOCUMENT, _FIRST_ITEM = _VALUE | {"end"}, _VALUE | {"]"}
_FIRST_KEY, _KEY, _COLON = {"string", "}"}, {"string"}, {":"}
_AFTER_ITEM, _AFTER_MEMBER, _AFTER_DOCUMENT = {",", "]"}, {",", "}"}, {"end"}

# Nothing that is looked for has fewer characters.
_SHORTEST = 6
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))")
_SHORT = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


@dataclass(slots=True, eq=False)
class Container:
    """An object or array, and where it is: under ``key`` of ``parent``. ``index`` is its member of that name."""

    parent: "Container | None"
    key: str | int
    is_object: bool
    index: str | None = None
    path: int | None = None


class Scalar(NamedTuple):
    """A number, or what is between the quotes of a string; and where in the document it is, unless it is a key."""

    kind: Literal["key", "string", "number"]
    start: int
    end: int
    parent: Container | None
    key: str | int


def scan(text: str) -> Iterator[Scalar]:
    """The scalars of a document, from left to right. Neither recursive nor more than linear.

    :raises UnreadableError: ``text`` is not one JSON document, nor empty.
    """
    inside: Container | None = None
    key: str | int = 0
    expected = _DOCUMENT
    position = 0
    while token := _TOKEN.match(text, position):
        position = token.end()
        kind = token["mark"] or token.lastgroup
        if kind not in expected:
            break
        match kind:
            case "end":
                return
            case ":":
                expected = _VALUE
            case ",":
                # Only after an item or a member.
                assert inside is not None
                expected = _KEY if inside.is_object else _VALUE
                key = key + 1 if isinstance(key, int) else key
            case "{" | "[":
                inside = Container(inside, key, kind == "{")
                key, expected = 0, _FIRST_KEY if inside.is_object else _FIRST_ITEM
            case "string" if expected is _KEY or expected is _FIRST_KEY:
                start, end = token.span("string")
                yield Scalar("key", start, end, inside, key)
                key, expected = decoded(text, start, end)[0], _COLON
            case _:
                if kind in ("}", "]"):
                    assert inside is not None
                    key, inside = inside.key, inside.parent
                elif kind != "word":
                    start, end = token.span(kind)
                    if inside is not None and key == "index":
                        inside.index = text[start:end]
                    yield Scalar("string" if kind == "string" else "number", start, end, inside, key)
                expected = _AFTER_DOCUMENT if inside is None else _AFTER_MEMBER if inside.is_object else _AFTER_ITEM
    raise UnreadableError("this is no JSON")


def decoded(text: str, start: int, end: int) -> tuple[str, Sequence[int]]:
    """What the inside of a string says, and where in ``text`` each of its characters begins, and the last one ends."""
    if "\\" not in text[start:end]:
        return text[start:end], range(start, end + 1)
    parts: list[str] = []
    places: list[int] = []
    for escape in _ESCAPE.finditer(text, start, end):
        parts += [text[start : escape.start()], _unescaped(escape)]
        places += range(start, escape.start() + 1)
        start = escape.end()
    places += range(start, end + 1)
    return "".join((*parts, text[start:end])), places


def path_of(scalar: Scalar) -> int:
    """A number for where it is in its document: the same for the same place in another one.

    An object with an ``index`` is known by that rather than by its place in an array.
    """
    node, above = scalar.parent, []
    while node is not None and node.path is None:
        above.append(node)
        node = node.parent
    path = 0 if node is None or node.path is None else node.path
    for node in reversed(above):
        place = "index" if node.index is not None and isinstance(node.key, int) else node.key
        path = node.path = hash((path, place, node.index))
    return hash((path, scalar.key))


def edits_for(text: str, scalar: Scalar) -> Iterator[Edit]:
    """What redacts that scalar. A number with a card in it becomes a string."""
    if scalar.end - scalar.start < _SHORTEST:
        return
    if scalar.kind == "number":
        if _is_card(text[scalar.start : scalar.end]):
            yield Edit(scalar.start, scalar.end, '"[card]"')
        return
    content, places = decoded(text, scalar.start, scalar.end)
    for kind, start, end in find(content):
        yield Edit(places[start], places[end], f"[{kind}]")


def _unescaped(escape: re.Match[str]) -> str:
    return chr(int(escape[1], 16)) if escape[1] else _SHORT.get(escape[2], escape[2])


def _is_card(number: str) -> bool:
    spellings = [number.lstrip("-")]
    if not number.isdigit() and len(number) > 15:
        try:
            value = abs(Decimal(number))
            # The same number without an exponent, if it has as many digits as a card, or a few more.
            spellings += [f"{value:f}"] if 0 <= value.adjusted() < 32 else []
        except ArithmeticError:
            # An exponent that is beyond all numbers.
            pass
    return any(True for spelling in spellings for _ in find(spelling))
