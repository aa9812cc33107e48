"""Keeping secrets out of logs, audit records and spans."""

import re
from collections.abc import Iterator
from typing import Final

from .brackets import end_of_closed
from .pieces import begun, matches, replaced
from .secret_names import CHALLENGES, is_secret_member, is_secret_name

REDACTED: Final = "[redacted]"

# Parameters of challenges that tell a client, or a person, what is asked for (RFC 7617, 7616, 6750, 9470, 9728). Of
# others, such as the nonce of a digest, nobody knows what they are worth.
_SAYING: Final = frozenset(
    (
        *("realm", "charset", "algorithm", "qop", "stale", "domain", "userhash"),
        *("scope", "error", "error_description", "error_uri", "resource_metadata", "acr_values", "max_age"),
    )
)
# Each of its parts in one look: no text takes longer than its length.
_CHALLENGE: Final = re.compile(
    r"""
      (?:^|(?<=,)) (?P<space>\s*+) (?P<scheme>[A-Za-z][\w-]*+) (?=[\s,]|$)
    | (?P<name>[\w.-]++) = (?P<value> " (?:[^"\\]|\\.)*+ "?+ | [^\s,"=] [^\s,"]*+ )
    | (?P<word>[^\s,="]++ =*+)
    """,
    re.VERBOSE | re.DOTALL,
)
# No part of these patterns is tried twice on the same text (possessive quantifiers, no prefix of any length). The path
# of a request is a client's, and the time that it takes must grow with its length only.
_NAME: Final = r"""(?P<name>
        (?:passw(?:or)?d|passphrase|pwd|secret|token|api[-_]?key|access[-_]?key|private[-_]?key|credential)
        (?: [\w\]-] | %(?:25){0,4}+5d ){0,40}+ \\?["']? \s{0,8}+ (?:[=:]|%(?:25){0,4}+3d) \s{0,8}+
      )"""
_KIND: Final = r"(?:bearer|basic|digest|token|apikey)\s{1,1000}+"
_SCHEME: Final = r"(?<![A-Za-z]) (?P<scheme>bearer|basic|token|apikey) \s++"
_BEGIN_OF_JWT: Final = r"(?<![\w-]) eyJ"
_BEGIN_OF_URL: Final = r"(?: : | %(?:25){0,4}+ 3a ) (?:\\?/){2}"
_BEGIN_OF_ENCODED: Final = r"""(?: (?= [:/]{0,3}+ % (?P<times>(?:25){0,4}+) (?:3a|2f) ) )?+
        (?P<encoded> (?: : | %(?:25){0,4}+ 3a ) (?: / | (?(times) %(?P=times)2f | (?!) ) ){2})"""
