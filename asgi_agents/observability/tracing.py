"""Spans around calls, at both ends, and around sessions of many calls."""

import time
from asyncio import CancelledError
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from types import TracebackType
from typing import Self

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.util.types import AttributeValue

from .._version import __version__
from ..concurrency.cancellation import was_asked_for
from ..decision import Verdict
from .attributes import AGENT_ID, CANCELLED, CORRELATION_ID, DECISION, ENFORCED, ERROR_TYPE, EVENT, EVENTS, FAILURE_MODE
from .correlation import Named
from .trace_context import ServerSpan, remote_context

Attributes = Mapping[str, AttributeValue]

# What a session of days may say in its span.
_MAX_NOTES = 100


def get_tracer(provider: trace.TracerProvider | None = None) -> trace.Tracer:
    """Our tracer; without ``provider`` of the global one, also if that is set later."""
    return trace.get_tracer("asgi_agents", __version__, provider)


def current_trace_id() -> str | None:
    """The trace that the running code belongs to, as 32 hex digits, or None."""
    found = trace.get_current_span().get_span_context()
    return trace.format_trace_id(found.trace_id) if found.is_valid else None


def mark_current_span(connection: Named) -> ServerSpan:
    """Make the server's span findable by the connection's id. Returns it."""
    # Where nobody traces, there is nothing in the context, which is quicker to see than what is not in it.
    span = trace.get_current_span() if context.get_current() else trace.INVALID_SPAN
    if span is not trace.INVALID_SPAN and span.is_recording():
        span.set_attribute(CORRELATION_ID, connection.correlation_id)
    return span


class _Attached:
    """Within, a span is the current one."""

    __slots__ = ("_context", "_token")

    def __init__(self, given: Context) -> None:
        self._context = given

    def __enter__(self) -> Self:
        self._token = context.attach(self._context)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not GeneratorExit:
            context.detach(self._token)
            return
        # A coroutine that is thrown away may be closed from anywhere, where the token means nothing.
        with suppress(ValueError):
            self._token.var.reset(self._token)


class ActiveSpan(_Attached):
    """The span of one call: the current one within, ended behind it."""

    __slots__ = ("_span",)

    def __init__(self, span: Span) -> None:
        super().__init__(trace.set_span_in_context(span))
        self._span = span

    def record(self, verdict: Verdict, *, given_up: bool = False) -> None:
        """Say how the call came out, unless it was ``given_up``."""
        if given_up:
            self._span.set_attribute(CANCELLED, True)
        elif self._span.is_recording():
            self._span.set_attributes(describe(verdict))
            if verdict.failure is not None:
                self._span.set_status(Status(StatusCode.ERROR, verdict.failure.message))

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, exc, traceback)
        if kind is not None:
            # Nothing but cancellation ends a call without a verdict: a sibling has denied, or the client is gone.
            self._span.set_attribute(CANCELLED, True)
        self._span.end()


class SessionSpan:
    """The span of many calls that belong together: a websocket's messages, or the pieces of a streamed body.

    Calls that are worth a word are events in it.
    """

    def __init__(self, span: Span) -> None:
        self._span = span
        self._last = time.time_ns()
        self._events = 0
        self._notes = 0

    def current(self) -> _Attached:
        """Within, it is the current span."""
        return _Attached(trace.set_span_in_context(self._span))

    def note(self, verdicts: Iterable[Verdict]) -> None:
        """Add what came of one event."""
        self._last = time.time_ns()
        self._events += 1
        for verdict in verdicts:
            if verdict.metric_outcome == "allow" or not self._span.is_recording():
                continue
            self._notes += 1
            if self._notes <= _MAX_NOTES:
                self._span.add_event(DECISION, {AGENT_ID: verdict.agent_id, **describe(verdict)})
            if verdict.failure is not None:
                self._span.set_attribute(ERROR_TYPE, verdict.failure.kind.value)
                self._span.set_status(Status(StatusCode.ERROR, verdict.failure.message))

    def end(self) -> None:
        """Nothing more comes: it was over with the last event."""
        self._span.set_attribute(EVENTS, self._events)
        self._span.end(self._last)


