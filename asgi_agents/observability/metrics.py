"""Plain counters of the calls to an agent and their outcomes. Exporters read them; they know no exporter."""

import time
from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from msgspec import Struct

from ..breaker import BreakerState
from ..decision import Verdict
from ..errors import printable
from ..failures import RULES, FailureKind
from ..protocol import AuditMetadata, Event, EventType, RequestHeadersEvent
from .attributes import AGENT_ID, DECISION, ERROR_TYPE, EVENT
from .correlation import current
from .endpoints import EndpointStatistics
from .histograms import BOUNDS, SIZE, Distribution
from .history import History, Totals

# How many of an agent's latest failures and of its latest denials are remembered, how many reasons of each kind an
# agent may give for one, and how long a reason and a path may be.
_MAX_INCIDENTS = 50
_MAX_REASONS = 8
_MAX_REASON_LENGTH = 256
_MAX_PATH_LENGTH = 512
_BODY_SKIPPED = frozenset(kind.value for kind, rule in RULES.items() if rule.body_skipped)
_FAILURES = frozenset(kind.value for kind in RULES)
_NOTHING: Final = AuditMetadata()


class AgentMetrics(Struct, frozen=True, kw_only=True):
    """One agent's counts since it was added, at one moment.

    ``outcomes`` counts verdicts by outcome (``allow``, ``block``, …, ``timeout``, ``breaker_open``, …), ``shadowed``
    the denials and failures of a shadow agent that would have stopped something, ``passed_open`` failures that were let
    through by the failure mode, ``skipped_bodies`` bodies that went on without the agent because they were over its
    limit or it could not read them. ``in_flight`` and ``waiting`` are calls now; ``duration`` is seconds spent in all
    calls, ``queue_duration`` seconds of that spent waiting for a permit or a place on a connection. ``inspected`` is
    bytes of bodies and websocket messages by event, ``breaker_transitions`` counts how often the breaker came to be in
    a state.

    The rest is of guardrails. ``finds`` counts what was done in text: ``redact``, ``block``, ``flag``; ``unreadable``
    for what could not be shown to the agent, and ``dropped`` for what a shadow agent was too slow for. ``windows`` of
    text are being judged now, and ``held`` code points wait now in the streams that the agent judges.
    """

    calls: int
    outcomes: dict[str, int]
    shadowed: int
    passed_open: int
    skipped_bodies: int
    in_flight: int
    waiting: int
    duration: float
    queue_duration: float
    inspected: dict[str, int]
    breaker_transitions: dict[str, int]
    finds: dict[str, int] = {}
    windows: int = 0
    held: int = 0


