"""What attacks look like, in text that was normalised (:mod:`example_app.waf_rules.text`).

Every pattern begins with a literal and takes time linear in the length of the text: a rule must not be a way to attack
its firewall. So each repetition is possessive or bounded, or can't run past the place where the next match may begin.
"""

import re
from typing import NamedTuple


class Rule(NamedTuple):
    """One kind of attack."""

    id: str
    attack: str
    pattern: re.Pattern[str]


# What may stand between two words of SQL. Comments of any length have been replaced by white space, but for those that
# a quoted "/*" in front of them hides; of these the short ones are recognised here.
_GAP = r"(?>\s+|/\*.{0,100}?\*/|(?:--|\#)[^\n]{0,100}\n)"


def _sql(pattern: str) -> re.Pattern[str]:
    """``pattern``, in which ``_`` is white space or comments, and ``_?`` the same or nothing."""
    return re.compile(pattern.replace("_?", f"{_GAP}{{0,9}}+").replace("_", f"{_GAP}{{1,9}}+"), re.DOTALL)


RULES = (
    Rule("SQLI-01", "sql-injection", _sql(r"union_(?:all_)?select\b")),
    Rule("SQLI-02", "sql-injection", _sql(r"['\"]_?(?:or|and)(?:_|(?=['\"]))(['\"]?)(\w++)\1_?=_?\1\2\b")),
    Rule("SQLI-03", "sql-injection", _sql(r";_?(?:drop|alter|truncate)_(?:table|database|schema)\b")),
    Rule("TRAV-01", "path-traversal", re.compile(r"\.\.[\\/]++(?:\.\.[\\/]|etc\b|windows\b)")),
    Rule("TRAV-02", "path-traversal", re.compile(r"/etc/++(?:passwd|shadow)\b")),
    Rule("XSS-01", "xss", re.compile(r"<(?:script|iframe|object|embed)\b")),
    # A slash or a closing quote ends an attribute as white space does (WHATWG HTML, section 13.2.5).
    Rule("XSS-02", "xss", re.compile(r"<[a-z][^<>]*?[\s/\"']on(?:error|load|click|focus|mouseover)\s*+=")),
    Rule("XSS-03", "xss", re.compile(r"javascript:\s*+\w")),
    Rule("JNDI-01", "log4shell", re.compile(r"\$\{\s*+(?:(?:jndi|lower|upper|env|sys|java):|::?-)")),
)

#: To be tried out in a shadow agent before it may refuse anything. It is too eager, as its record shows.
CANDIDATE_RULES = (Rule("SQLI-91", "sql-injection", re.compile(r"select\s+\w")),)
