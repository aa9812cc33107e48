"""The command line as a whole: which subcommands there are, and what becomes of what they raise."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Final

from .._version import __version__
from ..errors import AgentsError
from ..observability.redaction import redact_secrets
from ..terminal.loading import MistakeError, find_from_here
from ..terminal.output import complain
from . import bench, call, check, replay
from .outcome import IMPOSSIBLE, print_json

_COMMANDS: Final = (check, call, bench, replay)
_EXIT_CODES: Final = (
    "Exit codes: 0 all is well; 1 something was found; 2 it can't be done, and standard error says why;"
    " 130 interrupted."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; the exit code."""
    options = make_parser().parse_args(arguments)
    find_from_here()
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except (MistakeError, AgentsError, OSError) as exc:
        if isinstance(exc, BrokenPipeError):
            # Who reads what is printed has had enough, such as `head`. Nor is there anybody for what is still buffered.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        message = redact_secrets(str(exc))
        complain(message)
        if getattr(options, "json", False):
            print_json({"command": options.command, "format": 1, "error": message})
        return IMPOSSIBLE
    except KeyboardInterrupt:
        return 130
    return code


def make_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    parser = argparse.ArgumentParser(
        prog="python -m asgi_agents",
        description="What guards an app, and what its agents answer.",
        epilog=_EXIT_CODES,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"asgi-agents {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in _COMMANDS:
        module.add_parser(subparsers)
    return parser
