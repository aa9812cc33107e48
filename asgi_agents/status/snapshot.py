"""What the status page shows, at one moment."""

import time
from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct

from .._version import __version__
from ..evaluation.resolved_route import RouteListing
from ..guard import Guard
from ..guardrails import Guardrail, TextGuardrail
from ..guardrails.slots import Kind
from ..observability.endpoints import EndpointStatistics
from ..observability.histograms import percentile
from ..observability.history import SLOT_SECONDS, Latency, TimeSlot
from ..observability.metrics import Incident, TextTally
from ..observability.sources import SourceStatus
from ..policy import FailureMode
from ..protocol import EventType
from ..registry import AgentRegistry

# As they come in a call.
_KINDS: Final[Sequence[Kind]] = ("input", "reasoning", "output", "tool_call", "tool_result")


class HoldStatus(Struct, frozen=True, kw_only=True):
    """How long the text of streams was held, in seconds: of each stream that is over, the event that waited longest.

    All are None until the first such stream is over.
    """

    p50: float | None
    p90: float | None
    p99: float | None
    longest: float | None


class TextStatus(Struct, frozen=True, kw_only=True):
    """What an agent does as a guardrail, since it was added.

    :ivar finds: how often it did what, by the kind of text: ``{"redact": {"output": 2}}``. It is ``redact``, ``block``,
        ``flag``, or ``unreadable`` for what could not be shown to it, and ``dropped``, whose kinds are empty.
    :ivar windows: of text, which are judged now.
    :ivar held: code points that wait now in the streams that it judges.
    :ivar streams: of which ``hold`` tells.
    """

    finds: Mapping[str, Mapping[str, int]]
    windows: int
    held: int
    streams: int
    hold: HoldStatus


class AgentStatus(Struct, frozen=True, kw_only=True):
    """One agent. Durations are seconds.

    :ivar breaker: ``closed``, ``open``, ``half_open``, or None where it is switched off; ``retry_after`` is how long it
        stays open at most.
    :ivar in_flight: calls under way, of at most ``max_in_flight``; ``waiting`` are those that wait for a permit or a
        place on a connection.
    :ivar calls: since the agent was added, as are ``outcomes``, ``passed_open``, ``shadowed`` and ``skipped_bodies``
        (see :class:`~asgi_agents.AgentMetrics`).
    :ivar latency: over the last ten minutes.
    :ivar slots: the last ten minutes in slots of ``slot_seconds``, oldest first.
    :ivar failures: the latest, newest first; ``denials`` likewise.
    :ivar text: None for an agent that never had anything to do as a guardrail.
    """

    id: str
    transport: str
    hears: Sequence[str]
    failure_mode: str
    enforced: bool
    configured: bool
    breaker: str | None
    retry_after: float
    in_flight: int
    max_in_flight: int
    waiting: int
    calls: int
    outcomes: Mapping[str, int]
    passed_open: int
    shadowed: int
    skipped_bodies: int
    latency: Latency
    slots: Sequence[TimeSlot]
    failures: Sequence[Incident]
    denials: Sequence[Incident]
    endpoints: Sequence[EndpointStatistics]
    text: TextStatus | None


class RouteAgentStatus(Struct, frozen=True, kw_only=True):
    """An agent on a route, the events that it receives there, and the failure mode that holds."""

    id: str
    hears: Sequence[str]
    failure_mode: str
    enforced: bool


class RouteGuardrailStatus(Struct, frozen=True, kw_only=True):
    """A guardrail on a route.

    :ivar id: of the agent.
    :ivar on: the kinds of text that it judges.
    :ivar action: what is done about a detection; None: the agent says so itself.
    :ivar conditional: whether a function says of each call whether it judges it.
    :ivar failure_mode: the one that holds.
    """

    id: str
    on: Sequence[str]
    action: str | None
    conditional: bool
    failure_mode: str
    enforced: bool


class RouteStatus(Struct, frozen=True, kw_only=True):
    """A route; ``path`` is None for connections that no route matches, ``methods`` None for all."""

    path: str | None
    methods: Sequence[str] | None
    agents: Sequence[RouteAgentStatus]
    guardrails: Sequence[RouteGuardrailStatus]


