import asyncio
import contextvars
import gc
import itertools
import linecache
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from asgi_agents.agent import Agent
from asgi_agents.breaker import BreakerState
from asgi_agents.calls import configuring, deadlines
from asgi_agents.calls.outside import event_outside
from asgi_agents.config import AgentConfig
from asgi_agents.decision import Verdict
from asgi_agents.errors import AgentConnectionError, AgentError, AgentProtocolError, AgentTimeoutError
from asgi_agents.failures import FailureKind
from asgi_agents.guard import Guard
from asgi_agents.policy import CircuitBreakerConfig, FailureMode
from asgi_agents.protocol import (
    ALLOW,
    Acknowledgement,
    AgentResponse,
    Answer,
    AuditMetadata,
    BodyMutation,
    ConfigureEvent,
    Detection,
    Event,
    EventType,
    GuardrailInspectEvent,
    GuardrailResponse,
    HeaderOp,
    Headers,
    InspectionType,
    RequestBodyChunkEvent,
    ResponseHeadersEvent,
)
from tests.support.sample_events import COMPLETE

CLOSED, OPEN = FailureMode.CLOSED, FailureMode.OPEN
BLOCK = AgentResponse.block(418)
SECRET = "hunter2"

EVENT = ResponseHeadersEvent(correlation_id="c", status=200, headers=Headers({"authorization": [SECRET]}))
CHUNK = RequestBodyChunkEvent(correlation_id="c", data=SECRET.encode(), is_last=True)
QUESTION = GuardrailInspectEvent(correlation_id="c", inspection_type=InspectionType.PII_DETECTION, content=SECRET)

Behaviour = Callable[[], Awaitable[Any]]


