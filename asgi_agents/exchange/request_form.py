"""What the body of a request is, in each form in which an app may read it."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Final
from urllib.parse import quote_plus, unquote_to_bytes

from msgspec import Struct

from ..guardrails.body import Parsed
from ..guardrails.dialect import Dialect
from ..guardrails.dialects.known import is_ours, of_request
from ..guardrails.dialects.unknown import Events, PlainText
from ..guardrails.framing import TooComplexError, UnreadableError, decoded
from ..guardrails.json_text import JSON
from ..guardrails.operations import Operation, Whole
from ..guardrails.slots import Kind, Slot
from ..guardrails.uncovered import uncovered
from .answer_form import reads_as_json
from .headers import in_utf_8, media_type
from .scope import RawHeaders

#: The kinds of text that requests have.
REQUEST_KINDS: Final[frozenset[Kind]] = frozenset({"input", "tool_call", "tool_result", "reasoning"})
_FORM_TYPE: Final = "application/x-www-form-urlencoded"
# In whatever encoding, with whatever marks in front (RFC 8259, section 8.1).
_LOOKS_LIKE_JSON: Final = re.compile(rb"[\x00\s\xef\xbb\xbf\xff\xfe]*[{\[\"]")
_FIELD_NAME: Final = re.compile(r"[\w.\[\]-]{1,64}")


class BodyForm(Struct, frozen=True):
    """A form that request bodies have: how one becomes JSON, for its strings to be judged, and back.

    :ivar from_json: takes the changed JSON, and the body as it was.
    :ivar dialect: None: known by path and shape.
    :ivar operations: None: those of the dialect.
    :ivar optional: whether a body need not have this form.
    :ivar fallback: it is for bodies that have no other.
    """

    to_json: Callable[[bytes], bytes]
    from_json: Callable[[bytes, bytes], bytes]
    dialect: Dialect | None = None
    operations: Callable[[JSON], list[Operation]] | None = None
    optional: bool = False
    fallback: bool = False

    @property
    def required_json(self) -> bool:
        """Whether a body has to be JSON."""
        return self is _JSON


class Readable(Struct, frozen=True):
    """A form in which a body can be read, the dialect that it is in, and the JSON that it is there."""

    form: BodyForm
    dialect: Dialect
    given: bytes
    parsed: Parsed


def forms_of(headers: RawHeaders, *, by_path: bool, judged: bool, judges_input: bool) -> Sequence[BodyForm]:
    """The forms in which an app may read a body. None: it passes unread.

    :param by_path: whether the path says that the request is in a dialect.
    :param judged: whether anybody judges text of requests, and ``judges_input`` whether prompts and messages.
    """
    given = media_type(headers)
    if judged and sum(name.lower() == b"content-type" for name, _ in headers) > 1:
        return (_SEVERAL,)
    if judged and not in_utf_8(headers) and not (given or "").startswith("multipart/"):
        return (_CHARSET,)
    if given == "application/json" or (given or "").endswith("+json") or by_path:
        # Apps that speak a dialect read JSON whatever its type is said to be.
        return (_JSON,)
    if not judged:
        return (_MAYBE_JSON,) if given is None else ()
    if given is None:
        return (_MAYBE_JSON, _OTHERWISE_PLAIN)
    if given == _FORM_TYPE:
        return (_FIELDS, _MAYBE_JSON)
    if given.startswith("text/"):
        return (_PLAIN, _MAYBE_JSON)
    # Some apps read JSON whatever its type is said to be.
    return (_OTHER,) if judges_input else (_MAYBE_JSON,)


def readable(forms: Sequence[BodyForm], data: bytes, path: str, dialects: Sequence[Dialect]) -> Sequence[Readable]:
    """The forms in which ``data`` can be read. Raises UnreadableError if it is not of one that it has to be of."""
    found: list[Readable] = []
    for form in forms:
        if form.fallback and found:
            continue
        if form.optional and not _LOOKS_LIKE_JSON.match(data):
            continue
        if form.optional:
            _refuse_other_encodings(data)
        try:
            given = form.to_json(data)
            parsed = Parsed(given)
        except UnreadableError as exc:
            # An app may read what is over our limits, or what is not quite UTF-8.
            if form.optional and not isinstance(exc, TooComplexError) and not reads_as_json(data):
                continue
            raise
        found.append(Readable(form, form.dialect or of_request(path, parsed.value, dialects), given, parsed))
    return found


def _refuse_other_encodings(data: bytes) -> None:
    """Apps that read JSON whatever its type is said to be read it in UTF-16 and UTF-32 too, and so past the judges."""
    encoding = json.detect_encoding(data)
    if encoding != "utf-8":
        raise UnreadableError(f"expected UTF-8, got {encoding}")


def operations_of(dialect: Dialect, by_path: bool) -> Callable[[JSON], list[Operation]]:
    """All text of a request: what its dialect finds, and what it does not know."""

    if not is_ours(dialect):
        # Its user has said where text is.
        return dialect.request

    def operations(value: JSON) -> list[Operation]:
        found = dialect.request(value)
        return [*found, *uncovered(value, found, by_path=by_path)]

    return operations


def _as_it_is(data: bytes) -> bytes:
    return data


def _changed(changed: bytes, data: bytes) -> bytes:
    return changed


def _text_to_json(data: bytes) -> bytes:
    return json.dumps(decoded(data)).encode()


def _json_to_text(changed: bytes, data: bytes) -> bytes:
    text: str = json.loads(changed)
    return text.encode()


def _fields_to_json(data: bytes) -> bytes:
    """The names and values of all fields, in turns, decoded."""
    texts: list[str] = []
    for field in data.split(b"&"):
        name, _, value = field.partition(b"=")
        texts += (_unquoted(name), _unquoted(value))
    return json.dumps(texts).encode()


def _json_to_fields(changed: bytes, data: bytes) -> bytes:
    """``data`` with what was changed in it. Fields that were not stay as they are."""
    texts: list[str] = json.loads(changed)
    fields = data.split(b"&")
    for index, field in enumerate(fields):
        name, equals, value = field.partition(b"=")
        new_name, new_value = texts[2 * index : 2 * index + 2]
        if new_name != _unquoted(name):
            name = quote_plus(new_name).encode()
        if new_value != _unquoted(value):
            value = quote_plus(new_value).encode()
        fields[index] = name + equals + value
    return b"&".join(fields)


def _unquoted(given: bytes) -> str:
    return decoded(unquote_to_bytes(given.replace(b"+", b" ")))


def _field_texts(value: JSON) -> list[Operation]:
    """Names are no text, as the keys of JSON are none. But apps that read the body as it is may be sent a text."""
    assert isinstance(value, list)
    return [
        Whole(Slot(("field", index), "input"), (index,), text)
        for index, text in enumerate(value)
        if isinstance(text, str) and text and (index % 2 or not _FIELD_NAME.fullmatch(text))
    ]


def _refused(fault: str) -> Callable[[bytes], bytes]:
    def refuse(data: bytes) -> bytes:
        raise UnreadableError(fault)

    return refuse


_JSON: Final = BodyForm(_as_it_is, _changed)
_MAYBE_JSON: Final = BodyForm(_as_it_is, _changed, optional=True)
_PLAIN: Final = BodyForm(_text_to_json, _json_to_text, PlainText(), PlainText().request)
_OTHERWISE_PLAIN: Final = BodyForm(_text_to_json, _json_to_text, PlainText(), PlainText().request, fallback=True)
_FIELDS: Final = BodyForm(_fields_to_json, _json_to_fields, Events(), _field_texts)
_SEVERAL: Final = BodyForm(_refused("it has several content-types, expected one"), _changed)
_CHARSET: Final = BodyForm(_refused("expected UTF-8 as its charset"), _changed)
_OTHER: Final = BodyForm(_refused("expected JSON, text or an encoded form as its content-type"), _changed)