class Status(Struct, frozen=True, kw_only=True):
    """All agents and all routes.

    ``time`` is seconds since the epoch, ``interval`` is how many there are between two of these in the stream.
    ``source`` is the configuration file; None: there is none.
    """

    version: str = __version__
    time: float
    interval: float
    slot_seconds: int = SLOT_SECONDS
    agents: Sequence[AgentStatus]
    routes: Sequence[RouteStatus]
    source: SourceStatus | None = None


def take_snapshot(registry: AgentRegistry, interval: float = 1.0) -> Status:
    """How things are now; to be called on the event loop that serves."""
    now = time.monotonic()
    return Status(
        time=time.time(),
        interval=interval,
        agents=[_agent(guard, now) for guard in registry.guards()],
        routes=[_route(registry, listing) for listing in registry.listings],
        source=registry.source,
    )


def _agent(guard: Guard, now: float) -> AgentStatus:
    metrics, statistics, tally = guard.metrics(), guard.statistics(), guard.tally
    return AgentStatus(
        id=guard.config.id,
        transport=statistics.transport,
        hears=_in_order(guard.hears),
        failure_mode=guard.config.fails.value,
        enforced=guard.config.enforce,
        configured=guard.configured,
        breaker=statistics.breaker,
        retry_after=0.0 if guard.breaker is None else guard.breaker.retry_after,
        in_flight=statistics.in_flight,
        max_in_flight=statistics.max_in_flight,
        waiting=statistics.waiting,
        calls=metrics.calls,
        outcomes=metrics.outcomes,
        passed_open=metrics.passed_open,
        shadowed=metrics.shadowed,
        skipped_bodies=metrics.skipped_bodies,
        latency=tally.history.latency(now),
        slots=tally.history.slots(now),
        failures=sorted((*tally.failures, *tally.refusals), key=lambda incident: -incident.time),
        denials=tuple(reversed(tally.denials)),
        endpoints=statistics.endpoints,
        text=_text(tally.text) if tally.text.used else None,
    )


def _text(tally: TextTally) -> TextStatus:
    finds: dict[str, dict[str, int]] = {}
    for (what, kind), number in tally.counts.items():
        finds.setdefault(what, {})[kind] = number
    buckets = tuple(tally.delays.buckets)
    streams, longest = sum(buckets), tally.longest_delay
    p50, p90, p99 = (_at_most(longest, percentile(buckets, fraction)) for fraction in (0.5, 0.9, 0.99))
    return TextStatus(
        finds=finds,
        windows=tally.windows,
        held=tally.held,
        streams=streams,
        hold=HoldStatus(p50=p50, p90=p90, p99=p99, longest=longest if streams else None),
    )


def _at_most(longest: float, estimate: float | None) -> float | None:
    # Percentiles are interpolated, and may be beyond the longest that there was.
    return None if estimate is None else min(longest, estimate)


def _in_order(events: frozenset[EventType]) -> Sequence[str]:
    """As they come in the life of a connection."""
    return [event.value for event in EventType if event in events]


def _route(registry: AgentRegistry, listing: RouteListing) -> RouteStatus:
    agents = []
    for reference in registry.agent_ids if listing.agents is None else listing.agents:
        agent_id, failure_mode = (reference, None) if isinstance(reference, str) else reference
        guard = registry.find(agent_id)
        if guard is None:
            continue  # it was removed
        agents.append(
            RouteAgentStatus(
                id=agent_id,
                hears=_in_order(guard.hears),
                failure_mode=FailureMode(failure_mode or guard.config.fails).value,
                enforced=guard.config.enforce,
            )
        )
    guardrails = [
        _guardrail(guardrail, guard, listing)
        for guardrail in listing.guardrails
        if (guard := registry.find(guardrail.agent_id)) is not None
    ]
    return RouteStatus(path=listing.path, methods=listing.methods, agents=agents, guardrails=guardrails)


def _guardrail(guardrail: Guardrail, guard: Guard, listing: RouteListing) -> RouteGuardrailStatus:
    modes = dict(reference for reference in listing.agents or () if not isinstance(reference, str))
    return RouteGuardrailStatus(
        id=guardrail.agent_id,
        on=[kind for kind in _KINDS if kind in guardrail.kinds],
        action=None if isinstance(guard.client.agent, TextGuardrail) else guardrail.action,
        conditional=guardrail.when is not None,
        failure_mode=FailureMode(modes.get(guardrail.agent_id, guard.config.fails)).value,
        enforced=guard.config.enforce,
    )
