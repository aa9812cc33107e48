"""The ways to an agent. What each carries is asked of the code that does it: transports, encoders, constructors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, cast

from asgi_agents import (
    Agent,
    AgentError,
    AgentMiddleware,
    AgentResponse,
    ConfigurationError,
    EventType,
    ForwardAuthTransport,
    GrpcTransport,
    HttpTransport,
    StreamTransport,
)
from asgi_agents.decision import AgentDecision
from asgi_agents.exchange.reply import render_reply
from asgi_agents.protocol import Headers
from asgi_agents.protocol.grpc.answers import decode_answer, encode_answer
from asgi_agents.protocol.grpc.messages import AgentToProxy
from asgi_agents.serve import agent_app
from asgi_agents.serve.authorization import Permission, _sayable
from asgi_agents.serve.forward_auth import ForwardAuthApi, answer_of
from asgi_agents.serve.grpc.ext_authz import ExtAuthzService, encode_permission
from asgi_agents.serve.grpc.ext_proc import ExtProcService
from asgi_agents.transports.in_process import InProcessTransport

from .agents import agent_of
from .app import app
from .case import Case, Kind, Outcome
from .served import Served, nowhere
from .table import TABLE
from .way import Way, config_of, guarded

# What the agent is told by whoever serves it, when the exchange is over there.
_TOLD_BY_THE_SERVER: Final = frozenset({EventType.REQUEST_COMPLETE})
_NOBODY: Final = "grpc://127.0.0.1:1"
#: The request headers that agents of the table set, which a proxy is to be told the names of.
SET: Final = frozenset(
    op.name
    for case in TABLE
    for said in case.answers.values()
    if isinstance(said, AgentResponse)
    for op in said.request_headers
) | {"x-seen"}


@dataclass(frozen=True, kw_only=True)
class Reached(Way):
    """A way of the middleware's to an agent that is served here.

    :ivar guard: the app of the table, behind the agent.
    """

    guard: Callable[[Case, Served], AgentMiddleware]


def events_of(kind: Kind) -> frozenset[EventType]:
    """The events that an agent of the kind has hooks for."""
    return agent_of(kind).events


def _named(kind: Kind) -> frozenset[EventType]:
    """The events that have to be named where the agent can't say them."""
    return events_of(kind) - _TOLD_BY_THE_SERVER


def carried(transport: Any) -> Callable[[Kind], frozenset[EventType]]:
    """What an agent of a kind is asked about by a transport: what the transport says that it carries."""
    carries = getattr(transport, "carries", frozenset(EventType))
    return lambda kind: events_of(kind) & (carries | _TOLD_BY_THE_SERVER)


def none_refused(case: Case) -> str:
    """The way takes every agent."""
    return ""


# What can be said


def permission_of(event_type: EventType, answer: AgentResponse) -> Permission:
    sayable = _sayable(answer, event_type)
    if sayable.is_allow:
        return Permission(request_headers=sayable.request_headers, response_headers=sayable.response_headers)
    decision = AgentDecision(decision=sayable.decision, decided_by="agent", response_headers=sayable.response_headers)
    return Permission(reply=render_reply(decision, {"type": "http", "headers": []}))


def said_by_grpc(event_type: EventType, answer: AgentResponse) -> AgentResponse:
    return decode_answer(AgentToProxy.FromString(encode_answer(answer, "any")).response)


def said_by_ext_authz(event_type: EventType, answer: AgentResponse) -> AgentResponse:
    encode_permission(permission_of(event_type, answer), Headers({}))
    return answer


def said_by_proxies(api: ForwardAuthApi, event_type: EventType, answer: AgentResponse) -> AgentResponse:
    if answer_of(permission_of(event_type, answer), api).status_code >= 500:
        raise AgentError("to the transport a service has failed that answers 5xx")
    return answer


# What the documentation says of outcomes


def _routing(rename: Callable[[Mapping[str, str]], Mapping[str, str]]) -> Callable[[Case, Outcome], Outcome]:
    def restated(case: Case, outcome: Outcome) -> Outcome:
        seen = outcome.app
        return outcome if seen is None else replace(outcome, app=replace(seen, routing=rename(seen.routing)))

    return restated


def restated_over_http(case: Case, outcome: Outcome) -> Outcome:
    """Over HTTP nothing can be said for routing; Envoy takes 5xx for a failure, so that a block has another status."""
    outcome = _routing(lambda _: {})(case, outcome)
    said = case.answers.get(EventType.REQUEST_HEADERS)
    blocks = isinstance(said, AgentResponse) and not said.is_allow
    return replace(outcome, status=403) if blocks and outcome.status >= 500 and not outcome.failed else outcome


