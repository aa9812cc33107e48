"""``call AGENT GET '/?q=…'``: ask one agent about a request, and print what it answers."""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Final
from uuid import uuid4

import anyio
from msgspec import Struct
from msgspec.structs import replace

from ..decision import AgentDecision, Verdict
from ..errors import AgentError
from ..exchange.reply import render_reply
from ..failures import NO_CONFIG
from ..guard import Guard
from ..observability.redaction import redact_secrets
from ..policy import FailureMode
from ..protocol import (
    AgentResponse,
    Allow,
    Decision,
    Event,
    GuardrailInspectEvent,
    GuardrailResponse,
    InspectionType,
    Opcode,
    RequestBodyChunkEvent,
    RequestCompleteEvent,
    RequestHeadersEvent,
    ResponseBodyChunkEvent,
    ResponseHeadersEvent,
    WebSocketFrameEvent,
)
from ..terminal.loading import MistakeError
from ..terminal.output import Page, Painted, captured_log, complain, printing_aside
from .answers import AnswerLines, lines_of, plain_answer, url_without_secrets, without_secrets
from .outcome import FOUND, IMPOSSIBLE, WELL, print_json
from .running import run
from .target import Question, add_target, body_of, guard_of, headers_of

_PASSES: Final = frozenset({"allow"})
_AGENT: Final = "agent"


class CalledEvent(Struct, frozen=True, kw_only=True):
    """An event that the agent was asked about, or, of ``request_complete``, told.

    ``outcome`` is ``allow``, ``block``, ``redirect``, ``challenge``, ``drop``, ``close``, ``detected`` or the kind of a
    failure, ``ms`` the time of the call in milliseconds, ``answer`` what the agent has answered, as on the wire.
    ``status`` is that of the response which the agent was told of; None for all other events.
    """

    event: str
    outcome: str
    ms: float
    answer: Any
    failure: str | None
    status: int | None = None


class UnaskedEvent(Struct, frozen=True, kw_only=True):
    """An event that the agent was not asked about, and why."""

    event: str
    reason: str


class CallReport(Struct, frozen=True, kw_only=True):
    """All that ``call`` has to say. ``outcome`` is that of the event that stops the request, else ``allow``.

    ``request`` is method and target as the agent was shown them; None where it was asked about a text.
    ``connect_ms`` is how long it took to connect and configure the agent, in milliseconds; None for one in the process,
    and for ``http``, where the first call connects.
    """

    command: str = "call"
    format: int = 1
    agent: str
    request: str | None
    outcome: str
    connect_ms: float | None
    calls: Sequence[CalledEvent]
    not_asked: Sequence[UnaskedEvent]


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "call",
        usage="python -m asgi_agents call AGENT [METHOD] [URI] [options]",
        help="ask one agent about a request, and print its answer",
        description="Ask one agent about a request, its response and its messages, and print its answers. Exits with 1"
        " if the agent stops the request or detects something, with 2 if it fails.",
        allow_abbrev=False,
    )
    add_target(parser)
    parser.add_argument("--status", type=int, metavar="N", help="ask about a response of this status, too")
    parser.add_argument(
        "--response-header", action="append", default=[], metavar="'NAME: VALUE'", help="of the response"
    )
    body = parser.add_mutually_exclusive_group()
    body.add_argument("--response-body", metavar="TEXT", help="of the response, whose status is 200 by default")
    body.add_argument("--response-body-file", metavar="FILE", help="the same from a file; - is standard input")
    parser.add_argument("--frame", metavar="TEXT", help="ask about a websocket message of the client, too")
    parser.add_argument("--inspect", metavar="TEXT", help="ask about a text, as guardrails are, and about nothing else")
    parser.add_argument(
        "--inspection-type", default=InspectionType.PROMPT_INJECTION.value, metavar="TYPE", help="(prompt_injection)"
    )
    parser.set_defaults(run=call)


