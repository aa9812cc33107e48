"""One agent behind its concurrency limit, circuit breaker and deadline."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from msgspec import structs

from .breaker import BreakerState
from .breaker.shared_breaker import SharedBreaker
from .calls.blocking import LONGEST_STEP, Steps
from .calls.call import AgentCall
from .calls.checking import check_answer, check_general
from .calls.configuring import Configuring
from .calls.deadlines import Queue, refusal
from .calls.delivery import Delivery
from .calls.inspections import inspection_of, response_of
from .calls.outside import event_outside
from .calls.recording import Recorder
from .concurrency.cancellation import given_up
from .concurrency.shared_limiter import SharedLimiter
from .config import AgentConfig
from .decision import Verdict
from .failures import CallFailure, Failure, FailureKind, describe, failure_of
from .observability.correlation import outside_name
from .observability.metrics import AgentMetrics, AgentStatistics, Tally
from .observability.telemetry import Telemetry
from .observability.trace_context import current_traceparent
from .observability.tracing import ActiveSpan
from .policy import FailureMode
from .protocol import (
    ALLOW,
    AgentResponse,
    Event,
    EventType,
    GuardrailInspectEvent,
    GuardrailResponse,
    RequestHeadersEvent,
)
from .protocol.stream import correlation_id_of
from .transports.resolve import bind

logger = logging.getLogger("asgi_agents")

# A time that never comes.
_FOREVER = math.inf
# To look a member of an enumeration up by its name takes longer than most of what a call does (CPython 3.11).
_WEBSOCKET_FRAME = EventType.WEBSOCKET_FRAME
_OPEN = FailureMode.OPEN
# The verdict of a `brief` call that was a plain allow.
_PLAIN_ALLOW = Verdict("", _WEBSOCKET_FRAME, ALLOW, None, True, True, 0.0)


class Guard:
    """Calls one agent, and turns whatever happens into a :class:`Verdict`.

    The order within a call: a permit, the breaker, the agent; all under one deadline. Permit and half-open slot are
    given back however the call ends.

    :param telemetry: where spans and durations go; None: to the global providers.
    :param tally: what was counted of this agent's id before.
    :param debug: log the traceback of what an agent in this process raises.
    :ivar client: carries the calls to the agent. Its connections are closed with :meth:`AgentClient.aclose`.
    :ivar configuring: hands the agent its configuration.
    :ivar recorder: counts and logs what calls come to.
    :ivar breaker: None where it is switched off.
    :ivar hears: the events that the agent receives; ``on_change`` is called when the agent has changed them.
    :ivar local: whether the agent is called directly, so that events don't leave the process.
    :ivar stands_in: whether the agent stands in the place of another one, in a test.
    :ivar predecessor: the guard that this one has replaced, while that one still has calls.
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
        self.client = client = bind(
            config.resolved_transport,
            config.id,
            events=config.hears,
            config=config.config,
            max_concurrent_calls=config.max_concurrent_calls,
        )
        self.tally = Tally(config.id) if tally is None else tally
        telemetry = Telemetry() if telemetry is None else telemetry
        self._tracing = telemetry.tracing
        self.recorder = Recorder(config, client, telemetry, self.tally, clock=clock, debug=debug)
        self.breaker = (
            None
            if config.circuit_breaker is None
            else SharedBreaker(config.circuit_breaker, clock=clock, on_change=self.recorder.breaker_changed)
        )
        self._limiter = SharedLimiter(config.max_concurrent_calls)
        self._queue = Queue(client, self.breaker, self._limiter)
        self._steps = Steps(config.id, client, logger)
        self._delivery = Delivery(client, self._steps, self._queue)
        self.configuring = Configuring(config, client, self._delivery, self.recorder, clock)
        self._reserves = client.reserves
        self._remote = client.remote
        # The hooks of an agent in the process that can be called without ado.
        self._non_suspending_hooks = client.non_suspending_hooks
        self.hears = client.hears
        self.local = client.agent is not None
        self.stands_in = False
        self.predecessor: Guard | None = None
        self.on_change: Callable[[], object] = lambda: None
        client.on_change = self._client_changed

    def __repr__(self) -> str:
        return f"<Guard {self.config.id!r}>"

    # How it is

    @property
    def configured(self) -> bool:
        """Whether the agent has taken its configuration, or needs none."""
        return self.configuring.done

    @property
    def busy(self) -> bool:
        """Whether calls are under way or waiting."""
        return self._limiter.taken > 0

    @property
    def active(self) -> int:
        """Calls under way, those of the guard included that this one has replaced."""
        return self._limiter.taken + (0 if self.predecessor is None else self.predecessor.active)

    @property
    def queued(self) -> int:
        """Calls that wait for a permit or a place on a connection."""
        return self._queue.waiting

    @property
    def breaker_state(self) -> BreakerState | None:
        """The state of its breaker, if it has one."""
        return None if self.breaker is None else self.breaker.observed

    def metrics(self) -> AgentMetrics:
        """The counts so far."""
        return self.tally.summary(self.active, self.queued)

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
        return not self.configuring.done or any(self.client.may_suspend(event) for event in self.hears)

    def may_suspend(self, event_type: EventType) -> bool:
        """Whether :meth:`call` can suspend now. If not, it needs no task of its own to run beside others."""
        return (
            (event_type not in self._non_suspending_hooks and self.client.may_suspend(event_type))
            or not self.configuring.done
            or self._limiter.taken >= self._limiter.limit
        )

    # Calls

    async def call(
        self,
        event: Event,
        failure_mode: FailureMode,
        chunk: bool = False,
        route: str | None = None,
        untraced: bool = False,
        brief: bool = False,
    ) -> Verdict:
        """Show ``event`` to the agent. Raises nothing but cancellation.

        ``chunk`` selects the deadline of streamed body chunks. ``untraced``: the caller has seen that no spans are
        made. ``brief``: the verdict on a plain allow need not say more than that, such as whose it is.
        """
        event_type = event.event_type
        # Chunks and messages share one span a body or session, which the exchange makes.
        untraced = untraced or chunk or event_type is _WEBSOCKET_FRAME or self._tracing.idle
        call: AgentCall | None = None
        if (
            untraced
            and (hook := self._non_suspending_hooks.get(event_type)) is not None
            and self._limiter.taken < self._limiter.limit
            and self.configuring.done
            and not self.recorder.failing
            and (started := time.monotonic())
            < (_FOREVER if (breaker := self.breaker) is None else breaker.no_recent_failures_until)
        ):
            # Most calls are like this. The hook can't suspend, so that nothing runs beside it: no permit is taken, no
            # deadline armed and no slot of the breaker held.
            try:
                answer = await hook(event)
                response = ALLOW if answer is None or answer is ALLOW else check_general(self.config, event, answer)
            except BaseException as exc:
                timeout = self.config.chunk_timeout if chunk else self.config.timeout
                call = AgentCall(event, failure_mode, route, timeout, started, raised=exc)
                if (seconds := time.monotonic() - started) > LONGEST_STEP:
                    self._steps.took(event_type, seconds)
            else:
                if breaker is not None:
                    breaker.answered += 1
                ended = time.monotonic()
                seconds = ended - started
                if seconds > LONGEST_STEP:
                    self._steps.took(event_type, seconds)
                recorder = self.recorder
                if response is ALLOW and recorder.record_allow(event_type, event, seconds, ended):
                    if brief:
                        return _PLAIN_ALLOW
                    config, closed = self.config, failure_mode is not _OPEN
                    return Verdict(config.id, event_type, ALLOW, None, closed, config.enforce, seconds)
                return recorder.record(event_type, event, failure_mode, route, started, ended, response)
        if call is None:
            call = AgentCall(event, failure_mode, route, self.config.chunk_timeout if chunk else self.config.timeout)
        return await self._call(call, not untraced)

    async def inspect(
        self, event: GuardrailInspectEvent, failure_mode: FailureMode, *, route: str | None = None, window: bool = False
    ) -> tuple[Verdict, GuardrailResponse]:
        """Ask a guardrail question. The response says nothing useful where the verdict is a failure.

        ``window``: it is about a window of a text. Windows share one span, which the exchange makes.
        """
        call = AgentCall(event, failure_mode, route, self.config.timeout, window=window)
        verdict = await self._call(call, not (window or self._tracing.idle))
        answer = call.answer
        return verdict, answer if isinstance(answer, GuardrailResponse) else inspection_of(answer)

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
        window: bool = False,
        consequence: str | None = None,
    ) -> Verdict:
        """The verdict on an event that was not shown to the agent, or whose call came to nothing.

        ``traced``: it has a span already. ``window`` and ``consequence`` are those of :meth:`Recorder.record`.
        """
        failure = Failure(kind, describe(self.config.id, event_type, fault))
        now = time.monotonic()
        verdict = self.recorder.record(
            event_type,
            None,
            self._mode(event_type, self._name_for_client(correlation_id), failure_mode),
            route,
            now,
            now,
            None,
            failure,
            correlation_id=correlation_id,
            window=window,
            consequence=consequence,
        )
        span = None if traced or self._tracing.idle else self.recorder.span(event_type, route, correlation_id)
        if span is not None:
            with span:
                span.record(verdict)
        return verdict

    async def _call(self, call: AgentCall, traced: bool) -> Verdict:
        """Make a call: the only path of those that :meth:`call` does not make itself."""
        event = call.event
        event_type = event.event_type
        if traced:
            span = self.recorder.span(event_type, call.route, correlation_id_of(event))
            if span is not None:
                return await self._call_in(span, call)
        call.started = call.started or time.monotonic()
        multiplier = self.client.timeout_multiplier
        if multiplier != 1.0:
            call.timeout *= multiplier
        breaker = self.breaker
        began: int | None = None
        if self._remote and not self.stands_in:
            call.event = event_outside(event)
        has_permit = self._limiter.try_acquire()
        try:
            if not has_permit:
                await self._queue.permit(call)
                has_permit = True
            if not self.configuring.done:
                await self.configuring.wait(call.timeout, call.started)
            if breaker is not None:
                began = breaker.acquire()
                if began is None:
                    raise refusal(breaker)
            place = self.client.reserve_now(call.event) if self._reserves else None
            try:
                if place is not None:
                    given = await place.call(call.event, call.started + call.timeout)
                else:
                    given = await self._delivery.begin(call)
            except BaseException as exc:
                given = await self._delivery.settle(call, exc)
            answer: AgentResponse | GuardrailResponse = ALLOW
            if given is not None and given is not ALLOW:
                answer = call.answer = check_answer(self.config, event, given)
            if breaker is not None and began is not None:
                breaker.success(began)
        except Exception as exc:
            gone = given_up()
            failure = failure_of(
                exc,
                event_type,
                agent_id=self.config.id,
                function=self._steps.function(event_type),
                others_left=self.client.connected,
                given_up=gone,
            )
            if breaker is not None and began is not None:
                if failure.counts_for_breaker:
                    breaker.failure(began)
                else:
                    breaker.release(began)
            # The call was cancelled, and may have failed because of that: it says nothing of the agent.
            call.given_up = gone and not isinstance(exc, CallFailure)
            if call.queued and not call.given_up:
                self.recorder.waited(call.queued)
            return self.recorder.record(
                event_type,
                event,
                self._mode(event_type, correlation_id_of(call.event), call.failure_mode),
                call.route,
                call.started,
                time.monotonic(),
                None,
                failure,
                exc=exc,
                counted=not call.given_up,
                window=call.window,
            )
        except BaseException:
            if breaker is not None and began is not None:
                breaker.release(began)
            raise
        finally:
            if has_permit:
                self._limiter.release()
        if call.queued:
            self.recorder.waited(call.queued)
        detected = False
        if isinstance(answer, GuardrailResponse):
            detected, answer = answer.detected, response_of(answer)
        return self.recorder.record(
            event_type,
            event,
            call.failure_mode,
            call.route,
            call.started,
            time.monotonic(),
            answer,
            None,
            detected,
            window=call.window,
        )

    def forget(self, correlation_id: str) -> None:
        """The app's connection of that id is over: nothing more is asked about it."""
        self.client.forget(self._name_for_client(correlation_id))

    def awaits_end(self, event_type: EventType, correlation_id: str) -> bool:
        """Whether the agent is to be told of the end of a body that turns out to be empty."""
        return self.client.awaits_end(event_type, self._name_for_client(correlation_id))

    def _mode(self, event_type: EventType, name: str, failure_mode: FailureMode) -> FailureMode:
        """The failure mode that holds where the call fails. The client knows the connection by ``name``."""
        return FailureMode.CLOSED if self.client.holds(event_type, name) else failure_mode

    def _name_for_client(self, correlation_id: str) -> str:
        """What the client calls the connection of that id: the name that its events have where they leave the process.

        Nothing else of the package may hand an id or an event to :attr:`client`.
        """
        return outside_name(correlation_id) if self._remote and not self.stands_in else correlation_id

    async def _call_in(self, span: ActiveSpan, call: AgentCall) -> Verdict:
        with span:
            if isinstance(call.event, RequestHeadersEvent):
                # What the agent does for this call belongs under it, not beside it.
                call.event = structs.replace(
                    call.event, metadata=structs.replace(call.event.metadata, traceparent=current_traceparent())
                )
            verdict = await self._call(call, traced=False)
            span.record(verdict, given_up=call.given_up)
            return verdict

    # Changes while it is in use

    async def push_config(self, config: Any) -> None:
        """Give the agent another configuration while it runs; raises :class:`AgentError` when it doesn't take it."""
        await self.configuring.push(config)
        self.config = replace(self.config, config=config)

    def _client_changed(self, came_up: bool) -> None:
        most = self.client.max_concurrency
        limit = self.config.max_concurrent_calls
        self._limiter.resize(limit if most is None else min(limit, most))
        if came_up:
            self.configuring.try_again()
        if came_up and self.breaker is not None:
            self.breaker.try_again()
        changed = False
        # Each thread looks again after it has written: what it wrote may be older than what another has written before.
        while self.hears != (hears := self.client.hears):
            self.hears = hears
            changed = True
        if changed:
            self.on_change()