# The ways


def _reach(transport: Callable[[Case, Served], Any], **more: Any) -> Callable[[Case, Served], AgentMiddleware]:
    def guard(case: Case, served: Served) -> AgentMiddleware:
        settings = dict(more)
        if "events" in settings:
            settings["events"] = events_of(case.kind) if settings["events"] == "all" else _named(case.kind)
        return guarded(case, config_of(case, transport(case, served), **settings))

    return guard


def _ext_proc(case: Case, served: Served) -> AgentMiddleware:
    if case.kind is not Kind.TEXTS:
        body_mode = "buffered" if case.mode == "buffer" else "streamed"
        transport = GrpcTransport(served.grpc, protocol="ext_proc", body_mode=cast(Any, body_mode))
        events = _named(case.kind)
        if case.kind is Kind.HEADS:
            # What it says of the response is asked for when there is one.
            events |= {EventType.RESPONSE_HEADERS}
        return guarded(case, config_of(case, transport, events=events))
    # To the app's middleware, what judges text elsewhere is an agent that changes bodies.
    transport = GrpcTransport(served.grpc, protocol="ext_proc", body_mode="full_duplex_streamed")
    return AgentMiddleware(app, agents=[config_of(case, transport, events=transport.carries)])


def _asked_by_ext_proc(kind: Kind) -> frozenset[EventType]:
    # Text is judged where the agent is served, which is shown bodies.
    return events_of(kind) if kind is Kind.TEXTS else carried(_EXT_PROC)(kind)


def _proxied(style: ForwardAuthApi) -> Callable[[Case, Served], ForwardAuthTransport]:
    return lambda case, served: ForwardAuthTransport(
        f"{served.http}/{style}", style=style, upstream_headers=SET, client_headers=None
    )


_EXT_PROC: Final = GrpcTransport(_NOBODY, protocol="ext_proc")
_EXT_AUTHZ: Final = GrpcTransport(_NOBODY, protocol="ext_authz")


def _refused(
    guard: Callable[[Case, Served], AgentMiddleware], *serves: Callable[[Agent], object]
) -> Callable[[Case], str]:
    """How the agent of a case is refused: by what serves it, or by the middleware that is to ask it."""

    def refusal(case: Case) -> str:
        agent = agent_of(case.kind)
        try:
            for serve in serves:
                serve(agent)
            guard(case, nowhere(agent))
        except ConfigurationError as exc:
            return str(exc)
        return ""

    return refusal


def _way(
    name: str,
    transport: Any,
    guard: Callable[[Case, Served], AgentMiddleware],
    *serves: Callable[[Agent], object],
    **more: Any,
) -> Reached:
    settings = {"asked": carried(transport), **more}
    return Reached(name=name, refusal=_refused(guard, *serves), guard=guard, **settings)


def _of_proxies(name: str, style: ForwardAuthApi) -> Reached:
    return _way(
        name,
        ForwardAuthTransport("http://nobody/", style=style),
        _reach(_proxied(style), events="named"),
        partial(agent_app, api=style),
        said=partial(said_by_proxies, style),
        restated=restated_over_http if style == "ext_authz" else _routing(lambda _: {}),
    )


IN_PROCESS: Final = _way("in the process", InProcessTransport, _reach(lambda case, served: agent_of(case.kind)))
LOCAL: Final = (
    IN_PROCESS,
    _way("Unix socket", StreamTransport, _reach(lambda case, served: served.unix)),
    _way("TCP", StreamTransport, _reach(lambda case, served: StreamTransport(served.tcp, encoding="msgpack"))),
    _way("HTTP", HttpTransport, _reach(lambda case, served: f"{served.http}/agent", events="all")),
    _way("gRPC", GrpcTransport(_NOBODY), _reach(lambda case, served: served.grpc), said=said_by_grpc),
    _way("ext_proc", _EXT_PROC, _ext_proc, ExtProcService, asked=_asked_by_ext_proc),
    _way(
        "ext_authz",
        _EXT_AUTHZ,
        _reach(lambda case, served: GrpcTransport(served.grpc, protocol="ext_authz"), events="named"),
        ExtAuthzService,
        said=said_by_ext_authz,
    ),
    _of_proxies("ext_authz over HTTP", "ext_authz"),
    _of_proxies("forward_auth", "forward_auth"),
)
