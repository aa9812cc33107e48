"""Bodies of JSON, as the app reads them."""

import json
import re
from itertools import accumulate
from typing import Any, Final

from .answers import Violation
from .bodies import violations
from .document import ApiDocument

JSON: Final = "application/json"
#: How deep JSON may be nested.
MAX_DEPTH: Final = 200
# Also one that never ends, so that the time is linear.
_STRINGS: Final = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_BRACKETS: Final = re.compile(r"[\[\]{}]")
_SURROGATES: Final = re.compile("[\ud800-\udfff]")


class _Unreadable(Exception):  # noqa: N818 - says what the body is
    """What is wrong with a body."""


def media_type_of(content_type: str | None) -> str:
    """The media type in lower case, without parameters; empty where there is none."""
    return (content_type or "").partition(";")[0].strip().lower()


def is_json(media_type: str) -> bool:
    """Whether FastAPI reads it as JSON."""
    return media_type == JSON or (media_type.startswith("application/") and media_type.endswith("+json"))


def json_violations(document: ApiDocument, pointer: str, data: bytes) -> list[Violation]:
    """What is wrong in a body of JSON."""
    try:
        value = _read_json(data)
    except _Unreadable as exc:
        return [Violation("body", "", str(exc), status=400)]
    return violations(document, pointer, value, len(data))


def _read_json(data: bytes) -> Any:
    """As ``json.loads`` reads it, which is what the app does. What others might read differently is refused."""
    try:
        text = data.decode(json.detect_encoding(data))
        _check_depth(text)
        value = _DECODER.decode(text)
    except _Unreadable:
        raise
    except (ValueError, RecursionError):
        raise _Unreadable("unreadable") from None
    if "\\u" in text and _SURROGATES.search(json.dumps(value, ensure_ascii=False)):
        raise _Unreadable("not_unicode")
    return value


def _check_depth(text: str) -> None:
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    steps = (1 if bracket in "[{" else -1 for bracket in _BRACKETS.findall(_STRINGS.sub("", text)))
    if max(accumulate(steps), default=0) > MAX_DEPTH:
        raise _Unreadable("too_deep")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Which of two members counts differs from reader to reader (RFC 8259, section 4)."""
    members = dict(pairs)
    if len(members) < len(pairs):
        raise _Unreadable("duplicate_member")
    return members


def _no_constant(name: str) -> Any:
    raise _Unreadable("unreadable")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise _Unreadable("number_too_large")
    return number


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
