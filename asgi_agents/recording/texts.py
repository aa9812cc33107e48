"""Secrets that have names, in texts of any kind: JSON that is whole or not, headers, XML, YAML, forms. No I/O."""

import re
from collections.abc import Callable
from html import unescape
from typing import Final

from ..observability.brackets import end_of_nested
from ..observability.pieces import begun, matches, replaced
from ..observability.redaction import REDACTED, redact_parameters
from ..observability.secret_names import is_secret_member, is_secret_name
from .extents import (
    QUOTE,
    content_of_tag,
    end_of_block,
    end_of_element,
    end_of_string,
    has_count,
)
from .forms import fields_without_secrets, is_form, is_padding, secret_parts
from .members import AUTHORIZATION_CODE, CODE, NAMED, NAMING

# Where a name with a value behind it can be: quoted as in JSON, which may itself be in a string of JSON; the first of a
# pair in a list; at the beginning of a line, as of a header or in YAML; in front of an equals sign, or of a quoted
# value; in a tag of XML. In an event of a stream, JSON may have several lines.
_GAP: Final = r"(?: \s | (?<=[\r\n]) (?:data|event|id|retry): )*+"
_QUOTED: Final = r"""["'] (?P<quoted> [^"'\r\n]{1,200}+ ) ["']"""
_OPEN: Final = r"(?<![^\s\[(,]) [\[(]"
# What Python writes in front of a quotation mark.
_BYTES: Final = r"(?: [bBfFrRuU]{1,2} (?=\\{0,200}+[\"']) )?+"
_FIRST: Final = r"""["'] (?P<pair> [^"'\r\n]{1,200}+ ) ["']"""
# Keys of YAML. One of several words has a blank behind its colon.
_WORD: Final = r"[\w.$@~!*&/+-][\w.$@/+-]{0,99}+"
_MORE_WORDS: Final = rf"(?: [ ]{{1,8}}+ {_WORD} )"
_INDENT: Final = r"(?<![^\r\n]) [ \t]*+ (?: (?:-|---|\?) [ \t]++ )*+"
_LINE: Final = rf"(?P<line> {_WORD} (?: {_MORE_WORDS}{{1,4}}+ (?= [ \t]*+ : (?:\s|\Z) ) )?+ )"
_ASKED: Final = rf"""(?<![^\r\n]) [ \t]{{0,100}}+ (?: -[ \t]{{1,50}}+ ){{0,4}}+ \?[ \t]{{1,50}}+
      (?P<asked> {_WORD} {_MORE_WORDS}{{0,4}}+ ) [ \t]{{0,50}}+ (?:\r\n|[\r\n]) [ \t]{{0,100}}+ : [ \t]*+"""
