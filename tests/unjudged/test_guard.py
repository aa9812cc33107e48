"""What counts as an answer: only what the agent said of this event, in time, in a hook that exists."""

import functools
from typing import Any
from unittest.mock import AsyncMock

import anyio
import pytest
from starlette.types import Receive, Scope, Send

from asgi_agents import (
    Agent,
    AgentResponse,
    AuditRecord,
    BodyMode,
    BodyMutation,
    BreakerState,
    CircuitBreakerConfig,
    ConfigurationError,
    FailureMode,
    GuardrailResponse,
    HeaderOp,
    Route,
)
from asgi_agents.manager import registry_of
from asgi_agents.serve import agent_app
from tests.support.asgi import VIRTUAL_TIME, App, Client, Probe, SlowProbe, assert_nothing_left, body, guarded, start

from .asking import Echo, Session, ask, ask_again, config, outcomes

ADMIN = AgentResponse.allow(request_headers=[HeaderOp.set("x-user", "admin")])
SWALLOWED: dict[str, Any] = {
    "None": None,
    "allow": ADMIN,
    "block": AgentResponse.block(418),
    "nonsense": object(),
    "an error": ValueError("late"),
    "an error of ours": TimeoutError(),
    "a group": ExceptionGroup("late", [ValueError()]),
}
each_swallowed = pytest.mark.parametrize("given", SWALLOWED.values(), ids=SWALLOWED)
HTTP_EVENTS = ["request_headers", "request_body", "response_headers", "response_body"]
in_virtual_time = pytest.mark.parametrize("anyio_backend", [VIRTUAL_TIME], ids=["virtual time"])


class Swallower:
    """A reaction that waits for ever, and answers when it is cancelled."""

    def __init__(self, given: Any) -> None:
        self.given = given
        self.reached = anyio.Event()

    async def __call__(self, event: object) -> Any:
        self.reached.set()
        try:
            await anyio.sleep_forever()
        except BaseException:
            if isinstance(self.given, Exception):
                raise self.given from None
            return self.given


@each_swallowed
@pytest.mark.parametrize("mode", [BodyMode.BUFFER, BodyMode.STREAM], ids=["buffer", "stream"])
@pytest.mark.parametrize("event", HTTP_EVENTS)
@pytest.mark.parametrize("failure_mode", FailureMode)
@in_virtual_time
async def test_what_a_hook_makes_of_its_deadline_is_no_answer(
    given: Any, mode: BodyMode, event: str, failure_mode: FailureMode
) -> None:
    modes: dict[str, Any] = {"request_body_mode": mode, "response_body_mode": mode, "failure_mode": failure_mode}
    app = App()
    middleware = guarded(app, config(SlowProbe(**{event: Swallower(given)}), timeout=1.0, chunk_timeout=1.0, **modes))
    client = await ask_again(middleware, Client("POST", body=b"hello"))
    if failure_mode is FailureMode.OPEN:
        assert (client.status, client.body, app.header(b"x-user")) == (200, b"hello", None)
    elif event == "response_body" and mode is BodyMode.STREAM and client.status == 200:
        assert client.body == b""
    else:
        assert client.status == 504
    assert outcomes(middleware) == {"timeout": 1}
    assert_nothing_left(middleware.manager)


async def test_on_asyncio_too() -> None:
    app = App()
    middleware = guarded(app, config(SlowProbe(request_headers=Swallower(None)), timeout=0.02))
    client = await ask_again(middleware)
    assert (client.status, app.calls, outcomes(middleware)) == (504, 0, {"timeout": 1})


@each_swallowed
@in_virtual_time
async def test_nor_for_a_websocket_message_or_an_inspection(given: Any) -> None:
    class Late(Agent):
        async def on_websocket_frame(self, event: object) -> Any:
            return await Swallower(given)(event)

        async def on_guardrail_inspect(self, event: object) -> Any:
            return await Swallower(GuardrailResponse(detected=False) if given is ADMIN else given)(event)

    async def asking(scope: Scope, receive: Receive, send: Send) -> None:
        await scope["state"]["agents"].inspect_guardrail("agent", "x", inspection_type="pii_detection")

    app, session = Echo(), Session("hello")
    await session.call(guarded(app, config(Late(), timeout=1.0)))
    assert app.got == session.texts == []
    with pytest.raises(Exception) as raised:  # noqa: PT011
        await ask(asking, config(Late(), timeout=1.0))
    assert getattr(raised.value, "status_code", None) == 504


