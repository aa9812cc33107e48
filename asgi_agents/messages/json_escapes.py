"""JSON that ends no line and does nothing to a terminal, whatever is in its texts."""

import json
import re
from typing import Final

_BEYOND_ASCII: Final = re.compile(r"[^ -~]+")


def escape_unprintable(line: str) -> str:
    """A line of JSON with escapes in place of what can't be printed. It means the same."""
    return line if line.isprintable() else _BEYOND_ASCII.sub(_escape, line)


def _escape(found: re.Match[str]) -> str:
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in found[0])
