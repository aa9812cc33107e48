"""What is wrong with an agent. Pure: the time is given."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from ..breaker import BreakerState
from ..failures import RULES, FailureKind
from ..observability.endpoints import EndpointState, EndpointStatistics
from ..observability.history import TimeSlot
from ..observability.metrics import Incident

#: What an operator has to do something about. The rest of what is wrong may pass by itself.
SERIOUS: Final = frozenset({"down", "not_configured", "breaker_open", "failing"})

# An endpoint in one of these answers, or has not been asked yet.
_ANSWERS: Final[frozenset[EndpointState]] = frozenset({"connecting", "up", "degraded", "paused"})
# Seconds, and the slots that they are, the current one included.
_RECENT: Final = 60.0
_RECENT_SLOTS: Final = 7
# One call that has failed may have had an input that the agent chokes on.
_ENOUGH_CALLS: Final = 3


def trouble_of(
    *,
    configured: bool,
    breaker: BreakerState | None,
    endpoints: Iterable[EndpointStatistics],
    slots: Sequence[TimeSlot],
    latest: Incident | None,
    now: float,
) -> Sequence[str]:
    """The keys of :attr:`AgentStatus.trouble`, the worst first.

    :param latest: the latest failure of a call that was let through by the breaker.
    :param now: seconds since the epoch.
    """
    found = []
    answers = [endpoint.state in _ANSWERS for endpoint in endpoints]
    if answers and not any(answers):
        found.append("down")
    if not configured:
        found.append("not_configured")
    if breaker is BreakerState.OPEN:
        found.append("breaker_open")
    elif _fails(slots, latest, now):
        found.append("failing")
    if breaker is BreakerState.HALF_OPEN:
        found.append("breaker_half_open")
    if any(answers) and not all(answers):
        found.append("endpoint_down")
    return found


def is_serious(trouble: Mapping[str, int]) -> bool:
    """Whether an operator has to do something about it."""
    return not SERIOUS.isdisjoint(trouble)


def _fails(slots: Sequence[TimeSlot], latest: Incident | None, now: float) -> bool:
    """Whether all calls of the last minute have failed, and that is the agent's fault."""
    if latest is None or now - latest.time > _RECENT or not RULES[FailureKind(latest.outcome)].logged:
        return False
    calls = sum(slot.calls for slot in slots[-_RECENT_SLOTS:])
    return calls >= _ENOUGH_CALLS and calls == sum(slot.failures for slot in slots[-_RECENT_SLOTS:])
