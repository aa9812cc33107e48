"""Records the calls to one agent: verdicts, counts, exported metrics, spans, and the log."""

import logging
import math
from collections.abc import Callable
from typing import Final

from ..breaker import BreakerState
from ..config import AgentConfig
from ..decision import Verdict
from ..errors import printable
from ..failures import RULES, CallFailure, Failure
from ..observability.attributes import AGENT_ID, EVENT, ROUTE
from ..observability.metrics import Series, Tally
from ..observability.telemetry import Telemetry
from ..observability.tracing import ActiveSpan
from ..policy import FailureMode
from ..protocol import ALLOW, AgentResponse, Event, EventType
from ..protocol.stream import correlation_id_of
from ..transports.base import AgentClient
from .consequence import consequence_of

logger = logging.getLogger("asgi_agents")

# How many combinations of event and route are remembered.
_MAX_SPANS: Final = 10_000
# Seconds between two lines that say that an agent fails.
_LOG_INTERVAL: Final = 60.0
# To look a member of an enumeration up by its name takes longer than most of what a call does (CPython 3.11).
_OPEN: Final = FailureMode.OPEN
# These carry data, as bytes.
_WITH_DATA: Final = frozenset({EventType.REQUEST_BODY_CHUNK, EventType.RESPONSE_BODY_CHUNK, EventType.WEBSOCKET_FRAME})