class Clock:
    """For breakers and retries; deadlines are in real time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Remote:
    """A transport to an agent that does as it is told."""

    kind = "fake"
    remote = True
    events: frozenset[EventType] | None = None
    carries = frozenset(EventType)

    def __init__(self, behave: Behaviour) -> None:
        self.behave = behave
        self.heard: list[Event] = []
        self.closed = 0

    def may_suspend(self, event_type: EventType) -> bool:
        return True

    async def call(self, event: Event) -> Answer | None:
        self.heard.append(event)
        answer: Answer | None = await self.behave()
        return answer

    async def aclose(self) -> None:
        self.closed += 1


def answering(answer: Any) -> Behaviour:
    async def behave() -> Any:
        return answer

    return behave


def raising(exc: BaseException) -> Behaviour:
    async def behave() -> Any:
        # Without what it gathered the last time.
        raise exc.with_traceback(None)

    return behave


async def hang() -> None:
    await anyio.sleep_forever()


def trigger(**fields: Any) -> CircuitBreakerConfig:
    """A breaker that opens at the first failure, so that its state tells whether something counted."""
    return CircuitBreakerConfig(**{"failure_threshold": 1, "success_threshold": 1, "reset_timeout": 30.0} | fields)


def guarded(behave: Behaviour, *, clock: Clock | None = None, **fields: Any) -> tuple[Guard, Remote]:
    transport = Remote(behave)
    everything: dict[str, Any] = {"events": set(EventType) - {EventType.CONFIGURE}, "circuit_breaker": trigger()}
    return Guard(
        AgentConfig("waf", transport, **everything | {"timeout": 60.0} | fields), clock=clock or Clock()
    ), transport


def failure_of(verdict: Verdict) -> tuple[FailureKind, float | None]:
    assert verdict.response is None
    assert verdict.failure is not None
    return verdict.failure.kind, verdict.failure.retry_after


def state_of(guard: Guard) -> BreakerState:
    assert guard.breaker is not None
    return guard.breaker.state


def is_idle(guard: Guard) -> bool:
    metrics = guard.metrics()
    return (metrics.in_flight, metrics.waiting) == (0, 0) and (guard.breaker is None or guard.breaker.trials == 0)


async def settle() -> None:
    """Let every task run until it waits for something."""
    for _ in range(20):
        await checkpoint()


# Answers


@pytest.mark.parametrize(
    ("answer", "response"),
    [(None, ALLOW), (ALLOW, ALLOW), (BLOCK, BLOCK), (AgentResponse.websocket_drop(), AgentResponse.websocket_drop())],
)
@pytest.mark.parametrize("mode", FailureMode)
@pytest.mark.parametrize("enforce", [True, False])
async def test_an_answer_becomes_a_verdict(enforce: bool, mode: FailureMode, answer: Any, response: Any) -> None:
    guard, transport = guarded(answering(answer), enforce=enforce)

    verdict = await guard.call(EVENT, mode)

    assert (verdict.agent_id, verdict.event_type) == ("waf", EventType.RESPONSE_HEADERS)
    assert (verdict.response, verdict.failure) == (response, None)
    assert (verdict.fail_closed, verdict.enforced) == (mode is CLOSED, enforce)
    assert verdict.duration >= 0.0
    assert transport.heard == [event_outside(EVENT)]
    assert state_of(guard) is BreakerState.CLOSED
    assert is_idle(guard)


async def test_an_agent_may_only_change_what_its_configuration_lets_it() -> None:
    mutation = AgentResponse.allow(request_body_mutation=BodyMutation(b"x"))
    host = AgentResponse.allow(request_headers=[HeaderOp.set("host", "a.example")])

    for answer, allowed in ((mutation, {"body_access": "write"}), (host, {"may_set_host": True})):
        strict, _ = guarded(answering(answer))
        lax, _ = guarded(answering(answer), **allowed)
        assert failure_of(await strict.call(CHUNK, CLOSED)) == (FailureKind.ERROR, None)
        assert (await lax.call(CHUNK, CLOSED)).response is answer


@pytest.mark.parametrize("success", [True, False])
async def test_an_acknowledgement_says_whether_all_is_well(success: bool) -> None:
    guard, _ = guarded(answering(Acknowledgement(success=success, error="disk full")))

    verdict = await guard.call(COMPLETE, CLOSED)

    if success:
        assert verdict.response is ALLOW
    else:
        assert failure_of(verdict) == (FailureKind.ERROR, None)
        assert verdict.failure is not None
        assert verdict.failure.message == "agent 'waf', request_complete: refused: disk full"


@pytest.mark.parametrize("success", [True, False])
async def test_an_acknowledgement_is_no_answer_to_anything_that_can_be_denied(success: bool) -> None:
    guard, _ = guarded(answering(Acknowledgement(success=success)))

    assert failure_of(await guard.call(EVENT, CLOSED)) == (FailureKind.ERROR, None)


# Failures: what they are, and what counts for the breaker


@pytest.mark.parametrize(
    "behave",
    [
        raising(AgentConnectionError("refused")),
        raising(AgentProtocolError("decision: …")),
        raising(AgentError("anything")),
        raising(ConnectionResetError()),
        raising(ValueError("bad")),
        raising(RecursionError()),
        raising(TimeoutError()),
        raising(StopAsyncIteration()),
        raising(ExceptionGroup("", [ValueError()])),
        # What the guard itself raises inside must not be mistaken for its own when an agent raises it.
        answering("allow"),
        answering({"decision": "allow"}),
        answering(GuardrailResponse(detected=False)),
        answering(AgentResponse(version=3)),
        answering(AgentResponse.block(99)),
        answering(AgentResponse.allow(request_headers=[HeaderOp.set("content-length", "0")])),
        answering(AgentResponse.allow(request_headers=None)),  # type: ignore[arg-type]
        answering(AgentResponse.allow(request_body_mutation=BodyMutation(b"x"))),
    ],
    ids=lambda behave: repr(behave.__closure__[0].cell_contents)[:60],
)
@pytest.mark.parametrize("breaker", [True, False])
async def test_an_agent_error_counts_for_the_breaker(breaker: bool, behave: Behaviour) -> None:
    guard, _ = guarded(behave, circuit_breaker=trigger() if breaker else None)

    verdict = await guard.call(EVENT, CLOSED)

    assert failure_of(verdict) == (FailureKind.ERROR, None)
    assert not breaker or state_of(guard) is BreakerState.OPEN
    assert is_idle(guard)


async def test_no_answer_within_the_deadline_is_a_timeout_and_counts() -> None:
    guard, _ = guarded(hang, timeout=0.02)

    verdict = await guard.call(EVENT, CLOSED)

    assert failure_of(verdict) == (FailureKind.TIMEOUT, None)
    assert verdict.failure is not None
    assert verdict.failure.message == "agent 'waf', response_headers: no answer within the deadline of 0.02 s"
    assert state_of(guard) is BreakerState.OPEN
    assert is_idle(guard)


async def test_a_timeout_that_a_hook_raises_names_the_deadline_of_the_call() -> None:
    class Waf(Agent):
        async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse | None:
            raise AgentTimeoutError("no answer")

    for chunk, seconds in ((False, 3), (True, 4)):
        guard = Guard(AgentConfig("waf", Waf(), timeout=3.0, chunk_timeout=4.0))
        verdict = await guard.call(CHUNK, CLOSED, chunk=chunk)
        assert verdict.failure is not None
        assert verdict.failure.message.endswith(f"no answer within the deadline of {seconds} s")


async def test_chunks_have_a_deadline_of_their_own() -> None:
    slow_head, _ = guarded(hang, timeout=0.02, chunk_timeout=60.0)
    slow_chunk, _ = guarded(hang, timeout=60.0, chunk_timeout=0.02, circuit_breaker=None)

    assert failure_of(await slow_head.call(EVENT, CLOSED))[0] is FailureKind.TIMEOUT
    assert failure_of(await slow_chunk.call(CHUNK, CLOSED, chunk=True))[0] is FailureKind.TIMEOUT
    with anyio.move_on_after(0.02) as scope:
        await slow_chunk.call(CHUNK, CLOSED)
    assert scope.cancelled_caught


async def test_an_open_breaker_lets_no_call_through_and_does_not_count() -> None:
    clock = Clock()
    guard, transport = guarded(raising(ValueError()), clock=clock)
    await guard.call(EVENT, CLOSED)
    clock.now += 10.0

    verdict = await guard.call(EVENT, CLOSED)

    assert failure_of(verdict) == (FailureKind.BREAKER_OPEN, 20.0)
    assert len(transport.heard) == 1
    assert is_idle(guard)
    assert failure_of(await guard.call(EVENT, CLOSED)) == (FailureKind.BREAKER_OPEN, 20.0)


async def test_no_permit_within_the_deadline_is_a_queue_timeout_and_does_not_count() -> None:
    guard, transport = guarded(hang, max_concurrent_calls=1, timeout=0.02, chunk_timeout=60.0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: guard.call(CHUNK, CLOSED, chunk=True))
        await settle()

        verdict = await guard.call(EVENT, CLOSED)

        assert failure_of(verdict) == (FailureKind.QUEUE_TIMEOUT, None)
        assert verdict.failure is not None
        assert verdict.failure.message == (
            "agent 'waf', response_headers: none of its 1 concurrent calls ended within the deadline of 0.02 s"
        )
        assert transport.heard == [event_outside(CHUNK)]
        assert state_of(guard) is BreakerState.CLOSED
        metrics = guard.metrics()
        assert (metrics.in_flight, metrics.waiting) == (1, 0)
        tasks.cancel_scope.cancel()
    assert is_idle(guard)


@pytest.mark.parametrize("kind", [FailureKind.REQUEST_TOO_LARGE, FailureKind.RESPONSE_TOO_LARGE])
async def test_a_body_that_is_too_large_is_not_shown_and_does_not_count(kind: FailureKind) -> None:
    guard, transport = guarded(answering(None))

    verdict = guard.skip(EventType.REQUEST_BODY_CHUNK, kind, CLOSED, "body over its limit of 1 bytes")

    assert failure_of(verdict) == (kind, None)
    assert verdict.fails_closed
    assert verdict.failure is not None
    assert verdict.failure.message == "agent 'waf', request_body_chunk: body over its limit of 1 bytes"
    assert transport.heard == []
    assert state_of(guard) is BreakerState.CLOSED
    assert guard.metrics().outcomes == {kind.value: 1}


@pytest.mark.parametrize(
    ("mode", "enforce", "stops"), [(CLOSED, True, True), (OPEN, True, False), (CLOSED, False, False)]
)
async def test_a_failure_stops_the_connection_only_where_it_is_enforced_and_fail_closed(
    mode: FailureMode, enforce: bool, stops: bool
) -> None:
    guard, _ = guarded(raising(ValueError()), enforce=enforce)

    assert (await guard.call(EVENT, mode)).fails_closed is stops


async def test_an_answer_starts_the_count_of_failures_anew() -> None:
    guard, transport = guarded(raising(ValueError()), circuit_breaker=trigger(failure_threshold=2))

    for behave in (raising(ValueError()), answering(None)) * 5:
        transport.behave = behave
        await guard.call(EVENT, CLOSED)
    assert state_of(guard) is BreakerState.CLOSED


async def test_a_denial_is_an_answer_like_any_other_to_the_breaker() -> None:
    guard, _ = guarded(answering(BLOCK))

    for _ in range(10):
        await guard.call(EVENT, CLOSED)

    assert state_of(guard) is BreakerState.CLOSED


async def test_the_trials_of_a_half_open_breaker_decide() -> None:
    clock = Clock()
    guard, transport = guarded(raising(ValueError()), clock=clock)
    await guard.call(EVENT, CLOSED)

    clock.now += 30.0
    await guard.call(EVENT, CLOSED)
    assert state_of(guard) is BreakerState.OPEN

    clock.now += 30.0
    transport.behave = answering(None)
    assert (await guard.call(EVENT, CLOSED)).response is ALLOW
    assert state_of(guard) is BreakerState.CLOSED


async def test_a_half_open_breaker_turns_further_calls_away() -> None:
    clock = Clock()
    guard, transport = guarded(raising(ValueError()), clock=clock)
    await guard.call(EVENT, CLOSED)
    clock.now += 30.0
    transport.behave = hang
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(guard.call, EVENT, CLOSED)
        await settle()

        verdict = await guard.call(EVENT, CLOSED)

        assert failure_of(verdict) == (FailureKind.BREAKER_OPEN, 0.0)
        assert len(transport.heard) == 2
        tasks.cancel_scope.cancel()
    assert is_idle(guard)
    assert state_of(guard) is BreakerState.HALF_OPEN


async def test_nobody_waits_for_a_permit_only_to_be_turned_away() -> None:
    guard, transport = guarded(hang, max_concurrent_calls=1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(guard.call, EVENT, CLOSED)
        await settle()
        assert guard.breaker is not None
        generation = guard.breaker.acquire()
        assert generation is not None
        guard.breaker.failure(generation)

        verdict = await guard.call(EVENT, CLOSED)

        assert failure_of(verdict)[0] is FailureKind.BREAKER_OPEN
        assert len(transport.heard) == 1
        tasks.cancel_scope.cancel()
    assert is_idle(guard)


async def test_who_waited_while_the_breaker_opened_is_turned_away_and_gives_the_permit_on() -> None:
    failing = anyio.Event()

    async def fail_later() -> None:
        await failing.wait()
        raise ValueError

    guard, transport = guarded(fail_later, max_concurrent_calls=1)
    verdicts: list[Verdict] = []

    async def call() -> None:
        verdicts.append(await guard.call(EVENT, CLOSED))

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(call)
        await settle()
        assert guard.metrics().waiting == 3
        failing.set()

    assert [failure_of(verdict)[0] for verdict in verdicts] == [FailureKind.ERROR, *[FailureKind.BREAKER_OPEN] * 3]
    assert len(transport.heard) == 1
    assert is_idle(guard)


# One deadline


async def test_a_call_that_waited_for_its_permit_has_only_the_rest_of_its_deadline() -> None:
    deadlines: list[float] = []
    release = anyio.Event()

    async def note_deadline() -> None:
        await release.wait()
        await checkpoint()
        deadlines.append(anyio.current_effective_deadline())

    guard, _ = guarded(note_deadline, max_concurrent_calls=1, timeout=60.0)
    async with anyio.create_task_group() as tasks:
        before = anyio.current_time()
        for _ in range(2):
            tasks.start_soon(guard.call, EVENT, CLOSED)
        await settle()
        queued = anyio.current_time()
        assert guard.metrics().waiting == 1
        await anyio.sleep(0.05)
        release.set()

    first, second = deadlines
    # Both started before `queued`. Counted from the moment of its permit, the second would have 50 ms more.
    assert before < first <= queued + 60.0
    assert before < second <= queued + 60.0


async def test_a_hook_that_uses_its_time_in_steps_is_under_one_deadline() -> None:
    async def step_by_step() -> None:
        for _ in itertools.repeat(None):
            await anyio.sleep(0.005)

    guard, _ = guarded(step_by_step, timeout=0.03)

    assert failure_of(await guard.call(EVENT, CLOSED))[0] is FailureKind.TIMEOUT


async def test_what_the_hook_catches_and_answers_in_time_counts_as_its_answer() -> None:
    async def recover() -> AgentResponse:
        with anyio.move_on_after(0.01):
            await anyio.sleep_forever()
        return BLOCK

    guard, _ = guarded(recover)

    assert (await guard.call(EVENT, CLOSED)).response is BLOCK


async def test_a_timeout_of_the_hooks_own_is_an_agent_error() -> None:
    async def give_up() -> None:
        with anyio.fail_after(0.01):
            await anyio.sleep_forever()

    guard, _ = guarded(give_up)

    assert failure_of(await guard.call(EVENT, CLOSED))[0] is FailureKind.ERROR


async def test_a_hook_may_have_tasks_of_its_own() -> None:
    done = []

    async def child(number: int) -> None:
        await checkpoint()
        done.append(number)

    async def fork() -> AgentResponse:
        async with anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(child, number)
        return BLOCK

    guard, _ = guarded(fork)

    assert (await guard.call(EVENT, CLOSED)).response is BLOCK
    assert sorted(done) == [0, 1, 2]


async def test_the_deadline_ends_the_tasks_of_a_hook_too() -> None:
    cancelled = []

    async def child() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.append(True)

    async def fork() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(child)
            tasks.start_soon(child)

    guard, _ = guarded(fork, timeout=0.02)

    assert failure_of(await guard.call(EVENT, CLOSED))[0] is FailureKind.TIMEOUT
    assert cancelled == [True, True]


async def test_the_deadline_reaches_a_hook_inside_scopes_of_its_own() -> None:
    async def nested() -> None:
        with anyio.CancelScope(), anyio.move_on_after(60):
            await checkpoint()
            with anyio.CancelScope():
                await anyio.sleep_forever()

    guard, _ = guarded(nested, timeout=0.02)

    assert failure_of(await guard.call(EVENT, CLOSED))[0] is FailureKind.TIMEOUT


async def test_a_hook_may_cancel_a_scope_of_its_own() -> None:
    async def cancel_inside() -> AgentResponse:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anyio.sleep_forever()
        await checkpoint()
        return BLOCK

    guard, _ = guarded(cancel_inside)

    assert (await guard.call(EVENT, CLOSED)).response is BLOCK


async def test_an_error_in_a_task_of_the_hook_is_an_agent_error() -> None:
    async def child() -> None:
        raise ValueError

    async def fork() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(child)
            await anyio.sleep_forever()

    guard, _ = guarded(fork)

    assert failure_of(await guard.call(EVENT, CLOSED))[0] is FailureKind.ERROR


async def test_a_hook_that_fails_while_its_deadline_ends_it_has_failed_all_the_same() -> None:
    async def clean_up_badly() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError

    guard, _ = guarded(clean_up_badly, timeout=0.02)

    assert failure_of(await guard.call(EVENT, CLOSED))[0] in (FailureKind.TIMEOUT, FailureKind.ERROR)
    assert state_of(guard) is BreakerState.OPEN
    assert is_idle(guard)


async def test_the_guard_leaves_no_deadline_behind() -> None:
    guard, _ = guarded(checkpoint, timeout=60.0)

    with anyio.fail_after(3600):
        before = anyio.current_effective_deadline()
        await guard.call(EVENT, CLOSED)
        assert anyio.current_effective_deadline() == before


async def test_a_shorter_deadline_of_the_caller_holds() -> None:
    guard, _ = guarded(hang, timeout=60.0)

    with anyio.move_on_after(0.02) as scope:
        await guard.call(EVENT, CLOSED)

    assert scope.cancelled_caught
    assert is_idle(guard)
    assert state_of(guard) is BreakerState.CLOSED


async def test_a_hook_runs_in_the_context_of_the_caller() -> None:
    variable = contextvars.ContextVar("variable", default="")
    seen = []

    async def look() -> None:
        await checkpoint()
        seen.append(variable.get())
        variable.set("hook")

    guard, _ = guarded(look)
    variable.set("caller")
    await guard.call(EVENT, CLOSED)

    assert seen == ["caller"]
    assert variable.get() == "hook"


# Hooks that don't suspend


class Quick(Agent):
    async def on_response_headers(self, event: ResponseHeadersEvent) -> AgentResponse:
        return BLOCK


class QuickAfterAll(Agent):
    """Could suspend, but doesn't."""

    async def on_response_headers(self, event: ResponseHeadersEvent) -> AgentResponse:
        if event.status == 100:
            await checkpoint()
        return BLOCK


