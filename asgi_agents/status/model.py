"""What the status page shows, at one moment."""

from collections.abc import Mapping, Sequence

from msgspec import Struct

from .._version import __version__
from ..observability.endpoints import EndpointStatistics
from ..observability.history import SLOT_SECONDS, Latency, Rates, TimeSlot
from ..observability.metrics import Incident
from ..observability.sources import SourceStatus


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
    """One agent, in one process or in several together. Durations are seconds.

    :ivar trouble: what is wrong with it, and in how many processes: ``down`` if it can't be reached, ``not_configured``
        if it has not taken its configuration, ``breaker_open``, and ``failing`` if all its calls of the last minute
        have failed. ``breaker_half_open`` and ``endpoint_down``, of one of several, are less than that.
    :ivar configured: whether it has taken its configuration, or needs none; in every process.
    :ivar breaker: ``closed``, ``open``, ``half_open``, or None where it is switched off; of several the worst.
        ``retry_after`` is how long it stays open at most.
    :ivar in_flight: calls under way, of at most ``max_in_flight``; ``waiting`` are those that wait for a permit or a
        place on a connection.
    :ivar calls: since the agent was added, as are ``outcomes``, ``passed_open``, ``shadowed`` and ``skipped_bodies``
        (see :class:`~asgi_agents.AgentMetrics`).
    :ivar rates: of the calls.
    :ivar latency: over the last ten minutes, of the calls that were answered.
    :ivar slots: the last ten minutes in slots of ``slot_seconds``, oldest first.
    :ivar failures: the latest, newest first; ``denials`` likewise.
    :ivar text: None for an agent that never had anything to do as a guardrail.
    """

    id: str
    transport: str
    hears: Sequence[str]
    failure_mode: str
    enforced: bool
    trouble: Mapping[str, int]
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
    rates: Rates
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


class WorkerStatus(Struct, frozen=True, kw_only=True):
    """A process that serves the app. Times are seconds since the epoch.

    :ivar pid: its process id, on the machine or in the container called ``host``.
    :ivar started_at: when it has made its agents.
    :ivar heard_at: of when its figures are.
    :ivar silent: whether it has said nothing for too long, because its event loop is blocked; or has more to say than
        fits into a file.
    :ivar connections: requests and websocket sessions that were guarded, since the start; ``rates`` are theirs: which
        part of them an agent has denied, or has stopped by failing closed.
    :ivar trouble: how many of its agents are down, not configured, failing, or have an open breaker.
    """

    pid: int
    host: str
    started_at: float
    heard_at: float
    silent: bool = False
    connections: int
    rates: Rates
    trouble: int


class Status(Struct, frozen=True, kw_only=True):
    """All agents and all routes.

    :ivar time: seconds since the epoch; ``interval`` is how many there are between two of these in the stream.
    :ivar worker: the process that says this.
    :ivar workers: all whose figures are in ``agents``: that one first, and those that share its directory.
    :ivar connections: of all of them, as are their ``rates`` and ``slots``: the last ten minutes, oldest first.
    :ivar source: the configuration file; None: there is none. Of several workers' the one that was refused.
    :ivar unshared: why other workers are not shown, though they are meant to be: all of them, or how many; None: all is
        well.
    """

    version: str = __version__
    time: float
    interval: float
    slot_seconds: int = SLOT_SECONDS
    worker: WorkerStatus
    workers: Sequence[WorkerStatus]
    connections: int
    rates: Rates
    slots: Sequence[TimeSlot]
    agents: Sequence[AgentStatus]
    routes: Sequence[RouteStatus]
    source: SourceStatus | None = None
    unshared: str | None = None


class DurationShare(Struct, frozen=True, kw_only=True):
    """An agent's durations, packed: of answered calls, slot by slot, and for how long it held the text of streams."""

    slots: Sequence[Sequence[int]]
    held: Sequence[int]


class WorkerShare(Struct, frozen=True, kw_only=True):
    """What a process tells the others of itself: its status, and what it takes to add it to theirs.

    :ivar slot: the number of the last slot, on the machine's monotonic clock.
    """

    status: Status
    slot: int
    durations: Mapping[str, DurationShare]
