"""One agent behind its concurrency limit, circuit breaker and deadline."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

import anyio
from anyio import CancelScope
from anyio.lowlevel import checkpoint_if_cancelled
from msgspec import Struct, structs

from .breaker import BreakerState
from .breaker.shared_breaker import SharedBreaker
from .calls.blocking import LONGEST_STEP, Steps, in_steps
from .calls.consequence import consequence_of
from .calls.given_config import GivenConfig
from .calls.raised import answer_raised
from .concurrency.cancellation import cancel_requests, given_up, raise_swallowed, was_asked_for
from .concurrency.one_at_a_time import OneAtATime
from .concurrency.shared_limiter import SharedLimiter
from .config import AgentConfig
from .decision import Verdict
from .errors import AgentError, AgentTimeoutError, AgentUnavailableError, printable
from .failures import RULES, CallFailure, Failure, FailureKind, describe, failure_of
from .observability.attributes import AGENT_ID, EVENT, ROUTE
from .observability.metrics import AgentMetrics, AgentStatistics, Series, Tally
from .observability.telemetry import Telemetry
from .observability.trace_context import current_traceparent
from .observability.tracing import ActiveSpan
from .policy import FailureMode
from .protocol import (
    ALLOW,
    Acknowledgement,
    AgentResponse,
    Answer,
    AuditMetadata,
    Block,
    ConfigureEvent,
    Detection,
    Event,
    EventType,
    GuardrailInspectEvent,
    GuardrailResponse,
    RequestHeadersEvent,
    check_acknowledgement,
    check_inspection,
    check_response,
    reason_of,
)
from .protocol.applicability import check_applicable
from .protocol.stream import correlation_id_of
from .transports.base import Place
from .transports.resolve import bind

logger = logging.getLogger("asgi_agents")

T = TypeVar("T")

# An agent that refuses its configuration is asked again after 0.1 s, 0.2 s, … up to this many seconds.
_MAX_CONFIGURE_BACKOFF = 30.0
# Seconds an agent may take to digest its configuration, if its own timeout is shorter.
_CONFIGURE_TIMEOUT = 10.0
# A time that never comes.
_FOREVER = math.inf
# How many combinations of event and route are remembered.
_MAX_SPANS = 10_000
# Seconds between two lines that say that an agent fails.
_LOG_INTERVAL = 60.0
# To look a member of an enumeration up by its name takes longer than most of what a call does (CPython 3.11).
_OPEN = FailureMode.OPEN
_WEBSOCKET_FRAME = EventType.WEBSOCKET_FRAME
_ACKNOWLEDGED = frozenset({EventType.CONFIGURE, EventType.REQUEST_COMPLETE})
# These carry data, as bytes.
_WITH_DATA = frozenset({EventType.REQUEST_BODY_CHUNK, EventType.RESPONSE_BODY_CHUNK, EventType.WEBSOCKET_FRAME})


class Guard:
    """Calls one agent, and turns whatever happens into a :class:`Verdict`.

    The order within a call: a permit, the breaker, the agent; all under one deadline. Permit and half-open slot are
    given back however the call ends.

    :param telemetry: where spans and durations go; None: to the global providers.
    :param tally: what was counted of this agent's id before.
    :param debug: log the traceback of what an agent in this process raises.
    """

    def __init__(
        self,
        config: AgentConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        telemetry: Telemetry | None = None,
        tally: Tally | None = None,
        debug: bool = False,
    ) -> None:
        self.config = config
        self._debug = debug
        self.tally = Tally(config.id) if tally is None else tally
        telemetry = Telemetry() if telemetry is None else telemetry
        self._tracing = telemetry.tracing
        self._export_duration = telemetry.metering.call_duration.record
        self._export_queue_wait = telemetry.metering.queue_duration.record
        # What most calls come to.
        self._consents: dict[EventType, Series] = {}
        # Of each event on each route: the name of its span, and what every such span says.
        self._own_attributes = {AGENT_ID: config.id}
        self._spans: dict[tuple[EventType, str | None], tuple[str, dict[str, str]]] = {}
        # Of which of them the log has said that the agent is shown bodies as they were encoded.
        self._warned_of_encoding: set[tuple[EventType, str | None]] = set()
        self.breaker = (
            None
            if config.circuit_breaker is None
            else SharedBreaker(config.circuit_breaker, clock=clock, on_change=self._breaker_changed)
        )
        #: How the agent is reached.
        self.client = bind(
            config.resolved_transport,
            config.id,
            events=config.hears,
            config=config.config,
            max_concurrent_calls=config.max_concurrent_calls,
        )
        #: Called when the agent has said something new of what it hears.
        self.on_change: Callable[[], object] = lambda: None
        # The hooks of an agent in the process that can be called without ado.
        self._non_suspending_hooks = self.client.non_suspending_hooks
        self._steps = Steps(config.id, self.client, logger)
        self._limiter = SharedLimiter(config.max_concurrent_calls)
        #: The events to ask the agent about.
        self.hears = self.client.hears
        #: Whether the agent is called directly, so that what it is shown doesn't leave the process.
        self.local = self.client.agent is not None
        #: Whether :meth:`forget_request` has anything to do.
        self.keeps_requests = self.client.keeps_requests
        #: Whether it is asked about connections. One that is only to take another's place is not, until it has.
        self.in_use = True
        #: Whose place this has taken, while that still has calls.
        self.predecessor: Guard | None = None
        self._reserves = self.client.reserves
        # Calls that wait for a place on a connection.
        self._reserving = 0
        self._failing = False
        self._quiet_until = -math.inf
        # Lasting connections are configured one by one, when they are made.
        self._configured = not self._needs_configuration
        self._configuring = OneAtATime()
        self._configure_error = ""
        self._configure_backoff = 0.0
        self._configure_after = 0.0
        self._clock = clock
        self.client.on_change = self._client_changed

    def __repr__(self) -> str:
        return f"<Guard {self.config.id!r}>"

    @property
    def busy(self) -> bool:
        """Whether calls are under way or waiting."""
        return self._limiter.taken > 0

    @property
    def configured(self) -> bool:
        """Whether the agent has taken its configuration, or needs none."""
        return self._configured

    def metrics(self) -> AgentMetrics:
        """The counts so far."""
        return self.tally.summary(self.active, self.queued)

    @property
    def active(self) -> int:
        """Calls under way, those of the guard included that this one has replaced."""
        return self._limiter.taken + (0 if self.predecessor is None else self.predecessor.active)

    @property
    def queued(self) -> int:
        """Calls that wait for a permit or a place on a connection."""
        return self._limiter.waiting + self._reserving

    @property
    def breaker_state(self) -> BreakerState | None:
        """The state of its breaker, if it has one."""
        return None if self.breaker is None else self.breaker.observed

    def statistics(self) -> AgentStatistics:
        """How the agent is now."""
        endpoints, waiting = self.client.statistics()
        return AgentStatistics(
            transport=self.client.kind,
            in_flight=self._limiter.taken,
            max_in_flight=self._limiter.limit,
            waiting=self._limiter.waiting + waiting,
            breaker=self.breaker_state,
            endpoints=endpoints,
        )

    @property
    def may_wait(self) -> bool:
        """Whether any call can ever suspend: if one can, the others may have to wait for its permit."""
        return not self._configured or any(self.client.may_suspend(event) for event in self.hears)

    def may_suspend(self, event_type: EventType) -> bool:
        """Whether :meth:`call` can suspend now. If not, it needs no task of its own to run beside others."""
        return (
            (event_type not in self._non_suspending_hooks and self.client.may_suspend(event_type))
            or not self._configured
            or self._limiter.taken >= self._limiter.limit
        )

    async def call(
        self, event: Event, failure_mode: FailureMode, chunk: bool = False, route: str | None = None
    ) -> Verdict:
        """Show ``event`` to the agent. Raises nothing but cancellation.

        ``chunk`` selects the deadline of streamed body chunks.
        """
        event_type = event.event_type
        # What is one of many has one span with the others, which is not for us to make.
        untraced = chunk or event_type is _WEBSOCKET_FRAME or self._tracing.idle
        call: _Call | None = None
        if (
            untraced
            and (hook := self._non_suspending_hooks.get(event_type)) is not None
            and self._limiter.taken < self._limiter.limit
            and self._configured
            and not self._failing
            and (started := time.monotonic())
            < (_FOREVER if (breaker := self.breaker) is None else breaker.no_recent_failures_until)
        ):
            # Most calls are like this: nothing can come between, so that there is no permit to take and give back, no
            # deadline to arm and no slot of the breaker to hold.
            try:
                answer = await hook(event)
                response = ALLOW if answer is None or answer is ALLOW else self._checked(event_type, answer)
            except BaseException as exc:
                call = _Call(event, failure_mode, route, self.config.timeout, started, raised=exc)
                if (seconds := time.monotonic() - started) > LONGEST_STEP:
                    self._steps.took(event_type, seconds)
            else:
                if breaker is not None:
                    breaker.answered += 1
                if response is ALLOW:
                    verdict = self._record_allow(event, failure_mode, route, started)
                else:
                    verdict = self._judged(_Call(event, failure_mode, route, 0.0, started), response, None)
                if verdict.duration > LONGEST_STEP:
                    self._steps.took(event_type, verdict.duration)
                return verdict
        if call is None:
            call = _Call(event, failure_mode, route, self.config.chunk_timeout if chunk else self.config.timeout)
        if not untraced:
            span = self._start_span(call)
            if span is not None:
                verdict, _ = await self._call_in(span, call)
                return verdict
        verdict, _ = await self._call(call)
        return verdict

    async def inspect(
        self, event: GuardrailInspectEvent, failure_mode: FailureMode, *, route: str | None = None
    ) -> tuple[Verdict, GuardrailResponse]:
        """Ask a guardrail question. The response says nothing useful where the verdict is a failure."""
        call = _Call(event, failure_mode, route, self.config.timeout)
        span = None if self._tracing.idle else self._start_span(call)
        verdict, answer = await (self._call(call) if span is None else self._call_in(span, call))
        if isinstance(answer, GuardrailResponse):
            return verdict, answer
        return verdict, _guardrail_from(verdict.response or ALLOW)

    def skip(
        self,
        event_type: EventType,
        kind: FailureKind,
        failure_mode: FailureMode,
        fault: str,
        *,
        correlation_id: str = "",
        route: str | None = None,
        traced: bool = False,
    ) -> Verdict:
        """The verdict on an event that was not shown to the agent, or whose call came to nothing.

        ``traced``: it has a span already.
        """
        failure = Failure(kind, describe(self.config.id, event_type, fault))
        verdict = Verdict(
            self.config.id, event_type, None, failure, failure_mode != FailureMode.OPEN, self.config.enforce, 0.0
        )
        if not (traced or self._tracing.idle):
            name, attributes = self._span_of(event_type, route)
            span = self._tracing.call(name, attributes, correlation_id, remote=self.client.remote)
            if span is not None:
                with span:
                    span.record(verdict)
        self._count(verdict, time.monotonic(), correlation_id, route, 0)
        return verdict

    def warn_of_encoding(self, event_type: EventType, route: str | None) -> None:
        """Say in the log, once a route, that the agent is shown bodies that it can't read."""
        if (event_type, route) in self._warned_of_encoding or len(self._warned_of_encoding) >= _MAX_SPANS:
            return
        self._warned_of_encoding.add((event_type, route))
        whose = "request" if event_type is EventType.REQUEST_BODY_CHUNK else "response"
        logger.warning(
            "agent %r is shown %s bodies with a content-encoding as they are%s; decode=True would show it their "
            "content (logged once a route)",
            self.config.id,
            whose,
            "" if route is None else f" on route {printable(route)!r}",
        )

    async def configure(self) -> None:
        """Hand the agent its configuration, unless it has it; raises :class:`AgentError` when it doesn't take it.

        Of concurrent calls one asks, the others wait for it. An agent behind lasting connections is waited for until
        there is one.
        """
        if self.client.configures_itself:
            await self.client.connect()
            return
        try:
            await self._await_configuration(max(self.config.timeout, _CONFIGURE_TIMEOUT), time.monotonic())
        except CallFailure as exc:
            raise AgentError(f"not configured: {self._configure_error or exc}") from exc

    @property
    def configure_delay(self) -> float:
        """Seconds until :meth:`configure` asks the agent again."""
        return max(0.0, self._configure_after - self._clock())

    async def aclose(self) -> None:
        """Close the connections of the running event loop. A later call makes new ones."""
        await self.client.aclose()

    async def retire(self) -> None:
        """Close those of every event loop, lasting ones for good: the agent was removed."""
        await self.client.retire()

    def forget(self) -> None:
        """The agent is to be configured anew before its next call."""
        self._configured = not self._needs_configuration
        self._configure_after = self._configure_backoff = 0.0

    def forget_request(self, correlation_id: str) -> None:
        """The connection of that id is over."""
        self.client.forget(correlation_id)

    async def push_config(self, config: Any) -> None:
        """Give the agent another configuration while it runs; raises :class:`AgentError` when it doesn't take it."""
        if self.client.configures_itself:
            await self.client.push_config(config)
        else:
            try:
                await self._hand_over(config, max(self.config.timeout, _CONFIGURE_TIMEOUT), time.monotonic())
            except Exception as exc:
                raise AgentError(self._failure_of(EventType.CONFIGURE, exc).message) from exc
            self._configured = True
        self.config = replace(self.config, config=config)

    @property
    def _needs_configuration(self) -> bool:
        if self.config.config is None:
            # An agent in the same process is told that it is being connected; others may refuse what says nothing.
            return not self.client.remote and EventType.CONFIGURE in self.hears
        return not self.client.configures_itself

    def _client_changed(self, came_up: bool) -> None:
        most = self.client.max_concurrency
        limit = self.config.max_concurrent_calls
        self._limiter.resize(limit if most is None else min(limit, most))
        if came_up and self.breaker is not None:
            self.breaker.try_again()
        if self.hears != self.client.hears:
            self.hears = self.client.hears
            self.on_change()

    def _start_span(self, call: "_Call") -> ActiveSpan | None:
        event = call.event
        name, attributes = self._span_of(event.event_type, call.route)
        return self._tracing.call(name, attributes, correlation_id_of(event), remote=self.client.remote)

    def _span_of(self, event_type: EventType, route: str | None) -> tuple[str, dict[str, str]]:
        span = self._spans.get((event_type, route))
        if span is None:
            if len(self._spans) >= _MAX_SPANS:
                # Routes that somebody makes up as they go.
                self._spans.clear()
            attributes = {AGENT_ID: self.config.id, EVENT: event_type.value}
            if route is not None:
                attributes[ROUTE] = route
            span = self._spans[event_type, route] = (f"{event_type.value} {self.config.id}", attributes)
        return span

    async def _call_in(self, span: ActiveSpan, call: "_Call") -> tuple[Verdict, AgentResponse | GuardrailResponse]:
        with span:
            if isinstance(call.event, RequestHeadersEvent):
                # What the agent does for this call belongs under it, not beside it.
                call.event = structs.replace(
                    call.event, metadata=structs.replace(call.event.metadata, traceparent=current_traceparent())
                )
            verdict, answer = await self._call(call)
            span.record(verdict, given_up=call.given_up)
            return verdict, answer

    async def _call(self, call: "_Call") -> tuple[Verdict, AgentResponse | GuardrailResponse]:
        call.started = call.started or time.monotonic()
        call.timeout *= self.client.timeout_multiplier
        breaker = self.breaker
        began: int | None = None
        try:
            if not self._limiter.try_acquire():
                await self._queue(call)
            try:
                if not self._configured:
                    await self._await_configuration(call.timeout, call.started)
                if breaker is not None:
                    began = breaker.acquire()
                    if began is None:
                        raise self._breaker_refusal()
                place = self.client.reserve_now(call.event) if self._reserves else None
                if place is not None:
                    given: Answer | None = await place.call(call.event, call.started + call.timeout)
                else:
                    given = await self._deliver(call)
                answer = self._judgement(call.event, given)
            except BaseException as exc:
                if breaker is not None and began is not None:
                    if (
                        isinstance(exc, Exception)
                        and self._failure_of(call.event.event_type, exc, given_up=given_up()).counts_for_breaker
                    ):
                        breaker.failure(began)
                    else:
                        # It was given up, perhaps failing over that, or it says nothing of the agent.
                        breaker.release(began)
                if isinstance(exc, AgentTimeoutError):
                    raise _expired(exc, call.timeout) from exc
                raise
            else:
                if breaker is not None and began is not None:
                    breaker.success(began)
            finally:
                self._limiter.release()
        except Exception as exc:
            failure = self._failure_of(call.event.event_type, exc, given_up=given_up())
            if given_up() and not isinstance(exc, CallFailure):
                # It has failed over that, or is too late for anyone: no news of the agent.
                call.given_up = True
                return self._verdict(call, None, failure, time.monotonic() - call.started), ALLOW
            return self._judged(call, None, failure, exc=exc), ALLOW
        if isinstance(answer, AgentResponse):
            return self._judged(call, answer, None), answer
        return self._judged(call, _as_response(answer), None, detected=answer.detected), answer

    def _judged(
        self,
        call: "_Call",
        response: AgentResponse | None,
        failure: Failure | None,
        *,
        detected: bool = False,
        exc: Exception | None = None,
    ) -> Verdict:
        """The verdict on a call that has ended, counted. ``exc`` is why it failed."""
        event = call.event
        if call.queued:
            self.tally.queue_waits.add(call.queued)
            self._export_queue_wait(call.queued, self._own_attributes)
        if response is ALLOW and not self._failing:
            return self._record_allow(event, call.failure_mode, call.route, call.started)
        ended = time.monotonic()
        verdict = self._verdict(call, response, failure, ended - call.started, detected)
        size = len(event.data) if event.event_type in _WITH_DATA else 0  # type: ignore[union-attr]
        self._count(verdict, ended, correlation_id_of(event), call.route, size, exc)
        return verdict

    def _record_allow(self, event: Event, failure_mode: FailureMode, route: str | None, started: float) -> Verdict:
        """The verdict on a call that was answered with a plain allow, as most are, counted."""
        ended = time.monotonic()
        duration = ended - started
        event_type = event.event_type
        verdict = Verdict(
            self.config.id,
            event_type,
            ALLOW,
            None,
            failure_mode is not _OPEN,
            self.config.enforce,
            duration,
        )
        size = len(event.data) if event_type in _WITH_DATA else 0  # type: ignore[union-attr]
        series = self._consents.get(event_type)
        if series is None:
            self._consents[event_type] = self._count(verdict, ended, "", route, size)
            return verdict
        self.tally.add(series, duration, ended)
        self._export_duration(duration, series.attributes)
        if size:
            self.tally.inspected[series.event] += size
        return verdict

    def _count(
        self,
        verdict: Verdict,
        now: float,
        correlation_id: str,
        route: str | None,
        size: int,
        exc: Exception | None = None,
    ) -> Series:
        series = self.tally.count(verdict, now, correlation_id=correlation_id, route=route, size=size)
        self._export_duration(verdict.duration, series.attributes)
        if verdict.failure is None:
            if self._failing:
                self._failing = False
                logger.info("agent %r answers again", self.config.id)
        elif not self._failing and RULES[verdict.failure.kind].logged:
            # An agent that fails now and then would otherwise fill the log: it gets a line a minute.
            now = self._clock()
            if now >= self._quiet_until:
                self._failing = True
                self._quiet_until = now + _LOG_INTERVAL
                place = self.client.address
                logger.warning(
                    "%s; %s (%slogged once until it answers again)",
                    verdict.failure.message,
                    consequence_of(verdict),
                    f"it is at {place}; " if place else "",
                    exc_info=self._traceback(exc),
                )
        return series

    def _traceback(self, exc: Exception | None) -> Exception | None:
        """``exc``, if its traceback belongs in the log: it may show what requests carry."""
        # Of a remote agent it would only show our own code.
        return exc if self._debug and not self.client.remote and not isinstance(exc, CallFailure) else None

    def _verdict(
        self,
        call: "_Call",
        response: AgentResponse | None,
        failure: Failure | None,
        duration: float,
        detected: bool = False,
    ) -> Verdict:
        return Verdict(
            self.config.id,
            call.event.event_type,
            response,
            failure,
            call.failure_mode != FailureMode.OPEN,
            self.config.enforce,
            duration,
            detected,
        )

    async def _queue(self, call: "_Call") -> None:
        waited_from = time.monotonic()
        try:
            await self._wait_for_permit(call.event, call.timeout, call.failure_mode)
        finally:
            call.queued += time.monotonic() - waited_from

    async def _wait_for_permit(self, event: Event, timeout: float, failure_mode: FailureMode) -> None:
        if failure_mode is FailureMode.OPEN and self.client.is_paused(event):
            # The permits are with calls that are held until the pause is over. This one need not be.
            raise AgentUnavailableError("it has asked for a pause")
        if self.breaker is not None and self.breaker.would_refuse:
            # Don't make anyone wait for a permit only to be turned away.
            raise self._breaker_refusal()
        with CancelScope(deadline=anyio.current_time() + timeout) as scope:
            await self._limiter.acquire()
        if scope.cancelled_caught:
            raise CallFailure(
                FailureKind.QUEUE_TIMEOUT,
                f"none of its {self._limiter.limit} concurrent calls ended within the deadline of {timeout:g} s",
            )

    def _breaker_refusal(self) -> "CallFailure":
        assert self.breaker is not None
        return CallFailure(FailureKind.BREAKER_OPEN, "its circuit breaker is open", self.breaker.retry_after)

    def _judgement(self, event: Event, answer: Answer | None) -> AgentResponse | GuardrailResponse:
        if answer is ALLOW or answer is None:
            return ALLOW
        if isinstance(answer, GuardrailResponse) and isinstance(event, GuardrailInspectEvent):
            return check_inspection(answer, event.content)
        return self._checked(event.event_type, answer)

    async def _deliver(self, call: "_Call") -> Answer | None:
        event = call.event
        try:
            if call.raised is not None:
                try:
                    raise call.raised
                finally:
                    # Its traceback leads here: one would keep the other alive.
                    call.raised = None
            deadline = call.started + call.timeout
            if self._reserves:
                place = await self._reserve(call)
                return await place.call(event, deadline)
            if self.client.may_suspend(event.event_type):
                return await self._within(
                    self.client.call(event, deadline), call.timeout, call.started, event.event_type
                )
            return await in_steps(self.client.call(event, deadline), self._steps, event.event_type)
        except AgentTimeoutError as exc:
            raise _expired(exc, call.timeout) from exc
        except asyncio.CancelledError as exc:
            # No cancellation reaches what can't suspend.
            if self.client.may_suspend(event.event_type) and was_asked_for():
                # In the caller's scope's own words, if it has not had its say yet.
                await checkpoint_if_cancelled()
                raise
            # Its own, from a task or future of the agent's that was cancelled: a failure like any other.
            raise AgentError("raised CancelledError, though nobody has cancelled it") from exc
        except (Exception, BaseExceptionGroup) as exc:
            if isinstance(exc, BaseExceptionGroup):
                # Cancelled, and failed over it in a task group: what counts is that it was cancelled.
                cancelled, rest = exc.split(anyio.get_cancelled_exc_class())
                if cancelled is not None and isinstance(rest, Exception | None):
                    raise _first_leaf(cancelled) from exc
            answer = None
            if isinstance(exc, Exception):
                answer = answer_raised(exc, event.event_type, self._steps.function(event.event_type))
            if answer is None:
                raise
            return answer

    def _checked(self, event_type: EventType, answer: Answer | None) -> AgentResponse:
        if isinstance(answer, Acknowledgement) and event_type in _ACKNOWLEDGED:
            if not check_acknowledgement(answer).success:
                raise AgentError(f"refused: {answer.error or 'no reason given'}")
            return ALLOW
        response = check_response(
            answer, may_mutate=self.config.body_access == "write", may_set_host=self.config.may_set_host
        )
        if response is not ALLOW:
            check_applicable(event_type, response)
        return response

    async def _reserve(self, call: "_Call") -> Place:
        """Wait for a place on one of the agent's connections, under what is left of the deadline."""
        waited_from = time.monotonic()
        self._reserving += 1
        try:
            with CancelScope(deadline=anyio.current_time() + call.started + call.timeout - waited_from):
                # While an agent has paused, there is nothing to wait for where it can be done without.
                return await self.client.reserve(call.event, hold=call.failure_mode is not FailureMode.OPEN)
        finally:
            self._reserving -= 1
            call.queued += time.monotonic() - waited_from
        waited_for = self.client.why_waiting(call.event)
        if waited_for:
            raise CallFailure(
                FailureKind.QUEUE_TIMEOUT, f"not sent within the deadline of {call.timeout:g} s: {waited_for}"
            )
        raise CallFailure(FailureKind.TIMEOUT, f"not connected within the deadline of {call.timeout:g} s")

    async def _within(self, call: Coroutine[Any, Any, T], timeout: float, started: float, event_type: EventType) -> T:
        """Await ``call`` under what is left of the deadline.

        Entering a scope is cheap, arming its timer is not, and most in-process calls finish in their first step. So the
        scope gets its deadline once the call suspends. The call runs inside of it from the start, so that scopes of its
        own nest as they should.

        A call that was cancelled may swallow that and go on. Whatever it returns or raises then is discarded: it has
        timed out if the deadline cancelled it, and a cancellation from outside is raised again.
        """
        # Empty until the call suspends: before that nothing can cancel it.
        requests: list[int] = []

        def arm() -> None:
            requests.append(cancel_requests())
            scope.deadline = anyio.current_time() + started + timeout - time.monotonic()

        try:
            with CancelScope() as scope:
                result = await in_steps(call, self._steps, event_type, arm)
        except (Exception, BaseExceptionGroup, asyncio.CancelledError) as exc:
            if requests:
                if isinstance(exc, asyncio.CancelledError):
                    if given_up() or cancel_requests() > requests[0]:
                        raise
                else:
                    await raise_swallowed(requests[0])
                if scope.cancel_called:
                    raise _no_answer(timeout) from exc
            raise
        if requests:
            await raise_swallowed(requests[0])
            if scope.cancel_called:
                raise _no_answer(timeout)
        return result

    async def _await_configuration(self, timeout: float, started: float) -> None:
        """Ask the agent to take its configuration, or wait for whoever does, and take over should that be cancelled."""
        while not self._configured:
            under_way = self._configuring.begin()
            if under_way is not None:
                await self._within(under_way.wait(), timeout, started, EventType.CONFIGURE)
            else:
                try:
                    if not self._configured and self._clock() >= self._configure_after:
                        await self._configure(timeout, started)
                finally:
                    self._configuring.end()
            if not self._configured and self._clock() < self._configure_after:
                raise AgentError(f"not configured: {self._configure_error}")

    async def _configure(self, timeout: float, started: float) -> None:
        try:
            await self._hand_over(self.config.config, timeout, started)
        except Exception as exc:
            self._not_configured(self._failure_of(EventType.CONFIGURE, exc), exc)
            if isinstance(exc, CallFailure):
                raise
        else:
            if self._configure_error:
                logger.info("agent %r has taken its configuration", self.config.id)
            self._configured = True
            self._configure_error = ""

    async def _hand_over(self, config: Any, timeout: float, started: float) -> None:
        if self.local and type(config) is dict:
            config = GivenConfig(config)
        event = ConfigureEvent(agent_id=self.config.id, config=config)
        answer = await self._deliver(_Call(event, FailureMode.CLOSED, None, timeout, started))
        response = self._checked(event.event_type, answer)
        if not response.is_allow:
            raise AgentError(f"refused its configuration: {reason_of(response)}")

    def _not_configured(self, failure: Failure, exc: Exception) -> None:
        if self.in_use and self._configure_error != failure.message:
            logger.warning(
                "%s; it is treated by its failure mode and asked again", failure.message, exc_info=self._traceback(exc)
            )
        self._configure_error = failure.message
        self._configure_backoff = min(_MAX_CONFIGURE_BACKOFF, max(0.1, self._configure_backoff * 2))
        self._configure_after = self._clock() + self._configure_backoff

    def _failure_of(self, event_type: EventType, exc: Exception, *, given_up: bool = False) -> Failure:
        return failure_of(
            exc,
            event_type,
            agent_id=self.config.id,
            function=self._steps.function(event_type),
            configured=self.config.config is not None,
            others_left=self.client.connected,
            given_up=given_up,
        )

    def _breaker_changed(self, old: BreakerState, new: BreakerState) -> None:
        self.tally.transitions[new.value] += 1
        level = logging.WARNING if new is BreakerState.OPEN else logging.INFO
        logger.log(level, "agent %r: circuit breaker %s -> %s", self.config.id, old.value, new.value)


