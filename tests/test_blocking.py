"""A hook that keeps the event loop to itself is told of once, by name. The clock is the test's own: nothing sleeps."""

import logging
from collections.abc import Callable
from functools import partial, wraps
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from opentelemetry.sdk.trace import TracerProvider

from asgi_agents import guard
from asgi_agents.agent import Agent
from asgi_agents.calls import blocking, configuring, deadlines
from asgi_agents.calls.blocking import LONGEST_STEP, Steps, in_steps
from asgi_agents.config import AgentConfig
from asgi_agents.guard import Guard
from asgi_agents.messages.places import definition_of
from asgi_agents.observability.telemetry import Telemetry
from asgi_agents.policy import FailureMode
from asgi_agents.protocol import (
    AgentResponse,
    ConfigureEvent,
    Event,
    EventType,
    GuardrailInspectEvent,
    GuardrailResponse,
    InspectionType,
    ResponseHeadersEvent,
)
from asgi_agents.serve.hooks import Hooks, NoAnswer
from asgi_agents.transports import InProcessTransport
from tests.support.sample_events import RESPONSE_HEAD as EVENT

pytestmark = pytest.mark.anyio

QUESTION = GuardrailInspectEvent(correlation_id="c", inspection_type=InspectionType.PII_DETECTION, content="")
LONG = LONGEST_STEP * 2


@pytest.fixture
def steps_of_any_length() -> None:
    """Here the clock is made up, and the warnings are what is tested."""


class Clock:
    """Only moves when a hook works."""

    def __init__(self) -> None:
        self.now = 1000.0

    def work(self, seconds: float) -> None:
        self.now += seconds

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in (blocking, configuring, deadlines, guard):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=made.monotonic))
    return made


class Working(Agent):
    """Its hooks do what the test says."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.steps: list[float] = []
        self.fault: Exception | None = None
        self.answer: AgentResponse | None = None

    def work(self) -> None:
        for seconds in self.steps:
            self.clock.work(seconds)
        if self.fault is not None:
            raise self.fault


class AtOnce(Working):
    async def on_response_headers(self, event: ResponseHeadersEvent) -> AgentResponse | None:
        self.work()
        return self.answer


class Waiting(Working):
    async def on_response_headers(self, event: ResponseHeadersEvent) -> AgentResponse | None:
        for seconds in self.steps:
            self.clock.work(seconds)
            await checkpoint()
        if self.fault is not None:
            raise self.fault
        return self.answer

    async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> GuardrailResponse:
        await checkpoint()
        self.work()
        return GuardrailResponse(detected=False)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "blocked the event loop" in record.getMessage()]


async def call(guarded: Guard) -> None:
    await guarded.call(EVENT, FailureMode.CLOSED)


CASES: dict[str, Callable[[Working], None]] = {
    "allows": lambda agent: None,
    "denies": lambda agent: setattr(agent, "answer", AgentResponse.block(403)),
    "raises": lambda agent: setattr(agent, "fault", ValueError()),
}


@pytest.mark.parametrize("kind", [AtOnce, Waiting])
@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("case", CASES)
async def test_a_step_over_50_ms_is_told_once_with_the_hook_and_what_to_do(
    kind: type[Working], traced: bool, case: str, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    agent = kind(clock)
    CASES[case](agent)
    telemetry = Telemetry(TracerProvider()) if traced else None
    guarded = Guard(AgentConfig("waf", agent, circuit_breaker=None), telemetry=telemetry)
    await call(guarded)
    assert told(caplog) == []

    agent.steps = [0.01, 0.2]
    await call(guarded)
    await call(guarded)

    line = kind.on_response_headers.__code__.co_firstlineno
    seconds = "0.21" if kind is AtOnce else "0.2"
    assert told(caplog) == [
        f"agent 'waf' blocked the event loop for {seconds} s in one step of "
        f"tests.test_blocking.{kind.__name__}.on_response_headers (line {line}), and nothing else could run (wall time:"
        " a machine that is overloaded counts too); move what blocks to a thread: await"
        " anyio.to_thread.run_sync(function, argument) (logged once)"
    ]


@pytest.mark.parametrize("kind", [AtOnce, Waiting])
async def test_steps_of_exactly_50_ms_and_any_number_of_short_ones_are_fine(
    kind: type[Working], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    clock.now = 0.0
    agent = kind(clock)
    agent.steps = [LONGEST_STEP] if kind is AtOnce else [0.04] * 20
    guarded = Guard(AgentConfig("waf", agent, timeout=100))
    await call(guarded)

    assert told(caplog) == []


async def test_what_passes_while_a_hook_waits_is_not_its_own(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    class Patient(Agent):
        async def on_response_headers(self, event: ResponseHeadersEvent) -> None:
            await checkpoint()

    async def others() -> None:
        clock.work(LONG)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call, Guard(AgentConfig("waf", Patient(), timeout=100)))
        tasks.start_soon(others)

    assert told(caplog) == []


async def test_what_passes_while_a_call_waits_for_a_permit_is_not_its_hooks(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    class Mixed(AtOnce):
        async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> None:
            await entered.wait()

    entered = anyio.Event()
    guarded = Guard(AgentConfig("waf", Mixed(clock), timeout=100, max_concurrent_calls=1))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(guarded.inspect, QUESTION, FailureMode.CLOSED)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(call, guarded)
        await anyio.wait_all_tasks_blocked()
        clock.work(LONG)
        entered.set()

    assert told(caplog) == []


async def test_a_hook_that_blocks_as_it_is_cancelled_is_told(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    class Slow(Agent):
        async def on_response_headers(self, event: ResponseHeadersEvent) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                clock.work(LONG)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call, Guard(AgentConfig("waf", Slow(), timeout=100)))
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()

    assert len(told(caplog)) == 1


async def test_inspections_for_handlers_count_and_each_agent_has_a_line(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for agent_id in ("one", "two"):
        agent = Waiting(clock)
        agent.steps = [LONG]
        guarded = Guard(AgentConfig(agent_id, agent, timeout=100))
        await guarded.inspect(QUESTION, FailureMode.CLOSED)
        await call(guarded)

    assert [line.split()[1] for line in told(caplog)] == ["'one'", "'two'"]
    assert all("Waiting.on_guardrail_inspect" in line for line in told(caplog))


async def test_an_agent_may_take_its_time_to_be_configured(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    class Loading(AtOnce):
        async def on_configure(self, event: ConfigureEvent) -> None:
            self.clock.work(LONG)
            await checkpoint()
            self.clock.work(LONG)

    guarded = Guard(AgentConfig("waf", Loading(clock), timeout=100))
    await guarded.configuring.configure()
    await call(guarded)

    assert told(caplog) == []


class Custom:
    """A transport of somebody's own, which has no hooks."""

    kind = "custom"
    remote = True
    events = carries = frozenset({EventType.RESPONSE_HEADERS})

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def may_suspend(self, event_type: EventType) -> bool:
        return True

    async def call(self, event: Event) -> None:
        self._clock.work(LONG)

    async def aclose(self) -> None:
        pass


