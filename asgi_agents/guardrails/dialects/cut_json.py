"""JSON that was cut off, such as the arguments of a tool call that was interrupted."""

import re
from typing import Final

from .. import json_text
from ..framing import UnreadableError

_STRING: Final = re.compile(r'"(?:[^"\\]|\\u[0-9a-fA-F]{4}|\\[^u])*+(?P<cut>\\(?:u[0-9a-fA-F]{0,3})?)?+(?P<end>")?+')
_WORD: Final = re.compile(r"[^\s\[\]{},:\"]++")
_WORDS: Final = ("true", "false", "null")


def is_json(text: str) -> bool:
    """Whether it is whole."""
    try:
        json_text.loads(text)
    except UnreadableError:
        return False
    return True


def rest_of(text: str) -> str | None:
    """What may stand behind ``text``, which was cut off, so that both are JSON. None: nothing does."""
    rest = _rest(text)
    return rest if is_json(text + rest) else None


def _rest(text: str) -> str:
    closing: list[str] = []
    rest, before, at, behind_key = "", "", 0, False
    while at < len(text):
        char = text[at]
        rest = ""
        if char == '"':
            match = _STRING.match(text, at)
            assert match is not None
            at = match.end()
            cut = match["cut"]
            if match["end"] is None:
                rest = '"' if not cut else '\\"' if cut == "\\" else "0" * (6 - len(cut)) + '"'
            behind_key = before in ("{", ",") and closing[-1:] == ["}"]
            before = char
            continue
        if char in "[{":
            closing.append("]" if char == "[" else "}")
        elif char in "]}":
            del closing[-1:]
        elif char not in ",:" and not char.isspace():
            match = _WORD.match(text, at)
            assert match is not None
            word, at = match[0], match.end()
            rest = next((whole[len(word) :] for whole in _WORDS if whole.startswith(word)), "")
            if word[-1] in "-+.eE" and word[:1] in "-0123456789":
                rest = "0"
            before = "word"
            continue
        if not char.isspace():
            before = char
        at += 1
    if before == '"' and behind_key:
        rest += ":null"
    elif before == ":":
        rest = "null"
    elif before == "," and closing:
        rest = '"":null' if closing[-1] == "}" else "null"
    return rest + "".join(reversed(closing))
