"""Cookies, as Starlette and FastAPI read them."""

import re
from collections.abc import Container, Mapping
from typing import Final

# A character in octal, or any other that is escaped.
_ESCAPED: Final = re.compile(r"\\(?:([0-3][0-7][0-7])|(.))")


def cookies_of(field: str, names: Container[str] | None = None) -> Mapping[str, str]:
    """The cookies of a ``cookie`` header, of several with one name the last one, as Starlette's ``cookie_parser`` does.

    It takes time in proportion to the length. Before Python 3.11.10 and 3.12.6, ``http.cookies`` takes seconds for a
    value of many backslashes.

    :param names: only these. None: all of them.
    """
    raw: dict[str, str] = {}
    for chunk in field.split(";"):
        name, equals, value = chunk.partition("=")
        name, value = (name.strip(), value.strip()) if equals else ("", chunk.strip())
        if (name or value) and (names is None or name in names):
            raw[name] = value
    return {name: _unquoted(value) for name, value in raw.items()}


def _unquoted(value: str) -> str:
    if len(value) < 2 or not value[0] == value[-1] == '"':
        return value
    return _ESCAPED.sub(_character, value[1:-1])


def _character(escaped: re.Match[str]) -> str:
    return chr(int(escaped[1], 8)) if escaped[1] else escaped[2]