@pytest.mark.parametrize("agent", [Quick(), QuickAfterAll()])
async def test_a_hook_that_does_not_suspend_is_called_without_a_checkpoint(agent: Agent) -> None:
    guard = Guard(AgentConfig("waf", agent))
    others = []

    async def other() -> None:
        others.append(1)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(other)
        await guard.call(EVENT, CLOSED)
        assert others == []


@pytest.mark.parametrize("agent", [Quick(), QuickAfterAll()])
async def test_a_hook_that_does_not_suspend_completes_inside_a_cancelled_scope(agent: Agent) -> None:
    guard = Guard(AgentConfig("waf", agent))

    with anyio.CancelScope() as scope:
        scope.cancel()
        verdict = await guard.call(EVENT, CLOSED)

    assert verdict.response is BLOCK
    assert not scope.cancelled_caught
    assert is_idle(guard)


def test_a_hook_that_can_not_suspend_needs_no_event_loop() -> None:
    call = Guard(AgentConfig("waf", Quick())).call(EVENT, CLOSED)

    with pytest.raises(StopIteration) as done:
        call.send(None)

    assert done.value.value.response is BLOCK


async def test_a_hook_that_can_not_suspend_costs_no_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a cancel scope")

    monkeypatch.setattr(deadlines, "CancelScope", refuse)

    verdict = await Guard(AgentConfig("waf", Quick())).call(EVENT, CLOSED)

    assert verdict.response is BLOCK


