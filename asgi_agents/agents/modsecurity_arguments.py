"""How many names and values a request may have for the engine, which compares each name with the others."""

import re
from typing import Final

from ..protocol import RequestHeadersEvent
from .modsecurity_fields import request_fields_of

#: Of a request, unless it is given: those of query, header fields, cookies and body together.
MAX_ARGUMENTS: Final = 1_200
#: Bytes of their names, for each of these: 1,200 arguments have names of 60,000 bytes together.
BYTES_OF_NAMES: Final = 50
# An end that is missing is the end of the text, so that no part of it is read twice.
_STRING: Final = rb'"(?:[^"\\]++|\\.?)*+(?:"|\Z)'
_JSON: Final = re.compile(
    rb'(?P<key>%b[ \t\r\n]*+:)|(?P<value>%b|[^][{},:" \t\r\n]++)|(?P<open>[\[{])|(?P<close>[\]}])' % (_STRING, _STRING),
    re.DOTALL,
)
# The engine names a value by all that it is in: "json", a key with a dot, of a list ".array_" and the place in it.
_ROOT: Final = 4
_MAP: Final = 1
_LIST: Final = 11
_EMPTY_KEY: Final = 9
# The quotes and the colon of a key.
_SIGNS: Final = 3


class Arguments:
    """Those of one request, counted before the engine is given them."""

    def __init__(self, most: int = MAX_ARGUMENTS) -> None:
        self._left = most
        self._bytes_left = most * BYTES_OF_NAMES

    @property
    def are_too_many(self) -> bool:
        return self._left < 0 or self._bytes_left < 0

    def add(self, number: int, length: int) -> bool:
        """Some of these, whose names have this length together. Whether there are not too many."""
        self._left -= number
        self._bytes_left -= length
        return not self.are_too_many

    def add_head(self, event: RequestHeadersEvent) -> bool:
        query = event.uri.partition("?")[2]
        self._add_pairs(query.encode("latin-1"), b"&")
        for name, value in request_fields_of(event.headers):
            self.add(1, len(name))
            if name == b"cookie":
                self._add_pairs(value, b";")
        return not self.are_too_many

    def _add_pairs(self, text: bytes, between: bytes) -> None:
        if text and self.add(text.count(between) + 1, 0):
            self.add(0, sum(len(pair.partition(b"=")[0]) for pair in text.split(between)))

    def add_json(self, text: bytes) -> bool:
        """All values of JSON, as the engine is given it. What is no JSON the engine refuses by itself."""
        path, within, key = _ROOT, list[int](), 0
        for found in _JSON.finditer(text):
            match found.lastgroup:
                case "key":
                    is_empty = text.startswith(b'""', found.start())
                    key = _EMPTY_KEY if is_empty else found.end() - found.start() - _SIGNS
                case "open":
                    within.append(key + (_LIST if found[0] == b"[" else _MAP))
                    path += within[-1]
                    key = 0
                    if path > self._bytes_left:
                        return self.add(1, path)
                case "close":
                    path -= within.pop() if within else 0
                case _ if not self.add(1, path + key):
                    return False
                case _:
                    key = 0
        return True


class Form:
    """The names of a form, as it comes."""

    def __init__(self, arguments: Arguments) -> None:
        self._arguments = arguments
        self._in_name = arguments.add(1, 0)

    def read(self, data: bytes, *, is_last: bool) -> bytes | None:
        if not self._arguments.add(data.count(b"&"), 0):
            return None
        length = 0
        for at, pair in enumerate(data.split(b"&")):
            if at or self._in_name:
                name, equals, _ = pair.partition(b"=")
                length += len(name)
                self._in_name = not equals
        return data if self._arguments.add(0, length) else None
