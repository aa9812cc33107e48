"""The rules of ModSecurity, and where those of the OWASP Core Rule Set are found."""

import glob
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from libmodsecurity import ModSecurity, RulesSet

from ..errors import ConfigurationError
from ..messages.naming import kind_of, named
from .modsecurity_own_rules import BASE, END, PARANOIA, RESPONSES
from .modsecurity_texts import RuleTexts, included, texts_of
from .settings import require_strings

_DEBIAN: Final = Path("/usr/share/modsecurity-crs")
_DEBIAN_SETUP: Final = Path("/etc/modsecurity/crs/crs-setup.conf")
#: The wheel was built without a database of places, and refuses rules that ask for one.
_NEEDS_PLACES: Final = "@geoLookup"
#: What the engine says of rules that it was given as text.
_NO_FILE: Final = "<<reference missing or not informed>>"


@cache
def engine() -> Any:
    """The one engine of the process. It would write what it finds, with what clients sent, to standard output."""
    made = ModSecurity()
    made.set_connector_information("asgi-agents")
    made.set_log_callback(_discard)
    return made


def _discard(message: str) -> None:
    """The audit record has the ids and tags of the rules; the text of the message quotes the request."""


class Rules(NamedTuple):
    """What the engine has loaded, and what the rules say of themselves, by id."""

    engine: RulesSet
    texts: Mapping[int, RuleTexts]


def load(rules: object, text: str, crs: object, paranoia_level: int, before: str, *, responses: bool) -> Rules:
    """All rules in their order.

    :raises ConfigurationError: for rules that can't be read or parsed, and where there is none.
    """
    loaded = RulesSet()
    _text(loaded, "the rules of the agent", BASE)
    count = 0
    read: list[Path] = []
    if crs is not None:
        if not isinstance(crs, str):
            raise ConfigurationError(f"ModSecurity: crs={named(crs)}, expected the name of a directory")
        setup, files = _core_rule_set(Path(crs))
        _file(loaded, setup)
        _text(loaded, "the rules of the agent", PARANOIA.format(paranoia_level))
        _text(loaded, "before", before)
        count = sum(_file(loaded, file) for file in files)
        read += files
    elif before:
        raise ConfigurationError("ModSecurity: before is for what stands before the Core Rule Set, expected crs")
    given = [*_given(require_strings("ModSecurity", "rules", rules))]
    count += sum(_file(loaded, file) for file in given)
    count += _text(loaded, "text", text)
    if not count:
        raise ConfigurationError("ModSecurity: there are no rules, expected crs, rules or text")
    _text(loaded, "the rules of the agent", END + (RESPONSES if responses else ""))
    return Rules(loaded, texts_of([BASE, END, *_written(before, text, (*read, *given))]))


def _written(before: str, text: str, files: Sequence[Path]) -> Iterator[str]:
    seen = set(files)
    for rules, beside in (
        *((rules, None) for rules in (before, text)),
        *((file.read_text("utf-8", "replace"), file.parent) for file in files),
    ):
        yield rules
        yield from included(rules, beside, seen)


def _core_rule_set(directory: Path) -> tuple[Path, Sequence[Path]]:
    """Its setup, and the files of its rules that this engine can load."""
    candidates = [directory / "crs-setup.conf", directory / "crs-setup.conf.example"]
    if directory.resolve() == _DEBIAN:
        candidates.insert(1, _DEBIAN_SETUP)
    setup = next((path for path in candidates if path.is_file()), None)
    files = sorted((directory / "rules").glob("*.conf"))
    if setup is None or not files:
        missing = "crs-setup.conf" if files else "rules/*.conf"
        raise ConfigurationError(f"ModSecurity: crs={str(directory)!r} has no {missing}, expected the OWASP CRS")
    return setup, [file for file in files if _NEEDS_PLACES not in file.read_text("utf-8", "replace")]


def _given(patterns: Sequence[str]) -> Iterator[Path]:
    for pattern in patterns:
        found = sorted(glob.glob(pattern))
        if not found:
            raise ConfigurationError(f"ModSecurity: rules has {pattern!r}, where no file is")
        yield from map(Path, found)


def _file(rules: RulesSet, path: Path) -> int:
    return _checked(rules, str(path), rules.load_from_uri(str(path)))


def _text(rules: RulesSet, where: str, text: object) -> int:
    if not isinstance(text, str):
        raise ConfigurationError(f"ModSecurity: {where} is {kind_of(text)}, expected text")
    return _checked(rules, where, rules.load(text)) if text else 0


def _checked(rules: RulesSet, where: str, count: int) -> int:
    if count < 0:
        fault = " ".join(rules.get_parser_error().split()).replace(f"File: {_NO_FILE}. ", "")
        # The engine names a file. Of a text it knows nothing but the line in it, and what that names it looks for
        # beside no file.
        fault = re.sub(rf", '{_NO_FILE}[^']*'", "", fault)
        raise ConfigurationError(f"ModSecurity: {fault if where in fault else f'{where}: {fault}'}")
    return count
