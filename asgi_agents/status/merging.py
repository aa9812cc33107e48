"""Several processes' figures as those of one. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ..observability.endpoints import EndpointStatistics
from ..observability.histograms import percentile, unpacked
from ..observability.history import SLOT_SECONDS, SLOTS, Rates, TimeSlot, latency_of
from ..observability.metrics import Incident
from .model import AgentStatus, Status, TextStatus, WorkerShare, WorkerStatus
from .snapshot import hold_of

# As in one process.
_MAX_INCIDENTS: Final = 50
# From the worst to the best.
_BREAKERS: Final = ("open", "half_open", "closed")
_ENDPOINTS: Final = ("down", "ejected", "unhealthy", "draining", "paused", "connecting", "degraded", "up")
_EMPTY: Final = TimeSlot(calls=0, denials=0, failures=0, p50=None, p99=None)


class _Part(Struct, frozen=True):
    """An agent in one process. ``shift`` is by how many slots its last one is older than the first process's."""

    pid: int
    agent: AgentStatus
    shift: int
    slots: Sequence[Sequence[int]]
    held: Sequence[int]


def merge(shares: Sequence[WorkerShare], silent: Iterable[WorkerStatus] = ()) -> Status:
    """The status of all processes together, as the first of ``shares`` tells it.

    :param silent: those that say nothing any more. They are among the workers, and their figures are left out.
    """
    first = shares[0].status
    shifts = [_shift(shares[0], share) for share in shares]
    parts: dict[str, list[_Part]] = {}
    for share, shift in zip(shares, shifts, strict=True):
        for agent in share.status.agents:
            durations = share.durations.get(agent.id)
            parts.setdefault(agent.id, []).append(
                _Part(
                    share.status.worker.pid,
                    agent,
                    shift,
                    () if durations is None else durations.slots,
                    () if durations is None else durations.held,
                )
            )
    slots = _slots([(share.status.slots, shift) for share, shift in zip(shares, shifts, strict=True)])
    refused = (share.status.source for share in shares if share.status.source and share.status.source.refusal)
    return replace(
        first,
        workers=(*(share.status.worker for share in shares), *silent),
        connections=sum(share.status.connections for share in shares),
        rates=_rates([share.status.rates for share in shares], slots),
        slots=slots,
        agents=[_agent(part) for part in parts.values()],
        source=next(refused, first.source),
    )


def _shift(first: WorkerShare, other: WorkerShare) -> int:
    seconds = first.status.time - other.status.time
    shift = first.slot - other.slot
    # Processes of one machine count the same slots. Others are compared by their clocks.
    return shift if abs(shift * SLOT_SECONDS - seconds) < 2 * SLOT_SECONDS else round(seconds / SLOT_SECONDS)


def _agent(parts: Sequence[_Part]) -> AgentStatus:
    agents = [part.agent for part in parts]
    first = agents[0]
    durations = _durations(parts)
    slots = [
        replace(slot, p50=percentile(buckets, 0.5), p99=percentile(buckets, 0.99))
        for slot, buckets in zip(
            _slots([(part.agent.slots, part.shift) for part in parts]), map(unpacked, durations), strict=True
        )
    ]
    texts = [agent.text for agent in agents if agent.text is not None]
    return replace(
        first,
        trouble=_sums(agent.trouble for agent in agents),
        configured=all(agent.configured for agent in agents),
        breaker=next((state for state in _BREAKERS if any(agent.breaker == state for agent in agents)), None),
        retry_after=max(agent.retry_after for agent in agents),
        in_flight=sum(agent.in_flight for agent in agents),
        max_in_flight=sum(agent.max_in_flight for agent in agents),
        waiting=sum(agent.waiting for agent in agents),
        calls=sum(agent.calls for agent in agents),
        outcomes=_sums(agent.outcomes for agent in agents),
        passed_open=sum(agent.passed_open for agent in agents),
        shadowed=sum(agent.shadowed for agent in agents),
        skipped_bodies=sum(agent.skipped_bodies for agent in agents),
        rates=_rates([agent.rates for agent in agents], slots),
        latency=latency_of(chain.from_iterable(durations)),
        slots=slots,
        failures=_incidents((part.pid, part.agent.failures) for part in parts),
        denials=_incidents((part.pid, part.agent.denials) for part in parts),
        endpoints=_endpoints(endpoint for agent in agents for endpoint in agent.endpoints),
        text=_text(texts, [part.held for part in parts]) if texts else None,
    )


def _durations(parts: Sequence[_Part]) -> Sequence[Sequence[Sequence[int]]]:
    """Of each slot, the durations of each process that has any."""
    return [
        [part.slots[index + part.shift] for part in parts if 0 <= index + part.shift < len(part.slots)]
        for index in range(SLOTS)
    ]


def _slots(parts: Sequence[tuple[Sequence[TimeSlot], int]]) -> Sequence[TimeSlot]:
    """The counts of all processes, slot by slot; without percentiles."""
    merged = []
    for index in range(SLOTS):
        slots = [slots[index + shift] for slots, shift in parts if 0 <= index + shift < len(slots)]
        merged.append(
            replace(
                _EMPTY,
                calls=sum(slot.calls for slot in slots),
                denials=sum(slot.denials for slot in slots),
                failures=sum(slot.failures for slot in slots),
            )
        )
    return merged


def _rates(parts: Sequence[Rates], slots: Sequence[TimeSlot]) -> Rates:
    calls = sum(slot.calls for slot in slots)
    return Rates(
        per_second=sum(rates.per_second for rates in parts),
        denied=sum(slot.denials for slot in slots) / calls if calls else None,
        failed=sum(slot.failures for slot in slots) / calls if calls else None,
    )


def _incidents(parts: Iterable[tuple[int, Sequence[Incident]]]) -> Sequence[Incident]:
    together = [replace(incident, worker=pid) for pid, incidents in parts for incident in incidents]
    return sorted(together, key=lambda incident: -incident.time)[:_MAX_INCIDENTS]


def _endpoints(given: Iterable[EndpointStatistics]) -> Sequence[EndpointStatistics]:
    """Each endpoint once, in the worst state that any process finds it in."""
    merged: dict[str, EndpointStatistics] = {}
    for endpoint in given:
        known = merged.get(endpoint.address)
        if known is not None:
            worst = min(known, endpoint, key=lambda each: _ENDPOINTS.index(each.state))
            endpoint = replace(
                worst,
                connections=known.connections + endpoint.connections,
                in_flight=known.in_flight + endpoint.in_flight,
                late_answers=known.late_answers + endpoint.late_answers,
                unmatched_answers=known.unmatched_answers + endpoint.unmatched_answers,
            )
        merged[endpoint.address] = endpoint
    return list(merged.values())


def _text(texts: Sequence[TextStatus], held: Sequence[Sequence[int]]) -> TextStatus:
    kinds: dict[str, list[Mapping[str, int]]] = {}
    for text in texts:
        for what, counts in text.finds.items():
            kinds.setdefault(what, []).append(counts)
    longest = max((text.hold.longest or 0.0 for text in texts), default=0.0)
    return TextStatus(
        finds={what: _sums(counts) for what, counts in kinds.items()},
        windows=sum(text.windows for text in texts),
        held=sum(text.held for text in texts),
        streams=sum(text.streams for text in texts),
        hold=hold_of(unpacked(held), longest),
    )


def _sums(given: Iterable[Mapping[str, int]]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for counts in given:
        for name, number in counts.items():
            sums[name] = sums.get(name, 0) + number
    return sums
