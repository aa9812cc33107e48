"""JSON: what the engine would read otherwise, and what is not said to be some. Starlette asks for no type."""

import json
import re
from codecs import getincrementaldecoder
from typing import Final

from .modsecurity_arguments import Arguments

#: Bytes by which JSON is known. Blanks beyond them are taken for the start of some.
START: Final = 1024
# Bytes by which the encoding of JSON is known.
_TELLING: Final = 4
_BLANKS: Final = "\ufeff \t\r\n"
# What is in a string, but for its end and for a part of an escape. Half of a surrogate pair is not in it.
_HALF: Final = rb"u[dD][89a-fA-F]"
_HEX: Final = rb"[0-9a-fA-F]"
_PAIR: Final = rb"u[dD][89abAB]%b{2}\\u[dD][c-fC-F]%b{2}" % (_HEX, _HEX)
_IN_STRING: Final = rb'(?:[^"\\]++|\\(?:[^u]|u(?!%b)%b{4}|%b))*+' % (_HALF[1:], _HEX, _PAIR)
_REST_OF_STRING: Final = re.compile(_IN_STRING)
_LONGEST_ESCAPE: Final = 12
_BLANK: Final = rb"[ \t\r\n]*+"
# Whole strings, and lists and objects that are not empty, up to anything else.
_PLAIN: Final = re.compile(rb'(?:[^"\[{]++|"%b"|[\[{]%b(?=[^\]} \t\r\n]))*+' % (_IN_STRING, _BLANK))
_EMPTY: Final = re.compile(rb"\[%b\]|\{%b\}" % (_BLANK, _BLANK))
_MAY_BE_EMPTY: Final = re.compile(rb"[\[{]%b\Z" % _BLANK)
# Of text that goes on, a fault this near to the end may be none: a word or an escape is not whole.
_UNSURE: Final = 16


def may_be_json(data: bytes | bytearray, *, is_last: bool) -> bool | None:
    """Whether JSON begins so that can have text in it, in any of its encodings; None: more of it is needed to say."""
    start = bytes(data[:START])
    if len(start) < _TELLING and not is_last:
        return None
    try:
        # A character of which only a part has come is not looked at.
        text = getincrementaldecoder(json.detect_encoding(start))("surrogatepass").decode(start)
    except UnicodeDecodeError:
        return False
    text = text.lstrip(_BLANKS)
    if not text:
        return None if len(data) < START and not is_last else not is_last or len(data) > len(start)
    return text[0] in '{["' and _may_go_on(text)


def is_json(data: bytes) -> bool:
    """Whether Python reads it, or another reader may that has other limits."""
    try:
        json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return False
    except (ValueError, RecursionError):
        pass
    return True


def _may_go_on(text: str) -> bool:
    """Whether there is no fault in it yet: most files that begin with a quote or a brace have one soon."""
    try:
        json.loads(text)
    except json.JSONDecodeError as exc:
        # A string has the place of its start.
        return exc.pos >= len(text) - _UNSURE or exc.msg.startswith("Unterminated string")
    except (ValueError, RecursionError):
        pass
    return True


class Json:
    """JSON for the engine, which has no name of what is empty, and loses a character behind half of a surrogate pair.

    An empty list or object is null to it. Half of a pair can't be read: an app may leave it out, or not.
    """

    def __init__(self, arguments: Arguments) -> None:
        self._arguments = arguments
        # The names of values are those of all that they are in: they are counted when all has come.
        self._given = list[bytes]()
        self._rest = b""
        self._in_string = False

    def read(self, data: bytes, *, is_last: bool) -> bytes | None:
        given = self._read(data, is_last=is_last)
        if given is None:
            return None
        self._given.append(given)
        if not is_last:
            return given
        whole, self._given = b"".join(self._given), []
        return given if self._arguments.add_json(whole) else None

    def _read(self, data: bytes, *, is_last: bool) -> bytes | None:
        text, at, given = self._rest + data, 0, list[bytes]()
        self._rest = b""
        while at < len(text):
            pattern = _REST_OF_STRING if self._in_string else _PLAIN
            end = _end(pattern, text, at)
            given.append(text[at:end])
            at, sign = end, text[end : end + 1]
            if sign == b'"':
                self._in_string = not self._in_string
            elif self._in_string and sign:
                if is_last or len(text) - at >= _LONGEST_ESCAPE:
                    return None
                self._rest = text[at:]
                break
            elif sign and (end := _end(_EMPTY, text, at)) > at:
                at, sign = end - 1, b"null"
            elif sign and not is_last and _MAY_BE_EMPTY.match(text, at):
                # Blanks say nothing: they are not kept, however many come.
                self._rest = sign
                break
            given.append(sign)
            at += 1
        return b"".join(given)


def _end(pattern: re.Pattern[bytes], text: bytes, at: int) -> int:
    found = pattern.match(text, at)
    return at if found is None else found.end()
