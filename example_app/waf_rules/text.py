"""What an app may make of a piece of a request: the texts that the firewall's rules are applied to.

The steps, in this order:

1. Bytes become text: as UTF-8, where a byte that isn't UTF-8 counts as Latin-1. A body that begins like UTF-16 or
   UTF-32, by its byte order mark or by where its NUL bytes are, is read in that encoding as well. This is how
   ``json.loads`` tells them apart.
2. Characters become what Unicode's compatibility mapping (NFKC) makes of each: full-width letters become ASCII.
3. Up to two decodings, of which each undoes either JSON's escapes or percent-encoding and ``+``. Decoded characters
   are mapped like those of step 2.
4. NUL bytes are left out. All is lower case from here on.
5. Comments of SQL are replaced by white space.

An app does some of these. A step that it doesn't do could hide from us what it reads: the text before a step counts as
well as the text behind it, and the decodings count in every order.

Not undone: a third decoding, HTML entities, overlong UTF-8, base64, compression (``content-encoding``).
"""

import json
import re
import unicodedata
from collections.abc import Callable, Iterable

_DECODINGS = 2
# RFC 8259, section 7. A surrogate pair is one character.
_JSON_ESCAPE = re.compile(
    r"""\\(?: u([Dd][89ABab][0-9A-Fa-f]{2})\\u([Dd][C-Fc-f][0-9A-Fa-f]{2}) | u([0-9A-Fa-f]{4}) | (["\\/bfnrt]) )""",
    re.VERBOSE,
)
_SHORT = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_PERCENT = re.compile(r"(?:%[0-9A-Fa-f]{2})+")
# MySQL runs what is in a comment that begins with an exclamation mark. One without an end goes on to the text's end.
_SQL_COMMENT = re.compile(r"/\*!\d*|/\*.*?(?:\*/|\Z)|\*/", re.DOTALL)


class _Compatible(dict[int, str]):
    """A table for ``str.translate``. It holds what is frequent; the rest is looked up each time, to bound its size."""

    def __missing__(self, code: int) -> str:
        # One by one: sorting the combining characters of a whole text would take time with the square of their number.
        return unicodedata.normalize("NFKC", chr(code))


_COMPATIBLE = _Compatible({code: unicodedata.normalize("NFKC", chr(code)) for code in range(0x100)})
# "surrogateescape" makes these of bytes that aren't UTF-8.
_LATIN_1 = {0xDC00 + byte: byte for byte in range(0x80, 0x100)}
_COMPATIBLE |= {0xDC00 + byte: chr(byte) for byte in range(0x80, 0x100)}


def readings(data: bytes) -> set[str]:
    """All the texts that ``data`` may come to. Takes time linear in its length."""
    texts = {data.decode("utf-8", "surrogateescape").translate(_LATIN_1)}
    encoding = json.detect_encoding(data)
    if not encoding.startswith("utf-8"):
        texts.add(data.decode(encoding, "replace"))
    texts |= _each(texts, _compatible)
    decoded = texts
    for _ in range(_DECODINGS):
        decoded = (_each(decoded, _without_json_escapes) | _each(decoded, _without_percent_encoding)) - texts
        texts |= decoded
    texts = _each(texts, str.lower)
    texts |= _each(texts, lambda text: text.replace("\0", ""))
    return texts | _each(texts, lambda text: _SQL_COMMENT.sub(" ", text) if "/*" in text else text)


def _each(texts: Iterable[str], step: Callable[[str], str]) -> set[str]:
    return {step(text) for text in texts}


def _compatible(text: str) -> str:
    return text if text.isascii() else text.translate(_COMPATIBLE)


def _without_json_escapes(text: str) -> str:
    return _JSON_ESCAPE.sub(_unescaped, text) if "\\" in text else text


def _unescaped(escape: re.Match[str]) -> str:
    high, low, unit, short = escape.groups()
    if short:
        return _SHORT[short]
    return _compatible(bytes.fromhex(high + low).decode("utf-16-be") if high else chr(int(unit, 16)))


def _without_percent_encoding(text: str) -> str:
    text = text.replace("+", " ")
    return _PERCENT.sub(_percent_decoded, text) if "%" in text else text


def _percent_decoded(run: re.Match[str]) -> str:
    return _compatible(bytes.fromhex(run[0].replace("%", "")).decode("utf-8", "surrogateescape"))
