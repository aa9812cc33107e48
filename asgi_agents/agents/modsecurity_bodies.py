"""What the engine would read otherwise than apps do, or not at all: looked for in bodies beside it."""

from collections.abc import Iterable
from typing import Protocol

from .modsecurity_arguments import Arguments, Form
from .modsecurity_json import Json
from .modsecurity_multipart import Multipart
from .modsecurity_own_rules import PORT_TOO_MANY, PORT_UNREADABLE, PORT_WITH_DOCTYPE
from .modsecurity_types import BodyKind
from .modsecurity_xml import Xml


class Check(Protocol):
    """Reads a body as it comes."""

    def read(self, data: bytes, *, is_last: bool) -> bytes | None:
        """What the engine is given of it; None where the body up to here can be read in several ways, or in
        none, or has too many arguments."""
        ...


def check_of(kind: BodyKind, arguments: Arguments, content_types: Iterable[str] = ()) -> Check | None:
    """What a body of this kind is read by, beside the engine.

    :param arguments: those of the head, to which those of the body are added.
    """
    match kind:
        case BodyKind.JSON:
            return Json(arguments)
        case BodyKind.XML:
            return Xml(arguments)
        case BodyKind.MULTIPART:
            return Multipart(arguments, content_types)
        case BodyKind.FORM:
            return Form(arguments)
        case _:
            return None


def why_not_given(arguments: Arguments, check: Check | None) -> int:
    """What tells the rules why the engine is not given a body."""
    if arguments.are_too_many:
        return PORT_TOO_MANY
    return PORT_WITH_DOCTYPE if isinstance(check, Xml) and check.has_doctype else PORT_UNREADABLE
