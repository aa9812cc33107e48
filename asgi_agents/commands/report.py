"""What ``check`` has found: the values that are its JSON, and how they are printed."""

from collections.abc import Iterable, Sequence
from typing import Final, Literal

from msgspec import Struct

from ..evaluation.resolved_route import ResolvedRoute
from ..evaluation.route_agent import RouteAgent
from ..guard import Guard
from ..guardrails import ToolPolicy, ToolRule
from ..guardrails.slots import Kind
from ..observability.redaction import redact_secrets
from ..policy import FailureMode
from ..protocol import EventType
from ..routing.openness import OpenDeclaration
from ..routing.survey import SurveyedEndpoint
from ..terminal.output import Page
from .allowing import declaration_of

State = Literal["ready", "failed", "not asked"]

_COMMON: Final = frozenset(
    {
        EventType.REQUEST_HEADERS,
        EventType.RESPONSE_HEADERS,
        EventType.RESPONSE_BODY_CHUNK,
        EventType.REQUEST_COMPLETE,
        EventType.GUARDRAIL_INSPECT,
    }
)
#: The events that there are on an endpoint. A websocket's response is that of a refused handshake.
_EVENTS: Final = {
    "http": _COMMON | {EventType.REQUEST_BODY_CHUNK},
    "websocket": _COMMON | {EventType.WEBSOCKET_FRAME},
    "app": frozenset(EventType) - {EventType.CONFIGURE},
    "unreadable": frozenset(EventType) - {EventType.CONFIGURE},
}
# An agent that receives none of these can't stop a request before the endpoint has run.
_OF_REQUESTS: Final = frozenset(
    {EventType.REQUEST_HEADERS, EventType.REQUEST_BODY_CHUNK, EventType.WEBSOCKET_FRAME},
)
# The same of the kinds of texts: calls of tools and their results stand in requests as well as in answers.
_TEXTS_OF_REQUESTS: Final = frozenset({"input", "tool_call", "tool_result"})
_KINDS: Final[Sequence[Kind]] = ("input", "reasoning", "output", "tool_call", "tool_result")


class EndpointAgent(Struct, frozen=True, kw_only=True):
    """An agent on an endpoint, with the events that it receives there; ``enforced`` is False for a shadow agent.

    ``stops`` is whether it can stop a request or a message: it is enforced, receives any there, and does not say of
    itself that it never stops anything. ``decided_by`` is ``endpoint`` for a policy on the endpoint or a router around
    it, ``route`` for a route of ours, and ``default`` for the default agents.
    """

    id: str
    decided_by: str
    failure_mode: str
    enforced: bool
    events: Sequence[str]
    stops: bool
    never_stops: bool


class EndpointGuardrail(Struct, frozen=True, kw_only=True):
    """A text guardrail on an endpoint: its agent, the kinds of text that it judges, and whether that can stop a request
    (``stops``): it is enforced, and judges texts that stand in requests.
    """

    agent: str
    on: Sequence[str]
    enforced: bool
    stops: bool


class EndpointToolRule(Struct, frozen=True, kw_only=True):
    """A rule of a tool policy: a pattern of names, and whether a function of the arguments has a say too."""

    name: str
    conditional: bool


class EndpointTools(Struct, frozen=True, kw_only=True):
    """A tool policy on an endpoint. ``allow`` is None where all tools may be called that are not denied."""

    allow: Sequence[EndpointToolRule] | None
    deny: Sequence[EndpointToolRule]


class EndpointReport(Struct, frozen=True, kw_only=True):
    """An endpoint, or some of its methods or paths.

    ``agents`` are those that are asked, outermost middleware first. ``guarded`` is whether any of them, or a guardrail,
    can stop a request or a message of the client; None where nobody can tell. A tool policy looks at calls of tools
    alone, and does not count. ``declared`` is who says that an endpoint that is not guarded is meant to be open.
    The other fields are those of :class:`~asgi_agents.routing.survey.SurveyedEndpoint`.
    """

    kind: str
    path: str
    methods: Sequence[str] | None
    host: str | None
    name: str
    only: str | None
    example: str | None
    taken_by: str | None
    guarded: bool | None
    declared: OpenDeclaration | None
    agents: Sequence[EndpointAgent]
    guardrails: Sequence[EndpointGuardrail]
    tools: Sequence[EndpointTools]


class AgentReport(Struct, frozen=True, kw_only=True):
    """An agent: where it is, what it receives, and whether it can be used.

    ``events_known`` is False where the agent names its events itself, and could not be asked.
    """

    id: str
    transport: str
    address: str | None
    failure_mode: str
    enforced: bool
    events: Sequence[str]
    events_known: bool
    state: State
    error: str | None


class CheckFinding(Struct, frozen=True, kw_only=True):
    """Something that was found; of the same ``kind`` each time, with the endpoint, agent or route as ``subject``."""

    kind: str
    subject: str | None
    message: str


