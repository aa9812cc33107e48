import functools
import re
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import AsyncMock, Mock

import anyio
import pytest
from anyio.lowlevel import checkpoint

from asgi_agents.agent import HOOKS, Agent, may_suspend
from asgi_agents.config import AgentConfig
from asgi_agents.errors import ConfigurationError
from asgi_agents.failures import FailureKind
from asgi_agents.guard import Guard
from asgi_agents.guardrails import TextGuardrail, Window
from asgi_agents.policy import FailureMode
from asgi_agents.protocol import (
    AgentResponse,
    Answer,
    ConfigureEvent,
    Event,
    EventType,
    GuardrailInspectEvent,
    Headers,
    InspectionType,
    RequestBodyChunkEvent,
    RequestHeadersEvent,
    ResponseHeadersEvent,
)
from asgi_agents.serve import agent_app, serve_stream
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
    ids=[
        "partial",
        "wrapped with await",
        "wrapped",
        "plain",
        "generator based",
        "object",
        "mock",
        "method",
        "built-in",
        "nothing",
    ],
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


async def test_a_subclass_of_the_transport_keeps_the_hooks_that_never_suspend() -> None:
    class Named(InProcessTransport):
        """Has a name of its own."""

        kind = "named"

    guard = Guard(AgentConfig("waf", Named(Mixed())))

    assert guard.statistics().transport == "named"
    assert guard.local
    assert EventType.RESPONSE_HEADERS in guard.client.non_suspending_hooks
    verdict = await guard.call(RESPONSE, FailureMode.CLOSED)
    assert verdict.response == AgentResponse.block(418)


async def test_a_subclass_of_the_transport_that_overrides_call_is_called_for_every_event() -> None:
    heard = []

    class Counting(InProcessTransport):
        async def call(self, event: Event) -> Answer | None:
            heard.append(event)
            return await super().call(event)

    guard = Guard(AgentConfig("waf", Counting(Mixed())))
    assert not guard.client.non_suspending_hooks
    verdict = await guard.call(RESPONSE, FailureMode.CLOSED)

    assert verdict.response == AgentResponse.block(418)
    assert heard == [RESPONSE]


async def test_a_mocked_hook_is_called() -> None:
    agent = Agent()
    agent.on_guardrail_inspect = AsyncMock(return_value=AgentResponse.block(418))  # type: ignore[method-assign]
    event = GuardrailInspectEvent(correlation_id="c", inspection_type=InspectionType.PII_DETECTION, content="")

    config = AgentConfig("mock", agent)

    assert set(config.hears or ()) == {EventType.GUARDRAIL_INSPECT}
    assert isinstance(config.resolved_transport, InProcessTransport)
    assert await config.resolved_transport.call(event) == AgentResponse.block(418)


async def test_a_hook_without_await_completes_in_one_step() -> None:
    coroutine = InProcessTransport(Mixed()).call(ConfigureEvent(agent_id="a"))

    with pytest.raises(StopIteration):
        coroutine.send(None)


# What is refused


def refusal(agent: Agent) -> str:
    """What every place that takes an agent says about this one, without the name of the place."""
    said = []
    for where, take in (
        ("AgentConfig('waf')", lambda: AgentConfig("waf", agent)),
        ("InProcessTransport", lambda: InProcessTransport(agent)),
        ("agent_app", lambda: agent_app(agent)),
        ("serve_stream", lambda: serve_stream(agent, "unix:///nowhere").send(None)),
    ):
        with pytest.raises(ConfigurationError) as caught:
            take()
        place, _, fault = str(caught.value).partition(": ")
        assert place == where
        said.append(fault)
    assert len(set(said)) == 1
    return said[0]


def agent_with(**attributes: Any) -> Agent:
    """An agent that hears request heads, with these attributes beside."""
    kind: type[Agent] = type("Waf", (Headed,), attributes)
    return kind()


@pytest.mark.parametrize(
    ("misspelt", "right"),
    [
        ("on_request_header", "on_request_headers"),
        ("on_requests_headers", "on_request_headers"),
        ("on_request_body", "on_request_body_chunk"),
        ("on_response_header", "on_response_headers"),
        ("on_response_body_chunks", "on_response_body_chunk"),
        ("on_web_socket_frame", "on_websocket_frame"),
        ("on_guardrails_inspect", "on_guardrail_inspect"),
        ("on_request_completed", "on_request_complete"),
        ("on_configured", "on_configure"),
    ],
)
@pytest.mark.parametrize("place", ["class", "mixin", "grandparent", "instance"])
def test_a_misspelt_hook_is_refused_and_the_right_one_is_named(misspelt: str, right: str, place: str) -> None:
    match place:
        case "class":
            agent = agent_with(**{misspelt: none})
        case "mixin":
            agent = type("Waf", (type("Mixin", (), {misspelt: none}), Headed), {})()
        case "grandparent":
            agent = type("Waf", (type("Parent", (Headed,), {misspelt: none}),), {})()
        case _:
            agent = agent_with()
            setattr(agent, misspelt, none)

    assert refusal(agent) == f"Waf.{misspelt} is no hook, expected {right}"


def test_what_resembles_no_hook_is_refused_all_the_same() -> None:
    fault = refusal(agent_with(on_xyzzy=none))

    assert fault.startswith("Waf.on_xyzzy is no hook, expected one of on_configure, ")
    assert fault.endswith(", or a name without 'on_'")


