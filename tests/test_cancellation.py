"""What a hook says after it was cancelled counts for nothing."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from asgi_agents import Agent, AgentConfig, AgentResponse, FailureMode, HttpTransport
from asgi_agents.breaker import BreakerState
from asgi_agents.concurrency.cancellation import cancel_requests, raise_swallowed
from asgi_agents.decision import Verdict
from asgi_agents.errors import AgentError
from asgi_agents.evaluation.evaluate import evaluate
from asgi_agents.evaluation.route_agent import RouteAgent
from asgi_agents.failures import FailureKind
from asgi_agents.guard import Guard
from asgi_agents.protocol import (
    ALLOW,
    Encoding,
    EventType,
    GuardrailInspectEvent,
    GuardrailResponse,
    InspectionType,
    encode_answer,
    encode_event,
)
from asgi_agents.serve import agent_app
from asgi_agents.serve.hooks import Hooks

from .support.asgi import App, Client, guarded
from .test_guard import EVENT, Remote, hang, state_of, trigger

CLOSED, OPEN = FailureMode.CLOSED, FailureMode.OPEN
BLOCK = AgentResponse.block(418)
QUESTION = GuardrailInspectEvent(correlation_id="c", inspection_type=InspectionType.PII_DETECTION, content="")
Sequel = Callable[[], Any]


def returning(answer: Any) -> Sequel:
    return lambda: answer


def raising(make: Callable[[], BaseException]) -> Sequel:
    def sequel() -> Any:
        raise make()

    return sequel


#: What a hook does with the cancellation that it has caught.
SEQUELS = {
    "None": returning(None),
    "allow": returning(ALLOW),
    "an allow of its own": returning(AgentResponse.allow()),
    "block": returning(BLOCK),
    "no detection": returning(GuardrailResponse(detected=False)),
    "garbage": returning("allow"),
    "ValueError": raising(lambda: ValueError("late")),
    "AgentError": raising(lambda: AgentError("late")),
    "a group": raising(lambda: ExceptionGroup("late", [ValueError(), KeyError()])),
    "CancelledError": raising(asyncio.CancelledError),
}
sequels = pytest.mark.parametrize("sequel", SEQUELS.values(), ids=SEQUELS.keys())
modes = pytest.mark.parametrize("mode", FailureMode)


async def swallow(sequel: Sequel, caught: list[str]) -> Any:
    try:
        await anyio.sleep_forever()
    except BaseException as exc:
        caught.append(type(exc).__name__)
    return sequel()


async def outlast(sequel: Sequel, caught: list[str]) -> Any:
    """No cancellation reaches it: it just takes longer than it may."""
    with anyio.CancelScope(shield=True):
        await anyio.sleep(0.04)
    caught.append("")
    return sequel()


ways = pytest.mark.parametrize("way", [swallow, outlast])
Way = Callable[[Sequel, list[str]], Awaitable[Any]]


class InProcess(Agent):
    def __init__(self, behave: Callable[[], Awaitable[Any]]) -> None:
        self.behave = behave

    async def on_response_headers(self, event: Any) -> Any:
        return await self.behave()

    async def on_guardrail_inspect(self, event: Any) -> Any:
        return await self.behave()


kinds = pytest.mark.parametrize("kind", [InProcess, Remote])


def guard_of(kind: Any, behave: Callable[[], Awaitable[Any]], timeout: float = 60.0, **fields: Any) -> Guard:
    events = {EventType.RESPONSE_HEADERS, EventType.GUARDRAIL_INSPECT}
    return Guard(AgentConfig("waf", kind(behave), events=events, timeout=timeout, circuit_breaker=trigger(), **fields))


def is_timeout(verdict: Verdict, mode: FailureMode) -> bool:
    assert verdict.failure is not None
    assert (verdict.failure.kind, verdict.fail_closed) == (FailureKind.TIMEOUT, mode is CLOSED)
    assert "no answer within the deadline of 0.02 s" in verdict.failure.message
    return True


# By the deadline


@kinds
@ways
@sequels
@modes
async def test_what_a_hook_says_after_its_deadline_is_a_timeout(
    kind: Any, way: Way, sequel: Sequel, mode: FailureMode
) -> None:
    caught: list[str] = []
    guard = guard_of(kind, partial(way, sequel, caught), timeout=0.02)

    verdict = await guard.call(EVENT, mode)

    assert len(caught) == 1
    assert is_timeout(verdict, mode)
    assert state_of(guard) is BreakerState.OPEN
    assert guard.metrics().outcomes == {"timeout": 1}


@kinds
@sequels
@modes
async def test_the_same_goes_for_an_inspection(kind: Any, sequel: Sequel, mode: FailureMode) -> None:
    guard = guard_of(kind, partial(swallow, sequel, []), timeout=0.02)

    verdict, _ = await guard.inspect(QUESTION, mode)

    assert is_timeout(verdict, mode)


@sequels
async def test_an_agent_that_takes_its_configuration_too_late_is_not_configured(
    sequel: Sequel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asgi_agents.calls.configuring._CONFIGURE_TIMEOUT", 0.02)
    guard = guard_of(Remote, partial(swallow, sequel, []), timeout=0.02, config={"key": 1})

    with pytest.raises(AgentError, match=r"no answer within the deadline of 0\.02 s"):
        await guard.configuring.configure()

    assert not guard.configured


@sequels
async def test_nor_is_one_that_is_pushed_another(sequel: Sequel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asgi_agents.calls.configuring._CONFIGURE_TIMEOUT", 0.02)
    guard = guard_of(Remote, partial(swallow, sequel, []), timeout=0.02)

    with pytest.raises(AgentError, match=r"no answer within the deadline of 0\.02 s"):
        await guard.push_config({"key": 1})

    assert guard.config.config is None


@modes
async def test_a_request_is_not_let_through_by_a_hook_that_swallows_its_deadline(mode: FailureMode) -> None:
    class Stubborn(Agent):
        async def on_request_headers(self, event: Any) -> Any:
            return await swallow(returning(None), [])

    app, client = App(), Client()

    await client.call(guarded(app, AgentConfig("waf", Stubborn(), timeout=0.02, failure_mode=mode)))

    assert client.status == (504 if mode is CLOSED else 200)


# From outside


@kinds
@ways
@sequels
@modes
async def test_a_cancelled_scope_around_a_call_ends_it(kind: Any, way: Way, sequel: Sequel, mode: FailureMode) -> None:
    caught: list[str] = []
    guard = guard_of(kind, partial(way, sequel, caught))
    verdicts = []

    with anyio.move_on_after(0.02) as scope:
        verdicts.append(await guard.call(EVENT, mode))

    assert scope.cancelled_caught
    assert len(caught) == 1
    assert verdicts == []
    assert state_of(guard) is BreakerState.CLOSED
    assert guard.metrics().outcomes == {}
    assert guard.active == 0


@kinds
@sequels
@modes
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_task_that_is_cancelled_during_a_call_stays_cancelled(
    kind: Any, sequel: Sequel, mode: FailureMode
) -> None:
    """As servers do, which know nothing of cancel scopes."""
    caught: list[str] = []
    guard = guard_of(kind, partial(swallow, sequel, caught))
    task = asyncio.ensure_future(guard.call(EVENT, mode))
    await anyio.wait_all_tasks_blocked()

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert caught == ["CancelledError"]
    assert state_of(guard) is BreakerState.CLOSED
    assert guard.metrics().outcomes == {}
    assert guard.active == 0


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@sequels
async def test_a_task_that_was_cancelled_and_is_late_as_well_stays_cancelled(sequel: Sequel) -> None:
    caught: list[str] = []

    async def swallow_twice() -> Any:
        await swallow(returning(None), caught)
        return await swallow(sequel, caught)

    guard = guard_of(InProcess, swallow_twice, timeout=0.05)
    task = asyncio.ensure_future(guard.call(EVENT, CLOSED))
    await anyio.wait_all_tasks_blocked()

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert len(caught) == 2


@kinds
@sequels
@pytest.mark.parametrize("first", [True, False], ids=["first", "second"])
async def test_a_sibling_of_a_denial_has_no_say_any_more(kind: Any, sequel: Sequel, first: bool) -> None:
    """One is asked in the caller's task, the others in their own."""

    async def deny() -> AgentResponse:
        await checkpoint()
        return BLOCK

    denier = RouteAgent(guard_of(InProcess, deny), CLOSED)
    third = RouteAgent(guard_of(InProcess, hang), CLOSED)
    stubborn = RouteAgent(guard_of(kind, partial(swallow, sequel, [])), OPEN)
    agents = [denier, stubborn, third] if first else [denier, third, stubborn]

    verdicts = await evaluate(agents, EVENT)

    assert [verdict.response for verdict in verdicts] == [BLOCK]
    assert stubborn.guard.metrics().outcomes == {}
    assert state_of(stubborn.guard) is BreakerState.CLOSED