_SECRETS: Final = re.compile(
    rf"""
    # name=value, "name": "value", name=[…], name: {{…}}, name: scheme value; what Python writes of bytes, name=b'value'
      {_NAME}
      (?: (?P<open> [\[{{] (?!redacted\]) )
        | (?: [a-z_]\w{{0,40}}+ \( [a-z]? | [bfru]{{1,2}} )?+ (?P<quote>\\?(?: " | (?P<single>') ))
          # What was replaced before ends where it ended.
          (?: \[redacted\] (?=\\*+["']) | (?(single) (?:\\.|[^'\\])*+ | (?:\\.|[^"\\])*+ ) )
        | (?P<kind>{_KIND})? [^\s"'&;,]++ )
    # a header in a text, to the end of the line: schemes differ in what they put where
    | (?P<header>(?:authorization|cookie) \\?["']? \s{{0,8}}+ [=:] \s{{0,8}}+ \\?["']?) [^\r\n"']++
    # of URLs; only these characters are looked at
    | (?=[:%?&]) (?:
        # user:password@ or token@ (RFC 3986, 3.2.1), up to the last @ that may belong to it. Slashes may be escaped for
        # JSON. A quote within a password is not the end of the URL.
        (?P<url> {_BEGIN_OF_URL})
        (?: [^\s/@:"'?#\\] | '(?![\s,;:)\]}}>]) )*+ (?: : (?: [^\s/@"'] | '(?![\s,;:)\]}}>]) )*+ )?+ @
        (?: (?: [^\s/@"'?#\\] | '(?![\s,;:)\]}}>]) )*+ @ )*+
        # the same percent-encoded, as it is in the query of another URL: all of it as many times: a
        # start whose slashes do not end what another has begun would be one of many that read to the end of the text.
      | {_BEGIN_OF_ENCODED}
        (?:
          (?: (?! %(?(times) (?P=times) (?:2[f3]|3f|40) | (?:25){{0,4}}+ 40 )) [^\s/@"'?#&] )*+
          (?P<at> @ | %(?(times) (?P=times) | (?:25){{0,4}}+ ) 40 )
        )++
      )
    # credentials by their scheme (RFC 9110, section 11.4); those of digest are many
    | (?<![\w-]) digest\s++ [^\r\n]*+
    | {_SCHEME} [\w.~+/=-]{{6,}}+
    # JSON Web Tokens, signed (RFC 7515) or encrypted (RFC 7516)
    | {_BEGIN_OF_JWT}[\w-]{{8,}}+ (?:\.[\w-]*+){{1,4}}+
    # API keys that say what they are
    | (?<![A-Za-z-]) (?:sk|pk|rk)[-_] (?=[\w-]{{16}}) [\w-]++
    | (?<![A-Za-z]) gh[opsur]_[A-Za-z0-9]{{16,}}+
    | (?<![A-Za-z]) github_pat_\w{{16,}}+
    | (?<![\w-]) glpat-[\w-]{{16,}}+
    | (?<![\w-]) xox[abeoprs]-[\w-]{{10,}}+
    | (?<![A-Za-z]) AIza[\w-]{{30,}}+
    | (?<![A-Za-z]) npm_[A-Za-z0-9]{{16,}}+
    | (?<![A-Za-z]) A[KS]IA[A-Z0-9]{{16,}}+
    | -----BEGIN[ ][A-Z ]{{0,40}}?PRIVATE[ ]KEY(?:[ ]BLOCK)?-----.*
    """,
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
# What may go on, from each of its parts that are of any length and precede what decides whether it is a secret.
_SECRETS_BEGUN: Final = begun(
    {
        r'[^\s/"]': rf"""
            (?=[:%]) (?:
              {_BEGIN_OF_URL} [^\s/"]*+ \Z
            | {_BEGIN_OF_ENCODED} (?: (?! %(?(times) (?P=times) (?:2[f3]|3f) | (?!) )) [^\s/"'?#&] )*+ \Z
            )
        """,
        r"\s": rf"{_SCHEME} \Z",
        r"[\w-]": rf"{_BEGIN_OF_JWT} [\w-]*+ \Z",
    },
    re.IGNORECASE,
)


# Which quotation marks strings have within brackets: those of the name, or else of what is first.
_QUOTE_BEFORE: Final = re.compile(r"""(?P<mark>\\?["'])\s*+[=:]\s*+\Z""")
_QUOTE_BEHIND: Final = re.compile(r"""[\[{]\s{0,8}+(?P<mark>\\?["'])""")


# A parameter of a query and what is behind it. Names are of any length: nothing in them begins another one.
_BEGIN_OF_PARAMETER: Final = r"(?: [?&#] | % (?:25){0,4}+ (?:3f|26|23) )"
_OF_ITS_NAME: Final = r"[\w.\[\]+~$-] | % (?:25){0,4}+ (?!3d|3f|26|23) [\da-f]{2}"
_PARAMETER: Final = re.compile(
    rf"{_BEGIN_OF_PARAMETER} (?P<name> (?: {_OF_ITS_NAME} )++ ) (?: = | % (?:25){{0,4}}+ 3d )",
    re.IGNORECASE | re.VERBOSE,
)
_PARAMETER_BEGUN: Final = begun(
    {r"[\w.\[\]+~$%-]": rf"{_BEGIN_OF_PARAMETER} (?: {_OF_ITS_NAME} )*+ (?:%[\da-f]{{0,10}}+)?+ \Z"}, re.IGNORECASE
)
# A quotation mark ends it only where the URL may stand between two of them, and a comma where another text may follow.
_PARAMETER_VALUE: Final = re.compile(
    r"""
    [^\s"'&;,]
    (?: [^\s"'&;,] | ["'] (?![\s"'&;,:.)\]}>\\/]|\Z) | [;,] (?![\s&;,]|\Z|[A-Za-z][\w+.-]{0,20}+://) )*+
    """,
    re.VERBOSE,
)


def redact_secrets(text: str) -> str:
    """``text`` with whatever looks like a credential replaced by ``[redacted]``.

    Authorization schemes, ``password=…`` and the like, JSON Web Tokens, private keys, the API keys of the larger
    services, and parameters of a query whose names say that they are some.
    """
    return redact_patterns(redact_parameters(text))


def redact_patterns(text: str) -> str:
    """:func:`redact_secrets` but for parameters of a query."""
    return replaced(text, _secrets(text))


def _secrets(text: str) -> Iterator[tuple[int, int, str]]:
    brackets: tuple[int, int, str] | None = None
    for match in matches(_SECRETS, text, undecided=_SECRETS_BEGUN):
        if brackets is not None and match.start() < brackets[1]:
            if match.end() > brackets[1]:
                # What has begun in them goes on behind them.
                brackets = brackets[0], match.end(), brackets[2]
            continue
        if brackets is not None:
            yield brackets
        brackets = _in_brackets(match) if match["open"] else None
        if not match["open"]:
            yield *match.span(), _replacement(match)
    if brackets is not None:
        yield brackets


def _in_brackets(match: re.Match[str]) -> tuple[int, int, str] | None:
    """A list or an object that has the name of a secret: all of it. None: it says how many tokens there are."""
    text, begin = match.string, match.start("open")
    if not is_secret_member(match["name"].rstrip("\\\"' \t\r\n:="), {} if match["open"] == "{" else []):
        return None
    quote = _QUOTE_BEFORE.search(match["name"]) or _QUOTE_BEHIND.match(text, begin)
    mark = "" if quote is None else quote["mark"]
    end = end_of_closed(text, begin, len(mark) - 1 if mark else 0, mark[-1:] or '"')
    closing = "" if end is None else text[end - 1]
    end = len(text) if end is None else end
    return match.start(), end, f"{match['name']}{match['open']}{mark}{REDACTED}{mark}{closing}"


def redact_parameters(text: str) -> str:
    """``text`` without the values of parameters of a query whose names say that they are credentials."""
    if "%" not in text and ("=" not in text or not ("?" in text or "&" in text or "#" in text)):
        return text
    return replaced(text, _secret_parameters(text))


def _secret_parameters(text: str) -> Iterator[tuple[int, int, str]]:
    done = 0
    for match in matches(_PARAMETER, text, undecided=_PARAMETER_BEGUN):
        if match.start() < done or not is_secret_name(match["name"]):
            continue
        value = _PARAMETER_VALUE.match(text, match.end())
        if value is not None and is_secret_member(match["name"], value[0]):
            done = value.end()
            yield value.start(), done, REDACTED


def is_challenge_header(name: str) -> bool:
    """Whether headers of that name ask a client to authenticate: see :func:`redact_challenge`."""
    return name.lower() in CHALLENGES


def redact_challenge(value: str) -> str:
    """The value of a header that asks a client to authenticate, with the schemes and what is said of them.

    Tokens in it, such as those of ``Negotiate``, and parameters that are not known are replaced by ``[redacted]``
    (RFC 9110, section 11.3).
    """
    return _CHALLENGE.sub(_part_of_challenge, value)


def _part_of_challenge(match: re.Match[str]) -> str:
    if match["scheme"]:
        return match["space"] + redact_secrets(match["scheme"])
    if match["name"]:
        saying = match["name"].lower() in _SAYING
        return f"{match['name']}={redact_secrets(match['value']) if saying else REDACTED}"
    return REDACTED


# Names of protocols are short, and none of them is a key.
_LONG_PROTOCOL: Final = 40
_SAYS_CREDENTIAL: Final = re.compile(
    r"(?P<says>.*?(?:bearer|auth(?:enticate|entication|orization)?|token|jwt|api[-_]?key)(?:\.authorization\.k8s\.io)?)"
    r"(?:(?P<joint>[.=:_-])(?P<credential>.+))?",
    re.IGNORECASE | re.DOTALL,
)


def redact_subprotocols(value: str) -> str:
    """The value of ``sec-websocket-protocol`` without the credentials that clients put there.

    Browsers let a page set no other header for a websocket: ``bearer, TOKEN`` or one like
    ``base64url.bearer.authorization.k8s.io.TOKEN``.
    """
    kept: list[str] = []
    secret = False
    for given in value.split(","):
        name = given.strip()
        found = _SAYS_CREDENTIAL.fullmatch(name)
        if secret or (found is None and len(name) > _LONG_PROTOCOL):
            shown = REDACTED
        elif found is not None and found["credential"]:
            shown = f"{found['says']}{found['joint']}{REDACTED}"
        else:
            shown = name
        secret = found is not None and not found["credential"]
        kept.append(given.replace(name, shown) if name else given)
    return ",".join(kept)


# How many tokens there are, and no token: a number that has a longer name, or is one of JSON.
_COUNTED: Final = re.compile(
    r"""token (?: s | s?[-_]?(?:details?|counts?|limit|usage|used|remaining|left) )
    (?P<quoted>\\*+["'])?+ \s*+ [:=] \s*+ -?\d{1,12}(?:\.\d{1,9})? [}\])]*+""",
    re.IGNORECASE | re.VERBOSE,
)


def _is_count(match: re.Match[str]) -> bool:
    found = _COUNTED.fullmatch(match[0])
    before = match.string[match.start() - 1 : match.start()]
    return found is not None and (found["quoted"] is not None or before.isalnum() or before in ("_", "-"))


def _replacement(match: re.Match[str]) -> str:
    if match["scheme"]:
        return f"{match['scheme']} {REDACTED}"
    if match["header"]:
        return f"{match['header']}{REDACTED}"
    if match["url"]:
        return f"{match['url']}{REDACTED}@"
    if match["encoded"]:
        return f"{match['encoded']}{REDACTED}{match['at']}"
    if match["name"]:
        if _is_count(match):
            return match[0]
        return f"{match['name']}{match['quote'] or match['kind'] or ''}{REDACTED}"
    return REDACTED
