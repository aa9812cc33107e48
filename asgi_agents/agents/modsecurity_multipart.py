"""Multipart forms, as the engine and apps read them in the same way."""

import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote_plus

from .modsecurity_arguments import Arguments
from .modsecurity_dispositions import Dispositions

# The engine takes no longer line in the head of a part.
_LONGEST_LINE: Final = 4096
_BOUNDARY: Final = re.compile(r"boundary\s*=(.*)", re.DOTALL)
# The engine reads no form of an empty boundary, or of one that begins with a null, and says nothing of it. It does of
# others with a character that none may have (RFC 2046, section 5.1.1).
_READ_BY_THE_ENGINE: Final = re.compile(r"[0-9A-Za-z'()+_,./:=? -]+")
_LINE_END: Final = re.compile(rb"\r?\n")
# Behind two backslashes, or four, a quote ends the name for the engine, and does not for Starlette.
_QUOTED: Final = rb'"(?:[^"\\]|\\[^\\]|\\\\(?!"))*+"'
_TOKEN: Final = rb"[!#-&*+.^_`{|}~0-9A-Za-z-]['!#-&*+.^_`{|}~0-9A-Za-z-]*+"
_PARAMETER: Final = rb'[ \t]*+(?:name=(?:%b|%b)|filename=(?:%b|%b)|filename\*=[^;\s"\\]++)[ \t]*+' % (
    *(_QUOTED, _TOKEN),
    *(_QUOTED, _TOKEN),
)
_DISPOSITION: Final = re.compile(rb"[ \t]*+form-data[ \t]*+(?:;%b)*+;?\r?\n" % _PARAMETER)
_GIVEN: Final = re.compile(rb"(?<=[; \t])((?:file)?name)=(?:(%b)|([^;\s]++))" % _QUOTED)
_ESCAPE: Final = re.compile(rb'\\(["\\])')


class Multipart:
    """The engine leaves line ends in fields out: ``union`` and ``select`` on two lines would be one word to all rules.

    It is given the same form with a carriage return before each of them, which stays. A field in which there was one is
    judged again as it is, in a form without parts.
    """

    def __init__(self, arguments: Arguments, content_types: Iterable[str] = ()) -> None:
        self._arguments = arguments
        self._dispositions = Dispositions()
        boundary = _boundary_of(content_types)
        self._has_boundary = _READ_BY_THE_ENGINE.fullmatch(boundary) is not None
        self._delimiter = b"--" + boundary.encode("latin-1")
        self._rest = b""
        self._fields = list[tuple[bytes, bytearray]]()
        self._is_empty, self._has_lines = True, False
        self._in_head = self._in_content = self._is_file = self._has_ended = False

    def read(self, data: bytes, *, is_last: bool) -> bytes | None:
        if (data and not self._has_boundary) or not self._dispositions.are_single(data):
            return None
        if self._has_ended:
            return data
        text, at, given = self._rest + data, 0, list[bytes]()
        while at < len(text) and not self._has_ended:
            if self._in_content:
                end, next_line = self._end_of_content(text, at, is_last=is_last)
                content = text[at:end]
                given.append(content if self._is_file else self._of_field(content))
                given.append(text[end:next_line])
                self._in_content = next_line == end
                at = next_line
                if self._in_content:
                    break
            else:
                end = text.find(b"\n", at) + 1
                if not end:
                    break
                if not self._line(text[at:end]):
                    return None
                given.append(text[at:end])
                at = end
        self._rest = text[at:]
        self._is_empty = self._is_empty and not text
        if is_last or self._has_ended:
            given.append(self._rest)
            # Without an end that is found here as well, it is another form to the engine, or none.
            is_whole = self._has_ended or self._is_empty or self._rest == self._delimiter + b"--"
        else:
            is_whole = self._in_content or len(self._rest) <= _LONGEST_LINE
        return b"".join(given) if is_whole else None

    def _line(self, line: bytes) -> bool:
        """A line that is not in the content of a part. Whether the form can be read up to here."""
        if not self._in_head:
            self._in_head = line.startswith(self._delimiter)
            self._has_ended = self._in_head and line.startswith(b"--", len(self._delimiter))
            self._is_file = False
        elif line in (b"\r\n", b"\n"):
            self._in_head, self._in_content = False, True
        else:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-disposition":
                return bool(_DISPOSITION.fullmatch(value)) and self._part(value)
            return self._arguments.add(1, len(name))
        return True

    def _part(self, disposition: bytes) -> bool:
        given = {name: _ESCAPE.sub(rb"\1", quoted[1:-1]) or bare for name, quoted, bare in _GIVEN.findall(disposition)}
        self._is_file = bool(given.get(b"filename"))
        if not self._is_file:
            self._fields.append((given.get(b"name", b""), bytearray()))
        return self._arguments.add(1, len(disposition))

    def _of_field(self, content: bytes) -> bytes:
        if self._fields:
            self._fields[-1][1].extend(content)
        given, lines = _LINE_END.subn(b"\r\r\n", content)
        self._has_lines = self._has_lines or lines > 0
        return given

    def as_form(self) -> bytes | None:
        """All fields, if one of them has a line end."""
        if not self._has_lines:
            return None
        return b"&".join(f"{quote_plus(name)}={quote_plus(bytes(value))}".encode() for name, value in self._fields)

    def _end_of_content(self, text: bytes, at: int, *, is_last: bool) -> tuple[int, int]:
        """Where the line end before the next boundary begins and ends; both the same where none has come yet."""
        end = text.find(b"\n" + self._delimiter, at)
        if end >= 0:
            return end - text.endswith(b"\r", at, end), end + 1
        end = len(text)
        if not is_last:
            # What may be a part of a line end with a boundary waits for the rest.
            line = text.rfind(b"\n", max(at, end - len(self._delimiter)))
            if line >= 0 and self._delimiter.startswith(text[line + 1 :]):
                end = line
            end -= text.endswith(b"\r", at, end)
        return end, end


def _boundary_of(content_types: Iterable[str]) -> str:
    found = _BOUNDARY.search("".join(content_types))
    boundary = "" if found is None else found[1]
    if len(boundary) > 1 and boundary[0] == boundary[-1] == '"':
        boundary = boundary[1:-1]
    return boundary.partition(";")[0]