@sequels
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("first", [True, False], ids=["first", "second"])
async def test_agents_that_are_asked_side_by_side_do_not_keep_a_cancelled_task_going(
    sequel: Sequel, first: bool
) -> None:
    stubborn = RouteAgent(guard_of(InProcess, partial(swallow, sequel, [])), OPEN)
    other = RouteAgent(guard_of(InProcess, hang), OPEN)
    agents = [stubborn, other] if first else [other, stubborn]
    task = asyncio.ensure_future(evaluate(agents, EVENT))
    await anyio.wait_all_tasks_blocked()

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert stubborn.guard.metrics().outcomes == {}


@modes
async def test_the_app_is_not_called_for_a_client_that_was_given_up(mode: FailureMode) -> None:
    class Stubborn(Agent):
        async def on_request_headers(self, event: Any) -> Any:
            return await swallow(returning(None), [])

    app, client = App(), Client()

    with anyio.move_on_after(0.02) as scope:
        await client.call(guarded(app, AgentConfig("waf", Stubborn(), failure_mode=mode)))

    assert scope.cancelled_caught
    assert client.messages == []


# What is no cancellation of the call


@pytest.mark.parametrize("shielded", [True, False])
async def test_a_scope_of_the_hooks_own_is_its_own_business(shielded: bool) -> None:
    async def recover() -> AgentResponse:
        with anyio.move_on_after(0.01, shield=shielded):
            await swallow(returning(None), [])
        with anyio.CancelScope() as scope:
            scope.cancel()
            await swallow(returning(None), [])
        return BLOCK

    guard = guard_of(InProcess, recover)

    assert (await guard.call(EVENT, CLOSED)).response is BLOCK
    assert (await guard.call(EVENT, CLOSED)).response is BLOCK


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_timeout_of_asyncios_in_the_hook_is_its_own_business() -> None:
    async def recover() -> AgentResponse:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(60)
        except TimeoutError:
            pass
        return BLOCK

    guard = guard_of(InProcess, recover)

    assert (await guard.call(EVENT, CLOSED)).response is BLOCK


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_what_somebody_swallowed_before_the_call_does_not_end_it() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(60)

    async def answer() -> AgentResponse:
        await checkpoint()
        return BLOCK

    try:
        assert (await guard_of(InProcess, answer).call(EVENT, CLOSED)).response is BLOCK
    finally:
        task.uncancel()


