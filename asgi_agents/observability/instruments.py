"""The exported metrics, for OpenTelemetry and Prometheus alike: names, units, and where the values come from."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Final, Protocol

from msgspec import Struct

from ..breaker import BreakerState
from .attributes import (
    AGENT_ID,
    BREAKER_STATE,
    DECISION,
    ENFORCED,
    ERROR_TYPE,
    EVENT,
    FAILURE_MODE,
    KIND,
    OUTCOME,
    WHAT,
)
from .histograms import Distribution
from .metrics import Incident, Series, Tally
from .reports import Reports
from .sources import SourceStatus

Attributes = tuple[tuple[str, str], ...]


class Kind(StrEnum):
    """How the values of a metric behave."""

    COUNTER = "counter"
    UP_DOWN_COUNTER = "updowncounter"


class Metered(Protocol):
    """What the metrics need of one agent."""

    @property
    def tally(self) -> Tally:
        """Its counters."""
        ...

    @property
    def active(self) -> int:
        """Calls under way."""
        ...

    @property
    def queued(self) -> int:
        """Calls that wait for a permit or a place on a connection."""
        ...

    @property
    def breaker_state(self) -> BreakerState | None:
        """The state of its breaker, if it has one."""
        ...


class Source(Protocol):
    """Whose metrics are exported: the agents of one manager."""

    @property
    def metered(self) -> Sequence[Metered]:
        """Its agents."""
        ...

    @property
    def reports(self) -> Reports:
        """What they have reported of themselves."""
        ...

    @property
    def source(self) -> SourceStatus | None:
        """The file that they have come from; None: there is none."""
        ...


class Point(Struct, frozen=True):
    """A value with its attributes; ``latest`` is the last call that it counts, unless that was plainly allowed."""

    attributes: Attributes
    value: float
    latest: Incident | None = None


class Metric(Struct, frozen=True, kw_only=True):
    """A metric that is a number. ``read`` gives the points of one agent."""

    name: str
    kind: Kind
    unit: str
    description: str
    read: Callable[[Metered], Iterable[Point]]


class SourceMetric(Struct, frozen=True, kw_only=True):
    """A counter that is no agent's. ``read`` gives the points of one manager."""

    name: str
    unit: str
    description: str
    read: Callable[[Source], Iterable[Point]]


class Histogram(Struct, frozen=True, kw_only=True):
    """A metric that is a distribution of seconds."""

    name: str
    unit: str = "s"
    description: str
    read: Callable[[Metered], Iterable[tuple[Attributes, Distribution]]]


def _attributes(agent: Metered, **more: str) -> Attributes:
    return ((AGENT_ID, agent.tally.agent_id), *((_NAMES[name], value) for name, value in more.items()))


_NAMES: Final = {
    "breaker_state": BREAKER_STATE,
    "decision": DECISION,
    "enforced": ENFORCED,
    "error_type": ERROR_TYPE,
    "event": EVENT,
    "failure_mode": FAILURE_MODE,
    "kind": KIND,
    "what": WHAT,
}


def _durations(agent: Metered) -> Iterator[tuple[Attributes, Distribution]]:
    for series in agent.tally.series:
        yield _attributes(agent, **_outcome(series)), series.durations


def _queue_waits(agent: Metered) -> Iterator[tuple[Attributes, Distribution]]:
    yield _attributes(agent), agent.tally.queue_waits


def _active(agent: Metered) -> Iterator[Point]:
    yield Point(_attributes(agent), agent.active)


def _waiting(agent: Metered) -> Iterator[Point]:
    yield Point(_attributes(agent), agent.queued)


def _of_series(
    chosen: Callable[[Series], bool], describe: Callable[[Series], Mapping[str, str]]
) -> Callable[[Metered], Iterator[Point]]:
    def read(agent: Metered) -> Iterator[Point]:
        for series in agent.tally.series:
            if chosen(series):
                yield Point(_attributes(agent, **describe(series)), series.durations.count, series.latest)

    return read


def _answer(series: Series) -> Mapping[str, str]:
    return {"event": series.event, "decision": series.outcome, "enforced": str(series.enforced).lower()}


def _failure(series: Series) -> Mapping[str, str]:
    return {
        "event": series.event,
        "error_type": series.outcome,
        "failure_mode": "closed" if series.fail_closed else "open",
        "enforced": str(series.enforced).lower(),
    }


def _outcome(series: Series) -> Mapping[str, str]:
    return {"event": series.event, "error_type" if series.failed else "decision": series.outcome}


def _breaker_states(agent: Metered) -> Iterator[Point]:
    current = agent.breaker_state
    if current is not None:
        for state in BreakerState:
            yield Point(_attributes(agent, breaker_state=state.value), int(state is current))


def _of_counter(name: str, counter: Callable[[Tally], Mapping[str, int]]) -> Callable[[Metered], Iterator[Point]]:
    def read(agent: Metered) -> Iterator[Point]:
        for value, number in tuple(counter(agent.tally).items()):
            yield Point(_attributes(agent, **{name: value}), number)

    return read


def _finds(agent: Metered) -> Iterator[Point]:
    for (what, kind), number in agent.tally.text.counts.items():
        yield Point(_attributes(agent, what=what, **({"kind": kind} if kind else {})), number)


# Most agents are no guardrails: they have none of the following.


