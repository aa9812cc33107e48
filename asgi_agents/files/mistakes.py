"""What is wrong in a file: where, what was found there, and what was expected."""

import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ..errors import ConfigurationError
from ..messages.naming import kind_of, named

#: The keys and numbers that lead to a value.
Place = tuple[str | int, ...]

_BARE: Final = re.compile(r"[\w$-]{1,80}\Z", re.ASCII)
# So many are reported at once.
_MOST: Final = 50
# So many are looked for: a file that has more is another file, and to say of each what was meant takes its time.
_ENOUGH: Final = 1000


class FileMistake(Struct, frozen=True):
    """One mistake. ``line`` counts from 1; None: the parser does not tell. An empty place is the whole file."""

    place: Place
    line: int | None
    text: str

    def shown(self, path: str) -> str:
        """One line about it."""
        where = path if self.line is None else f"{path}:{self.line}"
        text = " ".join(self.text.split())
        return f"{where}: {place_named(self.place)}: {text}" if self.place else f"{where}: {text}"


class Mistakes:
    """Collects the mistakes of a file.

    :param path: of the file, as it was given.
    :param lines: the lines on which values stand, by place, as far as the parser tells.
    """

    def __init__(self, path: str, lines: Mapping[Place, int]) -> None:
        self._path = path
        self._lines = lines
        self._found: list[FileMistake] = []
        #: What is done to every text before it is shown: it may have the value of a variable in it.
        self.hide: Callable[[str], str] = str

    def __len__(self) -> int:
        return len(self._found)

    def add(self, place: Place, text: str) -> None:
        """Note a mistake. Its line is that of the place, or of what is nearest around it.

        Raises what :meth:`check` raises where there are 1,000.
        """
        around = place
        while around and around not in self._lines:
            around = around[:-1]
        self._found.append(FileMistake(place, self._lines.get(around), text))
        if len(self._found) >= _ENOUGH:
            self.check()

    def check(self) -> None:
        """Raise :class:`ConfigurationError` with a line for each mistake, if there is any."""
        if self._found:
            # From the top of the file to its end, where that is known.
            found = sorted(self._found, key=lambda mistake: mistake.line or 0)
            shown = [replace(one, text=self.hide(one.text)).shown(self._path) for one in found[:_MOST]]
            if len(found) > _MOST:
                least = "at least " if len(found) >= _ENOUGH else ""
                shown.append(f"{self._path}: {least}{len(found) - _MOST} other mistakes")
            raise ConfigurationError("\n".join(shown))


def refusal(path: str, text: str, line: int | None = None) -> ConfigurationError:
    """The error for a file of which nothing can be said but this."""
    return ConfigurationError(FileMistake((), line, text).shown(path))


def place_named(place: Place) -> str:
    """``("agents", 0, "timeout")`` is ``agents[0].timeout``."""
    shown = ""
    for part in place:
        if isinstance(part, int):
            shown += f"[{part}]"
        else:
            shown += f".{part}" if _BARE.match(part) else f".{part!r:.80}"
    return shown.removeprefix(".")


def found_named(value: object) -> str:
    """What was found, as it is written in the file; tables and lists by their kind."""
    match value:
        case dict():
            return "a table"
        case list():
            return "a list"
        case bool():
            return "true" if value else "false"
        case None:
            return "null"
        case str() | int() | float():
            return named(value)
    return kind_of(value)


def nearest(name: str, known: Iterable[str]) -> str:
    """What to add to a message about a name that is not known: the nearest one that is, or all of them."""
    names = list(known)
    near = get_close_matches(name, names, 1)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"expected {one_of(names)}" if names else "expected none, for there are none"


def one_of(names: Iterable[str]) -> str:
    """``a, b or c``."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
