"""Spans around calls, in the middleware and in served agents, and around sessions of many calls."""

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
from .trace_context import ServerSpan, current_context, remote_context

Attributes = Mapping[str, AttributeValue]

# How many events the span of a long session may have.
_MAX_NOTES = 100


def get_tracer(provider: trace.TracerProvider | None = None) -> trace.Tracer:
    """The package's tracer. Without ``provider`` it is the global provider's, which may also be set later."""
    return trace.get_tracer("asgi_agents", __version__, provider)


def current_trace_id() -> str | None:
    """The trace that the running code belongs to, as 32 hex digits, or None."""
    found = trace.get_current_span().get_span_context()
    return trace.format_trace_id(found.trace_id) if found.is_valid else None


def mark_current_span(connection: Named) -> ServerSpan:
    """Set the correlation id on the server's span, and return that span."""
    # Without tracing the context is empty, and that is quicker to see than that it has no span.
    span = trace.get_current_span() if current_context() else trace.INVALID_SPAN
    if span is not trace.INVALID_SPAN and span.is_recording():
        span.set_attribute(CORRELATION_ID, connection.correlation_id)
    return span


class _Attached:
    """A context manager in which a span is the current one."""

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
        # The garbage collector may close an abandoned coroutine in any context, where the token is not valid.
        with suppress(ValueError):
            self._token.var.reset(self._token)


class ActiveSpan(_Attached):
    """The span of one call: current while the call runs, ended with it."""

    __slots__ = ("_span",)

    def __init__(self, span: Span) -> None:
        super().__init__(trace.set_span_in_context(span))
        self._span = span

    def record(self, verdict: Verdict, *, given_up: bool = False) -> None:
        """Record the outcome of the call on the span: the verdict, or that the call was ``given_up``."""
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
            # Only cancellation ends a call without a verdict: another agent has denied, or the client is gone.
            self._span.set_attribute(CANCELLED, True)
        self._span.end()


class SessionSpan:
    """The span of many calls that belong together: a websocket's messages, or the pieces of a streamed body.

    Each call that is not plainly allowed is an event in the span.
    """

    def __init__(self, span: Span) -> None:
        self._span = span
        self._last = time.time_ns()
        self._events = 0
        self._notes = 0

    def current(self) -> _Attached:
        """A context manager in which this span is the current one."""
        return _Attached(trace.set_span_in_context(self._span))

    def note(self, verdicts: Iterable[Verdict], *, counted: bool = True) -> None:
        """Add the verdicts on one event; unless ``counted``, other agents were shown it before, or nobody was."""
        self._last = time.time_ns()
        if counted:
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
        """End the span. Its end time is that of the last event."""
        self._span.set_attribute(EVENTS, self._events)
        self._span.end(self._last)


def describe(verdict: Verdict) -> dict[str, AttributeValue]:
    """The attributes of a span for a verdict."""
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
    """Starts spans. Without a tracer provider it starts none."""

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        self._tracer = get_tracer(provider)
        self._waits_for_global = isinstance(self._tracer, trace.ProxyTracer)
        self._makes_none = isinstance(self._tracer, trace.NoOpTracer)

    @property
    def idle(self) -> bool:
        """Whether no provider is set (yet), or one that makes no spans, so that no span has to be started.

        This reads a private name of OpenTelemetry's. To ask for the provider takes a tenth of the time of a call to an
        agent, and a span that nobody sees half of that. If the name disappears, the public way is taken, which is
        slower.
        """
        return self._makes_none or (self._waits_for_global and getattr(trace, "_TRACER_PROVIDER", self) is None)

    def call(self, name: str, attributes: Attributes, correlation_id: str, *, remote: bool) -> ActiveSpan | None:
        """The span of a call to an agent."""
        span = self._start(name, SpanKind.CLIENT if remote else SpanKind.INTERNAL, attributes, correlation_id)
        return None if span is None else ActiveSpan(span)

    def session(
        self, name: str, attributes: Attributes, correlation_id: str, parent: ServerSpan | None
    ) -> SessionSpan | None:
        """The span of many calls. It may begin in any context, so its ``parent`` has to be given."""
        context = None if parent is None else trace.set_span_in_context(parent)
        span = self._start(name, SpanKind.INTERNAL, attributes, correlation_id, context)
        return None if span is None else SessionSpan(span)

    def _start(
        self, name: str, kind: SpanKind, attributes: Attributes, correlation_id: str, parent: Context | None = None
    ) -> Span | None:
        # Without a provider nothing else is done.
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
    """In a served agent: a span of kind SERVER whose parent is the caller's span, which ``carrier`` names.

    It has to be entered and left in the same task.
    """
    parent = _caller(carrier)
    span = _serving.start_span(f"{event} {agent}", parent, SpanKind.SERVER)
    if span is trace.INVALID_SPAN:
        # Without a provider, OpenTelemetry's API before 1.40 drops the parent that it was given.
        return _NOTHING if parent is None else _Attached(parent)
    if span.is_recording():
        span.set_attributes({AGENT_ID: agent, EVENT: event, CORRELATION_ID: correlation_id})
    return _Serving(trace.set_span_in_context(span, parent), span)


def _caller(carrier: Mapping[str, list[str]]) -> Context | None:
    """The context with the caller's span. None: the current context, also if its span is a child of the caller's."""
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
