"""Takes what the status page shows from the agents of this process."""

import os
import socket
import time
from collections.abc import Sequence
from functools import cache
from typing import Final

from ..evaluation.resolved_route import RouteListing
from ..failures import FailureKind
from ..guard import Guard
from ..guardrails import Guardrail, TextGuardrail
from ..guardrails.slots import Kind
from ..observability.histograms import packed, percentile
from ..observability.history import SLOT_SECONDS, rates_of
from ..observability.metrics import Incident, TextTally
from ..policy import FailureMode
from ..protocol import EventType
from ..registry import AgentRegistry
from .cleaning import IncidentCleaner
from .model import (
    AgentStatus,
    DurationShare,
    HoldStatus,
    RouteAgentStatus,
    RouteGuardrailStatus,
    RouteStatus,
    Status,
    TextStatus,
    WorkerShare,
    WorkerStatus,
)
from .trouble import is_serious, trouble_of

# As they come in a call.
_KINDS: Final[Sequence[Kind]] = ("input", "reasoning", "output", "tool_call", "tool_result")

hostname: Final = cache(socket.gethostname)


def take_snapshot(
    registry: AgentRegistry, interval: float = 1.0, cleaner: IncidentCleaner | None = None, *, routes: bool = True
) -> Status:
    """How things are now; to be called on the event loop that serves.

    :param cleaner: the one of the snapshots before.
    :param routes: whether they are in it.
    """
    now, at = time.monotonic(), time.time()
    guards = registry.guards()
    incidents = (IncidentCleaner() if cleaner is None else cleaner).clean(
        [part for guard in guards for part in (_failures(guard), tuple(reversed(guard.tally.denials)))]
    )
    started = registry.traffic.started
    agents = [
        _agent(guard, failures, denials, now, at, started)
        for guard, failures, denials in zip(guards, incidents[::2], incidents[1::2], strict=True)
    ]
    slots = registry.traffic.history.slots(now)
    connections, rates = registry.traffic.totals().calls, rates_of(slots, now, started)
    worker = WorkerStatus(
        pid=os.getpid(),
        host=hostname(),
        started_at=registry.traffic.started_at,
        heard_at=at,
        connections=connections,
        rates=rates,
        trouble=sum(is_serious(agent.trouble) for agent in agents),
    )
    return Status(
        time=at,
        interval=interval,
        worker=worker,
        workers=[worker],
        connections=connections,
        rates=rates,
        slots=slots,
        agents=agents,
        routes=[_route(registry, listing) for listing in registry.listings] if routes else (),
        source=registry.source,
    )


def take_share(registry: AgentRegistry, status: Status) -> WorkerShare:
    """What other processes are to know of this one, beside the ``status`` that was just taken."""
    now = time.monotonic()
    agents = {
        guard.config.id: DurationShare(
            slots=[tuple(slot) for slot in guard.tally.history.buckets(now)],
            held=tuple(packed(guard.tally.text.delays.buckets)),
        )
        for guard in registry.guards()
    }
    return WorkerShare(status=status, slot=int(now // SLOT_SECONDS), durations=agents)


def _failures(guard: Guard) -> Sequence[Incident]:
    tally = guard.tally
    return sorted((*tally.failures, *tally.refusals), key=lambda incident: -incident.time)


def _agent(
    guard: Guard, failures: Sequence[Incident], denials: Sequence[Incident], now: float, at: float, started: float
) -> AgentStatus:
    metrics, statistics, tally = guard.metrics(), guard.statistics(), guard.tally
    slots = tally.history.slots(now)
    trouble = trouble_of(
        configured=guard.configured,
        breaker=statistics.breaker,
        endpoints=statistics.endpoints,
        slots=slots,
        latest=next((failure for failure in failures if failure.outcome != FailureKind.BREAKER_OPEN), None),
        now=at,
    )
    return AgentStatus(
        id=guard.config.id,
        transport=statistics.transport,
        hears=_in_order(guard.hears),
        failure_mode=guard.config.fails.value,
        enforced=guard.config.enforce,
        trouble=dict.fromkeys(trouble, 1),
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
        rates=rates_of(slots, now, started),
        latency=tally.history.latency(now),
        slots=slots,
        failures=failures,
        denials=denials,
        endpoints=statistics.endpoints,
        text=_text(tally.text) if tally.text.used else None,
    )


def _text(tally: TextTally) -> TextStatus:
    finds: dict[str, dict[str, int]] = {}
    for (what, kind), number in tally.counts.items():
        finds.setdefault(what, {})[kind] = number
    buckets = tuple(tally.delays.buckets)
    return TextStatus(
        finds=finds,
        windows=tally.windows,
        held=tally.held,
        streams=sum(buckets),
        hold=hold_of(buckets, tally.longest_delay),
    )


def hold_of(buckets: Sequence[int], longest: float) -> HoldStatus:
    """The percentiles of how long text was held, of which the ``longest`` is known exactly."""
    p50, p90, p99 = (_at_most(longest, percentile(buckets, fraction)) for fraction in (0.5, 0.9, 0.99))
    return HoldStatus(p50=p50, p90=p90, p99=p99, longest=longest if sum(buckets) else None)


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
