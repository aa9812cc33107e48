"""What spans and metrics cost: ``python -m tests.benchmarks.telemetry``.

A guarded request, driven directly without a server, in one process, the variants taking turns: with everything that
counts and traces taken out, as it is while no OpenTelemetry SDK is set up, and with one that collects metrics, or spans
as well. Each as a share of the first.
"""

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from starlette.types import ASGIApp

from asgi_agents import AgentConfig, AgentManager, AgentMiddleware, middleware
from asgi_agents.manager import registry_of
from asgi_agents.observability.metrics import Series, Tally

from .agents import Allow
from .apps import hello
from .driver import body_messages, drive, http_scope
from .turns import Turn, take_turns

_SCOPE: Final = http_scope("/items/42")
_MESSAGES: Final = body_messages(b"")


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
    return AgentMiddleware(hello, manager=AgentManager([AgentConfig("checker", Allow())], **providers))


def _without_telemetry() -> AgentMiddleware:
    app = _guarded()
    guard: Any = registry_of(app.manager).guard("checker")
    recorder = guard.recorder
    recorder.tally = _Uncounted("checker")
    recorder._export_duration = recorder._export_queue_wait = lambda value, attributes: None
    return app


def measure(cases: Sequence[Case], rounds: int, seconds: float) -> Sequence[Sequence[float]]:
    """The seconds of a request, for each case in each round, which takes ``seconds`` for each."""
    return asyncio.run(_measure(cases, rounds, seconds))


async def _measure(cases: Sequence[Case], rounds: int, seconds: float) -> Sequence[Sequence[float]]:
    module: Any = middleware
    mark = module.mark_current_span

    def turn(case: Case) -> Turn:
        async def drive_marked(times: int) -> None:
            module.mark_current_span = mark if case.marks else lambda correlation: trace.INVALID_SPAN
            await drive(case.app, _SCOPE, _MESSAGES, times)

        return drive_marked

    try:
        return await take_turns([turn(case) for case in cases], rounds, seconds)
    finally:
        module.mark_current_span = mark


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
    parser.add_argument("--seconds", type=float, default=0.02, help="of each turn")
    options = parser.parse_args()
    compared = cases()
    print(markdown(compared, measure(compared, options.rounds, options.seconds)))


if __name__ == "__main__":
    main()
