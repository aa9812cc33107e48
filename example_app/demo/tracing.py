"""Spans of all processes, put together and printed as trees."""

import json
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

# Seconds that another process' spans may be on their way.
_STRAGGLERS = 0.2
_NAME_WIDTH = 58


class SpanNote(NamedTuple):
    """The printed parts of a span. Times are nanoseconds. ``first``: its parent is in another process, or none."""

    trace_id: str
    span_id: str
    parent_id: str | None
    process: str
    name: str
    kind: str
    start: int
    end: int
    outcome: str
    first: bool

    @property
    def duration(self) -> float:
        """Milliseconds."""
        return (self.end - self.start) / 1e6


def trace_into(exporter: SpanExporter, process: str) -> TracerProvider:
    """Send this process' spans there, as they end."""
    provider = TracerProvider(resource=Resource.create({"service.name": process}))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return provider


class PipeExporter(SpanExporter):
    """Writes spans to stdout, a line of JSON each, for the process that has started this one."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            sys.stdout.write(json.dumps(_note(span)) + "\n")
        sys.stdout.flush()
        return SpanExportResult.SUCCESS


class TraceTrees(SpanExporter):
    """Collects spans and prints each trace as a tree, once what came first of it here has ended. They keep that order.

    :param show: is given the lines.
    """

    def __init__(self, show: Callable[[str], object]) -> None:
        self._show = show
        self._traces: defaultdict[str, list[SpanNote]] = defaultdict(list)
        # The ids of those that wait for stragglers. The one that has waited longest comes first.
        self._ended: deque[str] = deque()
        self._lock = threading.Lock()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            self.add(_note(span))
        return SpanExportResult.SUCCESS

    def add_line(self, line: str) -> None:
        """A span as :class:`PipeExporter` has written it."""
        # It is part of something that ends here.
        self.add(SpanNote(*json.loads(line))._replace(first=False))

    def add(self, note: SpanNote) -> None:
        """A span has ended."""
        with self._lock:
            self._traces[note.trace_id].append(note)
            if note.first:
                self._ended.append(note.trace_id)
                timer = threading.Timer(_STRAGGLERS, self._print_next)
                timer.daemon = True
                timer.start()

    def flush(self) -> None:
        """Wait until everything is printed."""
        deadline = time.monotonic() + 10 * _STRAGGLERS
        while self._waits() and time.monotonic() < deadline:
            time.sleep(_STRAGGLERS / 4)

    def _waits(self) -> bool:
        with self._lock:
            return bool(self._traces)

    def _print_next(self) -> None:
        # Two timers that are due at about the same time may go off in either order, each in a thread of its own.
        with self._lock:
            notes = self._traces.pop(self._ended.popleft(), [])
            if notes:
                self._show("\n".join(tree(notes)))


def tree(notes: Sequence[SpanNote]) -> Iterator[str]:
    """A trace's lines: each span under its parent, in the order they began."""
    children: defaultdict[str | None, list[SpanNote]] = defaultdict(list)
    known = {note.span_id for note in notes}
    for note in sorted(notes, key=lambda note: note.start):
        children[note.parent_id if note.parent_id in known else None].append(note)

    def lines(parent: str | None, depth: int) -> Iterator[str]:
        for note in children[parent]:
            name = f"{'  ' * depth}{note.name}"
            line = f"  {note.process:7} {name:{_NAME_WIDTH}} {note.kind:8} {note.duration:9.2f} ms  {note.outcome}"
            yield line.rstrip()
            yield from lines(note.span_id, depth + 1)

    yield f"trace {notes[0].trace_id}"
    yield from lines(None, 0)


def _note(span: ReadableSpan) -> SpanNote:
    context, parent = span.get_span_context(), span.parent
    assert context is not None
    attributes = span.attributes or {}
    outcome = (
        attributes.get("error.type")
        or attributes.get("asgi_agents.decision")
        or attributes.get("http.response.status_code")
        or attributes.get("http.status_code")
        or ""
    )
    return SpanNote(
        trace.format_trace_id(context.trace_id),
        trace.format_span_id(context.span_id),
        None if parent is None else trace.format_span_id(parent.span_id),
        str(span.resource.attributes["service.name"]),
        span.name,
        span.kind.name.lower(),
        span.start_time or 0,
        span.end_time or 0,
        str(outcome),
        parent is None or parent.is_remote,
    )
