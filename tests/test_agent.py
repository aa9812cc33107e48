import functools
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import AsyncMock

import anyio
import pytest
from anyio.lowlevel import checkpoint

from asgi_agents.agent import HOOKS, Agent, may_suspend
from asgi_agents.config import AgentConfig
from asgi_agents.protocol import (
    AgentResponse,
    ConfigureEvent,
    EventType,
    GuardrailInspectEvent,
    Headers,
    InspectionType,
    RequestBodyChunkEvent,
    RequestHeadersEvent,
    ResponseHeadersEvent,
)
from asgi_agents.transports import InProcessTransport, Transport

RESPONSE = ResponseHeadersEvent(correlation_id="c", status=200, headers=Headers())


class Headed(Agent):
    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        return None


class Bodied(Headed):
    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> None:
        return None


class Mixin:
    async def on_response_headers(self, event: ResponseHeadersEvent) -> AgentResponse | None:
        return AgentResponse.block(418)


class Mixed(Mixin, Bodied):
    pass


class Muted(Bodied):
    on_request_headers = Agent.on_request_headers  # type: ignore[assignment]


async def hook(event: Any) -> AgentResponse | None:
    return AgentResponse.block(418)


# Which events


def test_there_is_a_hook_for_every_event() -> None:
    assert set(HOOKS) == set(EventType)
    assert all(callable(getattr(Agent, name)) for name in HOOKS.values())


@pytest.mark.parametrize(
    ("agent", "events"),
    [
        (Agent(), set()),
        (Headed(), {EventType.REQUEST_HEADERS}),
        (Bodied(), {EventType.REQUEST_HEADERS, EventType.REQUEST_BODY_CHUNK}),
        (Mixed(), {EventType.REQUEST_HEADERS, EventType.REQUEST_BODY_CHUNK, EventType.RESPONSE_HEADERS}),
        (Muted(), {EventType.REQUEST_BODY_CHUNK}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_agent_hears_the_events_whose_hooks_it_overrides(agent: Agent, events: set[EventType]) -> None:
    assert agent.events == events


@pytest.mark.parametrize("event_type", EventType)
def test_each_hook_is_for_its_event(event_type: EventType) -> None:
    one_hook: type[Agent] = type("OneHook", (Agent,), {HOOKS[event_type]: lambda self, event: hook(event)})

    assert one_hook().events == {event_type}


@pytest.mark.parametrize(
    "given",
    [hook, functools.partial(hook), staticmethod(hook), AsyncMock(), types.MethodType(lambda self, event: None, 1)],
    ids=["function", "partial", "staticmethod", "mock", "method"],
)
def test_a_hook_may_be_an_attribute_of_the_instance(given: Any) -> None:
    agent = Agent()
    agent.on_websocket_frame = given  # type: ignore[method-assign]

    assert agent.events == {EventType.WEBSOCKET_FRAME}


async def test_every_hook_of_the_base_class_says_nothing() -> None:
    for name in HOOKS.values():
        assert await getattr(Agent(), name)(RESPONSE) is None


# Which hooks can suspend


async def none(event: object) -> None:
    return None


async def with_await(event: object) -> None:
    await checkpoint()


async def with_await_in_a_branch(event: object) -> None:
    if event is None:
        await checkpoint()


async def with_async_for(event: AsyncIterator[int]) -> None:
    async for _ in event:
        pass


async def with_async_with(event: anyio.Lock) -> None:
    async with event:
        pass


async def with_async_comprehension(event: AsyncIterator[int]) -> list[int]:
    return [item async for item in event]


async def with_await_in_comprehension(event: list[Awaitable[int]]) -> list[int]:
    return [await item for item in event]


async def with_generator_of_awaits(event: list[Awaitable[int]]) -> object:
    return (await item for item in event)


async def with_coroutine_that_is_not_awaited(event: object) -> object:
    async def inner() -> None:
        await checkpoint()

    return inner


def sync(event: object) -> Awaitable[None]:
    return none(event)


@types.coroutine
def generator_based(event: object) -> Generator[Any, Any, None]:
    yield


class Callable_:  # noqa: N801
    async def __call__(self, event: object) -> None:
        return None


def awaiting(wrapped: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
    @functools.wraps(wrapped)
    async def wrapper(event: Any) -> Any:
        return await wrapped(event)

    return wrapper


def passing(wrapped: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
    @functools.wraps(wrapped)
    def wrapper(event: Any) -> Awaitable[Any]:
        return wrapped(event)

    return wrapper


@pytest.mark.parametrize(
    "given", [none, with_coroutine_that_is_not_awaited, Agent().on_configure, Headed().on_request_headers]
)
def test_a_coroutine_function_without_await_can_not_suspend(given: object) -> None:
    assert not may_suspend(given)


@pytest.mark.parametrize(
    "given",
    [
        with_await,
        with_await_in_a_branch,
        with_async_for,
        with_async_with,
        with_async_comprehension,
        with_await_in_comprehension,
        awaiting(none),
    ],
)
def test_a_coroutine_function_with_await_can_suspend(given: object) -> None:
    assert may_suspend(given)
    assert may_suspend(types.MethodType(lambda self, event: None, 1))


@pytest.mark.parametrize(
    "given",
    [
        functools.partial(none),
        passing(with_await),
        passing(none),
        sync,
        generator_based,
        Callable_(),
        AsyncMock(),
        types.MethodType(functools.partial(none), 1),
        len,
        None,
    ],
    ids=repr,
)
def test_what_is_no_plain_coroutine_function_counts_as_able_to(given: object) -> None:
    assert may_suspend(given)


def test_an_async_generator_counts_as_able_to() -> None:
    @asynccontextmanager
    async def manager(event: object) -> AsyncIterator[None]:
        yield

    assert may_suspend(manager)
    assert may_suspend(manager.__wrapped__)  # type: ignore[attr-defined]


# The transport to them


async def test_the_transport_calls_the_hook_of_the_event() -> None:
    transport = InProcessTransport(Mixed())

    assert isinstance(transport, Transport)
    assert (transport.kind, transport.remote) == ("in_process", False)
    assert transport.carries == set(EventType)
    assert transport.events == Mixed().events
    assert await transport.call(RESPONSE) == AgentResponse.block(418)
    await transport.aclose()


def test_the_transport_knows_which_hooks_can_suspend() -> None:
    class Guardrail(Agent):
        async def on_request_headers(self, event: RequestHeadersEvent) -> None:
            return None

        async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> None:
            await checkpoint()

    transport = InProcessTransport(Guardrail())

    assert [event_type for event_type in EventType if transport.may_suspend(event_type)] == [
        EventType.GUARDRAIL_INSPECT
    ]


async def test_a_mocked_hook_is_called() -> None:
    agent = Agent()
    agent.on_guardrail_inspect = AsyncMock(return_value=AgentResponse.block(418))  # type: ignore[method-assign]
    event = GuardrailInspectEvent(correlation_id="c", inspection_type=InspectionType.PII_DETECTION, content="")

    config = AgentConfig("mock", agent)

    assert set(config.hears or ()) == {EventType.GUARDRAIL_INSPECT}
    assert isinstance(config.reach, Transport)
    assert await config.reach.call(event) == AgentResponse.block(418)


async def test_a_hook_without_await_completes_in_one_step() -> None:
    coroutine = InProcessTransport(Mixed()).call(ConfigureEvent(agent_id="a"))

    with pytest.raises(StopIteration):
        coroutine.send(None)
