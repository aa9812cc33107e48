"""How two path patterns in Starlette's syntax relate: whether they can match the same path, and whether one matches
all that the other matches.

Patterns are read as sequences of characters and of repeated characters. A parameter of a type of the app's own may
stand for anything: two patterns *may* meet if such a parameter leaves it open, and one *covers* another only if that
is certain.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from starlette.routing import PARAM_REGEX

_DIGITS: Final = frozenset("0123456789")
# Stands for every character that neither pattern names.
_OTHER: Final = "\x00"
# A segment that may have slashes in it. Parameters of these types have none.
_ANY: Final = "{"
_WITHIN_SEGMENTS: Final = frozenset({":str", ":int", ":float", ":uuid"})
# More steps than any pattern in use needs.
_MAX_STEPS: Final = 20_000
_REST: Final = re.compile(r"/\{[a-zA-Z_][a-zA-Z0-9_]*:path\}$")
# How other frameworks write parameters and wildcards, and what begins a query.
_FOREIGN: Final = re.compile(r"\*|[<>{}]|\?")
_COLON: Final = re.compile(r"(?<=/):([a-zA-Z_][a-zA-Z0-9_]*)")


class _Element:
    """One character of a path, or any number of them."""

    __slots__ = ("kind", "repeated")

    def __init__(self, kind: str, repeated: bool = False) -> None:
        #: A character; or ``int``, ``str``, ``path``, or the name of another type of parameter.
        self.kind = kind
        self.repeated = repeated

    def takes(self, symbol: str) -> bool:
        if self.kind == "path":
            return True
        if self.kind == "str":
            return symbol != "/" and not symbol.startswith("custom ")
        return symbol in _DIGITS if self.kind == "int" else symbol == self.kind


def below(pattern: str) -> str | None:
    """``/admin`` of ``/admin/{rest:path}``; None of any other pattern."""
    found = _REST.search(pattern)
    return pattern[: found.start()] if found and found.start() else None


def without_names(pattern: str) -> str:
    """The pattern without the names of its parameters: two that differ in nothing else match the same paths."""
    return PARAM_REGEX.sub(r"{\2}", pattern).replace("{:str}", "{}")


def foreign_syntax(pattern: str) -> str | None:
    """What is wrong with a pattern that is written as for another framework, and what would be right.

    Starlette gives these characters no meaning: such a pattern matches only paths that contain them literally.
    """
    literal = PARAM_REGEX.sub("", pattern)
    found = _FOREIGN.search(literal)
    if found is None:
        return None
    if found[0] == "?":
        return "'?' begins a query, which is no part of the path; leave it out"
    if found[0] == "*":
        begun = pattern.partition("*")[0].rpartition("/")[0]
        return (
            f"'*' stands for itself here and matches nothing else; for everything below {begun or '/'} write"
            f" '{begun}/{{rest:path}}', for one segment '{begun}/{{name}}'"
        )
    return (
        f"{found[0]!r} stands for itself here and matches nothing else; parameters are written"
        " {name}, {name:int} or {rest:path}"
    )


def colon_syntax(pattern: str) -> str | None:
    """The same pattern with ``{id}`` where it has ``/:id``; None if it has none."""
    changed = _COLON.sub(r"{\1}", pattern)
    return None if changed == pattern else changed


def may_meet(one: str, other: str) -> bool:
    """Whether any path may match both."""
    if _differ(one, other):
        return False
    first, second = _elements(one, widest=True), _elements(other, widest=True)
    symbols = _symbols(first, second)
    todo, seen = [(0, 0)], {(0, 0)}
    while todo:
        at, beside = todo.pop()
        if at == len(first) and beside == len(second):
            return True
        reached = []
        if at < len(first) and first[at].repeated:
            reached.append((at + 1, beside))
        if beside < len(second) and second[beside].repeated:
            reached.append((at, beside + 1))
        if at < len(first) and beside < len(second):
            here, there = first[at], second[beside]
            if any(here.takes(symbol) and there.takes(symbol) for symbol in symbols):
                reached.append((at + (not here.repeated), beside + (not there.repeated)))
        todo += [state for state in reached if state not in seen]
        seen.update(reached)
    return False


def covers(wide: str, narrow: str) -> bool:
    """Whether it is certain that every path that ``narrow`` matches is matched by ``wide``."""
    if _differ(wide, narrow):
        return False
    outer, inner = _elements(wide), _elements(narrow)
    symbols = _symbols(outer, inner)
    start = (0, _reach(outer, {0}))
    todo, seen = [start], {start}
    while todo:
        at, places = todo.pop()
        if len(seen) > _MAX_STEPS or (at == len(inner) and len(outer) not in places):
            return False
        if at == len(inner):
            continue
        element = inner[at]
        reached = [(at + 1, places)] if element.repeated else []
        for symbol in symbols:
            if element.takes(symbol):
                after = {
                    place + (not outer[place].repeated)
                    for place in places
                    if place < len(outer) and outer[place].takes(symbol)
                }
                reached.append((at + (not element.repeated), _reach(outer, after)))
        todo += [state for state in reached if state not in seen]
        seen.update(reached)
    return True


def _differ(one: str, other: str) -> bool:
    """Whether their segments alone show that no path matches both. It is quick, and true of most patterns of an app."""
    first, second = _segments(one), _segments(other)
    for step in (1, -1):
        for here, there in zip(first[::step], second[::step], strict=False):
            if here == _ANY or there == _ANY:
                break
            if here is not None and there is not None and here != there:
                return True
    return len(first) != len(second) and _ANY not in first and _ANY not in second


@lru_cache(maxsize=4096)
def _segments(pattern: str) -> tuple[str | None, ...]:
    """Each segment; None for one with parameters, and _ANY for one that may have slashes in it."""
    segments: list[str | None] = []
    for segment in pattern.split("/"):
        kinds = {found[2] or ":str" for found in PARAM_REGEX.finditer(segment)}
        segments.append(segment if not kinds else None if kinds <= _WITHIN_SEGMENTS else _ANY)
    return tuple(segments)


def _elements(pattern: str, *, widest: bool = False) -> list[_Element]:
    return [*_parse(pattern, widest)]


def _parse(pattern: str, widest: bool) -> Iterator[_Element]:
    """``widest``: what is not known exactly stands for all that it may be."""
    end = 0
    for found in PARAM_REGEX.finditer(pattern):
        for char in pattern[end : found.start()]:
            yield _Element(char)
        end = found.end()
        kind = (found[2] or ":str")[1:]
        if kind == "path":
            yield _Element("path", repeated=True)
        elif kind in ("str", "int"):
            yield _Element(kind)
            yield _Element(kind, repeated=True)
        elif widest:
            # One character of it is in every path; the rest may be anything, for types of the app's own.
            own = kind not in ("float", "uuid")
            yield _Element("path" if own else "str", repeated=own)
            yield _Element("path" if own else "str", repeated=True)
        else:
            # As one symbol of its own. Those that are not Starlette's may have slashes in them.
            yield _Element(kind if kind in ("float", "uuid") else f"custom {kind}")
    for char in pattern[end:]:
        yield _Element(char)


def _symbols(first: list[_Element], second: list[_Element]) -> frozenset[str]:
    """One of each kind of characters that either pattern distinguishes."""
    named = {element.kind for element in (*first, *second)} - {"path", "str", "int"}
    # One digit stands for all that are not named.
    return frozenset({*named, *sorted(_DIGITS - named)[:1], "/", _OTHER})


def _reach(elements: list[_Element], places: set[int]) -> frozenset[int]:
    """``places``, and those behind repeated characters, of which there may be none."""
    reached = set(places)
    for place in places:
        while place < len(elements) and elements[place].repeated:
            place += 1
            reached.add(place)
    return frozenset(reached)