def call(options: argparse.Namespace) -> int:
    """Ask an agent; the exit code."""
    question = None if options.inspect is not None else Question(options)
    events = list(_events(options, question))
    with captured_log(), printing_aside():
        guard = guard_of(options)
        # The log says what the report says.
        report, answers = run(partial(_ask, options.agent, guard, question, events))
    if options.json:
        print_json(report)
    else:
        _print(Page(sys.stdout), report, answers, given=_given(options))
    failures = [one.failure for one in report.calls if one.failure is not None]
    if failures:
        complain(failures[0])
        return IMPOSSIBLE
    return WELL if report.outcome in _PASSES else FOUND


def _events(options: argparse.Namespace, question: Question | None) -> Iterator[Event]:
    correlation_id = str(uuid4())
    if question is None:
        try:
            yield GuardrailInspectEvent(
                correlation_id=correlation_id, inspection_type=options.inspection_type, content=options.inspect
            )
        except ValueError as exc:
            raise MistakeError(f"--inspection-type: {exc}") from None
        return
    yield question.head(correlation_id)
    if question.body is not None:
        yield question.chunk(correlation_id)
    body = body_of(options.response_body, options.response_body_file)
    status = options.status
    if status is None and (body is not None or options.response_header):
        status = 200
    if status is not None:
        if not 100 <= status <= 599:
            raise MistakeError(f"--status {status}, expected 100 to 599")
        headers = headers_of(options.response_header, "--response-header")
        yield ResponseHeadersEvent(correlation_id=correlation_id, status=status, headers=headers)
    if body is not None:
        size = len(body)
        yield ResponseBodyChunkEvent(
            correlation_id=correlation_id, data=body, is_last=True, total_size=size, bytes_sent=size
        )
    if options.frame is not None:
        yield WebSocketFrameEvent(
            correlation_id=correlation_id,
            opcode=Opcode.TEXT,
            data=options.frame.encode(errors="surrogateescape"),
            client_to_server=True,
            frame_index=0,
            client_ip=question.client_ip,
        )
    yield RequestCompleteEvent(
        correlation_id=correlation_id,
        status=status or 200,
        duration_ms=0,
        request_body_size=len(question.body or b""),
        response_body_size=len(body or b""),
        upstream_attempts=1,
    )


class _Stopped(Struct, frozen=True):
    """The event that the agent has stopped the request at, in a word and as a decision."""

    outcome: str
    event: Event
    decision: Decision


def _as_it_has_ended(end: RequestCompleteEvent, stopped: _Stopped | None) -> RequestCompleteEvent:
    """What an agent is told in the end, as in front of an app: with the status of what is answered in its place."""
    if stopped is None or isinstance(stopped.decision, Allow):
        return end
    decision = AgentDecision(decision=stopped.decision, decided_by=_AGENT)
    reply = render_reply(decision, {"type": "http", "headers": []})
    at_the_head = isinstance(stopped.event, RequestHeadersEvent)
    return replace(
        end,
        status=reply.status,
        # Behind a head that is not allowed no body is read.
        request_body_size=0 if at_the_head else end.request_body_size,
        response_body_size=len(reply.body),
        upstream_attempts=0 if at_the_head or isinstance(stopped.event, RequestBodyChunkEvent) else 1,
    )


async def _ask(
    agent: str, guard: Guard, question: Question | None, events: Sequence[Event]
) -> tuple[CallReport, list[AnswerLines]]:
    guard.configuring.logged = False
    connect_ms: float | None = None
    calls: list[CalledEvent] = []
    answers: list[AnswerLines] = []
    not_asked: list[UnaskedEvent] = []
    stopped: _Stopped | None = None
    provisional: _Stopped | None = None
    try:
        started = time.perf_counter()
        if not guard.configured or guard.client.configures_itself:
            await configure(guard)
            connect_ms = round((time.perf_counter() - started) * 1000, 3) if guard.client.remote else None
        for event in events:
            if not isinstance(event, RequestBodyChunkEvent):
                # Nothing more comes that the agent could take it back for.
                stopped = stopped or provisional
            if isinstance(event, RequestCompleteEvent):
                # It is told of every request, whatever has become of it.
                event = _as_it_has_ended(event, stopped)
            elif stopped is not None:
                reason = f"the request was stopped before: {stopped.outcome}"
                not_asked.append(UnaskedEvent(event=event.event_type.value, reason=reason))
                continue
            elif event.event_type not in guard.hears:
                not_asked.append(UnaskedEvent(event=event.event_type.value, reason="the agent does not receive it"))
            if event.event_type not in guard.hears:
                continue
            called, lines, decision = await _ask_about(guard, event)
            calls.append(called)
            answers.append(lines)
            provisional = None
            if called.outcome != "allow":
                found = _Stopped(called.outcome, event, decision)
                if "needs_more" in lines.marks:
                    provisional = found
                else:
                    stopped = stopped or found
    finally:
        with anyio.CancelScope(shield=True):
            await guard.client.aclose()
    report = CallReport(
        agent=redact_secrets(agent),
        request=None if question is None else f"{question.method} {url_without_secrets(question.uri)}",
        outcome="allow" if stopped is None else stopped.outcome,
        connect_ms=connect_ms,
        calls=calls,
        not_asked=not_asked,
    )
    return report, answers


