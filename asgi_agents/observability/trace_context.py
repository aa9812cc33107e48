"""Reading and writing W3C trace context. Needs OpenTelemetry's API only."""

from collections.abc import Callable, Mapping, MutableMapping
from contextvars import ContextVar
from typing import Final

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator


def _getter() -> Callable[[], Context]:
    """What returns the current context.

    This reads private names of OpenTelemetry's, because the public way takes two calls more for each request. If they
    disappear, it is the public way.
    """
    variable = getattr(getattr(context, "_RUNTIME_CONTEXT", None), "_current_context", None)
    return variable.get if isinstance(variable, ContextVar) else context.get_current


#: The current context. Without tracing it is empty.
current_context: Final = _getter()

#: The span that is current when a connection begins.
ServerSpan = trace.Span

# Not the global propagator: the agent protocol has fields for W3C trace context only.
_PROPAGATOR = TraceContextTextMapPropagator()


def inject_trace_context(carrier: MutableMapping[str, str]) -> None:
    """Add ``traceparent`` and ``tracestate`` of the current span to ``carrier``; nothing where there is no span."""
    if trace.get_current_span() is not trace.INVALID_SPAN:
        _PROPAGATOR.inject(carrier)


def traceparent_of(span: ServerSpan) -> str | None:
    """``span`` as a W3C ``traceparent``, or None if the span is not valid."""
    if span is trace.INVALID_SPAN:
        return None
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, trace.set_span_in_context(span))
    return carrier.get("traceparent")


def current_traceparent() -> str | None:
    """The current span as a W3C ``traceparent``, or None where there is no span."""
    return traceparent_of(trace.get_current_span())


def remote_context(carrier: Mapping[str, list[str]]) -> Context:
    """The current context, with the span that ``traceparent`` and ``tracestate`` name, if they name one."""
    return _PROPAGATOR.extract(carrier, context.get_current())