async def test_a_deadline_is_only_armed_when_the_hook_suspends(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    class Looking(Agent):
        async def on_response_headers(self, event: ResponseHeadersEvent) -> None:
            seen.append(anyio.current_effective_deadline())
            await checkpoint()
            seen.append(anyio.current_effective_deadline())

    await Guard(AgentConfig("waf", Looking())).call(EVENT, CLOSED)

    assert seen[0] == float("inf")
    assert seen[1] <= anyio.current_time() + 1.0


def test_who_can_suspend_is_known_beforehand() -> None:
    quick, slow = Guard(AgentConfig("quick", Quick())), Guard(AgentConfig("slow", QuickAfterAll()))

    assert not quick.may_suspend(EventType.RESPONSE_HEADERS)
    assert slow.may_suspend(EventType.RESPONSE_HEADERS)
    assert not quick.may_wait
    assert slow.may_wait


async def test_a_hook_that_can_not_suspend_has_to_wait_where_all_permits_are_taken() -> None:
    class Both(Quick):
        async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> None:
            await anyio.sleep_forever()

    guard = Guard(AgentConfig("waf", Both(), max_concurrent_calls=1, timeout=0.02, chunk_timeout=60.0))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: guard.call(CHUNK, CLOSED, chunk=True))
        await settle()

        assert guard.may_suspend(EventType.RESPONSE_HEADERS)
        assert failure_of(await guard.call(EVENT, CLOSED))[0] is FailureKind.QUEUE_TIMEOUT
        tasks.cancel_scope.cancel()


# Cancellation


class Rig:
    """A guard with room for one call, and calls to it that can be cancelled one by one."""

    def __init__(self, *, half_open: bool, steps: int = 4) -> None:
        self.clock = Clock()
        self.steps = steps
        self.guard, self.transport = guarded(raising(ValueError()), clock=self.clock, max_concurrent_calls=1)
        self.half_open = half_open
        self.verdicts: list[Verdict] = []

    async def start(self) -> None:
        if self.half_open:
            await self.guard.call(EVENT, CLOSED)
            self.clock.now += 30.0
            assert state_of(self.guard) is BreakerState.HALF_OPEN
        self.transport.behave = self.work

    async def work(self) -> None:
        for _ in range(self.steps):
            await checkpoint()

    async def call(self, scope: anyio.CancelScope) -> None:
        with scope:
            self.verdicts.append(await self.guard.call(EVENT, CLOSED))


@pytest.mark.parametrize("half_open", [False, True])
@pytest.mark.parametrize("second_first", [False, True])
@pytest.mark.parametrize("moment", range(14))
async def test_permit_and_half_open_slot_are_given_back_whenever_a_call_is_cancelled(
    moment: int, second_first: bool, half_open: bool
) -> None:
    rig = Rig(half_open=half_open)
    await rig.start()
    scopes = [anyio.CancelScope(), anyio.CancelScope()]
    async with anyio.create_task_group() as tasks:
        for scope in scopes:
            tasks.start_soon(rig.call, scope)
        for _ in range(moment):
            await checkpoint()
        scopes[second_first].cancel()
        await checkpoint()
        scopes[not second_first].cancel()

    assert is_idle(rig.guard)
    assert not any(verdict.failure and verdict.failure.kind is FailureKind.ERROR for verdict in rig.verdicts)
    assert state_of(rig.guard) is not BreakerState.OPEN
    assert rig.guard.metrics().calls == len(rig.verdicts) + half_open
    # Whoever comes next is served.
    await rig.call(anyio.CancelScope())
    assert rig.verdicts[-1].response is ALLOW
    assert state_of(rig.guard) is BreakerState.CLOSED


