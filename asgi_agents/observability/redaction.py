"""Keeping secrets out of logs, audit records and spans."""

import re
from typing import Final
from urllib.parse import unquote_plus

REDACTED: Final = "[redacted]"

# What is in the names of headers and parameters whose values are credentials, whatever they look like.
_NAMES: Final = (
    "hmac|cookie|token|secret|passw|passphrase|pwd|otp|credential|session|signature|jwt|dpop"
    "|api[-_]?key|access[-_]?key|private[-_]?key|client[-_]?key"
)
_SECRET_HEADER: Final = re.compile(f"auth|{_NAMES}", re.IGNORECASE)
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
        (?: [\w\]-] | %(?:25){0,4}+5d ){0,40}+ \\?["']? \s{0,8}+ (?:[=:]|%(?:25){0,4}+3d) \s{0,8}+
      )
      (?: (?P<quote>\\?["']) (?:\\.|[^"'\\])*+ | (?P<kind>(?:bearer|basic|digest|token|apikey)\s++)? [^\s"'&;,]++ )
    # a header in a text, to the end of the line: schemes differ in what they put where
    | (?P<header>(?:authorization|cookie) \\?["']? \s{0,8}+ [=:] \s{0,8}+ \\?["']?) [^\r\n"']++
    # of URLs; only these characters are looked at
    | (?=[:%?&]) (?:
        # user:password@ or token@ (RFC 3986, 3.2.1), up to the last @ that may belong to it. Slashes may be escaped for
        # JSON. A quote within a password is not the end of the URL.
        (?P<url> (?: : | %(?:25){0,4}+ 3a ) (?:\\?/){2})
        (?: [^\s/@:"'?#\\] | '(?![\s,;:)\]}>]) )*+ (?: : (?: [^\s/@"'] | '(?![\s,;:)\]}>]) )*+ )?+ @
        (?: (?: [^\s/@"'?#\\] | '(?![\s,;:)\]}>]) )*+ @ )*+
        # the same percent-encoded, as it is in the query of another URL: all of it as many times: a
        # start whose slashes do not end what another has begun would be one of many that read to the end of the text.
      | (?: (?= [:/]{0,3}+ % (?P<times>(?:25){0,4}+) (?:3a|2f) ) )?+
        (?P<encoded> (?: : | %(?:25){0,4}+ 3a ) (?: / | (?(times) %(?P=times)2f | (?!) ) ){2})
        (?:
          (?: (?! %(?(times) (?P=times) (?:2[f3]|3f|40) | (?:25){0,4}+ 40 )) [^\s/@"'?#&] )*+
          (?P<at> @ | %(?(times) (?P=times) | (?:25){0,4}+ ) 40 )
        )++
        # parameters of a query: more of them than in other text, where their names are words
      | (?P<parameter> (?:[?&]|%(?:25){0,4}+(?:3f|26))
          (?: si[gd] | (?: [\w.\[\]-] | %(?:25){0,4}+5[bd] ){0,40}? (?:"""
    + _NAMES
    + r"""|auth(?!or(?!i[sz]))) (?: [\w.\[\]-] | %(?:25){0,4}+5[bd] ){0,40}+ )
          (?: = | %(?:25){0,4}+ 3d )
        ) [^\s"'&;,]++
      )
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
    if match["encoded"]:
        return f"{match['encoded']}{REDACTED}{match['at']}"
    if match["parameter"]:
        return f"{match['parameter']}{REDACTED}"
    if match["name"]:
        return f"{match['name']}{match['quote'] or match['kind'] or ''}{REDACTED}"
    return REDACTED