async def test_a_call_that_does_not_suspend_answers_in_a_cancelled_scope() -> None:
    async def answer() -> AgentResponse:
        if EVENT is None:
            await checkpoint()
        return BLOCK

    guard = guard_of(InProcess, answer)

    with anyio.CancelScope() as scope:
        scope.cancel()
        verdict = await guard.call(EVENT, CLOSED)

    assert verdict.response is BLOCK


CANCELLED = asyncio.CancelledError()
GROUPS: dict[str, tuple[BaseException, str]] = {
    "alone": (CANCELLED, "CancelledError"),
    "in a group": (BaseExceptionGroup("", [CANCELLED, CANCELLED]), "CancelledError"),
    "before an error": (BaseExceptionGroup("", [CANCELLED, KeyError(), OSError()]), "KeyError beside CancelledError"),
    "behind an error": (BaseExceptionGroup("", [ValueError(), CANCELLED]), "ValueError beside CancelledError"),
    "beside a group of errors": (
        BaseExceptionGroup("", [BaseExceptionGroup("", [CANCELLED]), ExceptionGroup("", [ValueError()])]),
        "ValueError beside CancelledError",
    ),
}


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize(("raised", "named"), GROUPS.values(), ids=GROUPS)
async def test_a_cancellation_that_nobody_has_asked_for_is_named_with_what_has_failed_beside_it(
    raised: BaseException, named: str
) -> None:
    async def fail() -> AgentResponse:
        await checkpoint()
        raise raised

    verdict = await guard_of(InProcess, fail).call(EVENT, CLOSED)
    assert verdict.failure is not None
    assert verdict.failure.message.endswith(f": raised {named}, though nobody has cancelled it")