async def test_a_call_that_is_cancelled_in_the_queue_was_never_made() -> None:
    guard, transport = guarded(hang, max_concurrent_calls=1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(guard.call, EVENT, CLOSED)
        await settle()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await guard.call(CHUNK, CLOSED)
        assert scope.cancelled_caught
        assert transport.heard == [event_outside(EVENT)]
        assert guard.metrics().waiting == 0
        tasks.cancel_scope.cancel()
    assert is_idle(guard)


async def test_a_cancelled_call_counts_neither_as_failure_nor_as_success() -> None:
    guard, transport = guarded(raising(ValueError()), circuit_breaker=trigger(failure_threshold=2))
    await guard.call(EVENT, CLOSED)
    transport.behave = hang

    with anyio.move_on_after(0.01):
        await guard.call(EVENT, CLOSED)
    assert state_of(guard) is BreakerState.CLOSED
    assert guard.metrics().outcomes == {"error": 1}

    transport.behave = raising(ValueError())
    await guard.call(EVENT, CLOSED)
    assert state_of(guard) is BreakerState.OPEN, "the cancelled call broke the row of failures"


async def test_a_hook_that_fails_because_it_is_cancelled_does_not_count() -> None:
    async def clean_up_badly() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError

    guard, _ = guarded(clean_up_badly)

    with anyio.move_on_after(0.01):
        await guard.call(EVENT, CLOSED)

    assert state_of(guard) is BreakerState.CLOSED
    assert is_idle(guard)


async def test_the_hook_of_a_cancelled_call_can_clean_up() -> None:
    steps = []

    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await checkpoint()
                steps.append("cleaned up")

    guard, _ = guarded(work)
    with anyio.move_on_after(0.01):
        await guard.call(EVENT, CLOSED)

    assert steps == ["cleaned up"]


def test_a_call_that_is_thrown_away_half_way_leaves_nothing_behind() -> None:
    steps = []

    class Waiting(Agent):
        async def on_response_headers(self, event: ResponseHeadersEvent) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                steps.append("closed")

    async def abandon() -> None:
        call = Guard(AgentConfig("waf", Waiting())).call(EVENT, CLOSED)
        call.send(None)
        call.close()

    asyncio.run(abandon())

    assert steps == ["closed"]


async def cancelled_by_its_own_task() -> None:
    """What awaiting a task does that somebody else has cancelled, a shared token refresh for instance."""
    task = asyncio.ensure_future(asyncio.sleep(60))
    task.cancel()
    await task


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("mode", FailureMode)
async def test_a_cancelled_error_that_nobody_asked_for_is_an_agent_error(mode: FailureMode) -> None:
    guard, _ = guarded(cancelled_by_its_own_task)

    verdict = await guard.call(EVENT, mode)

    assert failure_of(verdict) == (FailureKind.ERROR, None)
    assert verdict.fails_closed is (mode is CLOSED)
    assert state_of(guard) is BreakerState.OPEN
    assert is_idle(guard)


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_cancelled_error_that_nobody_asked_for_is_a_refused_configuration() -> None:
    guard, _ = guarded(cancelled_by_its_own_task, config={"key": 1})

    with pytest.raises(AgentError, match="not configured"):
        await guard.configuring.configure()

    assert not guard.configured


# Configuration


class Configured(Agent):
    """Takes its configuration when it is told to."""

    def __init__(self, behave: Behaviour | None = None) -> None:
        self.configurations: list[ConfigureEvent] = []
        self.behave = behave or answering(None)

    async def on_configure(self, event: ConfigureEvent) -> AgentResponse | None:
        self.configurations.append(event)
        answer: AgentResponse | None = await self.behave()
        return answer

    async def on_response_headers(self, event: ResponseHeadersEvent) -> AgentResponse:
        assert self.configurations, "called before it was configured"
        return BLOCK


def configurable(behave: Behaviour | None = None, **fields: Any) -> tuple[Guard, Configured, Clock]:
    agent, clock = Configured(behave), Clock()
    defaults: dict[str, Any] = {"config": {"key": SECRET}, "circuit_breaker": trigger(), "timeout": 60.0}
    return Guard(AgentConfig("waf", agent, **defaults | fields), clock=clock), agent, clock


async def test_an_agent_is_configured_once_before_its_first_call() -> None:
    guard, agent, _ = configurable()
    assert not guard.configured
    assert guard.may_suspend(EventType.RESPONSE_HEADERS)

    for _ in range(3):
        assert (await guard.call(EVENT, CLOSED)).response is BLOCK

    assert agent.configurations == [ConfigureEvent(agent_id="waf", config={"key": SECRET})]
    assert guard.configured
    assert guard.configuring.delay == 0.0
    await guard.configuring.configure()
    assert len(agent.configurations) == 1


async def test_a_call_that_is_cancelled_as_the_agent_is_configured_does_not_reach_it() -> None:
    ready = anyio.Event()
    asked: list[Event] = []

    class Waf(Agent):
        async def on_configure(self, event: ConfigureEvent) -> AgentResponse | None:
            await ready.wait()
            return None

        async def on_response_headers(self, event: ResponseHeadersEvent) -> AgentResponse | None:
            asked.append(event)
            # The other call was woken already, and has not run yet.
            second.cancel()
            return None

    guard = Guard(AgentConfig("waf", Waf()))
    second = anyio.CancelScope()

    async def call_too() -> None:
        with second:
            await guard.call(EVENT, CLOSED)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(guard.call, EVENT, CLOSED)
        await settle()
        tasks.start_soon(call_too)
        await settle()
        ready.set()
    assert second.cancelled_caught
    assert asked == [EVENT]


async def test_an_agent_with_nothing_to_configure_is_not_asked() -> None:
    guard, transport = guarded(answering(None))

    assert guard.configured
    await guard.configuring.configure()
    await guard.call(EVENT, CLOSED)

    assert transport.heard == [event_outside(EVENT)]


async def test_an_agent_that_is_given_a_configuration_is_configured_whatever_it_hears() -> None:
    guard, transport = guarded(answering(None), config={"a": 1}, events={EventType.RESPONSE_HEADERS})

    await guard.call(EVENT, CLOSED)

    assert transport.heard == [ConfigureEvent(agent_id="waf", config={"a": 1}), event_outside(EVENT)]


@pytest.mark.parametrize("config", [0, {}, "", False], ids=repr)
async def test_a_configuration_that_is_falsy_is_a_configuration(config: Any) -> None:
    guard, transport = guarded(answering(None), config=config)

    await guard.call(EVENT, CLOSED)

    assert transport.heard == [ConfigureEvent(agent_id="waf", config=config), event_outside(EVENT)]


async def test_an_agent_elsewhere_is_not_configured_with_nothing() -> None:
    guard, transport = guarded(answering(None), events=set(EventType))

    assert guard.configured
    await guard.call(EVENT, CLOSED)

    assert transport.heard == [event_outside(EVENT)]


async def test_an_agent_in_this_process_is_told_that_it_is_connected_without_a_configuration() -> None:
    guard, agent, _ = configurable(config=None)

    assert (await guard.call(EVENT, CLOSED)).response is BLOCK

    assert agent.configurations == [ConfigureEvent(agent_id="waf")]


@pytest.mark.parametrize(
    "behave",
    [
        raising(ValueError("bad")),
        raising(AgentConnectionError("refused")),
        answering("yes"),
        answering(Acknowledgement(success=False, error="no such rule")),
        answering(Acknowledgement(success=False)),
        answering(BLOCK),
        answering(GuardrailResponse(detected=False)),
    ],
    ids=lambda behave: repr(behave.__closure__[0].cell_contents)[:60],
)
@pytest.mark.parametrize("mode", FailureMode)
async def test_an_agent_that_does_not_take_its_configuration_is_treated_by_its_failure_mode(
    mode: FailureMode, behave: Behaviour
) -> None:
    guard, agent, _ = configurable(behave)

    for _ in range(3):
        verdict = await guard.call(EVENT, mode)
        assert failure_of(verdict) == (FailureKind.ERROR, None)
        assert verdict.fails_closed is (mode is CLOSED)
        assert verdict.failure is not None
        assert verdict.failure.message.startswith("agent 'waf', response_headers: not configured: ")

    assert not guard.configured
    assert len(agent.configurations) == 1, "asked again before its time"
    assert is_idle(guard)
    with pytest.raises(AgentError, match="not configured"):
        await guard.configuring.configure()


async def test_a_configuration_is_acknowledged() -> None:
    guard, _, _ = configurable(answering(Acknowledgement(success=True)))

    await guard.configuring.configure()

    assert guard.configured


async def test_an_agent_that_does_not_take_its_configuration_is_asked_again_ever_less_often() -> None:
    guard, agent, clock = configurable(raising(ValueError()))
    delays = []
    for attempt in range(1, 13):
        await guard.call(EVENT, CLOSED)
        assert len(agent.configurations) == attempt
        delays.append(round(guard.configuring.delay, 6))
        clock.now += delays[-1] * 0.99
        await guard.call(EVENT, CLOSED)
        assert len(agent.configurations) == attempt
        clock.now += delays[-1] * 0.02

    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0, 30.0]