async def configure(guard: Guard) -> None:
    """Connect to the agent and hand it its configuration, within its timeout, and 10 s to digest the latter.

    :raises AgentError: it can't be reached, or refuses.
    """
    try:
        with anyio.fail_after(guard.config.timeout + (0.0 if guard.config.config is None else 10.0)):
            await guard.configuring.configure()
    except AgentError as exc:
        # There is no AgentConfig to change.
        exc.args = tuple(
            str(arg).replace(NO_CONFIG, "it has no configuration, expected --config JSON") for arg in exc.args
        )
        raise
    except TimeoutError:
        raise AgentError(f"{guard.client.address}: no connection within {guard.config.timeout:g} s") from None


async def _ask_about(guard: Guard, event: Event) -> tuple[CalledEvent, AnswerLines, Decision]:
    answer: AgentResponse | GuardrailResponse | None
    decision: Decision = Allow()
    if isinstance(event, GuardrailInspectEvent):
        verdict, inspection = await guard.inspect(event, FailureMode.CLOSED)
        answer = None if verdict.failure is not None else inspection
    else:
        verdict = await guard.call(event, FailureMode.CLOSED)
        answer = verdict.response
        if answer is not None:
            decision = answer.decision
        elif verdict.failure is not None:
            decision = verdict.failure.block
    if answer is not None:
        answer = without_secrets(answer)
    called = CalledEvent(
        event=event.event_type.value,
        outcome=verdict.outcome,
        ms=round(verdict.duration * 1000, 3),
        answer=None if answer is None else plain_answer(answer),
        failure=_failure(verdict),
        status=event.status if isinstance(event, RequestCompleteEvent) else None,
    )
    return called, AnswerLines() if answer is None else lines_of(answer), decision


def _failure(verdict: Verdict) -> str | None:
    return None if verdict.failure is None else redact_secrets(verdict.failure.message)


def _given(options: argparse.Namespace) -> str:
    return f"{options.method.upper()} {url_without_secrets(options.uri)}"


def _print(page: Page, report: CallReport, answers: Sequence[AnswerLines], *, given: str) -> None:
    colours = {"allow": "green"}
    if report.request is not None and report.request != given:
        page.wrapped(f"{'request':<20}", report.request)
    for called, lines in zip(report.calls, answers, strict=True):
        if called.status is not None and called.failure is None:
            # Nobody waits for the answer, and nothing is allowed by it.
            outcome, colour = f"told of the end: {called.status}", "dim"
        else:
            outcome = " ".join([called.outcome, *lines.marks])
            colour = colours.get(called.outcome, "red")
        gap = " " * max(1, 24 - len(outcome))
        page.line(f"{called.event:<20}", Painted(outcome, colour), f"{gap}{called.ms:8.2f} ms")
        if called.failure is not None:
            page.wrapped("  ", called.failure)
        for name, value in lines.details:
            page.wrapped(f"  {name:<18}", value)
    for unasked in report.not_asked:
        page.wrapped(f"{unasked.event:<20}", f"not asked: {unasked.reason}")
    if report.connect_ms is not None:
        page.line(f"{'connected in':<44}{report.connect_ms:8.2f} ms")
