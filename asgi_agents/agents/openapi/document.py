"""A description of an API, OpenAPI 3.1, and the values that conform to the schemas in it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote, unquote

import jsonschema_rs

from ...errors import ConfigurationError
from ...messages.naming import named
from .unique_items import UniqueItems, forget

#: Where the description is known to the library. Nothing is ever read from there, nor from anywhere else.
_BASE: Final = "urn:asgi-agents:openapi"
# What a pattern that looks around may cost, in steps. All others take no longer than the text is long.
_PATTERNS: Final = jsonschema_rs.FancyRegexOptions(backtrack_limit=100_000)
_MOST_REFERENCES: Final = 64


class ApiDocument:
    """One description. Its schemas are named by JSON pointers, as in ``#/components/schemas/Item``.

    :param root: of the description, an object of JSON.
    :param keywords: of JSON Schema, whose meaning is another one here.
    :raises ConfigurationError: where it is no OpenAPI 3.1, or 3.2.
    """

    def __init__(self, root: Mapping[str, Any], keywords: Mapping[str, type[Any]] | None = None) -> None:
        version, paths = root.get("openapi"), root.get("paths", {})
        if not isinstance(version, str) or not version.startswith(("3.1.", "3.2.")):
            raise ConfigurationError(f"OpenApiValidation: openapi is {named(version)}, expected '3.1.0' or later")
        if not isinstance(paths, dict):
            raise ConfigurationError(f"OpenApiValidation: paths is {named(paths)}, expected an object")
        try:
            # What JSON can't say is nothing that a client can be held to.
            self.root: dict[str, Any] = json.loads(json.dumps(root, allow_nan=False))
            self._registry = jsonschema_rs.Registry([(_BASE, self.root)], retriever=_nothing)
        except (TypeError, ValueError, RecursionError) as exc:
            raise ConfigurationError(f"OpenApiValidation: the description is no JSON: {line_of(exc)}") from None
        self._keywords: dict[str, type[Any]] = {"uniqueItems": UniqueItems, **(keywords or {})}
        self._validators: dict[tuple[str, str | None], jsonschema_rs.Draft202012Validator] = {}

    def is_valid(self, pointer: str, value: Any, keyword: str | None = None) -> bool:
        """Whether a value conforms to a schema, or to one keyword of it. The time is linear in the value's size."""
        try:
            return self.prepare(pointer, keyword).is_valid(value)
        except UnicodeEncodeError:
            # Half of a surrogate pair, which is no text: some encodings of multipart forms have it.
            return False
        finally:
            forget()

    def prepare(self, pointer: str, keyword: str | None = None) -> jsonschema_rs.Draft202012Validator:
        """Compile a schema, or one keyword of it that has no schemas in it.

        :raises ConfigurationError: where it is none, or refers to what is not in the description.
        """
        found = self._validators.get((pointer, keyword))
        if found is None:
            try:
                found = jsonschema_rs.Draft202012Validator(
                    {"$ref": _BASE + quote(pointer, safe="#/~")} if keyword is None else self._only(pointer, keyword),
                    registry=self._registry,
                    validate_formats=False,
                    pattern_options=_PATTERNS,
                    keywords=self._keywords,
                    offline=True,
                )
            except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as exc:
                raise ConfigurationError(f"OpenApiValidation: the schema at {pointer}: {line_of(exc)}") from None
            self._validators[pointer, keyword] = found
        return found

    def _only(self, pointer: str, keyword: str) -> dict[str, Any]:
        return {keyword: self.resolve(pointer)[1][keyword]}

    def resolve(self, pointer: str) -> tuple[str, Any]:
        """Where a pointer leads, past references, and what is there.

        :raises ConfigurationError: where that is nothing.
        """
        start = pointer
        for _ in range(_MOST_REFERENCES):
            node: Any = self.root
            for token in pointer.split("/")[1:]:
                key = token.replace("~1", "/").replace("~0", "~")
                try:
                    node = node[int(key) if isinstance(node, list) else key]
                except (KeyError, IndexError, ValueError, TypeError):
                    raise ConfigurationError(
                        f"OpenApiValidation: {start} refers to {pointer}, which is not there"
                    ) from None
            target = node.get("$ref") if isinstance(node, dict) else None
            if not isinstance(target, str) or not target.startswith("#/"):
                return pointer, node
            pointer = unquote(target)
        raise ConfigurationError(f"OpenApiValidation: {start} refers to itself")

    def within(self, pointer: str, *, items: bool = False) -> Iterator[dict[str, Any]]:
        """A schema and those that hold for the same value, each once; with ``items`` also those of lists in it."""
        for _, schema in self.places_within(pointer, items=items):
            yield schema

    def places_within(self, pointer: str, *, items: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
        """The same, with the pointer to each."""
        seen: set[str] = set()
        todo = [pointer]
        while todo:
            pointer, schema = self.resolve(todo.pop())
            if pointer in seen or not isinstance(schema, dict):
                continue
            seen.add(pointer)
            yield pointer, schema
            todo.extend(branches_of(pointer, schema))
            if items:
                todo.extend(prefix_of(pointer, schema))
                if "items" in schema:
                    todo.append(below(pointer, "items"))


def branches_of(pointer: str, schema: dict[str, Any]) -> Iterator[str]:
    """Pointers to the schemas that hold for the same value."""
    for keyword in ("allOf", "anyOf", "oneOf"):
        branches = schema.get(keyword)
        for index in range(len(branches)) if isinstance(branches, list) else ():
            yield below(pointer, keyword, index)


def prefix_of(pointer: str, schema: dict[str, Any]) -> Sequence[str]:
    """Pointers to the schemas of the first items of a list, of each its own."""
    return [below(pointer, "prefixItems", index) for index in range(len(schema.get("prefixItems", ())))]


def below(pointer: str, *keys: str | int) -> str:
    """The pointer to what stands under some keys, one within the other."""
    return "/".join((pointer, *(str(key).replace("~", "~0").replace("/", "~1") for key in keys)))


def _nothing(uri: str) -> Any:
    raise ValueError(f"{uri} is not in the description")


def line_of(exc: BaseException) -> str:
    """The first line of what an exception says."""
    return str(exc).partition("\n")[0]