class CheckReport(Struct, frozen=True, kw_only=True):
    """All that ``check`` has to say. ``findings`` make the exit code 1, ``notes`` don't."""

    command: str = "check"
    format: int = 1
    app: str
    endpoints: Sequence[EndpointReport] = ()
    agents: Sequence[AgentReport] = ()
    findings: Sequence[CheckFinding] = ()
    notes: Sequence[CheckFinding] = ()


def report_of(endpoint: SurveyedEndpoint, allowed: Sequence[str] = ()) -> EndpointReport:
    """What is reported of an endpoint. ``allowed`` are the patterns of those that may be open."""
    agents = [
        _agent(agent, _decided_by(found), _EVENTS[endpoint.kind]) for found in endpoint.asked for agent in found.agents
    ]
    guardrails = [guardrail for found in endpoint.asked for guardrail in _guardrails(found)]
    tools = [_tools(policy) for found in endpoint.asked if found.judges for policy in found.judges.policies]
    # A policy that can't be carried out lets nothing run.
    refused = any(found.refusal is not None for found in endpoint.asked)
    guards = refused or any(agent.stops for agent in agents) or any(guardrail.stops for guardrail in guardrails)
    unknown = endpoint.kind == "unreadable" or (endpoint.example is None and endpoint.taken_by is None)
    return EndpointReport(
        kind=endpoint.kind,
        path=endpoint.path,
        methods=None if endpoint.methods is None else sorted(endpoint.methods),
        host=endpoint.host,
        name=endpoint.name,
        only=endpoint.only,
        example=endpoint.example,
        taken_by=endpoint.taken_by,
        guarded=None if unknown else guards,
        declared=None if guards and not unknown else declaration_of(endpoint, allowed),
        agents=[] if unknown else agents,
        guardrails=[] if unknown else guardrails,
        tools=[] if unknown else tools,
    )


def _agent(agent: RouteAgent, decided_by: str, there: frozenset[EventType]) -> EndpointAgent:
    guard = agent.guard
    events = guard.hears & there
    never_stops = bool(getattr(guard.client.agent, "never_stops", False))
    return EndpointAgent(
        id=guard.config.id,
        decided_by=decided_by,
        failure_mode=agent.failure_mode.value,
        enforced=guard.config.enforce,
        events=in_order(events),
        stops=guard.config.enforce and not never_stops and not events.isdisjoint(_OF_REQUESTS),
        never_stops=never_stops,
    )


def _decided_by(found: ResolvedRoute) -> str:
    return "endpoint" if found.policy is not None else "default" if found.route is None else "route"


def _guardrails(found: ResolvedRoute) -> Iterable[EndpointGuardrail]:
    if found.judges is None:
        return
    for guardrail, agent in zip(found.judges.guardrails, found.judges.agents, strict=True):
        on = [kind for kind in _KINDS if kind in guardrail.kinds]
        enforced = agent.guard.config.enforce
        stops = enforced and not _TEXTS_OF_REQUESTS.isdisjoint(on)
        yield EndpointGuardrail(agent=guardrail.agent_id, on=on, enforced=enforced, stops=stops)


def _tools(policy: ToolPolicy) -> EndpointTools:
    return EndpointTools(
        allow=None if policy.allow is None else [*map(_tool_rule, policy.allow)], deny=[*map(_tool_rule, policy.deny)]
    )


def _tool_rule(rule: ToolRule) -> EndpointToolRule:
    return EndpointToolRule(name=rule.name, conditional=rule.when is not None)


def report_of_agent(guard: Guard, state: State, error: str | None) -> AgentReport:
    """What is reported of an agent."""
    config = guard.config
    return AgentReport(
        id=config.id,
        transport=guard.client.kind,
        address=redact_secrets(guard.client.address) or None,
        failure_mode=config.fails.value,
        enforced=config.enforce,
        events=in_order(guard.hears - {EventType.CONFIGURE}),
        events_known=config.hears is not None or state == "ready",
        state=state,
        error=error,
    )


def in_order(events: frozenset[EventType]) -> Sequence[str]:
    """The events as they come in the life of a connection."""
    return [event.value for event in EventType if event in events]


# Printing

_HINT: Final = (
    "an endpoint that is meant to be open says so with @unguarded or AgentRoute(path, agents=[]); --allow PATTERN says"
    " it of what can't, such as /docs"
)


def title_of(endpoint: EndpointReport) -> str:
    """Methods and path of an endpoint, for a sentence."""
    return f"{_methods(endpoint)} {_path(endpoint)}"


