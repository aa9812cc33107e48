"""The rules of ModSecurity, and where those of the OWASP Core Rule Set are found."""

import glob
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

from libmodsecurity import ModSecurity, RulesSet

from ..errors import ConfigurationError
from ..messages.naming import kind_of, named
from .settings import require_strings

#: What a request with a body is judged at, and no other: so that none is said to be XML that is empty.
PORT_WITH_BODY: Final = 80
#: What stands before all other rules. A body that the engine can't read is refused: apps may read it in another way.
BASE: Final = r"""
SecRule REQUEST_HEADERS:Content-Type "@rx ^application/(?:[a-z0-9._-]+\+)?json" \
    "id:99101,phase:1,pass,nolog,t:none,t:lowercase,ctl:requestBodyProcessor=JSON"
SecRule SERVER_PORT "@eq 80" "id:99106,phase:1,pass,nolog,t:none,chain"
    SecRule REQUEST_HEADERS:Content-Type "@rx ^[a-z]+/(?:[a-z0-9._-]+\+)?xml" \
        "t:none,t:lowercase,ctl:requestBodyProcessor=XML"
SecRule REQBODY_ERROR "!@eq 0" "id:99107,phase:2,deny,status:400,log,t:none,msg:'The request body can not be read'"
"""
#: What stands behind all other rules. A rule that has met a limit of the engine was passed over: that is what an
#: attacker would want, and a failure of the agent would let everybody open its breaker. So the request is refused.
#: Of two settings the engine takes the first: these hold where no rules say otherwise. Without, it would judge nothing.
END: Final = """
SecRuleEngine On
SecRequestBodyAccess On
SecRule TX:/^MSC_/ "!@streq 0" "id:99102,phase:2,deny,log,t:none,msg:'A limit of the engine was met'"
SecRule TX:/^MSC_/ "!@streq 0" "id:99103,phase:3,deny,log,t:none,msg:'A limit of the engine was met'"
SecRule TX:/^MSC_/ "!@streq 0" "id:99104,phase:4,deny,log,t:none,msg:'A limit of the engine was met'"
"""
_RESPONSES: Final = """
SecResponseBodyAccess On
SecResponseBodyMimeType text/plain text/html text/xml application/json application/problem+json
"""
# The first names are those of CRS 3, the others those of CRS 4.
_PARANOIA: Final = (
    'SecAction "id:99105,phase:1,pass,nolog,t:none,setvar:tx.paranoia_level={0},'
    'setvar:tx.blocking_paranoia_level={0},setvar:tx.detection_paranoia_level={0}"'
)
_DEBIAN: Final = Path("/usr/share/modsecurity-crs")
_DEBIAN_SETUP: Final = Path("/etc/modsecurity/crs/crs-setup.conf")
#: The wheel was built without a database of places, and refuses rules that ask for one.
_NEEDS_PLACES: Final = "@geoLookup"


@cache
def engine() -> Any:
    """The one engine of the process. It would write what it finds, with what clients sent, to standard output."""
    made = ModSecurity()
    made.set_connector_information("asgi-agents")
    made.set_log_callback(_discard)
    return made


def _discard(message: str) -> None:
    """The audit record has the ids and tags of the rules; the text of the message quotes the request."""


def load(rules: object, text: str, crs: object, paranoia_level: int, before: str, *, responses: bool) -> RulesSet:
    """All rules in their order.

    :raises ConfigurationError: for rules that can't be read or parsed, and where there is none.
    """
    loaded = RulesSet()
    _text(loaded, "the rules of the agent", BASE)
    count = 0
    if crs is not None:
        if not isinstance(crs, str):
            raise ConfigurationError(f"ModSecurity: crs={named(crs)}, expected the name of a directory")
        setup, files = _core_rule_set(Path(crs))
        _file(loaded, setup)
        _text(loaded, "the rules of the agent", _PARANOIA.format(paranoia_level))
        _text(loaded, "before", before)
        count = sum(_file(loaded, file) for file in files)
    elif before:
        raise ConfigurationError("ModSecurity: before is for what stands before the Core Rule Set, expected crs")
    count += sum(_file(loaded, file) for file in _given(require_strings("ModSecurity", "rules", rules)))
    count += _text(loaded, "text", text)
    if not count:
        raise ConfigurationError("ModSecurity: there are no rules, expected crs, rules or text")
    _text(loaded, "the rules of the agent", END + (_RESPONSES if responses else ""))
    return loaded


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
    return _checked(rules, rules.load_from_uri(str(path)))


def _text(rules: RulesSet, where: str, text: object) -> int:
    if not isinstance(text, str):
        raise ConfigurationError(f"ModSecurity: {where} is {kind_of(text)}, expected text")
    return _checked(rules, rules.load(text)) if text else 0


def _checked(rules: RulesSet, count: int) -> int:
    if count < 0:
        raise ConfigurationError(f"ModSecurity: {' '.join(rules.get_parser_error().split())}")
    return count
