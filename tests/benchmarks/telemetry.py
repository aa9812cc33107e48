"""What spans and metrics cost: ``python -m tests.benchmarks.telemetry``.

A guarded request, driven directly without a server, in one process, the variants taking turns: with everything that
counts and traces taken out, as it is while no OpenTelemetry SDK is set up, and with one that collects metrics, or spans
as well. Each as a share of the first.
"""

import argparse
import asyncio
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message

from asgi_agents import Agent, AgentConfig, AgentManager, AgentMiddleware, RequestHeadersEvent, middleware
from asgi_agents.metrics import Series, Tally

_SCOPE: Final = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.4"},
    "http_version": "1.1",
    "method": "GET",
    "path": "/",
    "raw_path": b"/",
    "root_path": "",
    "query_string": b"",
    "headers": [(b"host", b"localhost"), (b"user-agent", b"benchmark"), (b"accept", b"*/*")],
    "client": ("127.0.0.1", 50000),
    "server": ("127.0.0.1", 80),
    "scheme": "http",
}


class Checker(Agent):
    """Looks at a header, as a simple agent would."""

    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        event.header("x-blocked")


class _Uncounted(Tally):
    """Counts nothing."""

    def __init__(self, agent_id: str) -> None:
        super().__init__(agent_id)
        self._any = Series(agent_id, "request_headers", "allow", True, True)

    def count(self, *args: Any, **kwargs: Any) -> Series:
        return self._any

    def add(self, *args: Any) -> None:
        pass


class _Nowhere(SpanExporter):
    def export(self, spans: Sequence[Any]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


@dataclass(frozen=True)
class Case:
    """``marks``: whether the server's span is looked for."""

    title: str
    app: ASGIApp
    marks: bool = True


def cases() -> Sequence[Case]:
    """What is compared; the first is what the others are measured by."""
    spans = TracerProvider()
    spans.add_span_processor(SimpleSpanProcessor(_Nowhere()))
    return (
        Case("nothing counted, nothing traced", _without_telemetry(), marks=False),
        Case("no SDK", _guarded()),
        Case("an SDK that collects metrics", _guarded(meter_provider=MeterProvider([InMemoryMetricReader()]))),
        Case(
            "and spans",
            _guarded(meter_provider=MeterProvider([InMemoryMetricReader()]), tracer_provider=spans),
        ),
    )


def _guarded(**providers: Any) -> AgentMiddleware:
    async def hello(request: Request) -> PlainTextResponse:
        return PlainTextResponse("Hello")

    app = Starlette(routes=[Route("/", hello)])
    return AgentMiddleware(app, manager=AgentManager([AgentConfig("checker", Checker())], **providers))


def _without_telemetry() -> AgentMiddleware:
    app = _guarded()
    guard: Any = app.manager.guard("checker")
    guard.tally = _Uncounted("checker")
    guard._export_duration = guard._export_queue_wait = lambda value, attributes: None
    return app


def measure(cases: Sequence[Case], rounds: int, requests: int) -> Sequence[Sequence[float]]:
    """Seconds for ``requests`` requests, for each case in each round."""
    return asyncio.run(_measure(cases, rounds, requests))


async def _measure(cases: Sequence[Case], rounds: int, requests: int) -> Sequence[Sequence[float]]:
    taken: list[list[float]] = [[] for _ in cases]
    module: Any = middleware
    mark = module.mark_current_span
    # It would strike whoever has the bad luck.
    gc.disable()
    try:
        for number in range(rounds):
            for index in range(len(cases)):
                # Every round begins with another.
                index = (index + number) % len(cases)
                module.mark_current_span = mark if cases[index].marks else lambda correlation: trace.INVALID_SPAN
                taken[index].append(await _drive(cases[index].app, requests))
            gc.collect()
    finally:
        gc.enable()
        module.mark_current_span = mark
    return taken


async def _drive(app: ASGIApp, requests: int) -> float:
    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        pass

    clock: Callable[[], float] = time.perf_counter
    started = clock()
    for _ in range(requests):
        await app({**_SCOPE}, receive, send)
    return clock() - started


def markdown(cases: Sequence[Case], taken: Sequence[Sequence[float]]) -> str:
    """A table of medians over the rounds, with the least and the greatest."""
    lines = ["| | time of a guarded request | min-max |", "| --- | --: | :-: |"]
    for case, seconds in zip(cases, taken, strict=True):
        shares = [one / whole for one, whole in zip(seconds, taken[0], strict=True)]
        lines.append(f"| {case.title} | {median(shares):.3f} | {min(shares):.3f}-{max(shares):.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.telemetry", description=__doc__)
    parser.add_argument("--rounds", type=int, default=101)
    parser.add_argument("--requests", type=int, default=400, help="in each round")
    options = parser.parse_args()
    compared = cases()
    measure(compared, 2, options.requests)
    print(markdown(compared, measure(compared, options.rounds, options.requests)))


if __name__ == "__main__":
    main()
