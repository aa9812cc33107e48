"""What rules say of themselves, as it is written: the engine puts parts of requests in place of its macros."""

import glob
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct

from ..errors import ConfigurationError

# The engine takes all of these in any letter case.
_COMMENT: Final = re.compile(r"^\s*#.*$", re.MULTILINE)
_DIRECTIVE: Final = re.compile(r"^\s*Sec(\w+)\s", re.MULTILINE | re.IGNORECASE)
_RULES: Final = frozenset({"rule", "action"})
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ID: Final = re.compile(r"(?:\A|,)[\s\\]*id:'?(\d+)", re.IGNORECASE)
_SAID: Final = re.compile(r"\b(msg|tag):(?:'((?:[^'\\]|\\.)*)'|([^',\"\s]+))", re.IGNORECASE)
_INCLUDE: Final = re.compile(r"^\s*Include\s+\"?([^\"\n]+?)\"?\s*$", re.MULTILINE | re.IGNORECASE)
_MACRO: Final = "%{"


class RuleTexts(Struct, frozen=True):
    """A rule: its message, unless the engine fills something in, and the tags in which it fills nothing in."""

    message: str | None
    tags: frozenset[str]


def texts_of(rules: Iterable[str]) -> Mapping[int, RuleTexts]:
    """Those of all rules in these texts, by id. Of an id that is there twice, what both say in the same words."""
    found: dict[int, RuleTexts] = {}
    for text in rules:
        for number, said in _by_id(_COMMENT.sub("", text)).items():
            plain = [(name, words) for name, words in said if _MACRO not in words]
            messages = [words for name, words in plain if name == "msg"]
            one = RuleTexts(messages[0] if len(messages) == 1 else None, frozenset(w for n, w in plain if n == "tag"))
            other = found.get(number, one)
            message = one.message if one.message == other.message else None
            found[number] = RuleTexts(message, one.tags & other.tags)
    return found


def included(text: str, beside: Path | None, seen: set[Path]) -> Iterator[str]:
    """The texts of the files that rules include: of these, those beside the file that names them, if it is one.

    :param seen: the files that need not be read again. Those that are read now are added.
    :raises ConfigurationError: for a name with blanks, which the engine passes over without a word.
    """
    for name in _INCLUDE.findall(_COMMENT.sub("", text)):
        if len(name.split()) > 1:
            raise ConfigurationError(f"ModSecurity: Include {name!r} would not be read, expected a name without blanks")
        where = os.path.expandvars(name)
        names = glob.glob(where) or ([] if beside is None else glob.glob(str(beside / where)))
        for path in map(Path, names):
            if path not in seen and path.is_file():
                seen.add(path)
                within = path.read_text("utf-8", "replace")
                yield within
                yield from included(within, path.parent, seen)


def _by_id(text: str) -> Mapping[int, list[tuple[str, str]]]:
    """What is said in each rule, and in those that are chained to it, which have no id."""
    found: dict[int, list[tuple[str, str]]] = {}
    said: list[tuple[str, str]] = []
    _, *directives = _DIRECTIVE.split(text)
    for kind, directive in zip(directives[::2], directives[1::2], strict=True):
        # What is done stands last: a rule may well look for what is written like an id.
        quoted = _QUOTED.findall(directive)
        if kind.lower() not in _RULES or not quoted:
            continue
        number = _ID.search(quoted[-1])
        if number is not None:
            said = found.setdefault(int(number[1]), [])
        said += [(name.lower(), words or bare) for name, words, bare in _SAID.findall(quoted[-1])]
    return found
