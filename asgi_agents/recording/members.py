"""JSON that is read by a parser, and what its objects say of the names of their members. No I/O."""

import json
import math
from collections.abc import Mapping
from typing import Any, Final

#: Members and fields that say a name, and those that have the value of what is named.
NAMING: Final = frozenset({"name", "key", "field"})
NAMED: Final = "value"
#: What is named so is a credential where it is one of authorization (RFC 6749, section 4.1.3).
CODE: Final = "code"
AUTHORIZATION_CODE: Final = "authorization_code"
_OF_AUTHORIZATION: Final = frozenset({"redirect_uri", "code_verifier"})


def json_in(given: str) -> Any:
    """The value of a body in JSON that is an object or a list; None for all else.

    Raises ValueError for what is no JSON, and where something of it would be lost.
    """
    if given.lstrip()[:1] not in ("{", "["):
        return None
    return _decoder.decode(given)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def _finite(given: str) -> float:
    found = float(given)
    if not math.isfinite(found):
        raise ValueError("JSON has no such number")
    return found


_decoder: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite)


def names_of(value: Mapping[Any, Any]) -> Mapping[Any, list[str]]:
    """The names that members of an object have beside their own, by their own: those that other members say.

    All that any member says count, in whatever letter case, because readers differ in which of them they take.
    """
    kinds = {name: name.lower() for name in value if isinstance(name, str)}
    found: dict[Any, list[str]] = {}
    said = [value[name] for name, kind in kinds.items() if kind in NAMING and isinstance(value[name], str)]
    if said:
        found.update((name, said) for name, kind in kinds.items() if kind == NAMED)
    if any(
        kind in _OF_AUTHORIZATION or (kind == "grant_type" and value[name] == AUTHORIZATION_CODE)
        for name, kind in kinds.items()
    ):
        found.update((name, [AUTHORIZATION_CODE]) for name, kind in kinds.items() if kind == CODE)
    return found
