"""XML for the engine: what it would read otherwise than apps do, or in more time than its length takes."""

from typing import Final, NoReturn
from xml.parsers import expat

from .modsecurity_arguments import Arguments

# Those that expat and the engine know by the same names.
_ENCODINGS: Final = frozenset({"utf-8", "us-ascii", "iso-8859-1"})
#: Bytes of XML that are read more than once, at most: a tag of 500 KiB may come in pieces of 1 KiB.
MAX_READ_AGAIN: Final = 128 * 1024 * 1024


class _UnreadableError(Exception):
    """Raised in a handler: it ends expat there."""


class Xml:
    """Read beside the engine, which is given it where it is well-formed up to here, and has no document type.

    A document type gives defaults of attributes, which apps read and no rule is shown, and entities. The engine takes
    the square of the length of some: 59 KB took six seconds.

    A tag or a comment is read from its start with each piece that comes, until it ends. A long one in many small pieces
    would take the square of its length.
    """

    def __init__(self, arguments: Arguments) -> None:
        self._arguments = arguments
        self._parser = expat.ParserCreate(namespace_separator=" ")
        self._parser.XmlDeclHandler = self._declared
        self._parser.StartDoctypeDeclHandler = self._doctype
        # The engine compares each attribute of a tag with the others, and a prefix with all that are declared.
        self._parser.ordered_attributes = True
        self._parser.StartElementHandler = lambda name, attributes: self._count(len(attributes) // 2)
        self._parser.StartNamespaceDeclHandler = lambda prefix, uri: self._count(1)
        # It keeps each name once, and each short text that stands alone, and finds them slowly where they are many.
        self._parser.ProcessingInstructionHandler = lambda target, data: self._count(0)
        self._parser.CommentHandler = lambda text: self._count(0)
        self._parser.StartCdataSectionHandler = lambda: self._count(0)
        self._length = self._read_again = 0
        self.has_doctype = False

    def read(self, data: bytes, *, is_last: bool) -> bytes | None:
        try:
            self._parser.Parse(data, is_last)
        except (_UnreadableError, expat.ExpatError, LookupError, ValueError):
            # The latter two are of encodings that Python does not know, or has no table of.
            return None
        self._length += len(data)
        self._read_again += self._length - self._parser.CurrentByteIndex
        return data if self._read_again <= MAX_READ_AGAIN else None

    def _declared(self, version: str, encoding: str | None, standalone: int) -> None:
        if version != "1.0" or (encoding or "utf-8").lower() not in _ENCODINGS:
            raise _UnreadableError

    def _doctype(self, name: str, system: str | None, public: str | None, has_subset: int) -> NoReturn:
        self.has_doctype = True
        raise _UnreadableError

    def _count(self, attributes: int) -> None:
        """Markup, which is counted as a byte of names, with attributes."""
        if not self._arguments.add(attributes, 1):
            raise _UnreadableError
