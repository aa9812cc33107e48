"""What the status page shows, at one moment."""

import time
from collections.abc import Mapping, Sequence

from msgspec import Struct

from .._version import __version__
from ..evaluation.resolved_route import RouteListing
from ..guard import Guard
from ..observability.endpoints import EndpointStatistics
from ..observability.history import SLOT_SECONDS, Latency, TimeSlot
from ..observability.metrics import Incident
from ..policy import FailureMode
from ..protocol import EventType
from ..registry import AgentRegistry


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


class RouteAgentStatus(Struct, frozen=True, kw_only=True):
    """An agent on a route, the events that it receives there, and the failure mode that holds."""

    id: str
    hears: Sequence[str]
    failure_mode: str
    enforced: bool


class RouteStatus(Struct, frozen=True, kw_only=True):
    """A route; ``path`` is None for connections that no route matches, ``methods`` None for all."""

    path: str | None
    methods: Sequence[str] | None
    agents: Sequence[RouteAgentStatus]


class Status(Struct, frozen=True, kw_only=True):
    """All agents and all routes.

    ``time`` is seconds since the epoch, ``interval`` is how many there are between two of these in the stream.
    """

    version: str = __version__
    time: float
    interval: float
    slot_seconds: int = SLOT_SECONDS
    agents: Sequence[AgentStatus]
    routes: Sequence[RouteStatus]


def take_snapshot(registry: AgentRegistry, interval: float = 1.0) -> Status:
    """How things are now; to be called on the event loop that serves."""
    now = time.monotonic()
    return Status(
        time=time.time(),
        interval=interval,
        agents=[_agent(guard, now) for guard in registry.guards()],
        routes=[_route(registry, listing) for listing in registry.listings],
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
    )


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
    return RouteStatus(path=listing.path, methods=listing.methods, agents=agents)
