"""Keeping secrets out of logs, audit records and spans."""

import re
from typing import Final
from urllib.parse import unquote_plus

REDACTED: Final = "[redacted]"

# Names of headers whose values are credentials, whatever they look like.
_SECRET_HEADER: Final = re.compile(
    r"auth|hmac|cookie|token|secret|passw|passphrase|pwd|otp|credential|session|signature|jwt|dpop"
    r"|api[-_]?key|access[-_]?key|private[-_]?key|client[-_]?key",
    re.IGNORECASE,
)
# Of signed URLs and of sessions. Too short to be looked for in longer names.
_SECRET_PARAMETERS: Final = frozenset({"sig", "sid"})
# Who has written something is no secret.
_AUTHOR: Final = re.compile(r"author(?!i[sz])", re.IGNORECASE)
# No part of these patterns is tried twice on the same text (possessive quantifiers, no prefix of any length). The path
# of a request is a client's, and the time that it takes must grow with its length only.
_SECRETS: Final = re.compile(
    r"""
    # name=value, "name": "value", name: scheme value
      (?P<name>
        (?:passw(?:or)?d|passphrase|pwd|secret|token|api[-_]?key|access[-_]?key|private[-_]?key|credential)
        [\w\]-]{0,40}+ \\?["']? \s{0,8}+ (?:[=:]|%3d) \s{0,8}+
      )
      (?: (?P<quote>\\?["']) (?:\\.|[^"'\\])*+ | (?P<kind>(?:bearer|basic|digest|token|apikey)\s++)? [^\s"'&;,]++ )
    # a header in a text, to the end of the line: schemes differ in what they put where
    | (?P<header>(?:authorization|cookie) \\?["']? \s{0,8}+ [=:] \s{0,8}+ \\?["']?) [^\r\n"']++
    # user:password@ of a URL
    | (?P<url>://) [^\s/@:"']*+ : [^\s/@"']++ @
    # credentials by their scheme (RFC 9110, section 11.4); those of digest are many
    | (?<![\w-]) digest\s++ [^\r\n]*+
    | (?<![A-Za-z]) (?P<scheme>bearer|basic|token|apikey) \s++ [\w.~+/=-]{6,}+
    # JSON Web Tokens, signed (RFC 7515) or encrypted (RFC 7516)
    | (?<![\w-]) eyJ[\w-]{8,}+ (?:\.[\w-]*+){1,4}+
    # API keys that say what they are
    | (?<![A-Za-z-]) (?:sk|pk|rk)[-_] (?=[\w-]{16}) [\w-]++
    | (?<![A-Za-z]) gh[opsur]_[A-Za-z0-9]{16,}+
    | (?<![A-Za-z]) github_pat_\w{16,}+
    | (?<![\w-]) glpat-[\w-]{16,}+
    | (?<![\w-]) xox[abeoprs]-[\w-]{10,}+
    | (?<![A-Za-z]) AIza[\w-]{30,}+
    | (?<![A-Za-z]) npm_[A-Za-z0-9]{16,}+
    | (?<![A-Za-z]) A[KS]IA[A-Z0-9]{16,}+
    | -----BEGIN[ ][A-Z ]{0,40}?PRIVATE[ ]KEY(?:[ ]BLOCK)?-----.*
    """,
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)


def redact_secrets(text: str) -> str:
    """``text`` with whatever looks like a credential replaced by ``[redacted]``.

    Authorization schemes, ``password=…`` and the like, JSON Web Tokens, private keys, and the API keys of the larger
    services.
    """
    return _SECRETS.sub(_replacement, text)


def is_secret_header(name: str) -> bool:
    """Whether the values of headers of that name are credentials."""
    return _SECRET_HEADER.search(name) is not None


def is_secret_parameter(name: str) -> bool:
    """Whether the values of query parameters of that name, percent-encoded as it is sent, are credentials."""
    name = _AUTHOR.sub("", unquote_plus(name))
    return name.lower() in _SECRET_PARAMETERS or is_secret_header(name)


def _replacement(match: re.Match[str]) -> str:
    if match["scheme"]:
        return f"{match['scheme']} {REDACTED}"
    if match["header"]:
        return f"{match['header']}{REDACTED}"
    if match["url"]:
        return f"{match['url']}{REDACTED}@"
    if match["name"]:
        return f"{match['name']}{match['quote'] or match['kind'] or ''}{REDACTED}"
    return REDACTED