async def test_an_agent_that_comes_back_is_used() -> None:
    guard, agent, clock = configurable(raising(ValueError()))
    await guard.call(EVENT, CLOSED)
    agent.behave = answering(None)
    clock.now += 0.1

    assert (await guard.call(EVENT, CLOSED)).response is BLOCK
    assert guard.configured
    assert guard.configuring.delay == 0.0


async def test_of_concurrent_callers_one_configures_and_the_others_wait() -> None:
    ready = anyio.Event()
    guard, agent, _ = configurable(ready.wait)
    verdicts: list[Verdict] = []

    async def call() -> None:
        verdicts.append(await guard.call(EVENT, CLOSED))

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(call)
        await settle()
        assert verdicts == []
        ready.set()

    assert len(agent.configurations) == 1
    assert [verdict.response for verdict in verdicts] == [BLOCK] * 3


async def test_concurrent_callers_fail_together() -> None:
    ready = anyio.Event()

    async def fail() -> None:
        await ready.wait()
        raise ValueError

    guard, agent, _ = configurable(fail)
    verdicts: list[Verdict] = []

    async def call() -> None:
        verdicts.append(await guard.call(EVENT, CLOSED))

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(call)
        await settle()
        ready.set()

    assert len(agent.configurations) == 1
    assert [failure_of(verdict)[0] for verdict in verdicts] == [FailureKind.ERROR] * 3


async def test_when_the_caller_that_configures_is_cancelled_another_takes_over() -> None:
    ready = anyio.Event()
    guard, agent, _ = configurable(ready.wait)
    verdicts: list[Verdict] = []
    scope = anyio.CancelScope()

    async def leave_early() -> None:
        with scope:
            await guard.call(EVENT, CLOSED)

    async def call() -> None:
        verdicts.append(await guard.call(EVENT, CLOSED))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(leave_early)
        await settle()
        tasks.start_soon(call)
        tasks.start_soon(call)
        await settle()
        scope.cancel()
        await settle()
        ready.set()

    # Somebody else's client has gone away: that is no reason to refuse these.
    assert [verdict.response for verdict in verdicts] == [BLOCK, BLOCK]
    assert len(agent.configurations) == 2
    assert is_idle(guard)


async def test_an_agent_that_hangs_in_configure_times_out_and_is_not_asked_again_by_every_call() -> None:
    guard, agent, _ = configurable(hang, timeout=0.01)

    kinds = [failure_of(await guard.call(EVENT, CLOSED))[0] for _ in range(6)]

    assert kinds[0] is FailureKind.TIMEOUT
    assert len(agent.configurations) <= 2, (
        "every call waits for its whole deadline, breaker and backoff notwithstanding"
    )
    assert is_idle(guard)


async def test_a_configuration_that_many_waited_for_in_vain_is_one_attempt() -> None:
    guard, agent, _ = configurable(hang, timeout=0.02)

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(guard.call, EVENT, CLOSED)

    assert len(agent.configurations) == 1
    assert round(guard.configuring.delay, 6) == 0.1, "the more wait for it, the longer nobody asks again"


async def test_who_gives_up_waiting_for_a_configuration_does_not_put_off_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ready = anyio.Event()
    guard, _, _ = configurable(ready.wait, chunk_timeout=0.02)
    verdicts: list[Verdict] = []

    async def configure() -> None:
        await guard.configuring.configure()

    async def call() -> None:
        verdicts.append(await guard.call(EVENT, CLOSED))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(configure)
        await settle()
        tasks.start_soon(call)
        impatient = await guard.call(CHUNK, CLOSED, chunk=True)
        ready.set()

    assert failure_of(impatient)[0] is FailureKind.TIMEOUT
    assert verdicts[0].response is BLOCK
    assert guard.configuring.delay == 0.0
    assert not any("configure:" in record.getMessage() for record in caplog.records), "the one that asks has the say"


async def test_configuring_on_its_own_has_a_deadline_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configuring, "_CONFIGURE_TIMEOUT", 0.02)
    guard, _, _ = configurable(hang, timeout=0.01)

    with pytest.raises(AgentError, match=r"not configured: .*no answer within the deadline of 0.02 s"):
        await guard.configuring.configure()

    assert round(guard.configuring.delay, 6) == 0.1


