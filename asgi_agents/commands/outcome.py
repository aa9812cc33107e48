"""What subcommands have in common: their exit codes, and how they print JSON."""

import sys
from typing import Any, Final

import msgspec

WELL: Final = 0
FOUND: Final = 1
IMPOSSIBLE: Final = 2


def print_json(value: Any) -> None:
    """Print a value as JSON, indented."""
    encoded = msgspec.json.format(msgspec.json.encode(value), indent=2)
    sys.stdout.write(encoded.decode() + "\n")
