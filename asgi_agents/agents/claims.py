"""What the claims of a verified token say, as text for headers."""

import math
import re
from collections.abc import Mapping
from typing import Any, Final

from ..errors import ConfigurationError
from ..protocol.headers import as_one_spelling
from .settings import require_header, require_mapping

# JSON can have these, and no encoding can.
_SURROGATES: Final = re.compile("[\ud800-\udfff]")


class InvalidTokenError(Exception):
    """A token that proves nothing. The message is for the client, ``reason`` for the audit record."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def scopes_of(claims: Mapping[str, Any]) -> tuple[str, ...]:
    """The scopes: ``scope`` (RFC 8693, section 4.2) or ``scp``, as text with spaces or as a list."""
    given = claims.get("scope", claims.get("scp"))
    text = text_of(given) if given is None or isinstance(given, str | list) else None
    if text is None and given is not None and given not in ("", []):
        raise _unreadable()
    scopes = tuple(scope for scope in (text or "").split(" ") if scope)
    # RFC 6749, section 3.3: only a space is between two. What else looks blank would make two of one for some readers.
    if any(scope.split() != [scope] for scope in scopes):
        raise _unreadable()
    return scopes


def text_of(value: object) -> str | None:
    """A claim as text: text, numbers and booleans as they are, the items of a list separated by spaces.

    None where the claim is missing or empty. A list must not have an item with a blank in it: nobody could tell it from
    two.
    """
    match value:
        case None | "" | []:
            return None
        case str() if not _SURROGATES.search(value):
            return value
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float() if math.isfinite(value):
            return str(value)
        case list() if all(isinstance(item, str) and item.split() == [item] for item in value):
            return " ".join(value)
    raise _unreadable()


def headers_of_claims(given: object) -> dict[str, str]:
    """Which claim goes into which header.

    :raises ConfigurationError: also for a header of two claims: one of them would be lost, or taken for the other.
    """
    found: dict[str, str] = {}
    for claim, value in require_mapping("JwtAuth", "headers", given).items():
        name = require_header("JwtAuth", "headers", value)
        if as_one_spelling(name) in map(as_one_spelling, found.values()):
            raise ConfigurationError(f"JwtAuth: headers has two claims for {name!r}, expected a header for each")
        found[claim] = name
    return found


def _unreadable() -> InvalidTokenError:
    return InvalidTokenError("unsendable_claim", "a claim is neither text nor a number")
