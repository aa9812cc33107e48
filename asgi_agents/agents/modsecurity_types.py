"""What content types are to the engine, and to apps."""

import re
from collections.abc import Iterable
from enum import Enum
from typing import Final


class BodyKind(Enum):
    """What a request's body is to the engine."""

    JSON = "json"
    XML = "xml"
    MULTIPART = "multipart"
    FORM = "form"
    #: The engine looks at no body of such a type, or of none.
    OTHER = "other"


#: Starlette reads JSON of any type. What the engine reads as XML or as a form of parts is none.
APPS_MAY_READ_JSON: Final = frozenset({BodyKind.FORM, BodyKind.OTHER})


# The rules of the agent have the first two, and the engine itself has the others.
_KINDS: Final = {
    BodyKind.XML: re.compile(r"[a-z]+/(?:[a-z0-9._-]+\+)?xml", re.IGNORECASE),
    BodyKind.JSON: re.compile(r"application/(?:[!#$%&'*+.^_`|~0-9a-z-]*\+)?json", re.IGNORECASE),
    BodyKind.MULTIPART: re.compile(r"multipart/form-data", re.IGNORECASE),
    BodyKind.FORM: re.compile(r"application/x-www-form-urlencoded", re.IGNORECASE),
}

#: The engine compares types letter by letter, and looks into those of which it is told: it is told of this one.
TEXT: Final = b"text/plain"
_KNOWN: Final = (["text/plain"], ["text/html"], ["text/xml"], ["application/json"], ["application/problem+json"])
_TEXT: Final = re.compile(
    r"\s*(?:$|;|text/|[^/;]+/(?:[^;]*[+.-])?(?:json|jsonl|ndjson|xml|xhtml|javascript|ecmascript|yaml|graphql)\s*(?:$|;))",
    re.IGNORECASE,
)


def is_text(content_types: Iterable[str]) -> bool:
    """Whether a response of these types is text, or says nothing of it: clients look into such a one themselves."""
    given = list(content_types)
    return not given or any(map(_TEXT.match, given))


def is_known_text(content_types: Iterable[str]) -> bool:
    """Whether the engine looks into such a response by itself."""
    return [given.partition(";")[0] for given in content_types][-1:] in _KNOWN


def kind_of(content_types: Iterable[str]) -> BodyKind:
    """The kind of a body of these types. Rules refuse a request that has more than one."""
    given = list(content_types)
    return next((kind for kind, pattern in _KINDS.items() if any(map(pattern.match, given))), BodyKind.OTHER)
