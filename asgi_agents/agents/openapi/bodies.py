"""What of a value does not conform to a schema, and by which keyword."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, Final

from ...errors import ConfigurationError
from .answers import Violation
from .document import ApiDocument, below, branches_of
from .values import MOST, Reader

# Steps into a value, from its root to what is wrong in it: at least so many, and more as long as a body is short. Each
# of them looks at all that is below, so that a long body that is deep would take as long as many.
_LEAST_STEPS: Final = 8
_MOST_STEPS: Final = 64
_MOST_BYTES: Final = 4 * 1024 * 1024
#: Keywords that say something by themselves, the telling ones first.
_ALONE: Final = (
    *("type", "enum", "const", "pattern", "maxLength", "minLength", "maximum", "exclusiveMaximum", "minimum"),
    *("exclusiveMinimum", "multipleOf", "maxItems", "minItems", "uniqueItems", "maxProperties", "minProperties"),
    *("required", "dependentRequired"),
)
#: Those that only say that something within is wrong.
_VAGUE: Final = frozenset({"", "type", "anyOf", "oneOf", "allOf"})
_MISSING: Final = object()
_NONE: Final = frozenset[str]()
_TYPES: Final = {
    type(None): frozenset({"null"}),
    bool: frozenset({"boolean"}),
    **dict.fromkeys((int, float), frozenset({"number", "integer"})),
    str: frozenset({"string"}),
    dict: frozenset({"object"}),
    list: frozenset({"array"}),
}


def violations(document: ApiDocument, pointer: str, value: Any, length: int = 1) -> list[Violation]:
    """What of a body does not conform. Cheap where it does: the library's own reports take seconds for large ones.

    :param length: of the body, in bytes. Of a long one less is said of where it is wrong.
    """
    if document.is_valid(pointer, value):
        return []
    steps = min(_MOST_STEPS, max(_LEAST_STEPS, _MOST_BYTES // max(length, 1)))
    with suppress(ConfigurationError):
        return list(islice(_find(document, pointer, value, "", steps), MOST))
    # A schema with an id of its own has references that only the library follows.
    return [Violation("body", "", "invalid", pointer)]


def broken_by_texts(
    document: ApiDocument, pointer: str, texts: Sequence[object], readers: Sequence[Reader], *, many: bool
) -> tuple[str, str]:
    """The pointer to what texts break that do not conform, and the keyword, or the schema and nothing."""
    for values in [texts] if many else [[text] for text in texts]:
        read = [[reader(one) if isinstance(one, str) else one for one in values] for reader in reversed(readers)]
        given = read if many else [one[0] for one in read]
        if any(document.is_valid(pointer, value) for value in given):
            continue
        found = [(one.rule, one.keyword) for value in given for one in violations(document, pointer, value)[:1]]
        return next((one for one in found if one[1] not in _VAGUE), found[0])
    return pointer, ""


def _find(document: ApiDocument, pointer: str, value: Any, at: str, steps: int) -> Iterator[Violation]:
    """Follow what is wrong as far as it is clear which schema it is wrong by."""
    pointer, schema = _clear(document, pointer, value)
    found = False
    for name, child, rule in _children(document, pointer, schema, value) if steps else ():
        if child is _MISSING:
            found = True
            yield Violation("body", below(at, name), "missing", rule)
        elif not document.is_valid(rule, child):
            found = True
            yield from _find(document, rule, child, below(at, name), steps - 1)
    if not found:
        keyword = _keyword(document, pointer, schema, value)
        rule = below(pointer, keyword) if keyword else pointer
        if keyword in ("anyOf", "oneOf") and not any(
            _may_be(document, branch, value) for branch in branches_of(pointer, schema)
        ):
            # It is of none of their types.
            keyword = "type"
        yield Violation("body", at, "invalid", rule, keyword=keyword)


def _children(document: ApiDocument, pointer: str, schema: Any, value: Any) -> Iterator[tuple[str | int, Any, str]]:
    if not isinstance(schema, dict):
        return
    if isinstance(value, dict):
        for name in schema.get("required", ()):
            if name not in value:
                yield name, _MISSING, below(pointer, "required")
        for name in schema.get("properties", ()):
            if name in value:
                yield name, value[name], below(pointer, "properties", name)
    elif isinstance(value, list):
        first = len(schema.get("prefixItems", ()))
        for index, item in enumerate(value):
            if index >= first and not isinstance(schema.get("items"), dict):
                return
            keys = ("prefixItems", index) if index < first else ("items",)
            yield index, item, below(pointer, *keys)


def _clear(document: ApiDocument, pointer: str, value: Any) -> tuple[str, Any]:
    """Past references, and into the one branch that a value can be meant for, where it is that which is broken."""
    for _ in range(_MOST_STEPS):
        pointer, schema = document.resolve(pointer)
        if not isinstance(schema, dict) or "properties" in schema or "items" in schema:
            break
        branches = [branch for branch in branches_of(pointer, schema) if _may_be(document, branch, value)]
        if told := _told_apart(schema, value):
            branches = [told]
        if len(branches) != 1 or document.is_valid(branches[0], value):
            break
        pointer = branches[0]
    return pointer, schema


def _told_apart(schema: dict[str, Any], value: Any) -> str | None:
    """The schema that a union has for a value, by a member that tells its values apart."""
    by = schema.get("discriminator")
    if not isinstance(by, dict) or not isinstance(value, dict):
        return None
    name, schemas = by.get("propertyName"), by.get("mapping")
    found = schemas.get(value.get(name)) if isinstance(schemas, dict) and isinstance(value.get(name), str) else None
    return found if isinstance(found, str) and found.startswith("#/") else None


def _may_be(document: ApiDocument, pointer: str, value: Any) -> bool:
    """Whether a schema is for values of this type."""
    schema = document.resolve(pointer)[1]
    types = schema.get("type") if isinstance(schema, dict) else None
    return types is None or not _TYPES.get(type(value), _NONE).isdisjoint([types] if isinstance(types, str) else types)


def _keyword(document: ApiDocument, pointer: str, schema: Any, value: Any) -> str:
    """The keyword of a schema that a value breaks; empty where that is not clear."""
    if not isinstance(schema, dict):
        return ""
    for keyword in _ALONE:
        if keyword in schema and not document.is_valid(pointer, value, keyword):
            return keyword
    if isinstance(value, dict) and "additionalProperties" in schema and "patternProperties" not in schema:
        known, rule = schema.get("properties", {}), below(pointer, "additionalProperties")
        if any(name not in known and not document.is_valid(rule, value[name]) for name in value):
            return "additionalProperties"
    return next((one for one in ("anyOf", "oneOf", "allOf") if one in schema), "")