class AgentStatistics(Struct, frozen=True, kw_only=True):
    """The state of one agent at one moment.

    ``in_flight`` calls of at most ``max_in_flight`` are under way, ``waiting`` ones wait for a permit or for a place on
    a connection. ``breaker`` is None where it is switched off. ``endpoints`` are those of the stream transport, and of
    HTTP where a host leads to several addresses, on the running event loop.
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


class Incident(Struct, frozen=True, kw_only=True):
    """A call that ended in a failure, or in any answer but allow.

    ``time`` is seconds since the epoch, ``duration`` seconds. ``message`` says what went wrong, and is empty for a
    denial. ``window`` is whether a guardrail had the agent judge text that passes.

    :ivar path: of the request, as it was written, without the query; None where it is not known.
    :ivar rule_ids: why the agent has denied it, in its own words, as are ``tags`` and ``reason_codes``: the first eight
        of each.
    :ivar worker: the process id of the worker in which it happened, where several are shown together.
    """

    time: float
    correlation_id: str
    route: str | None
    event: str
    outcome: str
    failed: bool
    failure_mode: str
    enforced: bool
    duration: float
    message: str
    window: bool = False
    path: str | None = None
    rule_ids: Sequence[str] = ()
    tags: Sequence[str] = ()
    reason_codes: Sequence[str] = ()
    worker: int | None = None


class Series:
    """The calls to one agent with the same event, outcome, failure mode and enforcement."""

    __slots__ = ("attributes", "durations", "enforced", "event", "fail_closed", "failed", "latest", "outcome")

    def __init__(self, agent_id: str, event: str, outcome: str, fail_closed: bool, enforced: bool) -> None:
        self.event = event
        self.outcome = outcome
        self.failed = outcome in _FAILURES
        self.fail_closed = fail_closed
        self.enforced = enforced
        self.durations = Distribution()
        #: The attributes of the exported duration of such a call.
        self.attributes: Mapping[str, str] = {
            AGENT_ID: agent_id,
            EVENT: event,
            (ERROR_TYPE if self.failed else DECISION): outcome,
        }
        #: The last such call. Calls that are plainly allowed are not kept.
        self.latest: Incident | None = None

    @property
    def denied(self) -> bool:
        """Whether the agent denied the event, or detected something."""
        return not self.failed and self.outcome not in ("allow", "needs_more")

    @property
    def passed_open(self) -> bool:
        """Whether the failure mode let these failures through."""
        return self.failed and not self.fail_closed

    @property
    def body_skipped(self) -> bool:
        """Whether these are bodies that passed without the agent."""
        return self.outcome in _BODY_SKIPPED and not (self.fail_closed and self.enforced)

    @property
    def shadowed(self) -> bool:
        """Whether these would have stopped something if the agent were enforced."""
        stops = self.denied or (self.failed and self.fail_closed)
        # The answer to the completion of a request changes nothing.
        return stops and not self.enforced and self.event != EventType.REQUEST_COMPLETE


class TextTally:
    """What an agent did as a guardrail, on text that passes.

    :ivar used: whether it ever had anything to do as a guardrail.
    :ivar windows: how many windows it judges now.
    :ivar held: code points that wait now in streams that it judges.
    :ivar delays: of each stream, how many seconds an event of it waited at most.
    :ivar longest_delay: the longest of these.
    """

    def __init__(self) -> None:
        self.used = False
        self.windows = 0
        self.held = 0
        self.delays = Distribution()
        self.longest_delay = 0.0
        self._counts: defaultdict[tuple[str, str], int] = defaultdict(int)

    def begin_window(self) -> None:
        """Count a window as being judged."""
        self.used = True
        self.windows += 1

    def end_window(self) -> None:
        """A window was judged, or given up."""
        self.windows -= 1

    def hold(self, change: int) -> None:
        """So many code points more wait; negative: fewer."""
        self.used = True
        self.held += change

    def add_delay(self, seconds: float) -> None:
        """A stream is over, of which an event has waited for so long at most."""
        self.delays.add(seconds)
        if seconds > self.longest_delay:
            self.longest_delay = seconds

    def count(self, what: str, kind: str) -> None:
        """Count ``redact``, ``block``, ``flag`` in a text of that kind, or ``unreadable``, ``dropped``, of no kind."""
        self.used = True
        self._counts[what, kind] += 1

    @property
    def counts(self) -> Mapping[tuple[str, str], int]:
        """How often it did what, by the kind of text."""
        # Scrapers may run in another thread.
        return dict(self._counts)


class Tally:
    """The counters behind :class:`AgentMetrics`.

    The counters belong to an agent's id: they stay when :meth:`AgentManager.replace_agent` puts another agent in its
    place. Several threads may count at a time. CPython switches between threads at calls and at loops, and no counter
    here is read before such a point and written after it.
    """

    def __init__(self, agent_id: str = "") -> None:
        self.agent_id = agent_id
        #: Of the calls that had to wait.
        self.queue_waits = Distribution()
        #: Bytes shown, and transitions to a state.
        # No collections.Counter: it runs Python code for a missing key, where a switch of threads could lose a count.
        self.inspected: defaultdict[str, int] = defaultdict(int)
        self.transitions: defaultdict[str, int] = defaultdict(int)
        self.failures: deque[Incident] = deque(maxlen=_MAX_INCIDENTS)
        #: Calls that an open breaker refused. They have a list of their own, so that they don't push out the failures
        #: that opened the breaker.
        self.refusals: deque[Incident] = deque(maxlen=_MAX_INCIDENTS)
        self.denials: deque[Incident] = deque(maxlen=_MAX_INCIDENTS)
        self.history = History(self._totals)
        #: As a guardrail.
        self.text = TextTally()
        self._series: dict[tuple[EventType, str, bool, bool], Series] = {}

    @property
    def series(self) -> Iterable[Series]:
        """All counters."""
        # Scrapers may run in another thread.
        return tuple(self._series.values())

    def count(
        self,
        verdict: Verdict,
        now: float,
        *,
        correlation_id: str = "",
        route: str | None = None,
        size: int = 0,
        event: Event | None = None,
    ) -> Series:
        """Add one verdict, on an event of ``size`` bytes; ``now`` is monotonic seconds.

        ``event`` is what the agent has received; None: nothing.
        """
        outcome = verdict.metric_outcome
        # The failure mode matters to failures only: answers are counted together whatever it is.
        fail_closed = verdict.failure is None or verdict.fail_closed
        key = (verdict.event_type, outcome, fail_closed, verdict.enforced)
        series = self._series.get(key)
        if series is None:
            # Another thread may have made one meanwhile.
            series = self._series.setdefault(
                key, Series(verdict.agent_id, verdict.event_type.value, outcome, fail_closed, verdict.enforced)
            )
        self.add(series, verdict.duration, now)
        if size and verdict.failure is None:
            self.inspected[series.event] += size
        if series.failed or series.denied:
            self._remember(series, verdict, correlation_id, route, event)
        return series

    def add(self, series: Series, duration: float, now: float) -> None:
        """Add one call to the counters of its kind."""
        if now >= self.history.until:
            self.history.turn(now)
        durations = series.durations
        durations.total += duration
        durations.buckets[bisect_left(BOUNDS, duration)] += 1

    def summary(self, in_flight: int, waiting: int) -> AgentMetrics:
        """The counts so far, with the calls under way and waiting at this moment."""
        counted = [(series, series.durations.count) for series in self.series]
        outcomes: Counter[str] = Counter()
        for series, number in counted:
            outcomes[series.outcome] += number
        finds: Counter[str] = Counter()
        for (what, _), number in self.text.counts.items():
            finds[what] += number
        return AgentMetrics(
            calls=outcomes.total(),
            outcomes=dict(outcomes),
            shadowed=sum(number for series, number in counted if series.shadowed),
            passed_open=sum(number for series, number in counted if series.passed_open),
            skipped_bodies=sum(number for series, number in counted if series.body_skipped),
            in_flight=in_flight,
            waiting=waiting,
            duration=sum(series.durations.total for series, _ in counted),
            queue_duration=self.queue_waits.total,
            inspected=dict(self.inspected),
            breaker_transitions=dict(self.transitions),
            finds=dict(finds),
            windows=self.text.windows,
            held=self.text.held,
        )

    def _remember(
        self, series: Series, verdict: Verdict, correlation_id: str, route: str | None, event: Event | None
    ) -> None:
        audit = _NOTHING if verdict.response is None else verdict.response.audit
        series.latest = Incident(
            time=time.time(),
            # An id that the caller of the manager gave may be any text.
            correlation_id=printable(correlation_id),
            route=None if route is None else printable(route),
            event=series.event,
            outcome=series.outcome,
            failed=series.failed,
            failure_mode=verdict.failure_mode,
            enforced=verdict.enforced,
            duration=verdict.duration,
            message="" if verdict.failure is None else verdict.failure.message,
            window=verdict.window,
            path=_path_of(event),
            rule_ids=_shortened(audit.rule_ids),
            tags=_shortened(audit.tags),
            reason_codes=_shortened(audit.reason_codes),
        )
        if series.outcome == FailureKind.BREAKER_OPEN:
            self.refusals.append(series.latest)
        else:
            (self.failures if series.failed else self.denials).append(series.latest)

    def _totals(self) -> Totals:
        calls = denials = failures = 0
        buckets = [0] * SIZE
        for each in self.series:
            number = each.durations.count
            calls += number
            denials += number if each.denied else 0
            failures += number if each.failed else 0
            if not each.failed:
                # How long a failure took says nothing of how fast the agent answers.
                buckets = [total + count for total, count in zip(buckets, each.durations.buckets, strict=True)]
        return Totals(calls, denials, failures, buckets)


def _path_of(event: Event | None) -> str | None:
    """The path of the request that an event is about, or the beginning of it."""
    if isinstance(event, RequestHeadersEvent):
        return event.uri.partition("?")[0][:_MAX_PATH_LENGTH]
    connection = current()
    return None if isinstance(connection, str) else connection.path.partition("?")[0][:_MAX_PATH_LENGTH] or None


def _shortened(reasons: Sequence[str]) -> Sequence[str]:
    return tuple([reason[:_MAX_REASON_LENGTH] for reason in reasons[:_MAX_REASONS]])
