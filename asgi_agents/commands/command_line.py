"""The command line as a whole: which subcommands there are, and what becomes of what they raise."""

import argparse
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

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
_PROGRAM: Final = "python -m asgi_agents"
# Programs of the package that are no subcommands, and what they do.
_PROGRAMS: Final = {"serve": "serves an agent", "ray": "runs an agent on Ray Serve"}
_BROKEN_PIPE: Final = 141
_INTERRUPTED: Final = 130


class _UsageError(Exception):
    """Arguments that can't be parsed."""

    def __init__(self, command: str | None, message: str) -> None:
        super().__init__(message)
        self.command = command


class _Parser(argparse.ArgumentParser):
    """Leaves it to :func:`main` to say what is wrong, so that it is said in JSON as well."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        command = self.prog.removeprefix(_PROGRAM).strip() or None
        program = re.match(r"argument COMMAND: invalid choice: '(\w+)'", message) if command is None else None
        if program is not None and program[1] in _PROGRAMS:
            name = program[1]
            message = f"{name!r} is a program of its own, which {_PROGRAMS[name]}: python -m asgi_agents.{name}"
        raise _UsageError(command, message)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; the exit code."""
    for name in ("stdout", "stderr"):
        # It is None where whoever has started this has closed it.
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - until the process ends
    given = sys.argv[1:] if arguments is None else arguments
    as_json = "--json" in given
    command: str | None = None
    try:
        try:
            options = make_parser().parse_args(given)
            command = options.command
            find_from_here()
            code = _run(options)
        except (MistakeError, AgentsError, OSError) as exc:
            if isinstance(exc, BrokenPipeError):
                raise
            code = _give_up(command, str(exc), as_json=as_json)
        except _UsageError as exc:
            code = _give_up(exc.command, str(exc), as_json=as_json)
        except Exception as exc:
            # Nothing was found, so that 1, with which Python ends by itself, would be wrong.
            complain(redact_secrets("".join(traceback.format_exception(exc))).rstrip())
            code = _give_up(command, f"{type(exc).__name__}: {exc}", as_json=as_json)
        sys.stdout.flush()
    except OSError as exc:
        # What is still buffered has nowhere to go: Python would complain of it in the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(exc, BrokenPipeError):
            # Who reads what is printed has had enough, such as `head`.
            return _BROKEN_PIPE
        complain(f"standard output: {exc.strerror or exc}")
        return IMPOSSIBLE
    except KeyboardInterrupt:
        return _INTERRUPTED
    return code


def _run(options: argparse.Namespace) -> int:
    """Run the subcommand; the exit code.

    :raises MistakeError: what it has called wanted to end the process, or has raised what ends it. The exit code of
        that would be taken for ours.
    """
    try:
        code: int = options.run(options)
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as exc:
        raise MistakeError(f"what was called has raised {type(exc).__name__}: {exc}") from exc
    return code


def _give_up(command: str | None, message: str, *, as_json: bool) -> int:
    """Say why it can't be done; the exit code."""
    message = redact_secrets(message)
    complain(message)
    if as_json:
        print_json({"command": command, "format": 1, "error": message})
    return IMPOSSIBLE


def make_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    parser = _Parser(
        prog=_PROGRAM,
        description="What guards an app, and what its agents answer.",
        epilog=_EXIT_CODES,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"asgi-agents {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in _COMMANDS:
        module.add_parser(subparsers)
    return parser
