"""Plain counters of what an agent was asked and what it said. Exporters read them; nothing here knows OpenTelemetry."""

from collections import Counter
from collections.abc import Sequence

from msgspec import Struct

from .breaker import BreakerState
from .decision import Verdict
from .transports import EndpointStatistics


class AgentMetrics(Struct, frozen=True, kw_only=True):
    """One agent's counts since it was added, at one moment.

    ``outcomes`` counts verdicts by outcome (``allow``, ``block``, …, ``timeout``, ``breaker_open``, …), ``shadowed``
    the denials and failures of a shadow agent that would have stopped something, ``passed_open`` failures that were let
    through by the failure mode. ``in_flight`` and ``waiting`` are calls now; ``duration`` is seconds spent in all
    calls.
    """

    calls: int
    outcomes: dict[str, int]
    shadowed: int
    passed_open: int
    in_flight: int
    waiting: int
    duration: float


class AgentStatistics(Struct, frozen=True, kw_only=True):
    """How one agent is at one moment.

    ``in_flight`` calls of at most ``max_in_flight`` are under way, ``waiting`` ones wait for a permit or for a place on
    a connection. ``breaker`` is None where it is switched off. ``endpoints`` are those of the stream transport, on the
    running event loop.
    """

    transport: str
    in_flight: int
    max_in_flight: int
    waiting: int
    breaker: BreakerState | None
    endpoints: Sequence[EndpointStatistics] = ()

    @property
    def connections(self) -> int:
        """Lasting connections to the agent."""
        return sum(endpoint.connections for endpoint in self.endpoints)


class Tally:
    """The counters behind :class:`AgentMetrics`."""

    __slots__ = ("duration", "outcomes", "passed_open", "shadowed")

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.shadowed = 0
        self.passed_open = 0
        self.duration = 0.0

    def count(self, verdict: Verdict) -> None:
        """Add one verdict."""
        self.outcomes[verdict.outcome] += 1
        self.duration += verdict.duration
        if verdict.failure is not None and not verdict.fail_closed:
            self.passed_open += 1
        elif not verdict.enforced and (verdict.response is None or not verdict.response.is_allow):
            self.shadowed += 1