@each_swallowed
async def test_what_a_hook_makes_of_being_given_up_counts_for_nothing(given: Any) -> None:
    """For a sibling's denial, and for a client that left."""
    swallower = Swallower(given)
    breaker = CircuitBreakerConfig(failure_threshold=1)

    async def deny(event: object) -> AgentResponse:
        await swallower.reached.wait()
        return AgentResponse.block(403)

    records: list[AuditRecord] = []
    late = config(SlowProbe(request_headers=swallower), "late", circuit_breaker=breaker)
    app = App()
    middleware = guarded(app, config(SlowProbe(request_headers=deny), "first"), late, on_audit=records.append)
    client = await ask_again(middleware)
    assert (client.status, outcomes(middleware, "late")) == (403, {})
    assert [answer.agent for answer in records[0].answers] == ["first"]

    swallower.reached = anyio.Event()
    alone = guarded(app, config(SlowProbe(request_headers=swallower), "late", circuit_breaker=breaker))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask_again, alone)
        await swallower.reached.wait()
        tasks.cancel_scope.cancel()
    assert (app.calls, outcomes(alone, "late")) == (0, {})
    for manager in (middleware.manager, alone.manager):
        guard = registry_of(manager).guard("late").breaker
        assert guard is not None
        assert guard.state is BreakerState.CLOSED
        assert_nothing_left(manager)


MUTATION, OP = BodyMutation(b"changed"), HeaderOp.set("x-mark", "set")
MISFITS = [
    *((event, "request_body_mutation", MUTATION) for event in HTTP_EVENTS if event != "request_body"),
    *((event, "response_body_mutation", MUTATION) for event in HTTP_EVENTS if event != "response_body"),
    *((event, "request_headers", [OP]) for event in ("response_headers", "response_body")),
]
each_misfit = pytest.mark.parametrize(("event", "field", "value"), MISFITS)


def misfitting(event: str, field: str, value: Any, **options: Any) -> Any:
    answer = AgentResponse.allow(**{field: value})
    breaker = CircuitBreakerConfig(failure_threshold=1)
    return config(Probe(**{event: answer}), body_access="write", circuit_breaker=breaker, **options)


def message_of(client: Client) -> str:
    (failure,) = [verdict.failure for verdict in client.scope["state"]["agents"].decision.verdicts if verdict.failure]
    return str(failure.message)


@each_misfit
@pytest.mark.parametrize("failure_mode", FailureMode)
async def test_what_does_not_fit_its_event_is_a_failure_of_its_own(
    event: str, field: str, value: Any, failure_mode: FailureMode
) -> None:
    app, client, records = App(), Client("POST", body=b"hello"), list[AuditRecord]()
    middleware = guarded(app, misfitting(event, field, value, failure_mode=failure_mode), on_audit=records.append)
    for _ in range(3):
        client = await ask_again(middleware, Client("POST", body=b"hello"))
        assert (client.status == 200) is (failure_mode is FailureMode.OPEN)
        assert b"changed" not in client.body + app.body
        assert app.header(b"x-mark") is None
        assert field in message_of(client)
        assert event in message_of(client)
    assert outcomes(middleware) == {"not_applicable": 3}
    assert {(answer.failure, *answer.changed) for record in records for answer in record.answers} == {
        ("not_applicable",)
    }


@pytest.mark.parametrize("field", ["request_headers", "response_headers"])
async def test_operations_on_a_head_that_is_gone_are_no_answer_to_a_streamed_chunk(field: str) -> None:
    name = "request_body" if field == "request_headers" else "response_body"
    options: dict[str, Any] = {"request_body_mode": BodyMode.STREAM, "response_body_mode": BodyMode.STREAM}
    app = App(start(), body(b"one", more=True), body(b"two"))
    count = [AgentResponse.allow(), AgentResponse.allow(**{field: [OP]})]  # type: ignore[arg-type]
    middleware = guarded(app, config(Probe(**{name: lambda _: count.pop(0)}), **options))
    client = await ask_again(middleware, Client("POST", body=[b"one", b"two"]))
    assert b"two" not in (app.body if name == "request_body" else client.body)
    assert outcomes(middleware)["not_applicable"] == 1


async def test_response_operations_hold_until_the_response_s_head_is_sent() -> None:
    answer = AgentResponse.allow(response_headers=[OP])
    for event in ("request_headers", "request_body", "response_headers"):
        for mode in (BodyMode.BUFFER, BodyMode.STREAM):
            agent = config(Probe(**{event: answer}), request_body_mode=mode)
            client = await ask(App(), agent, client=Client("POST", body=b"hello"))
            assert (client.status, client.header(b"x-mark")) == (200, b"set"), event


