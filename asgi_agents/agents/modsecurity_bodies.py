"""What the engine would read otherwise than apps do, or not at all: looked for in bodies beside it."""

from collections.abc import Iterable
from typing import Final, Protocol
from xml.parsers import expat

from .modsecurity_arguments import Arguments, Form
from .modsecurity_json import Json
from .modsecurity_multipart import Multipart
from .modsecurity_types import BodyKind

# Those that expat and the engine know by the same names. The engine prints XML in others.
_ENCODINGS: Final = frozenset({"utf-8", "us-ascii", "iso-8859-1"})
#: Bytes of XML that are read more than once, at most: a tag of 500 KiB may come in pieces of 1 KiB.
MAX_READ_AGAIN: Final = 128 * 1024 * 1024


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
            return _Xml()
        case BodyKind.MULTIPART:
            return Multipart(arguments, content_types)
        case BodyKind.FORM:
            return Form(arguments)
        case _:
            return None


class _Xml:
    """The engine writes what is wrong in XML to standard error, with the line of it: it is given no such XML.

    A tag or a comment is read from its start with each piece that comes, until it ends. A long one in many small pieces
    would take the square of its length.
    """

    def __init__(self) -> None:
        self._parser = expat.ParserCreate(namespace_separator=" ")
        self._parser.XmlDeclHandler = self._declared
        self._is_known = True
        self._length = self._read_again = 0

    def read(self, data: bytes, *, is_last: bool) -> bytes | None:
        try:
            self._parser.Parse(data, is_last)
        except (expat.ExpatError, LookupError, ValueError):
            # The latter two are of encodings that Python does not know, or has no table of.
            return None
        self._length += len(data)
        self._read_again += self._length - self._parser.CurrentByteIndex
        return data if self._is_known and self._read_again <= MAX_READ_AGAIN else None

    def _declared(self, version: str, encoding: str | None, standalone: int) -> None:
        self._is_known = version == "1.0" and (encoding or "utf-8").lower() in _ENCODINGS