class Recorder:
    """Makes the verdicts on the calls to one agent, and writes them down.

    :param tally: what was counted of the agent's id before.
    :param clock: monotonic seconds, for the lines of the log.
    :param debug: log the traceback of what an agent in this process raises.
    :ivar failing: whether the log has said that the agent fails, and not yet that it answers again.
    """

    def __init__(
        self,
        config: AgentConfig,
        client: AgentClient,
        telemetry: Telemetry,
        tally: Tally,
        *,
        clock: Callable[[], float],
        debug: bool,
    ) -> None:
        self._agent_id = config.id
        self._enforced = config.enforce
        self._client = client
        self.tally = tally
        self.tracing = telemetry.tracing
        self._export_duration = telemetry.metering.call_duration.record
        self._export_queue_wait = telemetry.metering.queue_duration.record
        self._export_hold = telemetry.metering.hold_duration.record
        self._clock = clock
        self._debug = debug
        self.failing = False
        self._quiet_until = -math.inf
        # What most calls come to.
        self._consents: dict[EventType, Series] = {}
        self._own_attributes = {AGENT_ID: config.id}
        # Of each event on each route: the name of its span, and what every such span says.
        self._spans: dict[tuple[EventType, str | None], tuple[str, dict[str, str]]] = {}
        # Of which of them the log has said that the agent is shown bodies as they were encoded.
        self._warned_of_encoding: set[tuple[EventType, str | None]] = set()

    def record(
        self,
        event_type: EventType,
        event: Event | None,
        failure_mode: FailureMode,
        route: str | None,
        started: float,
        ended: float,
        response: AgentResponse | None,
        failure: Failure | None = None,
        detected: bool = False,
        exc: Exception | None = None,
        correlation_id: str = "",
        counted: bool = True,
        window: bool = False,
        consequence: str | None = None,
    ) -> Verdict:
        """The verdict on a call that has ended, counted unless it is not to be.

        :param event: what the agent has received; None: nothing. Then ``correlation_id`` is that of the connection.
        :param exc: why the call has failed.
        :param window: whether a guardrail has asked, about a window of text that passes.
        :param consequence: what comes of a failure, in words for the log; None: what the failure mode says.
        """
        duration = ended - started
        verdict = Verdict(
            self._agent_id,
            event_type,
            response,
            failure,
            failure_mode is not _OPEN,
            self._enforced,
            duration,
            detected,
            window,
        )
        if response is ALLOW and self.record_allow(event_type, event, duration, ended):
            # As most calls.
            return verdict
        if counted:
            size = _size_of(event_type, event)
            if event is not None:
                correlation_id = correlation_id_of(event)
            series = self.tally.count(
                verdict, ended, correlation_id=correlation_id, route=route, size=size, event=event
            )
            self._export_duration(duration, series.attributes)
            if response is ALLOW:
                self._consents[event_type] = series
            self._log(verdict, exc, consequence)
        return verdict

    def record_allow(self, event_type: EventType, event: Event | None, duration: float, ended: float) -> bool:
        """Count a call that has ended in a plain allow, if there was one before; else it is for :meth:`record`."""
        series = self._consents.get(event_type)
        if series is None or self.failing:
            return False
        self.tally.add(series, duration, ended)
        self._export_duration(duration, series.attributes)
        if event_type in _WITH_DATA and (data := event.data):  # type: ignore[union-attr]
            self.tally.inspected[series.event] += len(data)
        return True

    def waited(self, seconds: float) -> None:
        """Count how long a call has waited for a permit, or a place on a connection."""
        self.tally.queue_waits.add(seconds)
        self._export_queue_wait(seconds, self._own_attributes)

    def held(self, seconds: float) -> None:
        """Count how long an event of a stream that the agent judges as a guardrail has waited at most."""
        self.tally.text.add_delay(seconds)
        self._export_hold(seconds, self._own_attributes)

    def span(self, event_type: EventType, route: str | None, correlation_id: str) -> ActiveSpan | None:
        """The span of a call; None where there is no tracer provider."""
        span = self._spans.get((event_type, route))
        if span is None:
            if len(self._spans) >= _MAX_SPANS:
                # Routes that somebody makes up as they go.
                self._spans.clear()
            attributes = {AGENT_ID: self._agent_id, EVENT: event_type.value}
            if route is not None:
                attributes[ROUTE] = route
            span = self._spans[event_type, route] = (f"{event_type.value} {self._agent_id}", attributes)
        name, attributes = span
        return self.tracing.call(name, attributes, correlation_id, remote=self._client.remote)

    def breaker_changed(self, old: BreakerState, new: BreakerState) -> None:
        """Write down that the agent's breaker has changed its state."""
        self.tally.transitions[new.value] += 1
        level = logging.WARNING if new is BreakerState.OPEN else logging.INFO
        logger.log(level, "agent %r: circuit breaker %s -> %s", self._agent_id, old.value, new.value)

    def warn_of_encoding(self, event_type: EventType, route: str | None) -> None:
        """Say in the log, once a route, that the agent is shown bodies that it can't read."""
        if (event_type, route) in self._warned_of_encoding or len(self._warned_of_encoding) >= _MAX_SPANS:
            return
        self._warned_of_encoding.add((event_type, route))
        whose = "request" if event_type is EventType.REQUEST_BODY_CHUNK else "response"
        logger.warning(
            "agent %r is shown %s bodies with a content-encoding as they are%s; decode=True would show it their "
            "content (logged once a route)",
            self._agent_id,
            whose,
            "" if route is None else f" on route {printable(route)!r}",
        )

    def traceback_of(self, exc: Exception | None) -> Exception | None:
        """``exc``, if its traceback belongs in the log: it may show what requests carry."""
        # Of a remote agent it would only show our own code.
        return exc if self._debug and not self._client.remote and not isinstance(exc, CallFailure) else None

    def _log(self, verdict: Verdict, exc: Exception | None, consequence: str | None) -> None:
        """Say in the log that the agent fails, or that it answers again."""
        if verdict.failure is None:
            if self.failing:
                self.failing = False
                logger.info("agent %r answers again", self._agent_id)
        elif not self.failing and RULES[verdict.failure.kind].logged:
            # An agent that fails now and then would otherwise fill the log: it gets a line a minute.
            now = self._clock()
            if now >= self._quiet_until:
                self.failing = True
                self._quiet_until = now + _LOG_INTERVAL
                place = self._client.address
                logger.warning(
                    "%s; %s (%slogged at most once a minute)",
                    verdict.failure.message,
                    consequence_of(verdict) if consequence is None else consequence,
                    f"it is at {place}; " if place else "",
                    exc_info=self.traceback_of(exc),
                )


def _size_of(event_type: EventType, event: Event | None) -> int:
    """How many bytes of a body or message an agent was shown."""
    return len(event.data) if event is not None and event_type in _WITH_DATA else 0  # type: ignore[union-attr]
