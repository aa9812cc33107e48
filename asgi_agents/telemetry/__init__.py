"""Spans and instruments: with ``trace_context`` all that uses OpenTelemetry. Others only name its providers.

API only: what is configured, and whether anything is, is the application's business.
"""

from .telemetry import Telemetry
from .tracing import ActiveSpan, SessionSpan, current_trace_id, mark_current_span, serving_span

__all__ = [
    "ActiveSpan",
    "SessionSpan",
    "Telemetry",
    "current_trace_id",
    "mark_current_span",
    "serving_span",
]