@pytest.mark.parametrize("field", ["request_headers", "response_headers"])
async def test_a_websocket_message_has_no_head(field: str) -> None:
    class Wrong(Agent):
        async def on_websocket_frame(self, event: object) -> AgentResponse:
            return AgentResponse.allow(**{field: [OP]})  # type: ignore[arg-type]

    app, session = Echo(), Session("hello")
    middleware = guarded(app, config(Wrong(), body_access="write"))
    await session.call(middleware)
    assert (app.got, session.texts, outcomes(middleware)) == ([], [], {"not_applicable": 1})


@pytest.mark.parametrize(
    ("field", "got", "counted"),
    [
        ("request_body_mutation", ["changed"], {"allow": 1, "not_applicable": 1}),
        ("response_body_mutation", [], {"not_applicable": 1}),
    ],
)
async def test_a_websocket_message_has_one_direction(field: str, got: list[str], counted: dict[str, int]) -> None:
    class Wrong(Agent):
        async def on_websocket_frame(self, event: object) -> AgentResponse:
            return AgentResponse.allow(**{field: MUTATION})  # type: ignore[arg-type]

    app, session = Echo(), Session("hello")
    middleware = guarded(app, config(Wrong(), body_access="write"))
    await session.call(middleware)
    assert (app.got, session.texts, outcomes(middleware)) == (got, [], counted)


@pytest.mark.parametrize("event", HTTP_EVENTS)
@pytest.mark.parametrize("access", ["read", "write"])
async def test_no_data_is_no_mutation(event: str, access: Any) -> None:
    nothing = BodyMutation(None)
    answer = AgentResponse.allow(request_body_mutation=nothing, response_body_mutation=nothing)
    middleware = guarded(App(), config(Probe(**{event: answer}), body_access=access))
    client = await ask_again(middleware, Client("POST", body=b"hello"))
    assert (client.status, outcomes(middleware)) == (200, {"allow": 1})


async def hook(self: Any, event: object) -> None: ...


def plain(self: Any, event: object) -> None: ...


def generator(self: Any, event: object) -> Any:
    yield


async def async_generator(self: Any, event: object) -> Any:
    yield


@functools.wraps(hook)
def decorated(self: Any, event: object) -> Any:
    return hook(self, event)


WRONG = {
    "misspelt": {"on_request_header": hook},
    "misspelt beside a right one": {"on_request_headers": hook, "on_response_header": hook},
    "made up": {"on_request": hook, "on_request_headers": hook},
    "nothing": {},
    "a plain function": {"on_request_headers": plain},
    "a generator": {"on_request_headers": generator},
    "an asynchronous generator": {"on_request_headers": async_generator},
    "a plain function that is decorated": {"on_request_headers": functools.wraps(plain)(lambda self, event: None)},
    "no function": {"on_request_headers": None},
}


@pytest.mark.parametrize("hooks", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("way", ["own", "inherited", "instance", "served"])
def test_a_hook_that_would_never_be_called_is_refused(hooks: dict[str, Any], way: str) -> None:
    made: Any = type("Made", (Agent,), {} if way == "instance" else hooks)
    agent = type("Derived", (made,), {})() if way == "inherited" else made()
    if way == "instance":
        for name, function in hooks.items():
            setattr(agent, name, function and function.__get__(agent))
    with pytest.raises(ConfigurationError) as raised:
        agent_app(agent) if way == "served" else config(agent)
    if "on_request_header" in hooks:
        assert "on_request_header" in str(raised.value).replace("on_request_headers", "")
        assert "on_request_headers" in str(raised.value)


@pytest.mark.parametrize("function", [hook, decorated, AsyncMock(return_value=None)], ids=["own", "decorated", "mock"])
async def test_a_hook_that_gives_an_awaitable_is_one(function: Any) -> None:
    agent = type("Right", (Agent,), {"on_request_headers": function, "helper": plain, "_on_this": plain})()
    middleware = guarded(App(), config(agent))
    client = await ask_again(middleware)
    assert (client.status, outcomes(middleware)) == (200, {"allow": 1})


@pytest.mark.parametrize("agents", [["a", "a"], ["a", ("a", FailureMode.OPEN)], ["b", "a", "b"]])
def test_an_agent_is_on_a_route_once(agents: Any) -> None:
    with pytest.raises(ConfigurationError, match=agents[0]):
        Route("/", agents)
    probes = [config(Probe(request_headers=None), name) for name in "ab"]
    with pytest.raises(ConfigurationError, match=agents[0]):
        guarded(App(), *probes, default_agents=agents)
