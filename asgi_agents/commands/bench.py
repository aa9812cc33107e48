"""``bench URL``: how many calls per second one agent answers, and how long they take."""

import argparse
import sys
import time
from array import array
from collections import Counter
from collections.abc import Iterable
from functools import partial
from itertools import count
from typing import Any, Final
from uuid import uuid4

import anyio
from anyio.lowlevel import checkpoint
from msgspec import Struct

from ..guard import Guard
from ..observability.redaction import redact_secrets
from ..policy import FailureMode
from ..protocol import EventType
from ..terminal.arguments import seconds, whole
from ..terminal.loading import MistakeError
from ..terminal.output import Page, Painted, captured_log, complain, printing_aside
from .call import configure
from .outcome import FOUND, IMPOSSIBLE, WELL, print_json
from .running import run
from .target import Question, add_target, guard_of

_MOST_CALLS: Final = 10_000_000
_MOST_SECONDS: Final = 3600.0
_MOST_AT_A_TIME: Final = 1000
# Calls of an agent in the process may never suspend: so often others get their turn.
_TURN: Final = 64
# Seconds between two states of the progress bar.
_REDRAWN: Final = 0.1
# Where so many have failed and none was answered, there are no more.
_ENOUGH_FAILURES: Final = 100
_BAR: Final = 24


class Milliseconds(Struct, frozen=True, kw_only=True):
    """How long the calls took: the shortest, percentiles, the longest."""

    least: float
    p50: float
    p90: float
    p99: float
    p999: float
    most: float


class BenchReport(Struct, frozen=True, kw_only=True):
    """All that ``bench`` has to say.

    ``calls`` were answered or failed, within ``seconds``, ``concurrency`` at a time; ``outcomes`` says how often what
    came of them, and ``failure`` what the first failure was. ``ms`` is None where there were no calls.
    ``interrupted``: by Ctrl-C, before either bound.
    """

    command: str = "bench"
    format: int = 1
    agent: str
    calls: int
    failed: int
    seconds: float
    concurrency: int
    calls_per_second: float
    outcomes: dict[str, int]
    ms: Milliseconds | None
    failure: str | None
    interrupted: bool


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "bench",
        usage="python -m asgi_agents bench AGENT [METHOD] [URI] [options]",
        help="count the calls per second of one agent",
        description="Ask one agent about a request again and again, each time as a new one. Ends after so many calls,"
        " or seconds, or with Ctrl-C, and prints what there is. Exits with 1 if calls have failed, with 2 if all have.",
        allow_abbrev=False,
    )
    add_target(parser)
    parser.add_argument("--calls", type=whole, default=10_000, metavar="N", help="end after so many (10000)")
    parser.add_argument("--seconds", type=seconds, default=10.0, metavar="S", help="end after so many (10)")
    parser.add_argument("--concurrency", type=whole, default=10, metavar="N", help="calls at a time (10)")
    parser.set_defaults(run=bench)


def bench(options: argparse.Namespace) -> int:
    """Measure an agent; the exit code."""
    for name, most in (("calls", _MOST_CALLS), ("seconds", _MOST_SECONDS), ("concurrency", _MOST_AT_A_TIME)):
        if not 0 < getattr(options, name) <= most:
            raise MistakeError(f"--{name} {getattr(options, name):g}, expected at most {most:g}, and above 0")
    question = Question(options)
    with printing_aside():
        guard = guard_of(options, concurrency=options.concurrency)
    measuring = Measuring(guard, question, options.calls, options.seconds, options.concurrency)
    interrupted = False
    with captured_log(), printing_aside():
        # A failure is counted, and the report quotes the first one.
        try:
            run(partial(measuring.run, Page(sys.stderr)))
        except KeyboardInterrupt:
            interrupted = True
    report = measuring.report(redact_secrets(options.agent), interrupted=interrupted)
    if options.json:
        print_json(report)
    else:
        _print(Page(sys.stdout), report)
    if not report.calls or report.failed == report.calls:
        if not interrupted:
            complain(report.failure or "there was no time for a call")
        return IMPOSSIBLE
    return FOUND if report.failed else WELL


