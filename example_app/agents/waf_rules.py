"""What attacks look like, in text that was decoded and put into lower case.

Every pattern begins with a literal and takes time linear in the length of the text: a rule must not be a way to attack
its firewall.
"""

import re
from typing import NamedTuple


class Rule(NamedTuple):
    """One kind of attack."""

    id: str
    attack: str
    pattern: re.Pattern[str]


RULES = (
    Rule("SQLI-01", "sql-injection", re.compile(r"union\s+(?:all\s+)?select\b")),
    Rule("SQLI-02", "sql-injection", re.compile(r"['\"]\s*(?:or|and)\s+(['\"]?)(\w+)\1\s*=\s*\1\2\b")),
    Rule("SQLI-03", "sql-injection", re.compile(r";\s*(?:drop|alter|truncate)\s+(?:table|database|schema)\b")),
    Rule("TRAV-01", "path-traversal", re.compile(r"\.\.[\\/]+(?:\.\.[\\/]|etc\b|windows\b)")),
    Rule("TRAV-02", "path-traversal", re.compile(r"/etc/+(?:passwd|shadow)\b")),
    Rule("XSS-01", "xss", re.compile(r"<(?:script|iframe|object|embed)\b")),
    Rule("XSS-02", "xss", re.compile(r"<[a-z][^<>]{0,200}\son(?:error|load|click|focus|mouseover)\s*=")),
    Rule("XSS-03", "xss", re.compile(r"javascript:\s*\w")),
    Rule("JNDI-01", "log4shell", re.compile(r"\$\{\s*(?:(?:jndi|lower|upper|env|sys|java):|::?-)")),
)

#: To be tried out in a shadow agent before it may refuse anything. It is too eager, as its record shows.
CANDIDATE_RULES = (Rule("SQLI-91", "sql-injection", re.compile(r"select\s+\w")),)
