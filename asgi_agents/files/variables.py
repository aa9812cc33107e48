"""``${VAR}`` in the values of a file, from the environment.

``${VAR:-default}`` is the default where the variable is unset or empty, as in a shell. ``$$`` is one ``$``. A ``$``
before anything else stands for itself. Keys are not looked at.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from .mistakes import Mistakes, Place, found_named

_NAME: Final = r"[A-Za-z_][A-Za-z0-9_]*"
_TOKEN: Final = re.compile(rf"\$(?:(?P<dollar>\$)|\{{(?:(?P<name>{_NAME})(?::-(?P<default>[^}}]*))?\}})?)", re.ASCII)
# ``$NAME``, which is no variable here, unlike in a shell.
_BARE: Final = re.compile(rf"\$(?:\$|(?P<name>{_NAME}))", re.ASCII)
#: A value that is nothing but one variable, for JSON Schema too.
WHOLE: Final = rf"^\$\{{{_NAME}(:-[^}}]*)?\}}$"
_WHOLE: Final = re.compile(WHOLE.removesuffix("$") + r"\Z")
# A text in a message. One that was too long has no end.
_QUOTED: Final = re.compile(r"(?<!\w)'(?P<text>[^'\s]{4,}?)(?:'|\.\.\.)")
# Shorter values are left alone inside of words: to put names in place of every "1" would make messages unreadable.
_SHORT: Final = 4


class Variables:
    """Puts the values of variables into what a file holds.

    :param environ: the variables.
    :ivar whole: the places of values that are nothing but one variable, which may become numbers and the like.
    :ivar touched: the places of all values that have one in them.
    :ivar bare: the places of ``$NAME`` without braces where there is such a variable, with its name: it was most likely
        meant to be read.
    """

    def __init__(self, environ: Mapping[str, str], mistakes: Mistakes) -> None:
        self._environ = environ
        self._mistakes = mistakes
        self._used: dict[str, str] = {}
        # What values that are more than one variable have become, and how they are written.
        self._composed: dict[str, str] = {}
        # The texts that are written without variables: those are no secret, also where a value contains one.
        self._written: set[str] = set()
        self.whole: set[Place] = set()
        self.touched: set[Place] = set()
        self.bare: list[tuple[Place, str]] = []

    def expand(self, value: Any, place: Place = ()) -> Any:
        """``value`` with the values of its variables, at any depth."""
        match value:
            case dict():
                for key in value:
                    self._check_text(key, (*place, key))
                    self._written.add(key)
                return {key: self.expand(inner, (*place, key)) for key, inner in value.items()}
            case list():
                return [self.expand(inner, (*place, number)) for number, inner in enumerate(value)]
            case str():
                self._check_text(value, place)
                if "$" not in value:
                    self._written.add(value)
                    return value
                if _WHOLE.match(value):
                    self.whole.add(place)
                names = dict.fromkeys(found["name"] for found in _BARE.finditer(value))
                self.bare.extend((place, name) for name in names if name is not None and name in self._environ)
                expanded = self._expanded(value, place)
                if place in self.touched and place not in self.whole and len(expanded) >= _SHORT:
                    self._composed[expanded] = value
                return expanded
        return value

    def _check_text(self, text: str, place: Place) -> None:
        """Note a text that JSON escapes have made, and that nobody can send."""
        if not _is_sendable(text):
            self._mistakes.add(place, f"found {found_named(text)}, expected text without halves of surrogate pairs")

    def within(self, place: Place) -> bool:
        """Whether there is a variable in the value at ``place``, at any depth."""
        return any(touched[: len(place)] == place for touched in self.touched)

    def hide(self, text: str) -> str:
        """``text`` with the names of variables in place of their values.

        A value of fewer than four characters is hidden where it stands alone, and in the value that it is a part of.
        """
        shown_as = self._composed | {value: f"${{{name}}}" for value, name in self._used.items()}
        for value, shown in sorted(shown_as.items(), key=lambda used: -len(used[0])):
            # As in a repr() too: a message may show the value so.
            for spelling in dict.fromkeys((value, repr(value)[1:-1])):
                if len(spelling) >= _SHORT:
                    text = text.replace(spelling, shown)
                else:
                    text = re.sub(rf"(?<!\w){re.escape(spelling)}(?!\w)", lambda _, shown=shown: shown, text)  # type: ignore[misc]
        return _QUOTED.sub(self._hide_part, text)

    def _hide_part(self, found: re.Match[str]) -> str:
        """What is quoted, or the variable in whose value it is: a message may be about a part of that."""
        part = found["text"]
        if part in self._written:
            return found[0]
        for value, name in self._used.items():
            if part in value:
                return f"'${{{name}}}'"
        for value, written in self._composed.items():
            if part in value:
                return repr(written)
        return found[0]

    def _expanded(self, text: str, place: Place) -> str:
        parts: list[str] = []
        end = 0
        for found in _TOKEN.finditer(text):
            if found["dollar"] is None and found["name"] is None:
                # What follows may be a part of it.
                rest = text[found.start() : found.start() + 40]
                self._mistakes.add(place, f"{rest!r}, expected ${{NAME}}, ${{NAME:-default}}, or $$ for a dollar")
                return ""
            parts += text[end : found.start()], self._value_of(found, place)
            end = found.end()
        return "".join((*parts, text[end:]))

    def _value_of(self, found: re.Match[str], place: Place) -> str:
        if found["dollar"]:
            return "$"
        name: str = found["name"]
        self.touched.add(place)
        value = self._environ.get(name)
        default = found["default"]
        if default is not None and not value:
            return default
        if value is None:
            self._mistakes.add(
                place, f"${{{name}}}: the environment has no such variable; expected it, or ${{{name}:-default}}"
            )
            return ""
        if value:
            self._used[value] = name
        if not _is_sendable(value):
            self._mistakes.add(place, f"${{{name}}}: not in UTF-8, expected text in UTF-8")
            return ""
        return value


def _is_sendable(text: str) -> bool:
    """Whether it can be encoded. Python reads bytes of the environment that are not UTF-8 as halves of surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