_IN_BRACES: Final = rf"[{{,] \s{{0,50}}+ (?P<flow> {_WORD} {_MORE_WORDS}{{0,4}}+ ) [ \t]{{0,50}}+ : \s{{0,50}}+ (?!//)"
# Around an equals sign in a tag, or in a file of settings.
_EQUALS: Final = r"""\s{0,100}+ = \s{0,100}+ (?=\\{0,200}+["']) | [ \t]{0,100}+ = [ \t]{0,100}+"""
_NAME: Final = re.compile(
    rf"""
      {_QUOTED} {_GAP} : (?P<gap>{_GAP})
    | {_OPEN} {_GAP} {_BYTES} \\*+ {_FIRST} {_GAP} , {_GAP}
    | {_INDENT} {_LINE} [ \t]*+ : [ \t]*+
    | {_ASKED}
    | {_IN_BRACES}
    | (?P<start>(?<![^\r\n]))?+ (?<![\w.%\[\]+-]) (?P<field> (?: [\w.\[\]+-] | %[\da-fA-F]{{2}} ){{1,200}}+ )
      (?: {_EQUALS} | [ ]{{0,8}}+ : [ ]{{0,8}}+ (?=\\{{0,200}}+["']) )
    | < (?:[\w.-]{{1,100}}+:)?+ (?P<element> [\w.-]{{1,100}}+ ) (?=[\s>])
    """,
    re.VERBOSE,
)
# The same where more than a limited number of characters decides.
_NAME_BEGUN: Final = begun(
    {
        r"[\s\S]": rf"""
              (?=["'\[(]) (?: {_QUOTED} {_GAP} | {_OPEN} {_GAP} {_BYTES} (?: \\*+ (?: {_FIRST} {_GAP} )?+ )?+ )
              [a-z]{{0,5}}+ \Z
            | {_INDENT} [?-]{{0,3}}+ (?: {_WORD} {_MORE_WORDS}{{0,4}}+ [ \t]*+ )?+ \Z
        """
    }
)
_KINDS_OF_NAMES: Final = ("quoted", "pair", "line", "asked", "flow", "field", "element")
# A text without any of them has no name.
_SIGNS: Final = re.compile(r"[=:%<\[(]")
_ESCAPE: Final = re.compile(r"(?<!\\)\\++u([\da-fA-F]{4})")
_BARE: Final = re.compile(r"""[^\s,}\]&"']++""")
_IN_A_FIELD: Final = re.compile(r"""[^\s"'&;,<>]++""")
_IN_FLOW: Final = re.compile(r"[^,\[\]{}\r\n]++(?:(?:\r\n|[\r\n])[ \t]++[^,\[\]{}\r\n]++)*+")
_BEFORE_QUOTE: Final = re.compile(_BYTES, re.VERBOSE)
# Or what was replaced before.
_OPEN_WITH_QUOTE: Final = re.compile(r"""[\[{]\s*+\\*+["']|\[redacted\]""")
_TAG_WITH_QUOTES: Final = re.compile(r"""(?:[^<>"']|"[^"]*+"|'[^']*+')*+>""")
_PROPERTIES: Final = re.compile(r"(?:[!&]\S*+[ \t]++)*+")
_SAID: Final = re.compile(r"""(?:[^\s"'&;,<>=]|&\#?\w{1,20};)++""")
_MARKUP: Final = re.compile(r"<!\[CDATA\[|\]\]>|<!--(?:(?!-->)[^<]){0,200}+-->")
_AT_A_LINE: Final = re.compile(r"[^\r\n&]++")
_REST_OF_LINE: Final = re.compile(r"[^\r\n]*+")
_NUMBER: Final = re.compile(r"-?\d[\d.eE+-]*+")
_SPACE: Final = re.compile(r"\s*+")
_NO_VALUES: Final = frozenset({"null", "true", "false", "None", "True", "False"})
# Such elements of HTML have no content and are not closed.
_VOID: Final = frozenset({"input", "meta", "param", "img", "link", "source", "embed", "br", "hr"})
# An object, an element or an item ends there, so that what is on one side of it does not name what is on the other.
_BOUNDARY: Final = re.compile(r"[}>]|[\r\n][ \t]*+-")
_LONGEST_NAME: Final = 200

# A part of a text and what comes in its place.
_Find = tuple[int, int, str]


def without_named_secrets(text: str, clean: Callable[[str], str]) -> str:
    """``text`` with ``[redacted]`` in the place of whatever has the name of a credential, wherever names can be in it.

    It need not be whole, nor right: a piece of a body, or one that no parser takes.

    :param clean: what is done to a text within it, such as JSON in the field of a form.
    """
    if _SIGNS.search(text) is None:
        return text
    if "form-data" in text.lower():
        text = replaced(text, secret_parts(text))
    if is_form(text):
        text = fields_without_secrets(text, clean)
    text = redact_parameters(text)
    return replaced(text, _Named(text).found())


