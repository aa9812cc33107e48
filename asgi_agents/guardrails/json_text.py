"""JSON text whose strings can be replaced, while everything else stays to the character.

Duplicate keys, the spelling of numbers, white space and the escapes of other strings are no concern of whoever changes
one string, so they are not touched. What is read is what Python's ``json`` reads, ``NaN`` and ``Infinity`` included:
that is what clients and servers of language models do.

A path is the keys and indices that lead to a value. Where an object has a key twice, a path leads to the last one, as
in every reader that builds a mapping; the strings of the others are found by :func:`shadowed`.
"""

import json
import re
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Final

from .framing import TooComplexError, UnreadableError

#: How deep arrays and objects may be nested.
MAX_DEPTH: Final = 200

Path = tuple[str | int, ...]
#: What :func:`loads` returns: dict, list, str, int, float, bool or None.
JSON = dict[str, "JSON"] | list["JSON"] | str | int | float | bool | None

_STRING: Final = re.compile(r'"[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+"')
_SCALAR: Final = re.compile(r"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?|true|false|null|NaN|-?Infinity")
_BRACKET: Final = re.compile(rf"[\[\]{{}}]|{_STRING.pattern}")
_LITERAL: Final = re.compile(rf"{_STRING.pattern}|[^\s\[\]{{}},:\"]++")
_SPACE: Final = re.compile(r"[ \t\n\r]*+")
# Some clients split lines at these although JSON allows them raw in strings.
_LINE_SEPARATORS: Final = re.compile("[\x85\u2028\u2029]")
_SURROGATES: Final = re.compile("[\ud800-\udfff]")


class Loader:
    """Reads JSON texts, and notes in :attr:`duplicates` whether an object of the last one has a key twice."""

    __slots__ = ("_decode", "duplicates")

    def __init__(self) -> None:
        self.duplicates = False
        self._decode = json.JSONDecoder(object_pairs_hook=self._mapping).decode

    def loads(self, text: str) -> JSON:
        """The value of a JSON text.

        :raises UnreadableError: for what is no JSON.
        :raises TooComplexError: for what is nested deeper than :data:`MAX_DEPTH`, or has a number of too many digits.
        """
        self.duplicates = False
        if text.count("[") + text.count("{") > MAX_DEPTH:
            _check_depth(text)
        try:
            value: JSON = self._decode(text)
        except RecursionError:
            raise TooComplexError(f"JSON is nested deeper than {MAX_DEPTH} levels") from None
        except json.JSONDecodeError as exc:
            raise UnreadableError(f"expected JSON: {exc!s:.200}") from None
        except ValueError as exc:
            # An integer of more digits than Python converts; other readers take it.
            raise TooComplexError(f"expected JSON: {exc!s:.200}") from None
        return value

    def _mapping(self, pairs: list[tuple[str, JSON]]) -> dict[str, JSON]:
        value = dict(pairs)
        if len(value) != len(pairs):
            self.duplicates = True
        return value


def loads(text: str) -> tuple[JSON, bool]:
    """The value of a JSON text, and whether any object in it has a key twice. Raises as :class:`Loader` does."""
    loader = Loader()
    return loader.loads(text), loader.duplicates


def decode(literal: str) -> str:
    """The string that a JSON literal spells."""
    if "\\" not in literal:
        return literal[1:-1]
    value: str = json.loads(literal)
    return value


def encode(text: str, like: str = "") -> str:
    """A JSON literal for ``text``.

    It is of ASCII alone if ``like``, the literal that it replaces, has escapes of ``\\u`` and nothing beyond ASCII.
    Line separators and lone surrogates are escaped always.
    """
    if "\\u" in like and like.isascii():
        return json.dumps(text)
    literal = json.dumps(text, ensure_ascii=False)
    if literal.isascii():
        return literal
    return _SURROGATES.sub(_escaped, _LINE_SEPARATORS.sub(_escaped, literal))


def literals(text: str) -> Iterator[tuple[int, int]]:
    """Where every literal of ``text``, which is JSON, begins and ends: strings and scalars, keys included."""
    for match in _LITERAL.finditer(text):
        yield match.span()


def strings(text: str) -> Iterator[tuple[Path, int, int]]:
    """Every string that is a value, in order: its path, and where its literal begins and ends in ``text``.

    :raises UnreadableError: for what is no JSON.
    """
    for path, start, end in _values(text):
        if text.startswith('"', start):
            yield path, start, end


def shadowed(text: str) -> list[tuple[int, int]]:
    """Where the strings are that stand under a key which its object has again later on."""
    latest: dict[Path, int] = {}
    places: list[tuple[Path, int, int]] = []
    for path, start, end in _values(text, keys=lambda path, start, end, value: latest.update({path: value})):
        if text.startswith('"', start):
            places.append((path, start, end))
    return [
        (start, end)
        for path, start, end in places
        if any(start < latest.get(path[:length], 0) for length in range(1, len(path) + 1))
    ]


def locate(text: str, paths: Mapping[Path, object]) -> dict[Path, tuple[int, int]]:
    """Where the values at these paths begin and end. Paths that lead nowhere are left out.

    :raises UnreadableError: for what is no JSON.
    """
    found: dict[Path, tuple[int, int]] = {}
    for path, start, end in _values(text, containers=paths):
        if path in paths:
            found[path] = (start, end)
    return found


def keys(text: str, paths: Container[Path]) -> list[tuple[Path, int, int]]:
    """Where the literals of the keys begin and end that lead to these paths: of one that is there twice, both.

    :raises UnreadableError: for what is no JSON.
    """
    found: list[tuple[Path, int, int]] = []

    def note(path: Path, start: int, end: int, value: int) -> None:
        if path in paths:
            found.append((path, start, end))

    for _ in _values(text, keys=note):
        pass
    return found


