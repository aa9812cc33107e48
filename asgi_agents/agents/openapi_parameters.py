"""The parameters of an operation, and the headers of its responses."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from ..errors import ConfigurationError
from .openapi_answers import Violation
from .openapi_document import ApiDocument, below
from .openapi_values import Reader, conforms, readers_of, takes_list

#: OpenAPI says of these that they are no parameters, whatever a description says (section 4.8.12.1).
_NO_PARAMETERS: Final = frozenset({"accept", "authorization", "content-type"})
_HEADERS: Final = frozenset({"header", "response_header"})
#: How lists of parameters are judged: each value in a field of its own, as FastAPI has them.
_STYLES: Final = {"query": "form", "cookie": "form", "header": "simple", "path": "simple", "response_header": "simple"}


class Parameter(NamedTuple):
    """One parameter, or header of a response.

    :ivar schema: None: of a style that is not judged, so that it only has to be there, if it is ``required``.
    :ivar many: whether it is a list.
    """

    place: str
    name: str
    required: bool
    schema: str | None
    many: bool
    readers: Sequence[Reader]
    pointer: str


def judge(document: ApiDocument, parameter: Parameter, given: Mapping[str, Sequence[Any]]) -> Violation | None:
    """What is wrong with one of the ``given`` values. All of them count: which one is read is not certain."""
    values = given.get(parameter.name.lower() if parameter.place in _HEADERS else parameter.name, ())
    if not values:
        if parameter.required:
            return Violation(parameter.place, parameter.name, "missing", parameter.pointer)
    elif parameter.schema is not None and not conforms(
        document, parameter.schema, values, parameter.readers, many=parameter.many
    ):
        return Violation(parameter.place, parameter.name, "invalid", parameter.schema)
    return None


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
    plain = node.get("style", _STYLES[place]) == _STYLES[place]
    if not plain or (many and (place == "path" or not node.get("explode", True))):
        schema = None
    readers = () if schema is None else readers_of(document, schema)
    return Parameter(place, name, node.get("required") is True, schema, many, readers, pointer)


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