async def test_an_agent_that_was_forgotten_is_configured_anew() -> None:
    guard, agent, _ = configurable()
    await guard.call(EVENT, CLOSED)

    guard.configuring.forget()
    assert not guard.configured
    await guard.call(EVENT, CLOSED)

    assert len(agent.configurations) == 2


async def test_an_agent_that_was_forgotten_while_it_was_refusing_is_asked_at_once() -> None:
    guard, agent, _ = configurable(raising(ValueError()))
    await guard.call(EVENT, CLOSED)

    guard.configuring.forget()
    assert guard.configuring.delay == 0.0
    await guard.call(EVENT, CLOSED)

    assert len(agent.configurations) == 2


async def test_closing_closes_the_transport() -> None:
    guard, transport = guarded(answering(None))

    await guard.client.aclose()

    assert transport.closed == 1


def test_a_configured_agent_serves_one_event_loop_after_the_other(anyio_backend_name: str) -> None:
    guard, agent, _ = configurable()

    async def call() -> None:
        assert (await guard.call(EVENT, CLOSED)).response is BLOCK

    for _ in range(3):
        anyio.run(call, backend=anyio_backend_name)

    assert len(agent.configurations) == 1


# Guardrails


async def test_a_guardrail_answer_is_handed_on() -> None:
    answer = GuardrailResponse(detected=True, confidence=0.5)
    guard, _ = guarded(answering(answer))

    verdict, response = await guard.inspect(QUESTION, CLOSED)

    assert response is answer
    assert verdict.response == AgentResponse.allow(audit=AuditMetadata(confidence=0.5))
    assert (verdict.failure, verdict.outcome) == (None, "detected")


async def test_what_an_inspection_has_found_is_told_in_the_verdict() -> None:
    found = [Detection(category=category, description="…") for category in ("jailbreak", "pii", "jailbreak")]
    guard, _ = guarded(answering(GuardrailResponse(detected=True, confidence=0.9, detections=found)))

    verdict, _ = await guard.inspect(QUESTION, CLOSED)

    assert verdict.response is not None
    assert verdict.response.audit == AuditMetadata(tags=("jailbreak", "pii"), confidence=0.9)
    assert verdict.response.is_allow
    assert guard.metrics().outcomes == {"detected": 1}
    assert [incident.outcome for incident in guard.tally.denials] == ["detected"]


async def test_an_inspection_that_finds_nothing_is_plain_consent() -> None:
    guard, _ = guarded(answering(GuardrailResponse(detected=False, confidence=0.9)))

    verdict, _ = await guard.inspect(QUESTION, CLOSED)

    assert (verdict.response, verdict.outcome) == (ALLOW, "allow")


@pytest.mark.parametrize(
    ("answer", "response"),
    [
        (None, GuardrailResponse(detected=False)),
        (AgentResponse.allow(audit=AuditMetadata(confidence=0.2)), GuardrailResponse(detected=False, confidence=0.2)),
        (
            BLOCK,
            GuardrailResponse(
                detected=True,
                confidence=1.0,
                detections=(Detection(category="blocked", description="blocked by the agent"),),
            ),
        ),
        (
            AgentResponse.block(
                403, "no", audit=AuditMetadata(confidence=0.0, reason_codes=("pii", "tone"), tags=("t",))
            ),
            GuardrailResponse(
                detected=True,
                confidence=0.0,
                detections=(
                    Detection(category="pii", description="no"),
                    Detection(category="tone", description="no"),
                ),
            ),
        ),
        (
            AgentResponse.redirect("/", audit=AuditMetadata(tags=("t",))),
            GuardrailResponse(
                detected=True,
                confidence=1.0,
                detections=(Detection(category="t", description="blocked by the agent"),),
            ),
        ),
    ],
)
async def test_a_guardrail_answer_in_the_general_shape_is_understood(answer: Any, response: GuardrailResponse) -> None:
    guard, _ = guarded(answering(answer))

    assert (await guard.inspect(QUESTION, CLOSED))[1] == response


@pytest.mark.parametrize(
    "behave",
    [
        raising(ValueError()),
        answering("no"),
        answering(Acknowledgement(success=True)),
        answering(GuardrailResponse(detected=None)),  # type: ignore[arg-type]
        answering(GuardrailResponse(detected="yes")),  # type: ignore[arg-type]
    ],
)
async def test_a_guardrail_failure_is_a_verdict(behave: Behaviour) -> None:
    guard, _ = guarded(behave)

    verdict, response = await guard.inspect(QUESTION, CLOSED)

    assert failure_of(verdict) == (FailureKind.ERROR, None)
    assert not response.detected
    assert state_of(guard) is BreakerState.OPEN


# What is told


async def test_metrics_say_what_was_asked_and_answered() -> None:
    guard, transport = guarded(answering(None), circuit_breaker=None, max_concurrent_calls=1)
    await guard.call(EVENT, CLOSED)
    transport.behave = answering(BLOCK)
    await guard.call(EVENT, CLOSED)
    transport.behave = raising(ValueError())
    await guard.call(EVENT, CLOSED)
    await guard.call(EVENT, OPEN)

    metrics = guard.metrics()

    assert metrics.calls == 4
    assert metrics.outcomes == {"allow": 1, "block": 1, "error": 2}
    assert (metrics.passed_open, metrics.shadowed) == (1, 0)
    assert metrics.duration >= 0.0

    transport.behave = hang
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(guard.call, EVENT, CLOSED)
        tasks.start_soon(guard.call, EVENT, CLOSED)
        await settle()
        busy = guard.metrics()
        tasks.cancel_scope.cancel()
    assert (busy.in_flight, busy.waiting, busy.calls) == (1, 1, 4)
    assert metrics.outcomes == {"allow": 1, "block": 1, "error": 2}


async def test_a_shadow_agents_verdicts_are_recorded_and_enforce_nothing() -> None:
    guard, transport = guarded(answering(BLOCK), enforce=False, circuit_breaker=None)

    verdict = await guard.call(EVENT, CLOSED)
    assert verdict.response is BLOCK
    assert not verdict.denies

    transport.behave = raising(ValueError())
    assert not (await guard.call(EVENT, CLOSED)).fails_closed
    assert guard.metrics().shadowed == 2


WITHHELD = "the response is withheld, because the agent fails closed"


def messages(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    assert all(record.name == "asgi_agents" for record in caplog.records)
    return [(record.levelno, record.getMessage()) for record in caplog.records]


@pytest.fixture(autouse=True)
def _log_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="asgi_agents")