async def test_of_remote_agents_nothing_is_said(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    await call(Guard(AgentConfig("waf", Custom(clock), timeout=100)))

    assert told(caplog) == []


@pytest.mark.parametrize("kind", [AtOnce, Waiting])
@pytest.mark.parametrize("case", CASES)
async def test_hooks_of_served_agents_are_told_too(
    kind: type[Working], case: str, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    agent = kind(clock)
    CASES[case](agent)
    agent.steps = [LONG]
    hooks = Hooks(agent, "served")
    for _ in range(2):
        try:
            await hooks.answer(EVENT, partial(repr), {})
        except NoAnswer:
            assert case == "raises"

    [line] = told(caplog)
    assert line.startswith(f"agent 'served' blocked the event loop for 0.1 s in one step of {__name__}.{kind.__name__}")


async def test_a_call_that_is_closed_while_it_waits_is_closed_inside() -> None:
    closed = []

    async def hook() -> None:
        try:
            await checkpoint()
        finally:
            closed.append(True)

    steps = Steps("a", InProcessTransport(AtOnce(Clock())), logging.getLogger("asgi_agents"))
    driven = in_steps(hook(), steps, EventType.RESPONSE_HEADERS)
    driven.send(None)
    driven.close()

    assert closed == [True]


def decorated(hook: Any) -> Any:
    @wraps(hook)
    async def wrapper(*args: Any) -> Any:
        return await hook(*args)

    return wrapper


class Named(Agent):
    @decorated
    async def on_response_headers(self, event: ResponseHeadersEvent) -> None:
        return None

    async def __call__(self, event: Event) -> None:
        return None


def test_a_definition_is_that_of_the_innermost_function() -> None:
    agent = Named()
    line = Named.on_response_headers.__wrapped__.__code__.co_firstlineno
    hook = f"{__name__}.Named.on_response_headers (line {line})"

    assert definition_of(agent.on_response_headers) == hook
    assert definition_of(partial(agent.on_response_headers, EVENT)) == hook
    assert definition_of(agent).startswith(f"{__name__}.Named.__call__ (line ")
    assert definition_of(len) == "builtins.len"
    assert definition_of(3) == "an unknown module.int"
