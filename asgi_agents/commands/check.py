"""``check module:app``: which agents guard which endpoint, and what is wrong with them."""

import argparse
import contextlib
import inspect
import re
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final

import anyio

from ..errors import AgentError, AgentProtocolError, AgentTimeoutError, ConfigurationError
from ..guard import Guard
from ..middleware import AgentMiddleware, finder_of
from ..observability.redaction import redact_secrets
from ..routing.finder import RouteFinder
from ..routing.survey import Survey, survey_app
from ..terminal.arguments import seconds
from ..terminal.loading import MistakeError, as_mistakes, call_object, find_object
from ..terminal.output import Page, captured_log, printing_aside
from .allowing import checked_patterns, is_allowed
from .outcome import FOUND, WELL, print_json
from .report import CheckFinding, CheckReport, EndpointReport, State, print_report, report_of, report_of_agent, title_of
from .running import run

# How messages about a file begin: agents.yaml:2: agents[0].config.password: ...
_IN_FILE: Final = re.compile(r"(?P<file>[^\n]*?\.(?:toml|yaml|json)(?::\d+)?: )(?P<place>[^\s:]+: )")
_Answers = dict[Guard, tuple[State, str | None, str]]


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "check",
        usage="python -m asgi_agents check MODULE:APP [options]",
        help="list the endpoints of an app with the agents that guard them, and find mistakes",
        description="List every endpoint and websocket route of an app with the agents that guard it. The app is"
        " imported, and not started. Its agents are connected to and given their configuration, as when it starts.",
        allow_abbrev=False,
    )
    parser.add_argument("app", help="module:name of an ASGI app")
    parser.add_argument("--factory", action="store_true", help="the name is a function that makes the app")
    parser.add_argument("--offline", action="store_true", help="connect to no agent, and configure none")
    parser.add_argument(
        "--fail-unguarded",
        action="store_true",
        help="exit with 1 if any endpoint is unguarded that does not say so, with @unguarded or agents=[]",
    )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="PATTERN",
        help="paths that may be open, such as /docs or /static/{rest:path}; may be repeated",
    )
    parser.add_argument("--timeout", type=seconds, default=10.0, metavar="S", help="seconds for each agent (10)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=check)


def check(options: argparse.Namespace) -> int:
    """Check an app; the exit code."""
    findings: list[CheckFinding] = []
    allowed = checked_patterns(options.allow)
    survey: Survey | None = None
    with captured_log() as messages, printing_aside():
        try:
            survey = _list(_load(options.app, factory=options.factory))
        except ConfigurationError as exc:
            # Each mistake of a file is a line.
            lines = str(exc).splitlines() or [""]
            findings += [CheckFinding(kind="configuration", subject=None, message=_redacted(line)) for line in lines]
        guards = [] if survey is None else _guards(survey)
        answers: _Answers = dict.fromkeys(guards, ("not asked", None, ""))
    if not options.offline:
        with captured_log() as more, printing_aside():
            run(partial(_ask, answers, options.timeout))
        failed = tuple(f"agent {guard.config.id!r}" for guard, (state, _, _) in answers.items() if state == "failed")
        # Of those that have failed, the report says more.
        messages += [text for text in more if not text.startswith(failed)]
    endpoints = [] if survey is None else [report_of(endpoint, allowed) for endpoint in survey.endpoints]
    findings += [CheckFinding(kind="warning", subject=None, message=_redacted(text)) for text in messages]
    for guard, (state, error, kind) in answers.items():
        if state == "failed":
            message = f"agent {guard.config.id!r}: {error}"
            findings.append(CheckFinding(kind=kind, subject=guard.config.id, message=message))
    if survey is not None:
        findings += _without_agents(survey, endpoints, fail=options.fail_unguarded)
    report = CheckReport(
        app=options.app,
        endpoints=endpoints,
        agents=[report_of_agent(guard, state, error) for guard, (state, error, _) in answers.items()],
        findings=list(dict.fromkeys(findings)),
        notes=[] if survey is None else [*_notes(survey, endpoints), *_unused(allowed, endpoints)],
    )
    if options.json:
        print_json(report)
    else:
        print_report(Page(sys.stdout), report)
    return FOUND if report.findings else WELL


def _load(spec: str, *, factory: bool) -> Any:
    found = find_object(spec, refusals=True)
    if factory:
        if not callable(found):
            raise MistakeError(f"{spec!r} is a {type(found).__name__}, expected a function that makes an app")
        found = call_object(spec, found, refusals=True)
    if not callable(found) or isinstance(found, type):
        hint = "" if factory else "; for a function that makes one, give --factory"
        raise MistakeError(f"{spec!r} is a {type(found).__name__}, expected an ASGI app{hint}")
    if not factory and _makes_app(found):
        raise MistakeError(f"{spec!r} takes no scope, receive and send, expected an ASGI app; give --factory")
    return found


def _makes_app(found: Any) -> bool:
    """Whether it can't be called with what an ASGI app is called with, as a function that makes an app can't."""
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        # Not every callable that is written in C says what it takes.
        return False
    try:
        signature.bind(None, None, None)
    except TypeError:
        return True
    return False


def _redacted(text: str) -> str:
    """A message without secrets. What it says of a place in a file is none, though the place may be named like one."""
    found = _IN_FILE.match(text)
    if found is None:
        return redact_secrets(text)
    return redact_secrets(found["file"]) + found["place"] + redact_secrets(text[found.end() :])


def _list(app: Any) -> Survey:
    # A middleware may be at fault that was made with the stack.
    with as_mistakes("the app can't be built", refusals=True):
        return survey_app(app, finder_at)


def finder_at(layer: object) -> RouteFinder | None:
    """What finds the agents of a connection, where an AgentMiddleware is; None where something else is."""
    return finder_of(layer) if isinstance(layer, AgentMiddleware) else None


def _guards(survey: Survey) -> Sequence[Guard]:
    return list(dict.fromkeys(guard for finder in survey.finders for guard in finder.registry.guards()))


# Agents


async def _ask(answers: _Answers, timeout: float) -> None:
    async with anyio.create_task_group() as tasks:
        for guard in answers:
            tasks.start_soon(_ask_one, guard, answers, timeout)


async def _ask_one(guard: Guard, answers: _Answers, timeout: float) -> None:
    """Do with an agent what the start of the app does: connect, and hand over its configuration."""
    guard.configuring.logged = False
    client = guard.client
    answers[guard] = ("ready", None, "")
    try:
        if client.remote and not client.configures_itself:
            await _within(min(timeout, guard.config.timeout), client.connect)
        await _within(timeout, guard.configuring.configure)
    except AgentError as exc:
        message = redact_secrets(str(exc))
        refused = not client.remote or "its configuration" in message or isinstance(exc, AgentProtocolError)
        if client.address and client.address not in message:
            message = f"{redact_secrets(client.address)}: {message}"
        answers[guard] = ("failed", message, "agent_refused" if refused else "agent_unreachable")
    except Exception as exc:
        # A transport of the application's own may raise anything. The other agents are asked all the same.
        answers[guard] = ("failed", redact_secrets(f"{type(exc).__name__}: {exc}"), "agent_unreachable")
    finally:
        with anyio.CancelScope(shield=True), contextlib.suppress(Exception):
            await client.aclose()


async def _within(timeout: float, function: Callable[[], Awaitable[None]]) -> None:
    try:
        with anyio.fail_after(timeout):
            await function()
    except TimeoutError:
        raise AgentTimeoutError(f"no answer within {timeout:g} s") from None


# What else there is


def _without_agents(survey: Survey, endpoints: Sequence[EndpointReport], *, fail: bool) -> Iterator[CheckFinding]:
    if not survey.finders:
        message = (
            "no AgentMiddleware is in the app: write protect(app, agents=[...]); one that a middleware hides, because"
            " it does not keep the app that it wraps in an attribute named app, is not seen"
        )
        yield CheckFinding(kind="no_agents", subject=None, message=message)
    if not fail:
        return
    for endpoint in endpoints:
        if endpoint.declared is not None:
            continue
        if endpoint.guarded is False:
            where = title_of(endpoint)
            yield CheckFinding(kind="unguarded", subject=where, message=f"{where} is unguarded{_why(endpoint)}")
        elif endpoint.guarded is None:
            where = title_of(endpoint)
            message = f"{where}: nobody can tell whether it is guarded"
            yield CheckFinding(kind="unguarded", subject=where, message=message)


def _why(endpoint: EndpointReport) -> str:
    """Why an endpoint is unguarded that has agents."""
    if not endpoint.agents and not endpoint.guardrails:
        return ""
    return ": none of its agents can stop a request"


def _unused(allowed: Sequence[str], endpoints: Sequence[EndpointReport]) -> Iterator[CheckFinding]:
    for pattern in allowed:
        if not any(is_allowed(endpoint.only or endpoint.path, pattern) for endpoint in endpoints):
            message = f"--allow {pattern!r} is for no endpoint of the app"
            yield CheckFinding(kind="unmatched_allow", subject=pattern, message=message)


def _notes(survey: Survey, endpoints: Sequence[EndpointReport]) -> Iterator[CheckFinding]:
    if not survey.readable:
        name = endpoints[0].name if endpoints else "it"
        message = f"the routes of the app can't be read: {name} has no router of Starlette's; the table has your routes"
        yield CheckFinding(kind="unreadable", subject=name, message=message)
    for pattern in survey.unmatched:
        message = f"AgentRoute({pattern!r}) matches no endpoint of the app"
        yield CheckFinding(kind="unmatched_route", subject=pattern, message=message)
    for prefix in survey.open_ended:
        message = f"the router at {prefix!r} answers more than its routes: it has a fallback of its own"
        yield CheckFinding(kind="open_ended", subject=prefix, message=message)
    for path in survey.cut:
        message = f"{path!r} meets so many of your routes that not all of its paths were looked at"
        yield CheckFinding(kind="cut", subject=path, message=message)
    for endpoint in endpoints:
        if endpoint.taken_by is not None:
            where = title_of(endpoint)
            message = f"{where} never runs: {endpoint.taken_by!r} is before it and takes its paths"
            yield CheckFinding(kind="never_runs", subject=where, message=message)