async def test_failing_is_logged_once_until_the_agent_answers_again(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    guard, transport = guarded(raising(AgentConnectionError("refused")), clock=clock, circuit_breaker=None)

    for _ in range(3):
        await guard.call(EVENT, CLOSED)
    assert messages(caplog) == [
        (logging.WARNING, f"agent 'waf', response_headers: refused; {WITHHELD} (logged at most once a minute)")
    ]

    caplog.clear()
    transport.behave = answering(None)
    for _ in range(3):
        await guard.call(EVENT, CLOSED)
    assert messages(caplog) == [(logging.INFO, "agent 'waf' answers again")]

    caplog.clear()
    clock.now += 60
    transport.behave = raising(ValueError())
    await guard.call(EVENT, CLOSED)
    assert len(messages(caplog)) == 1


async def test_an_agent_that_fails_now_and_then_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    guard, transport = guarded(answering(None), circuit_breaker=None)

    for _ in range(10):
        transport.behave = raising(ValueError())
        await guard.call(EVENT, CLOSED)
        transport.behave = answering(None)
        await guard.call(EVENT, CLOSED)

    assert [level for level, _ in messages(caplog)] == [logging.WARNING, logging.INFO]


async def test_changes_of_the_breaker_are_logged_once_each(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    guard, transport = guarded(raising(AgentConnectionError("refused")), clock=clock)

    for _ in range(3):
        await guard.call(EVENT, CLOSED)
    clock.now += 30.0
    transport.behave = answering(None)
    for _ in range(3):
        await guard.call(EVENT, CLOSED)

    assert messages(caplog) == [
        (logging.WARNING, "agent 'waf': circuit breaker closed -> open"),
        (logging.WARNING, f"agent 'waf', response_headers: refused; {WITHHELD} (logged at most once a minute)"),
        (logging.INFO, "agent 'waf': circuit breaker open -> half_open"),
        (logging.INFO, "agent 'waf': circuit breaker half_open -> closed"),
        (logging.INFO, "agent 'waf' answers again"),
    ]


async def test_a_refused_configuration_is_logged_once_for_each_reason(caplog: pytest.LogCaptureFixture) -> None:
    guard, agent, clock = configurable(answering(Acknowledgement(success=False, error="no such rule")))

    for attempt in range(6):
        if attempt == 3:
            agent.behave = answering(Acknowledgement(success=False, error="disk full"))
        clock.now += 60.0
        with pytest.raises(AgentError):
            await guard.configuring.configure()
    agent.behave = answering(None)
    clock.now += 60.0
    await guard.configuring.configure()

    again = "it is treated by its failure mode and asked again"
    assert messages(caplog) == [
        (logging.WARNING, f"agent 'waf', configure: refused: no such rule; {again}"),
        (logging.WARNING, f"agent 'waf', configure: refused: disk full; {again}"),
        (logging.INFO, "agent 'waf' has taken its configuration"),
    ]


async def test_too_large_bodies_and_open_breakers_are_not_logged_each_time(caplog: pytest.LogCaptureFixture) -> None:
    guard, _ = guarded(raising(ValueError()))
    await guard.call(EVENT, CLOSED)
    caplog.clear()

    for _ in range(3):
        await guard.call(EVENT, CLOSED)
        guard.skip(EventType.REQUEST_BODY_CHUNK, FailureKind.REQUEST_TOO_LARGE, CLOSED, "too large")

    assert messages(caplog) == []


@pytest.mark.parametrize(
    "behave",
    [
        raising(ValueError(SECRET)),
        raising(KeyError(SECRET)),
        raising(ExceptionGroup(SECRET, [ValueError(SECRET)])),
        answering(SECRET),
        answering(AgentResponse.block(403, SECRET, headers={"content-length": SECRET})),
        answering(AgentResponse.allow(request_headers=[HeaderOp.set("x", f"{SECRET}\n")])),
        answering(AgentResponse.allow(request_body_mutation=BodyMutation(SECRET.encode()))),
        answering(AgentResponse.redirect(f"/?{SECRET}\r\n")),
        hang,
    ],
)
async def test_neither_logs_nor_verdicts_have_values_bodies_or_secrets(
    behave: Behaviour, caplog: pytest.LogCaptureFixture
) -> None:
    guard, _ = guarded(behave, timeout=0.01, chunk_timeout=0.01)
    other, _, _ = configurable(behave, timeout=0.01)

    for event in (EVENT, CHUNK, QUESTION):
        verdict = await guard.call(event, CLOSED)
        assert SECRET not in str(verdict.failure)
    assert SECRET not in str((await other.call(EVENT, CLOSED)).failure)

    assert caplog.records
    assert not any(SECRET in str(vars(record)) for record in caplog.records)


async def test_no_file_is_read_to_say_where_a_hook_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    # It is the event loop that would wait for the disk, each time that an agent fails.
    touched = []
    monkeypatch.setattr(linecache, "checkcache", lambda filename=None: touched.append(filename))
    guard, _ = guarded(raising(ValueError()))

    await guard.call(EVENT, CLOSED)

    assert touched == []


async def test_the_place_where_a_hook_raised_is_told_and_not_what_it_raised() -> None:
    guard, _ = guarded(raising(ValueError(SECRET)))

    verdict = await guard.call(EVENT, CLOSED)

    assert verdict.failure is not None
    where = r"agent 'waf', response_headers: raised ValueError at test_guard\.py:\d+"
    assert re.fullmatch(where, verdict.failure.message)


@pytest.mark.parametrize("reason", ["a\nCRITICAL: forged", "a\r\n\x1b[31mred", "a\u2028b\x00", "x" * 100_000])
async def test_what_an_agent_says_forges_no_log_lines_and_fills_no_disk(
    reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    guard, _ = guarded(raising(AgentProtocolError(reason)))
    other, _, _ = configurable(answering(Acknowledgement(success=False, error=reason)))

    for verdict in (await guard.call(EVENT, CLOSED), await other.call(EVENT, CLOSED)):
        assert verdict.failure is not None
        assert verdict.failure.message.isprintable()
        assert len(verdict.failure.message) < 1000
    for _, message in messages(caplog):
        assert message.isprintable()
        assert len(message) < 1000


async def test_a_guard_is_told_apart_by_its_agent() -> None:
    guard, _ = guarded(answering(None))

    assert repr(guard) == "<Guard 'waf'>"


async def test_a_hook_that_raises_leaves_nothing_for_the_garbage_collector() -> None:
    class Raises(Agent):
        async def on_response_headers(self, event: ResponseHeadersEvent) -> None:
            raise ValueError("no")

    guard = Guard(AgentConfig("a", Raises(), circuit_breaker=None))
    await guard.call(EVENT, CLOSED)
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            await guard.call(EVENT, CLOSED)
        assert gc.collect() < 10
    finally:
        gc.enable()
