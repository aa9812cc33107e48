"""Forms of texts, without files, as Starlette reads them."""

from collections.abc import AsyncGenerator, Coroutine
from typing import Any, Final, TypeVar

import python_multipart  # noqa: F401 - by which Starlette reads forms
from starlette.datastructures import FormData, Headers
from starlette.formparsers import FormParser, MultiPartParser

from .answers import Violation
from .bodies import broken_by_texts
from .document import ApiDocument, below
from .json_bodies import media_type_of
from .values import MOST, conforms, is_of_objects, readers_of, takes_list

_Result = TypeVar("_Result")

FORM: Final = "application/x-www-form-urlencoded"
MULTIPART: Final = "multipart/form-data"


def is_of_texts(document: ApiDocument, pointer: str) -> bool:
    """Whether each field is a text, or a list of texts.

    Files are not kept to be judged. Objects may be written in JSON, or in other ways.
    """
    pointer, schema = document.resolve(pointer)
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if not isinstance(properties, dict):
        return False
    return not any(
        inner.get("format") == "binary" or "contentMediaType" in inner or is_of_objects(inner)
        for name in properties
        for inner in document.within(below(pointer, "properties", name), items=True)
    )


def form_violations(document: ApiDocument, pointer: str, data: bytes, content_type: str) -> list[Violation]:
    """What is wrong in a form without files. A field that is empty is one that was left out, as FastAPI has it."""
    pointer, schema = document.resolve(pointer)
    try:
        form = _read_form(data, content_type)
    except Exception:
        # The parsers raise what they meet: a type without boundary, an encoding that there is not.
        return [Violation("body", "", "unreadable", status=400)]
    properties, required = schema.get("properties", {}), schema.get("required", ())
    found = []
    for name in properties:
        rule = below(pointer, "properties", name)
        values = form.getlist(name)
        many = takes_list(document, rule)
        if not many and name not in required:
            values = [value for value in values if value != ""]
        if not values:
            if name in required:
                found.append(Violation("body", below("", name), "missing", below(pointer, "required")))
        elif not conforms(document, rule, values, readers := readers_of(document, rule), many=many):
            rule, keyword = broken_by_texts(document, rule, values, readers, many=many)
            found.append(Violation("body", below("", name), "invalid", rule, keyword=keyword))
    if schema.get("additionalProperties") is False and any(name not in properties for name in form):
        keyword = "additionalProperties"
        found.append(Violation("body", "", "invalid", below(pointer, keyword), keyword=keyword))
    return found[:MOST]


def _read_form(data: bytes, content_type: str) -> FormData:
    async def whole() -> AsyncGenerator[bytes, None]:
        yield data
        # As the stream of a request ends; older Starlette waits for it.
        yield b""

    headers = Headers({"content-type": content_type})
    if media_type_of(content_type) == MULTIPART:
        return _finished(MultiPartParser(headers, whole(), max_files=0).parse())
    return _finished(FormParser(headers, whole()).parse())


def _finished(coroutine: Coroutine[Any, Any, _Result]) -> _Result:
    """The result of a coroutine that waits for nothing: all that it reads is there."""
    try:
        coroutine.send(None)
    except StopIteration as exc:
        result: _Result = exc.value
        return result
    coroutine.close()
    raise RuntimeError("a form was not read in one go")