class Measuring:
    """Calls of one agent, and how long they took.

    :param most: calls.
    :param limit: seconds.
    """

    def __init__(self, guard: Guard, question: Question, most: int, limit: float, concurrency: int) -> None:
        self._guard = guard
        self._question = question
        self._most = most
        self._limit = limit
        self._concurrency = concurrency
        self._begun = 0
        self._started = self._ended = 0.0
        self._durations = array("d")
        self._outcomes: Counter[str] = Counter()
        self._failed = 0
        self._failure: str | None = None
        prefix = uuid4().hex[:12]
        self._ids = (f"{prefix}-{number}" for number in count())

    async def run(self, page: Page) -> None:
        """Call until either bound is reached.

        :raises AgentError: the agent can't be reached at all.
        """
        guard = self._guard
        guard.configuring.logged = False
        try:
            if not guard.configured or guard.client.configures_itself:
                await configure(guard)
            if EventType.REQUEST_HEADERS not in guard.hears and self._question.body is None:
                raise MistakeError("the agent receives no request_headers; for request_body_chunk give --body")
            self._started = self._ended = time.perf_counter()
            with anyio.move_on_after(self._limit):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._show, page, tasks.cancel_scope)
                    async with anyio.create_task_group() as callers:
                        for _ in range(self._concurrency):
                            callers.start_soon(self._call)
                    tasks.cancel_scope.cancel()
        finally:
            page.progress("")
            with anyio.CancelScope(shield=True):
                await guard.client.aclose()

    def report(self, agent: str, *, interrupted: bool) -> BenchReport:
        """What there is so far."""
        elapsed = self._ended - self._started
        calls = len(self._durations)
        return BenchReport(
            agent=agent,
            calls=calls,
            failed=self._failed,
            seconds=round(elapsed, 3),
            concurrency=self._concurrency,
            calls_per_second=round(calls / elapsed, 1) if elapsed else 0.0,
            outcomes=dict(self._outcomes.most_common()),
            ms=milliseconds(self._durations),
            failure=self._failure,
            interrupted=interrupted,
        )

    async def _call(self) -> None:
        guard, question = self._guard, self._question
        asks_heads = EventType.REQUEST_HEADERS in guard.hears
        asks_bodies = question.body is not None and EventType.REQUEST_BODY_CHUNK in guard.hears
        while self._begun < self._most:
            self._begun += 1
            if self._begun % _TURN == 0:
                await checkpoint()
            correlation_id = next(self._ids)
            event = question.head(correlation_id) if asks_heads else question.chunk(correlation_id)
            started = time.perf_counter()
            verdict = await guard.call(event, FailureMode.CLOSED)
            if asks_heads and asks_bodies and verdict.outcome == "allow":
                verdict = await guard.call(question.chunk(correlation_id), FailureMode.CLOSED)
            self._ended = time.perf_counter()
            guard.forget(correlation_id)
            self._durations.append(self._ended - started)
            self._outcomes[verdict.outcome] += 1
            if verdict.failure is not None:
                self._failed += 1
                self._failure = self._failure or redact_secrets(verdict.failure.message)
                if self._failed == len(self._durations) >= _ENOUGH_FAILURES:
                    self._most = self._begun

    async def _show(self, page: Page, scope: anyio.CancelScope) -> None:
        while page.is_terminal:
            done = len(self._durations)
            passed = time.perf_counter() - self._started
            share = max(done / self._most, passed / self._limit)
            full = int(_BAR * min(1.0, share))
            rate = done / passed if passed else 0.0
            page.progress(f"[{'#' * full}{' ' * (_BAR - full)}] {done} calls, {rate:.0f}/s, {self._failed} failed")
            await anyio.sleep(_REDRAWN)


def milliseconds(durations: Iterable[float]) -> Milliseconds | None:
    """The percentiles of durations in seconds; of each, the shortest that so many don't exceed."""
    ordered = sorted(durations)
    if not ordered:
        return None

    def at(fraction: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(fraction * len(ordered)))] * 1000, 4)

    return Milliseconds(least=at(0), p50=at(0.5), p90=at(0.9), p99=at(0.99), p999=at(0.999), most=at(1))


def _print(page: Page, report: BenchReport) -> None:
    how = " (interrupted)" if report.interrupted else ""
    page.line(f"{report.calls} calls in {report.seconds:.2f} s, {report.concurrency} at a time{how}")
    page.line(Painted(f"{report.calls_per_second:.0f} calls per second", "bold"))
    page.line(", ".join(f"{number} {outcome}" for outcome, number in report.outcomes.items()))
    if report.ms is not None:
        ms = report.ms
        values = (ms.least, ms.p50, ms.p90, ms.p99, ms.p999, ms.most)
        page.line()
        page.line("ms   " + "".join(f"{name:>10}" for name in ("min", "p50", "p90", "p99", "p99.9", "max")))
        page.line("     " + "".join(f"{value:10.3f}" for value in values))
    if report.failure is not None:
        page.line()
        page.wrapped("first failure: ", report.failure, colour="red")
