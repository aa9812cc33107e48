"""One operation of a description: what its requests may be, and its responses."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl

from ...errors import ConfigurationError
from ...protocol import RequestHeadersEvent, ResponseHeadersEvent
from ..cookies import cookies_of
from .answers import Violation
from .connection import left_to_agents
from .document import ApiDocument, below
from .forms import FORM, MULTIPART, is_of_texts
from .json_bodies import JSON, is_json, media_type_of
from .parameters import Parameter, headers_of, judge, parameters_of, schema_of
from .values import MOST

#: FastAPI gives it to every route. Apps answer such requests in their own ways, and describe nothing of it.
_OF_FASTAPI: Final = {
    "description": "Validation Error",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/HTTPValidationError"}}},
}


class Media(NamedTuple):
    """What a body of one media type is judged by. ``kind``: ``json``, ``form``, or ``other`` for what is not judged."""

    kind: str
    schema: str | None


class Bodies(NamedTuple):
    """The media types of a body, as the description has them."""

    media: Mapping[str, Media]
    required: bool
    pointer: str

    def of(self, content_type: str | None) -> Media | None:
        """What a body of this type is judged by; None: it may not be of this type.

        Without a type it is JSON, as older FastAPI reads it. A form may come in either way, as Starlette reads it.
        """
        given = media_type_of(content_type) or JSON
        also = (JSON,) if is_json(given) else (FORM, MULTIPART) if given in (FORM, MULTIPART) else ()
        for name in (given, *also, given.partition("/")[0] + "/*", "*/*"):
            if name in self.media:
                return self.media[name]
        return None


class Operation:
    """Compiled once.

    :param pointer: where it is in the document.
    :param shared: the parameters of its path.
    :raises ConfigurationError: for what can't be read.
    """

    def __init__(self, document: ApiDocument, pointer: str, shared: str) -> None:
        self.document = document
        self.pointer, node = document.resolve(pointer)
        if not isinstance(node, dict):
            raise ConfigurationError(f"OpenApiValidation: {pointer} is no object, expected an operation")
        parameters: dict[tuple[str, str], Parameter] = {}
        for where in (shared, below(pointer, "parameters")):
            for parameter in parameters_of(document, where):
                parameters[parameter.place, parameter.name] = parameter
        self._parameters = tuple(parameters.values())
        self._cookies = {name for place, name in parameters if place == "cookie"}
        self.body = _bodies(document, below(self.pointer, "requestBody")) if "requestBody" in node else None
        self.responses = _responses(document, self.pointer, node)

    def head(self, event: RequestHeadersEvent, path: Mapping[str, Any]) -> list[Violation]:
        """What is wrong in path, query, headers and cookies."""
        if not self._parameters:
            return []
        query: dict[str, list[str]] = {}
        for name, value in parse_qsl(event.uri.partition("?")[2], keep_blank_values=True):
            query.setdefault(name, []).append(value)
        given: dict[str, Mapping[str, Sequence[Any]]] = {
            "path": {name: [value if isinstance(value, int | float) else str(value)] for name, value in path.items()},
            "query": query,
            "header": event.headers,
            "cookie": {name: [value] for name, value in self._cookies_of(event).items()},
        }
        left = left_to_agents(event)
        held = (parameter for parameter in self._parameters if parameter.header not in left)
        found = (judge(self.document, parameter, given[parameter.place]) for parameter in held)
        return [violation for violation in found if violation is not None][:MOST]

    def _cookies_of(self, event: RequestHeadersEvent) -> Mapping[str, str]:
        return cookies_of(event.header("cookie") or "", self._cookies) if self._cookies else {}


class DescribedResponse:
    """What the description says of the responses of one status."""

    def __init__(self, document: ApiDocument, pointer: str) -> None:
        self.document = document
        self.pointer, node = document.resolve(pointer)
        self._headers = tuple(headers_of(document, self.pointer, node))
        self.body = _bodies(document, self.pointer) if node.get("content") else None

    def media(self, content_type: str | None) -> Media | None:
        """What a body is judged by; None: there may be none of this type, nor one without a type."""
        return None if self.body is None or not media_type_of(content_type) else self.body.of(content_type)

    def head(self, event: ResponseHeadersEvent, *, has_body: bool) -> list[Violation]:
        """What is wrong in the headers and the media type."""
        found = [judge(self.document, header, event.headers) for header in self._headers]
        content_type = event.header("content-type")
        if has_body and self.body is not None and self.media(content_type) is None:
            found.append(Violation("response_content_type", "content-type", "invalid", below(self.pointer, "content")))
        return [violation for violation in found if violation is not None][:MOST]


def _bodies(document: ApiDocument, pointer: str) -> Bodies:
    pointer, node = document.resolve(pointer)
    media = {
        media_type_of(name): _media(document, below(pointer, "content", name), media_type_of(name))
        for name in node.get("content", {})
    }
    return Bodies(media, node.get("required") is True, pointer)


def _media(document: ApiDocument, pointer: str, media_type: str) -> Media:
    pointer, node = document.resolve(pointer)
    schema = schema_of(document, pointer) if "schema" in node else None
    if schema is None:
        return Media("other", None)
    if is_json(media_type):
        return Media("json", schema)
    judged = media_type in (FORM, MULTIPART) and is_of_texts(document, schema)
    return Media("form" if judged else "other", schema if judged else None)


def _responses(document: ApiDocument, pointer: str, node: Mapping[str, Any]) -> Mapping[str, DescribedResponse]:
    where = below(pointer, "responses")
    return {
        str(status).upper(): DescribedResponse(document, below(where, status))
        for status, response in node.get("responses", {}).items()
        if response != _OF_FASTAPI
    }