class _Named:
    """What has the name of a secret in one text.

    A name may be a value itself, that of a member such as ``name``, before the value or behind it.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._found: list[_Find] = []
        self._done = 0
        # What members that say a name have said last, where it is the name of a secret, and where the value has ended.
        self._said: dict[str, str] = {}
        self._said_until: int | None = None
        # Values whose name may be said behind them.
        self._unnamed: list[_Find] = []
        # The element that was opened last; what its content is to be replaced by; and what `key` has said, which the
        # next element has, whatever its name is.
        self._tag: re.Match[str] | None = None
        self._content: _Find | None = None
        self._next = ""
        self._has_code = AUTHORIZATION_CODE in text

    def found(self) -> list[_Find]:
        """All of them, in order."""
        for match in matches(_NAME, self._text, undecided=_NAME_BEGUN):
            if self._content is not None and match.start() >= self._content[0]:
                self._put(self._content)
                self._content = None
            if match.start() >= self._done:
                self._look_at(match)
        if self._content is not None:
            self._put(self._content)
        return self._found

    def _put(self, find: _Find) -> None:
        start, end, new = find
        # What was found within it is a part of it.
        while self._found and self._found[-1][1] > start:
            last = self._found.pop()
            start, end = min(start, last[0]), max(end, last[1])
        self._found.append((start, end, new))
        self._done = max(self._done, end)

    def _look_at(self, match: re.Match[str]) -> None:
        name = next(match[kind] for kind in _KINDS_OF_NAMES if match[kind])
        # So many backslashes are in front of each quotation mark, where the JSON is in strings of JSON.
        bare = name.rstrip("\\")
        level = len(name) - len(bare)
        name = _ESCAPE.sub(lambda escape: chr(int(escape[1], 16)), bare)
        kind = name.lower()
        if match["element"]:
            self._tag = match
        if kind in NAMING:
            self._says(match, kind)
        elif match["element"] and self._next:
            name, self._next = self._next, ""
        elif kind == NAMED:
            name = self._name_of_value(match) or name
            if name.lower() == NAMED:
                self._keep(match, level)
                return
        elif kind == CODE and self._has_code:
            name = AUTHORIZATION_CODE
        if is_secret_name(name):
            found = _value(self._text, match, name, level)
            if found is not None:
                self._put(found)
                if kind == NAMED:
                    self._said_until = found[1]

    def _says(self, match: re.Match[str], kind: str) -> None:
        """A member, an attribute or an element says a name."""
        text, at = self._text, match.end()
        if self._said_until is not None:
            # The names before belong to a value that there was.
            self._said.clear()
            self._said_until = None
        if match["element"]:
            content = content_of_tag(text, at)
            at = at if content is None else content
        self._said[kind] = said = _said(text, at)
        if not said:
            return
        self._take_unnamed(match.start())
        if match["element"]:
            self._next = said if kind == "key" else ""
        elif match["field"] and self._tag is not None:
            # An attribute says the name of what is in its element.
            element, end = self._tag["element"], self._tag.end()
            self._tag = None
            content = content_of_tag(text, end)
            if content is None or content <= at or element.lower() in _VOID:
                return
            # Asked first: where it is, the element is not to be read to its end, nor the next one in it once more.
            if has_count(text, content, element, said):
                return
            end = end_of_element(text, content, element)
            if content < end:
                self._content = content, end, REDACTED

    def _name_of_value(self, match: re.Match[str]) -> str:
        """The name of a secret that was said of a value."""
        if self._said_until is not None:
            if _BOUNDARY.search(self._text, self._said_until, match.start()):
                self._said.clear()
            self._said_until = None
        return next((said for said in self._said.values() if said), "")

    def _keep(self, match: re.Match[str], level: int) -> None:
        """Remember a value whose name may be said behind it."""
        if not self._unnamed or match.start() >= self._unnamed[-1][1]:
            found = _value(self._text, match, "", level)
            if found is not None:
                self._unnamed.append(found)

    def _take_unnamed(self, end: int) -> None:
        """Replace the values before ``end`` that belong to the name that is said there."""
        taken: list[_Find] = []
        for find in reversed(self._unnamed):
            if _BOUNDARY.search(self._text, find[1], end):
                break
            taken.append(find)
            end = find[0]
        self._unnamed.clear()
        for find in reversed(taken):
            self._put(find)


def _said(text: str, at: int) -> str:
    """The name that a member says, where it is that of a secret."""
    at = _SPACE.match(text, at, at + _LONGEST_NAME).end()  # type: ignore[union-attr]
    mark = QUOTE.match(text, at)
    if mark is not None:
        limit = mark.end() + _LONGEST_NAME
        name = text[mark.end() : end_of_string(text, mark, limit)].rstrip("\\\"'")
    else:
        # Of an element, the name may be in parts.
        said = _SAID.match(_MARKUP.sub("", text[at : at + 2 * _LONGEST_NAME]))
        name = "" if said is None else said[0]
    name = unescape(name)
    return name if is_secret_name(name) else ""


def _is_open(name: str, value: object) -> bool:
    """Whether it need not be replaced. Nobody knows of a value without a name."""
    return bool(name) and (is_padding(value) or not is_secret_member(name, value))


def _value(text: str, match: re.Match[str], name: str, level: int) -> _Find | None:
    """The value behind a name, and what is written in its place; None where there is none, or it is no secret.

    :param name: what it is the value of, which may have been said elsewhere; empty where that is not known yet.
    :param level: how many backslashes are in front of quotation marks.
    """
    at = match.end()
    if match["element"]:
        return _content(text, at, match["element"], name)
    if match["line"] or match["asked"]:
        return _lines(text, at, match.start("line") - match.start() if match["line"] else 0, name)
    in_json = bool(match["quoted"] or match["pair"])
    prefix = _BEFORE_QUOTE.match(text, at)
    mark = QUOTE.match(text, at if prefix is None else prefix.end())
    # JSON that goes on in the next line of an event is one line.
    start = match.start("gap") if "\n" in (match["gap"] or "") or "\r" in (match["gap"] or "") else at
    if mark is not None:
        end = end_of_string(text, mark)
        value = text[mark.end() : end]
        closed = mark[0] if value.endswith(mark["quote"]) else ""
        if _is_open(name, value[: len(value) - len(closed)]):
            return None
        return start, end, f"{mark[0]}{REDACTED}{closed}"
    quote = "\\" * level + '"' if in_json else ""
    shown = f"{quote}{REDACTED}{quote}"
    if _opens(text, at, any_value=in_json or match["flow"] is not None):
        # That it is a count is known before its end.
        if _is_open(name, {} if text[at] == "{" else []):
            return None
        mark_of_name = text[match.start("quoted" if match["quoted"] else "pair") - 1] if in_json else '"'
        return start, end_of_nested(text, at, level, mark_of_name), shown
    in_a_field = _IN_A_FIELD if match["start"] is None else _AT_A_LINE
    pattern = _IN_FLOW if match["flow"] else _BARE if in_json else in_a_field
    found = pattern.match(text, at)
    if found is None or found[0].strip() in _NO_VALUES:
        return None
    number = in_json and _NUMBER.fullmatch(found[0].rstrip("\\"))
    if _is_open(name, 0 if number else found[0].strip()):
        return None
    end = found.end()
    if in_json and not number and found[0][0] in "|>-":
        # YAML, whose names may be quoted.
        before = text[max(0, match.start() - _LONGEST_NAME) : match.start()]
        column = len(before) - max(before.rfind("\n"), before.rfind("\r")) - 1
        rest = _REST_OF_LINE.match(text, end)
        end = end_of_block(text, end if rest is None else rest.end(), column, items=True)
    return start, end, shown


def _opens(text: str, at: int, *, any_value: bool) -> bool:
    """Whether a list or an object begins there.

    :param any_value: it may begin with any value; otherwise it has to be a quoted one.
    """
    return text.startswith(("{", "["), at) and (any_value or _OPEN_WITH_QUOTE.match(text, at) is not None)


def _content(text: str, at: int, element: str, name: str) -> _Find | None:
    """What is in an element, whatever that is: to the tag that closes it."""
    start = content_of_tag(text, at)
    if start is None:
        return None
    # For some parsers its tag ends behind the attribute that has a bracket.
    tag = _TAG_WITH_QUOTES.match(text, at)
    content = start if tag is None else max(start, tag.end())
    if name and has_count(text, content, element, name):
        return None
    end = end_of_element(text, content, element)
    empty = start == end or (end - start < _LONGEST_NAME and text[start:end].strip() in _NO_VALUES)
    return None if empty else (start, end, REDACTED)


def _lines(text: str, at: int, column: int, name: str) -> _Find | None:
    """What is behind a name at the beginning of a line, with all lines that belong to it."""
    rest = _REST_OF_LINE.match(text, at)
    assert rest is not None
    value = rest[0].strip()
    if value in _NO_VALUES or _is_open(name, value or {}):
        return None
    end = max(end_of_block(text, rest.end(), column, items=not value), _end_of_open(text, at))
    return (at, end, REDACTED) if at < end else None


def _end_of_open(text: str, at: int) -> int:
    """The end of the line in which a quoted value of YAML ends, or one in brackets. Its lines need no indent."""
    properties = _PROPERTIES.match(text, at)
    assert properties is not None
    end, mark = properties.end(), QUOTE.match(text, properties.end())
    if mark is not None:
        end = end_of_string(text, mark)
        # Two of them are one within it.
        while mark[0] == "'" and (mark := QUOTE.match(text, end)) is not None:
            end = end_of_string(text, mark)
    elif text.startswith(("{", "["), end):
        end = end_of_nested(text, end, 0)
    else:
        return end
    rest = _REST_OF_LINE.match(text, end)
    return end if rest is None else rest.end()