async def test_there_is_nothing_to_raise_where_nobody_has_cancelled() -> None:
    requests = cancel_requests()
    with anyio.CancelScope() as scope:
        scope.cancel()
        with anyio.CancelScope(shield=True):
            await raise_swallowed(requests)
    await raise_swallowed(requests)


# At the serving end


class Served(Agent):
    def __init__(self, behave: Callable[[], Awaitable[Any]]) -> None:
        self.behave = behave

    async def on_request_headers(self, event: Any) -> Any:
        return await self.behave()

    async def on_response_headers(self, event: Any) -> Any:
        return await self.behave()


@sequels
async def test_a_served_hook_that_swallows_its_cancellation_answers_nobody(sequel: Sequel) -> None:
    caught: list[str] = []
    hooks = Hooks(Served(partial(swallow, sequel, caught)))
    answers = []

    with anyio.move_on_after(0.02) as scope:
        answers.append(await hooks.answer(EVENT, partial(encode_answer, encoding=Encoding.JSON), {}))

    assert scope.cancelled_caught
    assert caught
    assert answers == []


@sequels
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_nor_where_the_server_cancels_its_task(sequel: Sequel) -> None:
    caught: list[str] = []
    hooks = Hooks(Served(partial(swallow, sequel, caught)))
    task = asyncio.ensure_future(hooks.answer(EVENT, partial(encode_answer, encoding=Encoding.JSON), {}))
    await anyio.wait_all_tasks_blocked()

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert caught


@sequels
async def test_no_answer_is_sent_to_a_caller_that_has_hung_up(sequel: Sequel) -> None:
    caught: list[str] = []
    event = encode_event(EVENT, Encoding.JSON)
    client = Client("POST", headers=[(b"content-type", b"application/json")], body=event)
    app = agent_app(Served(partial(swallow, sequel, caught)))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, app)
        await anyio.wait_all_tasks_blocked()
        client.leave()

    assert caught
    assert client.messages == []


# Behind HTTP


async def test_a_transport_below_ours_that_swallows_its_cancellation_has_not_answered() -> None:
    import httpx

    class Stubborn(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            try:
                await anyio.sleep_forever()
            except BaseException:
                return httpx.Response(200, json={"decision": "allow"})
            raise AssertionError

    transport = HttpTransport("http://agent.example", transport=Stubborn())
    config = AgentConfig("waf", transport, events={EventType.RESPONSE_HEADERS}, timeout=0.02)

    assert is_timeout(await Guard(config).call(EVENT, CLOSED), CLOSED)
