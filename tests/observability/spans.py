"""What was traced, and what was begun and never ended."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace import Span as SdkSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler
from opentelemetry.trace import Span, SpanContext, SpanKind, StatusCode

from asgi_agents import Agent, AgentResponse, BodyMode
from asgi_agents.serve import serve_stream
from tests.support.asgi import Probe, SlowProbe

STREAM = BodyMode.STREAM
DENIED = AgentResponse.block(403, "denied")
CLIENTS_TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ALL: dict[str, Any] = {
    "request_headers": None,
    "request_body": None,
    "response_headers": None,
    "response_body": None,
    "complete": None,
}

each_probe = pytest.mark.parametrize("probe", [Probe, SlowProbe], ids=["prompt", "slow"])


class Spans:
    """A provider of our own, and what came of its spans."""

    def __init__(self, sampler: Sampler = ALWAYS_ON) -> None:
        self._exporter = InMemorySpanExporter()
        self._unended = _Unended()
        self.provider = TracerProvider(sampler, shutdown_on_exit=False)
        self.provider.add_span_processor(self._unended)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("test")

    @property
    def finished(self) -> list[ReadableSpan]:
        """Everybody's, in the order they ended."""
        return list(self._exporter.get_finished_spans())

    @property
    def ours(self) -> list[ReadableSpan]:
        """Those of the package, in the order they ended."""
        return [
            span
            for span in self.finished
            if span.instrumentation_scope is not None and span.instrumentation_scope.name == "asgi_agents"
        ]

    @property
    def names(self) -> list[str]:
        """The names of ours."""
        return [span.name for span in self.ours]

    @property
    def unended(self) -> list[str]:
        """The names of those that were begun and have not ended, whoever made them."""
        return sorted(self._unended.names.values())

    def one(self, name: str) -> ReadableSpan:
        """The only span of that name."""
        found = [span for span in self.finished if span.name == name]
        assert len(found) == 1, f"{len(found)} spans {name!r} among {[span.name for span in self.finished]}"
        return found[0]

    @contextmanager
    def server(self) -> Iterator[Span]:
        """Within, there is a server's span, as instrumentation makes it; it is still the current one at the end."""
        with self.tracer.start_as_current_span("server", kind=SpanKind.SERVER) as span:
            try:
                yield span
            finally:
                now = trace.get_current_span()
                assert now is span, now


class _Unended(SpanProcessor):
    def __init__(self) -> None:
        self.names: dict[int, str] = {}

    def on_start(self, span: SdkSpan, parent_context: Context | None = None) -> None:
        self.names[context_of(span).span_id] = span.name

    def on_end(self, span: ReadableSpan) -> None:
        del self.names[context_of(span).span_id]


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def context_of(span: ReadableSpan | Span) -> SpanContext:
    found = span.get_span_context()
    assert found is not None
    return found


def parent_id(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def is_child(span: ReadableSpan, parent: ReadableSpan | Span) -> bool:
    """Whether ``span`` is right below ``parent``."""
    above = context_of(parent)
    return parent_id(span) == above.span_id and context_of(span).trace_id == above.trace_id


def traceparent(span: ReadableSpan | Span) -> str:
    """As the span's context is spelt on the wire."""
    found = context_of(span)
    return f"00-{found.trace_id:032x}-{found.span_id:016x}-{int(found.trace_flags):02x}"


def assert_failed(span: ReadableSpan, kind: str, failure_mode: str = "closed") -> None:
    """A call that brought no verdict."""
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description
    found = attributes(span)
    assert found["error.type"] == kind
    assert found["asgi_agents.failure_mode"] == failure_mode
    assert "asgi_agents.decision" not in found
    assert "asgi_agents.cancelled" not in found


def assert_cancelled(span: ReadableSpan) -> None:
    """A call that nobody wanted to know the end of."""
    assert span.status.status_code is StatusCode.UNSET
    found = attributes(span)
    assert found["asgi_agents.cancelled"] is True
    assert "asgi_agents.decision" not in found
    assert "error.type" not in found


@asynccontextmanager
async def serving(agent: Agent, **options: Any) -> AsyncIterator[str]:
    """The address of ``agent``, served on a Unix socket."""
    # Not tmp_path: the path of a socket may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="agents-") as directory:
        async with anyio.create_task_group() as tasks:

            async def run(*, task_status: Any) -> None:
                await serve_stream(agent, f"unix://{directory}/a.sock", task_status=task_status, **options)

            yield await tasks.start(run)
            tasks.cancel_scope.cancel()