def _windows(agent: Metered) -> Iterator[Point]:
    if agent.tally.text.used:
        yield Point(_attributes(agent), agent.tally.text.windows)


def _held(agent: Metered) -> Iterator[Point]:
    if agent.tally.text.used:
        yield Point(_attributes(agent), agent.tally.text.held)


def _holds(agent: Metered) -> Iterator[tuple[Attributes, Distribution]]:
    if agent.tally.text.used:
        yield _attributes(agent), agent.tally.text.delays


CALL_DURATION: Final = Histogram(
    name="asgi_agents.call.duration",
    description="Duration of a call to an agent, queue wait included.",
    read=_durations,
)
QUEUE_DURATION: Final = Histogram(
    name="asgi_agents.call.queue.duration",
    description="How long calls waited that had to, for one of the agent's permits or for a place on a connection.",
    read=_queue_waits,
)
HOLD_DURATION: Final = Histogram(
    name="asgi_agents.text.hold.duration",
    description="How long an event of a stream that the agent judges as a guardrail waited at most.",
    read=_holds,
)
HISTOGRAMS: Final = (CALL_DURATION, QUEUE_DURATION, HOLD_DURATION)

METRICS: Final = (
    Metric(
        name="asgi_agents.call.active",
        kind=Kind.UP_DOWN_COUNTER,
        unit="{call}",
        description="Calls under way.",
        read=_active,
    ),
    Metric(
        name="asgi_agents.call.waiting",
        kind=Kind.UP_DOWN_COUNTER,
        unit="{call}",
        description="Calls that wait for a permit or a place on a connection.",
        read=_waiting,
    ),
    Metric(
        name="asgi_agents.decisions",
        kind=Kind.COUNTER,
        unit="{decision}",
        description="Answers of an agent, by what they say.",
        read=_of_series(lambda series: not series.failed, _answer),
    ),
    Metric(
        name="asgi_agents.failures",
        kind=Kind.COUNTER,
        unit="{failure}",
        description="Calls that brought no answer, by what went wrong and the failure mode that held.",
        read=_of_series(lambda series: series.failed, _failure),
    ),
    Metric(
        name="asgi_agents.breaker.state",
        kind=Kind.UP_DOWN_COUNTER,
        unit="{breaker}",
        description="1 for the state that the circuit breaker is in, 0 for the others.",
        read=_breaker_states,
    ),
    Metric(
        name="asgi_agents.breaker.transitions",
        kind=Kind.COUNTER,
        unit="{transition}",
        description="How often the circuit breaker came to be in a state.",
        read=_of_counter("breaker_state", lambda tally: tally.transitions),
    ),
    Metric(
        name="asgi_agents.inspected",
        kind=Kind.COUNTER,
        unit="By",
        description="Bytes of bodies and websocket messages that an agent has judged.",
        read=_of_counter("event", lambda tally: tally.inspected),
    ),
    Metric(
        name="asgi_agents.bodies.skipped",
        kind=Kind.COUNTER,
        unit="{body}",
        description="Bodies over the agent's limit that went on without it.",
        read=_of_series(lambda series: series.body_skipped, lambda series: {"event": series.event}),
    ),
    Metric(
        name="asgi_agents.shadow.denials",
        kind=Kind.COUNTER,
        unit="{decision}",
        description="What a shadow agent would have stopped.",
        read=_of_series(lambda series: series.shadowed, _outcome),
    ),
    Metric(
        name="asgi_agents.text.finds",
        kind=Kind.COUNTER,
        unit="{find}",
        description="What an agent found in text as a guardrail, and what could not be shown to it.",
        read=_finds,
    ),
    Metric(
        name="asgi_agents.text.windows",
        kind=Kind.UP_DOWN_COUNTER,
        unit="{window}",
        description="Windows of text that are being judged.",
        read=_windows,
    ),
    Metric(
        name="asgi_agents.text.held",
        kind=Kind.UP_DOWN_COUNTER,
        unit="{code_point}",
        description="Code points that wait in streams that the agent judges.",
        read=_held,
    ),
)


def _reloads(source: Source) -> Iterator[Point]:
    if source.source is not None:
        for outcome, number in source.source.reloads.items():
            yield Point(((OUTCOME, outcome),), number)


RELOADS: Final = SourceMetric(
    name="asgi_agents.reloads",
    unit="{reload}",
    description="How often the configuration file was taken anew, by what has come of it.",
    read=_reloads,
)


def distributions(metric: Histogram, agents: Iterable[Metered]) -> Mapping[Attributes, Distribution]:
    """The distributions of all ``agents``, one for each combination of attributes."""
    merged: dict[Attributes, Distribution] = {}
    for agent in agents:
        for attributes, distribution in metric.read(agent):
            merged.setdefault(attributes, Distribution()).merge(distribution)
    return merged


def _later(one: Incident | None, other: Incident | None) -> Incident | None:
    if one is None or other is None:
        return one or other
    return one if one.time > other.time else other


def collect(metric: Metric, agents: Iterable[Metered]) -> Iterable[Point]:
    """The points of all ``agents``, one for each combination of attributes."""
    points: dict[Attributes, Point] = {}
    for agent in agents:
        for point in metric.read(agent):
            known = points.get(point.attributes)
            if known is not None:
                point = Point(point.attributes, known.value + point.value, _later(point.latest, known.latest))
            points[point.attributes] = point
    return points.values()
