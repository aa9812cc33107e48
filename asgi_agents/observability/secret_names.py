"""Which names say that what they name is a credential: of headers, parameters, fields of forms, and members of JSON."""

import re
from functools import lru_cache
from typing import Final
from urllib.parse import unquote_plus

# Anywhere in a name, whatever is around it.
_PART: Final = re.compile(
    "auth|hmac|cookie|token|secret|passw|passphrase|passcode|pwd|otp|credential|session|sessid|signature|jwt|dpop|saml"
    "|verifier|(?:api|access|private|client|encryption|signing|master|subscription)[-_]?key",
    re.IGNORECASE,
)
# They are too short to be looked for in longer names: a session, the signature of a URL.
_WHOLE: Final = frozenset({"sid", "sig"})
# As the last word of a name, of one word or more.
_LAST_WORDS: Final = frozenset({"pass", "pin"})
# A key of something is a credential, but for those that find, order or count things. A key alone may be any of both.
_KEYS: Final = frozenset({"key", "keys"})
_OPEN_KEYS: Final = frozenset(
    (
        *("public", "primary", "foreign", "unique", "composite", "sort", "partition", "shard", "hash", "range", "row"),
        *("cache", "surrogate", "idempotency", "dedup", "deduplication", "routing", "group", "grouping", "message"),
        *("object", "file", "path", "index", "lookup", "map", "dict", "json", "field", "column", "property", "label"),
        *("translation", "locale", "i18n", "sitemap", "websocket", "project", "issue", "event", "feature", "flag"),
    )
)
# Who has written something is no secret.
_AUTHOR: Final = re.compile(r"author(?!i[sz])", re.IGNORECASE)
# They ask for credentials, or say whether some may be sent, and have none.
CHALLENGES: Final = frozenset({"www-authenticate", "proxy-authenticate"})
_NO_SECRETS: Final = CHALLENGES | {"access-control-allow-credentials"}
_STEP: Final = re.compile(r"[\[\].]+")
_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
# As language models are told and tell how many tokens there are, and how many there may be.
_COUNT: Final = re.compile(r"tokens?[-_]?(?:details?|counts?|limit|usage|used|remaining|left)$|tokens$", re.IGNORECASE)
# A number, or a time such as `1m30.5s`. There is one way only to take a text apart, so none is tried twice.
_AMOUNT: Final = re.compile(r"(?=\d)(?:\d{1,12}+(?:\.\d{1,9}+)?+(?:ms|[smhd]))*+(?:\d{1,12}+(?:\.\d{1,9}+)?+)?+")
_LONGEST_AMOUNT: Final = 60
# Names are percent-encoded so many times at most.
_MOST_ENCODINGS: Final = 5
_LONG: Final = 100


def is_secret_name(name: str) -> bool:
    """Whether what has that name, percent-encoded or not, is a credential, whatever it looks like."""
    return _is_secret(name) if len(name) <= _LONG else _is_secret.__wrapped__(name)


@lru_cache(maxsize=2048)
def _is_secret(name: str) -> bool:
    for _ in range(_MOST_ENCODINGS):
        decoded = unquote_plus(name)
        if decoded == name:
            break
        name = decoded
    name = name.strip()
    if name.lower() in _NO_SECRETS:
        return False
    if _PART.search(_AUTHOR.sub(" ", name)):
        return True
    step = next((step for step in reversed(_STEP.split(name)) if step and not step.isdecimal()), "")
    words = [word.lower() for word in _WORD.findall(step)]
    if not words:
        return False
    if step.lower() in _WHOLE or words[-1] in _LAST_WORDS:
        return True
    return words[-1] in _KEYS and len(words) > 1 and words[-2] not in _OPEN_KEYS


def is_secret_member(name: str, value: object) -> bool:
    """Whether ``value`` is a credential because of its name.

    What can't be one is none: nothing at all, yes or no, and a number of tokens, which may be written in a text.
    """
    if value is None or value == "" or isinstance(value, bool) or not is_secret_name(name):
        return False
    return not _is_count(name, value)


def _is_count(name: str, value: object) -> bool:
    found = _COUNT.search(name)
    if found is None:
        return False
    if isinstance(value, int | float):
        return True
    if isinstance(value, str):
        # In a text, `tokens` alone may be those of one time.
        given = value.strip()
        return (
            found[0].lower() != name.lower() and len(given) <= _LONGEST_AMOUNT and _AMOUNT.fullmatch(given) is not None
        )
    # How the tokens are made up: each of its members is looked at.
    return isinstance(value, dict) and found[0].lower().rstrip("s").endswith("detail")
