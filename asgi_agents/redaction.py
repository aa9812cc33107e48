"""Keeping secrets out of what is written down."""

import re
from typing import Final

REDACTED: Final = "[redacted]"

# Names of headers whose values are credentials, whatever they look like.
_SECRET_HEADER: Final = re.compile(
    r"authorization|cookie|token|secret|passw|credential|session|signature|api[-_]?key|access[-_]?key|auth[-_]?key",
    re.IGNORECASE,
)
_SECRETS: Final = re.compile(
    r"""
      \b(?P<scheme>bearer|basic|digest|token|apikey)\s+[\w.~+/=-]{6,}  # credentials (RFC 9110, section 11.4)
    | (?P<name>\b[\w-]*(?:passw(?:or)?d|secret|token|api[-_]?key|access[-_]?key|credential)[\w-]*["']?\s*[=:]\s*["']?)
      [^\s"'&;,]+                                                      # name=value
    | \beyJ[\w-]{8,}\.[\w-]+(?:\.[\w-]*)?                              # JSON Web Token (RFC 7519)
    | \b(?:sk|pk|rk)[-_](?:[A-Za-z]+[-_])*[A-Za-z0-9]{16,}             # API keys that say what they are
    | \bgh[opsur]_[A-Za-z0-9]{16,}
    | \bglpat-[\w-]{16,}
    | \bxox[abeoprs]-[\w-]{10,}
    | \bA[KS]IA[A-Z0-9]{16}\b
    | -----BEGIN[ ][A-Z ]*PRIVATE[ ]KEY-----.*
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


def _replacement(match: re.Match[str]) -> str:
    if match["scheme"]:
        return f"{match['scheme']} {REDACTED}"
    return f"{match['name'] or ''}{REDACTED}"