def print_report(page: Page, report: CheckReport) -> None:
    """Print it as text."""
    if report.endpoints:
        rows = [(_methods(one), _path(one), _agents(one)) for one in report.endpoints]
        colours = [_colour(one) for one in report.endpoints]
        page.table(("METHOD", "PATH", "AGENTS"), rows, colours)
        page.line()
    if report.agents:
        agent_rows = [
            (one.id, one.failure_mode if one.enforced else "shadow", one.state, _where(one)) for one in report.agents
        ]
        states = {"ready": "green", "failed": "red"}
        page.table(
            ("AGENT", "FAILS", "STATE", "WHERE AND WHAT IT RECEIVES"),
            agent_rows,
            [states[one.state] if one.state == "failed" else None for one in report.agents],
        )
        page.line()
    for finding in report.findings:
        page.wrapped("found: ", finding.message, colour="red")
    for note in report.notes:
        page.wrapped("note:  ", note.message)
    if any(finding.kind == "unguarded" for finding in report.findings):
        page.wrapped("hint:  ", _HINT)
    if report.findings or report.notes:
        page.line()
    page.line(_summary(report))


def _summary(report: CheckReport) -> str:
    unguarded = sum(one.guarded is False and one.declared is None for one in report.endpoints)
    declared = sum(one.declared is not None for one in report.endpoints)
    failed = sum(one.state == "failed" for one in report.agents)
    endpoints = sum(one.only is None for one in report.endpoints)
    parts = [
        f"{endpoints} {'endpoint' if endpoints == 1 else 'endpoints'}",
        f"{unguarded} unguarded",
        *([f"{declared} open as declared"] if declared else []),
        f"{len(report.agents)} {'agent' if len(report.agents) == 1 else 'agents'}",
        f"{failed} failed",
        f"{len(report.findings)} found",
    ]
    return ", ".join(parts)


def _methods(endpoint: EndpointReport) -> str:
    if endpoint.kind == "websocket":
        return "WS"
    methods = endpoint.methods
    if not methods:
        return "ANY" if methods is None else "-"
    # Whoever takes GET takes HEAD, usually. The JSON has all of them.
    several = [method for method in methods if method != "HEAD" or "GET" not in methods]
    return ",".join(several) if len(several) < 4 else f"{several[0]},{several[1]},+{len(several) - 2}"


def _path(endpoint: EndpointReport) -> str:
    path = f"{endpoint.path}?" if endpoint.kind == "unreadable" else endpoint.only or endpoint.path
    return (endpoint.host or "") + ("  " if endpoint.only else "") + path


def _agents(endpoint: EndpointReport) -> str:
    said = "" if endpoint.declared is None else f", open: {endpoint.declared}"
    if endpoint.kind == "unreadable":
        return f"unknown: {endpoint.name} has no path that can be read{said}"
    if endpoint.guarded is None:
        return f"unknown: no path was found that leads here{said}"
    parts = [_with_marks(agent) for agent in endpoint.agents]
    if endpoint.guardrails:
        parts.append("text: " + " + ".join(map(_guardrail_with_marks, endpoint.guardrails)))
    parts += [f"tools: {_named_tools(tools)}" for tools in endpoint.tools]
    text = ", ".join(parts)
    if endpoint.guarded is False:
        said = "UNGUARDED" if endpoint.declared is None else f"open: {endpoint.declared}"
        text = f"{said} ({text})" if text else said
    return text if endpoint.taken_by is None else f"never runs, {endpoint.taken_by} does: {text}"


def _named_tools(tools: EndpointTools) -> str:
    allowed = "all" if tools.allow is None else _named_rules(tools.allow)
    return f"{allowed} but {_named_rules(tools.deny)}" if tools.deny else allowed


def _named_rules(rules: Sequence[EndpointToolRule]) -> str:
    return " + ".join(f"{rule.name} (some calls)" if rule.conditional else rule.name for rule in rules) or "none"


def _with_marks(agent: EndpointAgent) -> str:
    marks = []
    if not agent.enforced:
        marks.append("shadow")
    elif agent.failure_mode == FailureMode.OPEN:
        marks.append("open")
    if not agent.events:
        marks.append("receives nothing here")
    elif agent.never_stops:
        marks.append("never stops")
    elif agent.enforced and not agent.stops:
        marks.append("receives no request")
    return f"{agent.id} ({', '.join(marks)})" if marks else agent.id


def _guardrail_with_marks(guardrail: EndpointGuardrail) -> str:
    if not guardrail.enforced:
        return f"{guardrail.agent} (shadow)"
    return guardrail.agent if guardrail.stops else f"{guardrail.agent} (answers only)"


def _colour(endpoint: EndpointReport) -> str | None:
    if endpoint.declared is not None or endpoint.guarded:
        return None
    return "yellow" if endpoint.guarded is None else "red"


def _where(agent: AgentReport) -> str:
    where = f"{agent.transport} {agent.address}" if agent.address else agent.transport
    events = ", ".join(agent.events) if agent.events_known else "it says itself what"
    return f"{where}: {events or 'nothing'}"