def replace(
    text: str, changes: Mapping[Path, str | Callable[[str], str]], spans: Mapping[tuple[int, int], str] | None = None
) -> str:
    """``text`` with other JSON in place of the values at some paths: as text, or as a function of the old one's.

    :param spans: strings to put in place of the literals at these places, spelt like the old ones.
    :raises UnreadableError: for what is no JSON, and for a path that leads nowhere.
    """
    places = locate(text, changes) if changes else {}
    if len(places) < len(changes):
        missing = next(path for path in changes if path not in places)
        raise UnreadableError(f"expected a value at {pointer(missing)}")
    new: dict[tuple[int, int], str] = {}
    for path, (start, end) in places.items():
        change = changes[path]
        new[start, end] = change if isinstance(change, str) else change(text[start:end])
    for (start, end), string in (spans or {}).items():
        new[start, end] = encode(string, text[start:end])
    pieces: list[str] = []
    at = 0
    for start, end in sorted(new):
        if start >= at:
            pieces += [text[at:start], new[start, end]]
            at = end
    return "".join(pieces) + text[at:]


class _Children:
    """The paths of the children of some values."""

    def __init__(self, parents: Container[Path]) -> None:
        self._parents = parents

    def __contains__(self, path: object) -> bool:
        return isinstance(path, tuple) and bool(path) and path[:-1] in self._parents


def without(text: str, paths: Container[Path], parents: Container[Path]) -> str:
    """``text`` without the elements at some paths, which are in the arrays ``parents``.

    :raises UnreadableError: for what is no JSON.
    """
    children = _Children(parents)
    arrays: dict[Path, list[tuple[int, int, bool]]] = {}
    for path, start, end in _values(text, containers=children):
        if path in children:
            arrays.setdefault(path[:-1], []).append((start, end, path in paths))
    gone: list[tuple[int, int]] = []
    for elements in arrays.values():
        kept_until = elements[0][0]
        for (start, end, removed), behind in zip(elements, [*elements[1:], None], strict=True):
            if not removed:
                kept_until = end
            elif behind is None:
                gone.append((kept_until, end))
            else:
                gone.append((start, behind[0]))
    pieces: list[str] = []
    at = 0
    for start, end in sorted(gone):
        pieces.append(text[at : max(at, start)])
        at = max(at, end)
    return "".join(pieces) + text[at:]


def pointer(path: Path) -> str:
    """The JSON pointer (RFC 6901) of a path."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def _escaped(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


def _values(
    text: str,
    *,
    containers: Container[Path] | None = None,
    keys: Callable[[Path, int, int, int], None] | None = None,
) -> Iterator[tuple[Path, int, int]]:
    """The scalars of a JSON text in order, in one pass: path, start, end.

    Of the arrays and objects, those at one of the paths of ``containers`` as well, when they end. ``keys`` is told
    of each member where its key begins and ends, and where its value begins.
    """
    # Of each array and object that is open: its path, where it begins, and the index of the current element or None.
    stack: list[tuple[Path, int, int | None]] = []
    path: Path = ()
    length = len(text)
    at = _skip(text, 0)
    while True:
        # A value begins here.
        start = at
        char = text[at : at + 1]
        if char == "{" or char == "[":
            if len(stack) == MAX_DEPTH:
                raise UnreadableError(f"JSON is nested deeper than {MAX_DEPTH} levels")
            stack.append((path, start, None if char == "{" else 0))
            at = _skip(text, at + 1)
            if text.startswith("}" if char == "{" else "]", at):
                at += 1
                stack.pop()
                if containers is not None and path in containers:
                    yield path, start, at
            elif char == "[":
                path = (*path, 0)
                continue
            else:
                path, at = _key(text, at, path, keys)
                continue
        else:
            match = _STRING.match(text, at) if char == '"' else _SCALAR.match(text, at)
            if match is None:
                raise _expected("a value", text, at)
            at = match.end()
            yield path, start, at
        # A value has ended here.
        while True:
            at = _skip(text, at)
            if not stack:
                if at != length:
                    raise _expected("the end", text, at)
                return
            outer, begins, index = stack[-1]
            char = text[at : at + 1]
            if char == ",":
                at = _skip(text, at + 1)
                if index is None:
                    path, at = _key(text, at, outer, keys)
                else:
                    path = (*outer, index + 1)
                    stack[-1] = (outer, begins, index + 1)
                break
            if char != ("}" if index is None else "]"):
                raise _expected("',' or the end of an array or object", text, at)
            stack.pop()
            at += 1
            if containers is not None and outer in containers:
                yield outer, begins, at


def _check_depth(text: str) -> None:
    depth = 0
    for match in _BRACKET.finditer(text):
        char = match[0]
        if char in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise TooComplexError(f"JSON is nested deeper than {MAX_DEPTH} levels")
        elif char in "]}":
            depth -= 1


def _key(text: str, at: int, outer: Path, keys: Callable[[Path, int, int, int], None] | None) -> tuple[Path, int]:
    """The path of a member whose key begins at ``at``, and where its value begins."""
    match = _STRING.match(text, at)
    if match is None:
        raise _expected("a key", text, at)
    colon = _skip(text, match.end())
    if not text.startswith(":", colon):
        raise _expected("':'", text, colon)
    path = (*outer, decode(match[0]))
    at = _skip(text, colon + 1)
    if keys is not None:
        keys(path, *match.span(), at)
    return path, at


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()


def _expected(what: str, text: str, at: int) -> UnreadableError:
    found = "the end" if at >= len(text) else f"character {ord(text[at]):#x}"
    return UnreadableError(f"expected JSON: {what} at character {at}, found {found}")
