"""What the texts of parameters and forms may mean."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final

from .document import ApiDocument, prefix_of

_TRUE: Final = frozenset({"1", "on", "t", "true", "y", "yes"})
_FALSE: Final = frozenset({"0", "off", "f", "false", "n", "no"})
#: Violations that one answer names.
MOST: Final = 8


def _number(text: str) -> Any:
    """As Pydantic reads it: with blanks around it, and underscores between digits, which are those of ASCII."""
    if text.strip().isascii():
        with suppress(ValueError):
            return int(text)
        with suppress(ValueError):
            number = float(text)
            return number if math.isfinite(number) else None
    return None


def _boolean(text: str) -> Any:
    lower = text.lower()
    return True if lower in _TRUE else False if lower in _FALSE else None


def _first(*readers: Callable[[str], Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        return next((value for reader in readers if (value := reader(text)) is not None), text)

    return read


Reader = Callable[[str], Any]


def readers_of(document: ApiDocument, pointer: str) -> Sequence[Reader]:
    """A text has no type. It conforms where one of these, of the types in the schema, makes it a value that does."""
    types = {kind for schema in document.within(pointer, items=True) for kind in _types(schema)}
    numbers, booleans = not types.isdisjoint(("integer", "number")), "boolean" in types
    readers = [_first()]
    if numbers:
        readers.append(_first(_number))
    if booleans:
        readers.append(_first(_boolean))
    if numbers and booleans:
        readers += [_first(_number, _boolean), _first(_boolean, _number)]
    return readers


def _types(schema: dict[str, Any]) -> Iterator[str]:
    kind = schema.get("type", ())
    yield from [kind] if isinstance(kind, str) else kind
    for value in [*schema.get("enum", ()), schema.get("const")]:
        yield "boolean" if isinstance(value, bool) else "number" if isinstance(value, int | float) else "string"


def conforms(
    document: ApiDocument, pointer: str, texts: Sequence[object], readers: Sequence[Reader], *, many: bool
) -> bool:
    """Whether texts, or values that are none, conform to the schema of a list, or each of them to that of a scalar."""
    for values in [texts] if many else [[text] for text in texts]:
        read = ([_read(reader, one) for one in values] for reader in readers)
        if any(document.is_valid(pointer, found if many else found[0]) for found in read):
            continue
        if not (many and any(document.is_valid(pointer, found) for found in _as_tuples(document, pointer, values))):
            return False
    return True


def _read(reader: Reader, given: object) -> object:
    return reader(given) if isinstance(given, str) else given


def _as_tuples(document: ApiDocument, pointer: str, texts: Sequence[object]) -> Iterator[list[object]]:
    """Texts, each read as the schema of its own place in a list has it."""
    for where, schema in document.places_within(pointer):
        if rules := prefix_of(where, schema):
            found = list(texts)
            for index, (rule, text) in enumerate(zip(rules, texts, strict=False)):
                read = (_read(reader, text) for reader in readers_of(document, rule))
                found[index] = next((value for value in read if document.is_valid(rule, value)), text)
            yield found


def takes_list(document: ApiDocument, pointer: str) -> bool:
    """Whether a schema is of lists, or of lists and null."""
    return any("array" in _types(schema) for schema in document.within(pointer))


def is_of_objects(schema: dict[str, Any]) -> bool:
    """Whether it is of objects, or of objects and others, without those schemas that it refers to."""
    return "object" in _types(schema) or "properties" in schema
