"""What subcommands have in common: their exit codes, and how they print JSON."""

import json
import sys
from typing import Any, Final

import msgspec

from ..messages.json_escapes import escape_unprintable

WELL: Final = 0
FOUND: Final = 1
IMPOSSIBLE: Final = 2


def print_json(value: Any) -> None:
    """Print a value as JSON, indented.

    Where its texts have what can't be printed, or what the encoding of standard output does not have, there are
    escapes. Arguments that are not in UTF-8 can be in them: these have lone surrogates.
    """
    plain = msgspec.to_builtins(value)
    text = _encoded(plain, ascii_only=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = _encoded(plain, ascii_only=True)
    sys.stdout.write(text + "\n")


def _encoded(plain: Any, *, ascii_only: bool) -> str:
    # NaN and the infinities are no JSON.
    text = json.dumps(plain, indent=2, ensure_ascii=ascii_only, allow_nan=False)
    return "\n".join(map(escape_unprintable, text.split("\n")))
