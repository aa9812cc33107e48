"""``replay traffic.jsonl --agent unix:///run/new.sock``: ask an agent what was recorded, and show what it now decides
differently.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from ..agent import Agent
from ..observability.redaction import redact_secrets
from ..protocol import EventType
from ..recording import Difference, FieldDifference, ReplayReport, replay
from ..terminal.arguments import whole
from ..terminal.loading import load_agent
from ..terminal.output import Page, captured_log, printing_aside
from .answers import plain_without_secrets, url_without_secrets
from .outcome import FOUND, IMPOSSIBLE, WELL, print_json
from .running import run
from .target import json_of


class ReplayedRecording(Struct, frozen=True, kw_only=True):
    """All that ``replay`` has to say, as JSON."""

    command: str = "replay"
    format: int = 1
    asked: Sequence[str]
    report: ReplayReport


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "replay",
        help="ask an agent what was recorded, and compare its decisions",
        description="Ask an agent all that a recording has asked one, and compare its decisions with the recorded"
        " ones. Exits with 1 if some differ or could not be replayed, with 2 if nothing could be compared.",
        allow_abbrev=False,
    )
    parser.add_argument("recording", metavar="FILE", help="what asgi_agents.recording.record has written")
    parser.add_argument(
        "--agent",
        action="append",
        required=True,
        metavar="AGENT",
        help="http://, https://, unix:///path or tcp://host:port, or module:name of an Agent; several unix:// and"
        " tcp:// are instances of one agent",
    )
    parser.add_argument("--id", metavar="ID", help="the agent in the recording, where it has several")
    parser.add_argument("--concurrency", type=whole, default=1, metavar="N", help="calls at a time (1)")
    parser.add_argument("--timeout", type=float, metavar="S", help="seconds for each call (those that the agent had)")
    parser.add_argument("--config", metavar="JSON", help="hand the agent this configuration first")
    parser.add_argument(
        "--event",
        action="append",
        choices=[event.value for event in EventType if event is not EventType.CONFIGURE],
        metavar="EVENT",
        help="that the agent receives, such as request_headers (those that it names, else those recorded); may be"
        " repeated",
    )
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="FIELD",
        help="a part of answers that may differ, such as audit or response_headers; may be repeated",
    )
    parser.add_argument(
        "--ignore-redacted",
        action="store_true",
        help="don't compare what comes of events in which a secret was replaced",
    )
    parser.add_argument(
        "--ignore-not-replayed",
        action="store_true",
        help="exit with 0 also where the agent receives events whose content was not recorded",
    )
    parser.add_argument("--most", type=whole, default=20, metavar="N", help="differences to print (20)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=replay_recording)


def replay_recording(options: argparse.Namespace) -> int:
    """Replay a recording; the exit code.

    :raises MistakeError: an option can't be what it is, or the agent can't be loaded.
    :raises AgentsError: what :func:`replay` raises. OSError likewise.
    """
    asking = partial(
        replay,
        options.recording,
        _agent(options.agent),
        agent_id=options.id,
        concurrency=options.concurrency,
        timeout=options.timeout,
        config=json_of("--config", options.config),
        events=None if options.event is None else [EventType(name) for name in options.event],
        ignore=frozenset(options.ignore),
        ignore_redacted=options.ignore_redacted,
        ignore_not_replayed=options.ignore_not_replayed,
    )
    with captured_log(), printing_aside():
        # The log says what the report says.
        report: ReplayReport = _without_secrets(run(asking))
    if options.json:
        print_json(ReplayedRecording(asked=[redact_secrets(agent) for agent in options.agent], report=report))
    else:
        page = Page(sys.stdout)
        for line in report.lines(most=options.most, width=page.width):
            page.line(line)
    if report.ok:
        return WELL
    return FOUND if report.different or report.judged else IMPOSSIBLE


def _agent(given: Sequence[str]) -> Agent | str | Sequence[str]:
    if len(given) > 1:
        return given
    [one] = given
    if "://" in one:
        return one
    with printing_aside():
        return load_agent(one)


def _without_secrets(report: ReplayReport) -> ReplayReport:
    """A report as it may be printed, also where the recording was made without redaction."""
    return replace(report, differences=[_difference_without_secrets(each) for each in report.differences])


def _difference_without_secrets(difference: Difference) -> Difference:
    fields = [
        FieldDifference(field.name, plain_without_secrets(field.recorded), plain_without_secrets(field.now))
        for field in difference.fields
    ]
    return replace(difference, request=url_without_secrets(difference.request), fields=tuple(fields))
