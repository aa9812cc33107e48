"""What a guard tells its breaker: of calls that overlap, and of hooks that can't suspend."""

from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_agents.agent import Agent
from asgi_agents.breaker import BreakerState
from asgi_agents.config import AgentConfig
from asgi_agents.decision import Verdict
from asgi_agents.failures import FailureKind
from asgi_agents.guard import Guard
from asgi_agents.policy import CircuitBreakerConfig, FailureMode
from asgi_agents.protocol import (
    Answer,
    Event,
    RequestBodyChunkEvent,
    RequestHeadersEvent,
    ResponseHeadersEvent,
)
from tests.support.examples import examples
from tests.support.sample_events import RESPONSE_HEAD as HEAD

from .test_breaker import Clock

CHUNK = RequestBodyChunkEvent(correlation_id="c", data=b"data", is_last=False)


class Together(Agent):
    """Has its calls wait until ``number`` of them are there, and then all do the same."""

    def __init__(self, number: int, then: Callable[[], Awaitable[None]]) -> None:
        self.number = number
        self.then = then
        self.here = 0
        self.complete = anyio.Event()

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> None:
        self.here += 1
        if self.here == self.number:
            self.complete.set()
        await self.complete.wait()
        await self.then()


async def fail() -> None:
    raise ValueError


async def call_together(guard: Guard, number: int, *, chunk: bool = True) -> list[FailureKind | None]:
    verdicts: list[Verdict] = []

    async def call() -> None:
        verdicts.append(await guard.call(CHUNK, FailureMode.CLOSED, chunk))

    async with anyio.create_task_group() as tasks:
        for _ in range(number):
            tasks.start_soon(call)
    return [None if verdict.failure is None else verdict.failure.kind for verdict in verdicts]


def state_of(guard: Guard) -> BreakerState:
    assert guard.breaker is not None
    return guard.breaker.observed


@pytest.mark.slow
async def test_five_body_chunks_that_time_out_together_leave_the_breaker_closed() -> None:
    agent = Together(5, anyio.sleep_forever)
    guard = Guard(AgentConfig("waf", agent, timeout=60.0, chunk_timeout=2.0))

    assert await call_together(guard, 5) == [FailureKind.TIMEOUT] * 5

    assert agent.here == 5
    assert state_of(guard) is BreakerState.CLOSED


async def test_calls_that_fail_one_after_another_open_the_breaker() -> None:
    guard = Guard(AgentConfig("waf", Together(1, fail)))

    for _ in range(5):
        assert state_of(guard) is BreakerState.CLOSED
        assert await call_together(guard, 1) == [FailureKind.ERROR]

    assert state_of(guard) is BreakerState.OPEN


@pytest.mark.parametrize(("number", "state"), [(19, BreakerState.CLOSED), (20, BreakerState.OPEN)])
async def test_an_outage_of_calls_that_overlap_opens_the_breaker_by_the_rate(number: int, state: BreakerState) -> None:
    guard = Guard(AgentConfig("waf", Together(number, fail)))

    assert await call_together(guard, number) == [FailureKind.ERROR] * number

    assert state_of(guard) is state


async def test_a_call_that_fails_after_another_hook_has_answered_does_not_count_in_a_row() -> None:
    """The other can't suspend, so that the breaker is not asked about it."""

    class Mixed(Together):
        async def on_response_headers(self, event: ResponseHeadersEvent) -> None:
            return None

    agent = Mixed(2, fail)
    breaker = CircuitBreakerConfig(failure_threshold=1, failure_rate=None)
    guard = Guard(AgentConfig("waf", agent, circuit_breaker=breaker))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(guard.call, CHUNK, FailureMode.CLOSED)
        await anyio.wait_all_tasks_blocked()
        assert agent.here == 1
        assert (await guard.call(HEAD, FailureMode.CLOSED)).failure is None
        agent.complete.set()

    assert state_of(guard) is BreakerState.CLOSED
    assert guard.metrics().outcomes == {"allow": 1, "error": 1}


class AsTold(Agent):
    """Answers or fails without ever suspending."""

    fails = False

    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        raise AssertionError

    async def on_response_headers(self, event: ResponseHeadersEvent) -> None:
        if self.fails:
            raise ValueError


class Behind:
    """The same agent behind a transport, so that the breaker is asked about each call."""

    kind = "fake"
    remote = False
    events = None

    def __init__(self, agent: AsTold) -> None:
        self.agent = agent
        self.carries = agent.events

    def may_suspend(self, event_type: object) -> bool:
        return False

    async def call(self, event: Event) -> Answer | None:
        assert isinstance(event, ResponseHeadersEvent)
        await self.agent.on_response_headers(event)
        return None

    async def aclose(self) -> None:
        pass


def call_at_once(guard: Guard) -> FailureKind | None:
    try:
        guard.call(HEAD, FailureMode.CLOSED).send(None)
    except StopIteration as done:
        failure = done.value.failure
        return None if failure is None else failure.kind
    raise AssertionError("it has suspended")


@settings(deadline=None, max_examples=examples(100))
@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.1, 0.9, 1.0, 5.0, 9.5]), st.integers(0, 12), st.integers(0, 4)), max_size=40
    )
)
async def test_hooks_that_can_not_suspend_are_counted_like_all_others(steps: list[tuple[float, int, int]]) -> None:
    """``steps``: seconds that go by, calls that are answered then, and calls that fail after these."""
    agent, clock = AsTold(), Clock()
    config: dict[str, Any] = {
        "events": {HEAD.event_type},
        "circuit_breaker": CircuitBreakerConfig(success_threshold=1, reset_timeout=1.0, minimum_calls=8, window=10.0),
    }
    monotonic = SimpleNamespace(monotonic=clock)
    with patch("asgi_agents.guard.time", monotonic), patch("asgi_agents.breaker.breaker.time", monotonic):
        direct = Guard(AgentConfig("waf", agent, **config), clock=clock)
        asked = Guard(AgentConfig("waf", Behind(agent), **config), clock=clock)
        for seconds, answered, failed in steps:
            clock.now += seconds
            for agent.fails in [False] * answered + [True] * failed:
                assert call_at_once(direct) == call_at_once(asked)
                assert state_of(direct) is state_of(asked)

    assert direct.breaker is not None
    assert asked.breaker is not None
    assert direct.breaker.answered == asked.breaker.answered
    assert direct.tally.transitions == asked.tally.transitions


async def test_hooks_that_can_not_suspend_ask_the_breaker_once_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    for module in ("guard", "breaker.breaker"):
        monkeypatch.setattr(f"asgi_agents.{module}.time", SimpleNamespace(monotonic=clock))
    guard = Guard(AgentConfig("waf", AsTold(), events={HEAD.event_type}), clock=clock)
    assert guard.breaker is not None
    asked = 0
    acquire = guard.breaker.acquire

    def count() -> int | None:
        nonlocal asked
        asked += 1
        return acquire()

    monkeypatch.setattr(guard.breaker, "acquire", count)
    for _ in range(5):
        for _ in range(100):
            assert call_at_once(guard) is None
        clock.now += 1.0

    assert asked == 4
    assert guard.breaker.answered == 500