def describe(verdict: Verdict) -> dict[str, AttributeValue]:
    """A verdict as attributes."""
    if verdict.failure is None:
        described: dict[str, AttributeValue] = {DECISION: verdict.metric_outcome}
    else:
        described = {
            ERROR_TYPE: verdict.failure.kind.value,
            FAILURE_MODE: verdict.failure_mode,
        }
    if not verdict.enforced:
        described[ENFORCED] = False
    return described


class Tracing:
    """Starts spans, or nothing where nobody traces."""

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        self._tracer = get_tracer(provider)
        self._waits_for_global = isinstance(self._tracer, trace.ProxyTracer)

    @property
    def idle(self) -> bool:
        """Whether there is no provider (yet), so that there is nothing to start.

        A private name of OpenTelemetry's, because to ask for the provider takes as long as a tenth of a call to an
        agent, and for a span that nobody sees half of that. Should the name go away it takes that long again.
        """
        return self._waits_for_global and getattr(trace, "_TRACER_PROVIDER", self) is None

    def call(self, name: str, attributes: Attributes, correlation_id: str, *, remote: bool) -> ActiveSpan | None:
        """The span of a call to an agent."""
        span = self._start(name, SpanKind.CLIENT if remote else SpanKind.INTERNAL, attributes, correlation_id)
        return None if span is None else ActiveSpan(span)

    def session(
        self, name: str, attributes: Attributes, correlation_id: str, parent: ServerSpan | None
    ) -> SessionSpan | None:
        """The span of many calls; where it begins may be anywhere, so that it has to be told its ``parent``."""
        context = None if parent is None else trace.set_span_in_context(parent)
        span = self._start(name, SpanKind.INTERNAL, attributes, correlation_id, context)
        return None if span is None else SessionSpan(span)

    def _start(
        self, name: str, kind: SpanKind, attributes: Attributes, correlation_id: str, parent: Context | None = None
    ) -> Span | None:
        # Where nothing is configured this is all there is to it.
        span = self._tracer.start_span(name, parent, kind, attributes)
        if span is trace.INVALID_SPAN or (
            not span.is_recording() and span.get_span_context() == trace.get_current_span().get_span_context()
        ):
            return None
        if correlation_id:
            span.set_attribute(CORRELATION_ID, correlation_id)
        return span


_serving = get_tracer()
_NOTHING = nullcontext()


def serving_span(
    carrier: Mapping[str, list[str]], agent: str, event: str, correlation_id: str
) -> AbstractContextManager[object]:
    """At the agent's end: a span of kind SERVER whose parent is the caller's, as ``carrier`` names it.

    To be entered and left in the same task.
    """
    parent = _caller(carrier)
    span = _serving.start_span(f"{event} {agent}", parent, SpanKind.SERVER)
    if span is trace.INVALID_SPAN:
        # Where no provider is set, OpenTelemetry's API before 1.40 forgets the parent that it was given.
        return _NOTHING if parent is None else _Attached(parent)
    if span.is_recording():
        span.set_attributes({AGENT_ID: agent, EVENT: event, CORRELATION_ID: correlation_id})
    return _Serving(trace.set_span_in_context(span, parent), span)


def _caller(carrier: Mapping[str, list[str]]) -> Context | None:
    """The context with the caller's span; None for the current one, also where that is the caller's child already."""
    if not any(carrier.values()):
        return None
    parent = remote_context(carrier)
    remote = trace.get_current_span(parent).get_span_context()
    return None if trace.get_current_span().get_span_context().trace_id == remote.trace_id else parent


class _Serving(_Attached):
    __slots__ = ("_span",)

    def __init__(self, given: Context, span: Span) -> None:
        super().__init__(given)
        self._span = span

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, exc, traceback)
        if isinstance(exc, Exception) or (isinstance(exc, CancelledError) and not was_asked_for()):
            self._span.set_attribute(ERROR_TYPE, type(exc.__cause__ or exc).__name__)
            self._span.set_status(Status(StatusCode.ERROR, str(exc)))
        elif kind is not None:
            self._span.set_attribute(CANCELLED, True)
        self._span.end()
