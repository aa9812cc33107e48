"""The parameters of an operation, and the headers of its responses."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from ...errors import ConfigurationError
from ...protocol.headers import as_one_spelling
from .answers import Violation
from .bodies import broken_by_texts
from .document import ApiDocument, below
from .values import Reader, conforms, is_of_objects, readers_of, takes_list

#: OpenAPI says of these that they are no parameters, whatever a description says (section 4.8.12.1).
_NO_PARAMETERS: Final = frozenset({"accept", "authorization", "content-type"})
_HEADERS: Final = frozenset({"header", "response_header"})
#: What is judged: in queries and cookies each member of a list in a field of its own, as FastAPI has them.
_STYLES: Final = {"query": "form", "cookie": "form", "header": "simple", "path": "simple", "response_header": "simple"}


class Parameter(NamedTuple):
    """One parameter, or header of a response.

    :ivar schema: None: of a style that is not judged, so that it only has to be there, if it is ``required``.
    :ivar many: whether it is a list.
    :ivar deep: whether it is sent as its members, ``filter[min]=1`` (style ``deepObject``).
    """

    place: str
    name: str
    required: bool
    schema: str | None
    many: bool
    readers: Sequence[Reader]
    pointer: str
    deep: bool

    @property
    def header(self) -> str | None:
        """The header of requests that it is in, in the one spelling."""
        return as_one_spelling(self.name) if self.place == "header" else "cookie" if self.place == "cookie" else None


def judge(document: ApiDocument, parameter: Parameter, given: Mapping[str, Sequence[Any]]) -> Violation | None:
    """What is wrong with one of the ``given`` values. All of them count: which one is read is not certain."""
    values = given.get(parameter.name.lower() if parameter.place in _HEADERS else parameter.name, ())
    if not values:
        deep = parameter.deep and any(name.startswith(f"{parameter.name}[") for name in given)
        if parameter.required and not deep:
            return Violation(parameter.place, parameter.name, "missing", below(parameter.pointer, "required"))
    elif parameter.schema is not None and not any(
        conforms(document, parameter.schema, texts, parameter.readers, many=parameter.many)
        for texts in _readings(parameter, values)
    ):
        *_, texts = _readings(parameter, values)
        rule, keyword = broken_by_texts(document, parameter.schema, texts, parameter.readers, many=parameter.many)
        return Violation(parameter.place, parameter.name, "invalid", rule, keyword=keyword)
    return None


def _readings(parameter: Parameter, values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """FastAPI has each member of a list in a field of its own, OpenAPI has commas between them in headers."""
    yield values
    if parameter.many and parameter.place in _HEADERS:
        yield [text.strip(" \t") for value in values for text in value.split(",")]


def parameters_of(document: ApiDocument, where: str) -> Iterator[Parameter]:
    for pointer in _items(document, where):
        pointer, node = document.resolve(pointer)
        place, name = (node.get("in"), node.get("name")) if isinstance(node, dict) else (None, None)
        if place not in ("path", "query", "header", "cookie") or not isinstance(name, str):
            raise ConfigurationError(f"OpenApiValidation: {pointer} is no parameter, expected one with name and in")
        if place == "header" and name.lower() in _NO_PARAMETERS:
            continue
        yield _parameter(document, pointer, node, place, name)


def _parameter(document: ApiDocument, pointer: str, node: Mapping[str, Any], place: str, name: str) -> Parameter:
    schema = schema_of(document, pointer) if "schema" in node else None
    many = schema is not None and takes_list(document, schema)
    style, exploded = node.get("style", _STYLES[place]), node.get("explode", True) is True
    # Objects are sent as their members, in one text or in several.
    members = schema is not None and any(map(is_of_objects, document.within(schema, items=True)))
    # Then nothing has the name of the parameter.
    nameless = members and style == "form" and exploded
    listed = many and (place == "path" or (place not in _HEADERS and not exploded))
    if style != _STYLES[place] or members or listed:
        schema = None
    readers = () if schema is None else readers_of(document, schema)
    required = node.get("required") is True and not nameless
    return Parameter(place, name, required, schema, many, readers, pointer, style == "deepObject")


def headers_of(document: ApiDocument, pointer: str, node: Mapping[str, Any]) -> Iterator[Parameter]:
    for name in node.get("headers", {}):
        if name.lower() != "content-type":
            where, header = document.resolve(below(pointer, "headers", name))
            yield _parameter(document, where, header, "response_header", name)


def schema_of(document: ApiDocument, pointer: str) -> str:
    """The pointer to a schema that can be judged by."""
    schema = below(pointer, "schema")
    document.prepare(schema)
    return schema


def _items(document: ApiDocument, pointer: str) -> Iterable[str]:
    parent, _, key = pointer.rpartition("/")
    node = document.resolve(parent)[1]
    items = node.get(key, ()) if isinstance(node, dict) else ()
    return [below(pointer, index) for index in range(len(items))]
