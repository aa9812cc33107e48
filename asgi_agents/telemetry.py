"""The only module that knows OpenTelemetry.

API only: what is configured, and whether anything is, is the application's business.
"""

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager

from opentelemetry import context, trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

# W3C trace context rather than the global propagator: it is what the agent protocol names.
_PROPAGATOR = TraceContextTextMapPropagator()


def inject_trace_context(carrier: MutableMapping[str, str]) -> None:
    """Add ``traceparent`` and ``tracestate`` of the current span to ``carrier``; nothing where there is no span."""
    if trace.get_current_span() is not trace.INVALID_SPAN:
        _PROPAGATOR.inject(carrier)


def current_traceparent() -> str | None:
    """The current span as a W3C ``traceparent``, or None where there is no span."""
    if trace.get_current_span() is trace.INVALID_SPAN:
        return None
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier.get("traceparent")


@contextmanager
def remote_trace_context(carrier: Mapping[str, list[str]]) -> Iterator[None]:
    """Within, the span that the values of ``traceparent`` and ``tracestate`` name is the current one, if they name one.

    To be entered and left in the same task.
    """
    token = context.attach(_PROPAGATOR.extract(carrier, context.get_current()))
    try:
        yield
    finally:
        context.detach(token)
