"""What a file holds, checked against what it may hold: values of the right types, and all mistakes at once."""

import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType, UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin

import msgspec

from .mistakes import Mistakes, Place, found_named, nearest, one_of
from .shape import Field, Shape, Table
from .variables import Variables

#: Says that there is no value, because it was a mistake.
MISSING: Final = object()
# Where in a value msgspec has found what it complains of.
_WITHIN: Final = re.compile(r" - at `\$(?P<steps>[^`]*)`$")
_STEP: Final = re.compile(r"\[(\d+|\.\.\.)\]")
_NAMES: Final[Mapping[Any, str]] = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
}


class TableValues(dict[str, Any]):
    """The checked values of a table, of which an object can be made.

    :ivar mistaken: keys whose values are not here because they were mistakes.
    """

    def __init__(self, table: Table) -> None:
        super().__init__()
        self.table = table
        self.mistaken: list[str] = []


class Checker:
    """Turns the plain data of a file into values of the types that the Python API takes.

    :param raw: the data with its variables, for messages; ``variables`` has put values in their place.
    :param unclear: what is written, by place, where the data has a truth value and others read a text.
    """

    def __init__(
        self, raw: Any, variables: Variables, mistakes: Mistakes, unclear: Mapping[Place, str] = MappingProxyType({})
    ) -> None:
        self._raw = raw
        self._unclear = unclear
        self._around_unclear = {place[:length] for place in unclear for length in range(len(place) + 1)}
        self._variables = variables
        self._mistakes = mistakes

    def table(self, table: Table, given: Mapping[str, Any], place: Place) -> TableValues:
        """The values of a table, without those that are mistakes."""
        fields = table.fields
        checked = TableValues(table)
        for key, value in given.items():
            if key not in fields:
                self._mistakes.add((*place, key), f"no such key; {nearest(key, fields)}")
                continue
            result = self.value(fields[key].shape, value, (*place, key))
            if result is MISSING:
                checked.mistaken.append(key)
            else:
                checked[key] = result
        for key in missing(fields, given):
            self._mistakes.add(place, f"no {key}, expected {_described(fields[key].shape)}")
        return checked

    def value(self, shape: Shape, given: Any, place: Place) -> Any:
        """The value at a place, :data:`MISSING` where it is a mistake."""
        if shape.nullable and self._says_none(shape, given, place):
            return None
        if shape.many:
            if not isinstance(given, list):
                return self._wrong(shape, place)
            one = msgspec.structs.replace(shape, many=False, nullable=False)
            items = [self.value(one, item, (*place, number)) for number, item in enumerate(given)]
            # With all its items, so that they keep their numbers.
            return items
        if isinstance(given, dict) and shape.tables:
            return self.table(_table_meant(shape.tables, given), given, place)
        if shape.leaf is None:
            return self._wrong(shape, place)
        if place in self._around_unclear and self._is_unclear(shape, place):
            return MISSING
        try:
            return msgspec.convert(given, shape.leaf, strict=place not in self._variables.whole)
        except msgspec.ValidationError as exc:
            inner = tuple(_steps(str(exc)))
            return self._wrong(shape, (*place, *inner), _at(shape.leaf, inner))

    def raw(self, place: Place) -> Any:
        """What is written at a place."""
        value = self._raw
        for part in place:
            value = value[part]
        return value

    def _is_unclear(self, shape: Shape, place: Place) -> bool:
        """Note what may be a text or a truth value, unless the place can only have a truth value."""
        if bool in _members(shape.leaf):
            return False
        for inner, written in self._unclear.items():
            if inner[: len(place)] != place:
                continue
            self._mistakes.add(
                inner,
                f"found {written}, which is true or false to some and text to others, expected"
                " true or false, or quotes",
            )
        return True

    def _says_none(self, shape: Shape, given: Any, place: Place) -> bool:
        if given is None:
            return True
        return given is False or (place in self._variables.whole and shape.leaf is not str and given == "false")

    def _wrong(self, shape: Shape, place: Place, inner: Sequence[Any] = ()) -> object:
        """Note that something else is expected; one of the types ``inner``, where it is about a part of a value."""
        found = found_named(self.raw(place))
        expected = one_of([_named_type(kind) for kind in inner]) if inner else _described(shape)
        self._mistakes.add(place, f"found {found}, expected {expected}")
        return MISSING


def _table_meant(tables: Sequence[Table], given: Mapping[str, Any]) -> Table:
    """The table that has its mark among the keys, else the one with most of the keys, else the last one."""
    for table in tables:
        if table.mark in given:
            return table
    return max(reversed(tables), key=lambda table: len(table.fields.keys() & given.keys()))


def missing(fields: Mapping[str, Field], given: Mapping[str, Any]) -> Iterator[str]:
    """The keys that have to be there and are not."""
    return (key for key, field in fields.items() if field.required and key not in given)


def _at(leaf: Any, steps: Sequence[int]) -> Sequence[Any]:
    """The types that a part of a value may have: an item of a list, one of a pair, an item of an item."""
    kinds = _members(leaf)
    for step in steps:
        inner: list[Any] = []
        for kind in kinds:
            arguments = get_args(kind)
            if get_origin(kind) is list:
                inner += _members(arguments[0])
            elif get_origin(kind) is tuple:
                inner += _members(arguments[step])
        kinds = tuple(inner)
    return kinds if steps else ()


def _steps(message: str) -> Iterator[int]:
    """Where in the value the fault is, by the message of msgspec; ``...`` in it stands for any key."""
    found = _WITHIN.search(message)
    for number in _STEP.findall(found["steps"] if found else ""):
        if number == "...":
            return
        yield int(number)


def _described(shape: Shape) -> str:
    """What is expected, in words."""
    words = [_named_type(kind) for kind in _members(shape.leaf)] if shape.leaf is not None else []
    if shape.tables:
        keys = list(dict.fromkeys(key for table in shape.tables for key in table.fields))
        required = [key for table in shape.tables for key in missing(table.fields, {})]
        named = one_of(required) if len(shape.tables) > 1 and required else ", ".join(required or keys[:3])
        words.append(f"a table with {named}")
    text = one_of(words)
    if shape.many:
        text = "a list of tables" if shape.leaf is None else f"a list: {text}"
    return f"{text}, or false for none" if shape.without else text


def _named_type(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return one_of([repr(name) for name in arguments])
    if origin is list:
        return f"a list of {one_of([_plural(inner) for inner in _members(arguments[0])])}"
    if origin is tuple:
        return f"a pair such as ['waf', {get_args(arguments[1])[-1]!r}]"
    if origin is dict:
        return "a table of texts"
    return _NAMES[kind]


def _plural(kind: Any) -> str:
    return "texts" if kind is str else _named_type(kind)


def _members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
