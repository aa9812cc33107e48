"""Secrets that have names in forms: fields, parameters of a URL, and the parts of ``multipart/form-data``. No I/O."""

import re
from collections.abc import Callable, Iterator
from typing import Final
from urllib.parse import quote_plus, unquote_plus

from ..observability.pieces import begun, matches
from ..observability.redaction import REDACTED
from ..observability.secret_names import is_secret_member, is_secret_name

# A form, or a piece of one, which has a field at its beginning; and a URL, or what a request line has of one. A first
# name may have almost anything in it, but for what texts of other kinds begin with.
_FORM: Final = re.compile(
    r"""[\s&]*+ (?: [^\s<>{}=&:?/]{0,200}+[ ]? | [^<>=&:?/"'\r\n]{0,200}+ (?:<[^\s<>=&"']{0,200}+)?+ ) (?:=|&[^\s&])""",
    re.VERBOSE,
)
_URL: Final = re.compile(r"""(?:[A-Z]{1,20}[ ])?[^\s{"<>][^\s"<>]*+""")
_LONGEST_NAME: Final = 200
_LONGEST_URL: Final = 64 * 1024
_STEP: Final = re.compile(r"[/;\r\n]")
_BETWEEN_FIELDS: Final = re.compile(r"(&++)")
# Where another one begins, in a text that has each in a line of its own.
_NEXT_LINE: Final = re.compile(r"(?<![\r\n])([\r\n]++)(?=[ \t]*+[\w.%\[\]+-]{1,200}+[ \t]*+=)")
_LINE_ENDS: Final = re.compile(r"([\r\n]++)")
# A code is one of authorization in what RFC 6749 has around it (4.1.2 and 4.1.3); any other says what it likes.
_AUTHORIZATION: Final = re.compile(r"[?&]state=|(?<![^?&])(?:grant_type=authorization_code|redirect_uri=)")
_CODE: Final = re.compile(r"(?P<name>(?<![^?&])code=)[^&\s]++")
# In what is percent-encoded, no matter how many times, names can be where one of these is.
_ENCODED: Final = re.compile(r"%(?:25)*+(?:7b|5b|22|27|3a|3c|3d)", re.IGNORECASE)
# RFC 7578: the lines between the parts of a form, and what says of a part how its field is named.
_PART: Final = re.compile(
    r"(?<![^\n])(?:--(?P<boundary>[^\r\n]{1,200}+)"
    r"|[ \t]*+content-disposition[ \t]*+:[ \t]*+form-data(?P<parameters>(?:[^\r\n]|\r?\n[ \t])*+))",
    re.IGNORECASE,
)
_PART_BEGUN: Final = begun(
    {r"[^\r\n]": r"(?<![^\n])[ \t]*+(?:content-disposition[ \t]*+(?::[ \t]*+)?+)?+\Z"}, re.IGNORECASE
)
_PART_NAME: Final = re.compile(
    r"""[;\s]name\*?[ \t]*+=\s*+(?:[\w-]*+'[\w-]*+')?(?:"(?P<quoted>(?:\\.|[^"\\])*+)|(?P<token>[^\s;"]++))""",
    re.IGNORECASE,
)
_END_OF_HEADERS: Final = re.compile(r"\r?\n\r?\n")
_ANY_BOUNDARY: Final = re.compile(r"\r?\n--")


def is_form(text: str) -> bool:
    """Whether a text can be a form, a piece of one, or a URL."""
    return _FORM.match(text) is not None or (len(text) <= _LONGEST_URL and _URL.fullmatch(text) is not None)


def secret_parts(text: str) -> Iterator[tuple[int, int, str]]:
    """The secret parts of a form of several parts."""
    boundary, done = "", 0
    for match in matches(_PART, text, undecided=_PART_BEGUN):
        if match["boundary"]:
            boundary = match["boundary"].rstrip()
            continue
        if match.start() < done or not _names_a_secret(match["parameters"]):
            continue
        head = _END_OF_HEADERS.search(text, match.end())
        if head is None:
            return
        start = head.end()
        if boundary:
            done = text.find(f"\n--{boundary}", start)
            done = done - text.startswith("\r", done - 1) if done >= 0 else len(text)
        else:
            end = _ANY_BOUNDARY.search(text, start)
            done = len(text) if end is None else end.start()
        if start < done:
            yield start, done, REDACTED


def _names_a_secret(parameters: str) -> bool:
    """Whether any name in them is one of a secret, even one within a quoted string, where parsers differ."""
    names = (found["quoted"] or found["token"] or "" for found in _PART_NAME.finditer(parameters))
    return any(is_secret_name(name.replace("\\", "")) for name in names)


def fields_without_secrets(text: str, clean: Callable[[str], str]) -> str:
    """A form or a URL without the values that have the name of a secret: all of each, whatever is in it."""
    if _AUTHORIZATION.search(text):
        text = _CODE.sub(rf"\g<name>{REDACTED}", text)
    fields = _BETWEEN_FIELDS.split(text)
    if len(fields) > 1:
        return "".join(_without_secret(given) or _lines(given, clean) for given in fields)
    return _lines(text, clean)


def _lines(given: str, clean: Callable[[str], str]) -> str:
    """Fields in lines of their own. A value goes on to where another field begins."""
    return "".join(
        _without_secret(field) or "".join(_decoded(line, clean) for line in _LINE_ENDS.split(field))
        for field in _NEXT_LINE.split(given)
    )


def _without_secret(given: str) -> str | None:
    """One field, which may have a URL in it, or be the end of one; None where it has no secret by its name."""
    bare = given.rstrip("\r\n")
    at = 0
    for part in bare.split("?"):
        name, equals, value = part.partition("=")
        name = name[-_LONGEST_NAME:]
        # What is behind the next question mark belongs to it.
        value = value or ("?" if at + len(part) < len(bare) else "")
        if equals and not is_padding(value) and is_secret_member(_STEP.split(name)[-1], value):
            return f"{given[: at + part.index('=')]}={REDACTED}{given[len(bare) :]}"
        at += len(part) + 1
    return None


def _decoded(given: str, clean: Callable[[str], str]) -> str:
    """One field, which may have a text in it that is percent-encoded."""
    name, equals, value = given.partition("=")
    if not equals:
        name, value = "", name
    if _ENCODED.search(value):
        decoded = unquote_plus(value)
        cleaned = clean(decoded)
        if cleaned != decoded:
            # Half a character is no error, whatever it comes from.
            return f"{name}{equals}{quote_plus(cleaned, errors='surrogatepass')}"
    return given


def is_padding(value: object) -> bool:
    """Whether it is what base64 ends with, in which any letters can be."""
    return isinstance(value, str) and not value.strip("=")