class _Call(Struct):
    """An event on its way to the agent. ``timeout`` counts from ``started``; ``queued`` is how long it has waited."""

    event: Event
    failure_mode: FailureMode
    route: str | None
    timeout: float
    started: float = 0.0
    queued: float = 0.0
    given_up: bool = False
    #: What the agent has raised already.
    raised: BaseException | None = None


def _no_answer(timeout: float) -> CallFailure:
    return CallFailure(FailureKind.TIMEOUT, f"no answer within the deadline of {timeout:g} s")


def _expired(exc: AgentTimeoutError, timeout: float) -> CallFailure:
    return CallFailure(FailureKind.TIMEOUT, f"{exc} within the deadline of {timeout:g} s")


def _first_leaf(exc: BaseException) -> BaseException:
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return exc


def _as_response(answer: GuardrailResponse) -> AgentResponse:
    """What an inspection found, for the record. What comes of it is the handler's to say."""
    if not answer.detected:
        return ALLOW
    categories = tuple(dict.fromkeys(detection.category for detection in answer.detections))
    return AgentResponse(audit=AuditMetadata(tags=categories, confidence=answer.confidence))


def _guardrail_from(response: AgentResponse) -> GuardrailResponse:
    """A guardrail verdict from an agent that answered in the general shape: a denial is a detection."""
    if response.is_allow:
        return GuardrailResponse(detected=False, confidence=response.audit.confidence or 0.0)
    body = response.decision.body if isinstance(response.decision, Block) else None
    return GuardrailResponse(
        detected=True,
        confidence=1.0 if response.audit.confidence is None else response.audit.confidence,
        detections=tuple(
            Detection(category=category, description=body or "blocked by the agent")
            for category in response.audit.reason_codes or response.audit.tags or ("blocked",)
        ),
    )