def test_other_names_are_nobodys_business() -> None:
    AgentConfig("waf", agent_with(_on_request=none, one=1, only=none, request_headers=none))


class Nothing(Agent):
    pass


class ConfiguredOnly(Agent):
    async def on_configure(self, event: ConfigureEvent) -> None:
        return None


@pytest.mark.parametrize("kind", [Agent, Nothing, ConfiguredOnly])
def test_an_agent_that_hears_nothing_is_refused(kind: type[Agent]) -> None:
    assert refusal(kind()).startswith(
        f"{kind.__name__} receives no events, expected it to override at least one of on_"
    )


def test_an_agent_may_say_itself_what_it_hears() -> None:
    class Dynamic(Agent):
        def __init__(self, *events: EventType) -> None:
            self._events = frozenset(events)

        @property
        def events(self) -> frozenset[EventType]:
            return self._events

    assert not AgentConfig("waf", Dynamic()).hears
    assert AgentConfig("waf", Dynamic(EventType.WEBSOCKET_FRAME)).hears == frozenset({EventType.WEBSOCKET_FRAME})


def plain(self: Any, event: object, /) -> None:
    return None


def generator(self: Agent, event: object) -> Generator[None, None, None]:
    yield


async def async_generator(self: Agent, event: object) -> AsyncIterator[None]:
    yield


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (plain, "a plain function"),
        (lambda self, event: none(event), "a plain function"),
        (generator, "a generator function"),
        (async_generator, "a generator function"),
        (wrapped(plain), "a plain function"),
        (wrapped(wrapped(plain)), "a plain function"),
        (wrapped(generator), "a generator function"),
        (wrapped(async_generator), "a generator function"),
        (staticmethod(plain), "a plain function"),
        (classmethod(plain), "a plain function"),
        (None, "a NoneType"),
        ("allow", "a str"),
    ],
    ids=[
        "plain",
        "lambda",
        "generator",
        "async generator",
        "wrapped",
        "wrapped twice",
        "wrapped generator",
        "wrapped async generator",
        "staticmethod",
        "classmethod",
        "nothing",
        "text",
    ],
)
@pytest.mark.parametrize("hook_name", HOOKS.values())
def test_a_hook_that_can_not_be_awaited_is_refused(hook_name: str, given: Any, fault: str) -> None:
    assert refusal(agent_with(**{hook_name: given})) == (
        f"Waf.{hook_name} is {fault}, expected an 'async def' without 'yield'"
    )


def test_a_function_that_wraps_itself_is_plain() -> None:
    def hook(self: Agent, event: object) -> None: ...

    hook.__wrapped__ = hook  # type: ignore[attr-defined]

    assert "is a plain function" in refusal(agent_with(on_websocket_frame=hook))


def asynchronous(function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(function)
    async def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


async def block_it(self: Any, event: object, /) -> AgentResponse:
    return AgentResponse.block(418)


def block_plainly(*args: object) -> AgentResponse:
    return AgentResponse.block(418)


@types.coroutine
def block_in_a_generator(self: Agent, event: object) -> Generator[Any, Any, AgentResponse]:
    yield from checkpoint().__await__()
    return AgentResponse.block(418)


class Blocking:
    async def __call__(self, event: object) -> AgentResponse:
        return AgentResponse.block(418)


@pytest.mark.parametrize(
    "given",
    [
        block_it,
        staticmethod(hook),
        classmethod(block_it),
        wrapped(block_it),
        wrapped(wrapped(block_it)),
        asynchronous(block_plainly),
        wrapped(asynchronous(block_plainly)),
        block_in_a_generator,
        Blocking(),
        functools.partial(hook),
        functools.partial(lambda event: hook(event)),
        functools.partialmethod(block_it),
        AsyncMock(return_value=AgentResponse.block(418)),
        Mock(side_effect=lambda event: hook(event)),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_whatever_returns_an_awaitable_is_a_hook(given: Any) -> None:
    guard = Guard(AgentConfig("waf", agent_with(on_response_headers=given)))

    assert (await guard.call(RESPONSE, FailureMode.CLOSED)).response == AgentResponse.block(418)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (functools.partial(block_plainly), "AgentResponse"),
        (Mock(return_value=None), "NoneType"),
        (lambda self, event: 1, "int"),
    ],
    ids=["partial", "mock", "function"],
)
async def test_a_hook_that_returns_no_awaitable_has_failed_and_says_so(given: Any, what: str) -> None:
    agent = agent_with(on_response_headers=Mock(side_effect=functools.partial(given, None)) if what == "int" else given)
    verdict = await Guard(AgentConfig("waf", agent)).call(RESPONSE, FailureMode.CLOSED)

    assert verdict.failure is not None
    assert verdict.failure.kind is FailureKind.ERROR
    assert re.search(
        rf"response_headers: on_response_headers returned {what}, expected an awaitable$", verdict.failure.message
    )


def test_what_wraps_a_hook_that_awaits_another_method_may_suspend() -> None:
    class Plain(TextGuardrail):
        async def check(self, window: Window) -> None: ...

    async def wrapping(self: TextGuardrail, event: GuardrailInspectEvent) -> None:
        await checkpoint()

    class Wrapped(Plain):
        pass

    setattr(Wrapped, "on_guardrail_inspect", functools.wraps(Plain.on_guardrail_inspect)(wrapping))  # noqa: B010
    assert not may_suspend(Plain().on_guardrail_inspect)
    assert may_suspend(Wrapped().on_guardrail_inspect)
