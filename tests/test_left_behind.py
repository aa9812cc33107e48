"""Tasks that an app leaves behind: what they send, receive and ask when their connection is over."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from starlette.types import Message, Receive, Scope, Send

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentContext,
    AgentMiddleware,
    AgentResponse,
    BodyMode,
    ClosedByAgent,
    EventType,
    GuardrailInspectEvent,
    GuardrailResponse,
)
from asgi_agents.evaluation.guardrail import inspect_guardrail
from asgi_agents.manager import registry_of
from asgi_agents.observability.correlation import live_ids

from .support.asgi import Client
from .transports.stream.peer import Peer, Received
from .transports.stream.pools import client_in, is_idle, managing, pool_of, question, until

CLOSE = AgentResponse.websocket_close(4001, "enough")
DROP = AgentResponse.websocket_drop()
BLOCK = AgentResponse.block(403)
HEADERS = [(b"x-request-id", b"given"), (b"content-length", b"2")]


class Left:
    """An app that returns at once, and what it has left behind."""

    def __init__(self, *before: Message) -> None:
        self._before = before
        self.receive: Any = None
        self.send: Any = None
        self.context: Any = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.receive, self.send, self.context = receive, send, scope["state"]["agents"]
        for message in self._before:
            await send(message)


class Session:
    """The server's side of a websocket; takes whatever comes, whenever."""

    def __init__(self, *received: Message) -> None:
        self.unread: list[Message] = [{"type": "websocket.connect"}, *received]
        self.sent: list[Message] = []

    async def run(self, app: Any) -> None:
        async def receive() -> Message:
            return self.unread.pop(0)

        async def send(message: Message) -> None:
            self.sent.append(message)

        headers = [(b"x-request-id", b"given")]
        scope = {"type": "websocket", "path": "/", "raw_path": b"/", "query_string": b"", "headers": headers}
        await app(scope, receive, send)


class Frames(Agent):
    """Answers messages as it is told, at once or after a suspension."""

    def __init__(self, answer: AgentResponse | None, *, slow: bool = False) -> None:
        self._answer = answer
        self._slow = slow
        self.ids: list[str] = []
        self.go: anyio.Event | None = None

    async def on_websocket_frame(self, event: Any) -> AgentResponse | None:
        self.ids.append(event.correlation_id)
        if self._slow:
            await checkpoint()
        if self.go is not None:
            await self.go.wait()
        return self._answer


ACCEPT: Message = {"type": "websocket.accept"}
TEXT: Message = {"type": "websocket.send", "text": "x"}


# Over a websocket


@pytest.mark.parametrize("slow", [False, True])
async def test_a_message_that_an_agent_closes_on_is_refused_to_a_task_left_behind(slow: bool) -> None:
    app, session = Left(ACCEPT), Session()
    await session.run(AgentMiddleware(app, agents=[AgentConfig("a", Frames(CLOSE, slow=slow))]))
    for _ in range(2):
        with pytest.raises(ClosedByAgent, match="an agent has closed this websocket"):
            await app.send(TEXT)
    await app.send({"type": "websocket.close", "code": 1000})
    assert session.sent == [ACCEPT]


@pytest.mark.parametrize(("answer", "passed"), [(None, 1), (DROP, 0)])
@pytest.mark.parametrize("slow", [False, True])
async def test_a_message_of_a_task_left_behind_is_judged_as_ever(
    answer: AgentResponse | None, passed: int, slow: bool
) -> None:
    app, session = Left(ACCEPT), Session()
    await session.run(AgentMiddleware(app, agents=[AgentConfig("a", Frames(answer, slow=slow))]))
    await app.send(TEXT)
    assert session.sent == [ACCEPT, *[TEXT] * passed]


@pytest.mark.parametrize("slow", [False, True])
async def test_a_task_left_behind_receives_no_message_that_an_agent_closes_on(slow: bool) -> None:
    app, session = Left(ACCEPT), Session({"type": "websocket.receive", "text": "x"})
    await session.run(AgentMiddleware(app, agents=[AgentConfig("a", Frames(CLOSE, slow=slow))]))
    assert (await app.receive())["type"] == "websocket.connect"
    for _ in range(2):
        assert await app.receive() == {"type": "websocket.disconnect", "code": 4001, "reason": "enough"}


# Over HTTP


class Bodies(Agent):
    """Denies bodies that say so."""

    async def on_request_body_chunk(self, event: Any) -> AgentResponse | None:
        await checkpoint()
        return BLOCK if event.data == b"no" else None

    async def on_response_body_chunk(self, event: Any) -> AgentResponse | None:
        await checkpoint()
        return BLOCK if event.data == b"no" else None

    async def on_response_headers(self, event: Any) -> None:
        await checkpoint()


async def settle() -> None:
    for _ in range(20):
        await checkpoint()


async def shortly(action: Callable[[], Awaitable[Any]]) -> None:
    """Do it, or as much of it as needs nothing more to happen."""
    errors: list[Exception] = []

    async def run() -> None:
        try:
            await action()
        except Exception as exc:
            errors.append(exc)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await settle()
        tasks.cancel_scope.cancel()
    if errors:
        raise errors[0]


START: Message = {"type": "http.response.start", "status": 200, "headers": []}


@pytest.mark.parametrize("mode", [BodyMode.BUFFER, BodyMode.STREAM], ids=["buffer", "stream"])
@pytest.mark.parametrize("data", [b"no", b"ok"])
@pytest.mark.parametrize("step", ["receive", "send", "both"])
async def test_nothing_that_a_task_left_behind_does_meets_a_bare_assertion(mode: Any, data: bytes, step: str) -> None:
    """The server may have something to say against it, and so may the agent; we have nothing to say of ourselves."""
    app = Left()
    config = AgentConfig("a", Bodies(), request_body_mode=mode, response_body_mode=mode)
    client = Client(body=data, headers=HEADERS, method="POST")
    await client.call(AgentMiddleware(app, agents=[config]))
    if app.send is None:
        return
    for name, action in (
        ("receive", lambda: app.receive()),
        ("send", lambda: app.send(START)),
        ("send", lambda: app.send({"type": "http.response.body", "body": data})),
        ("receive", lambda: app.receive()),
    ):
        if step in (name, "both"):
            with suppress(OSError, RuntimeError):
                await shortly(action)


# What is kept under an id


async def asked(context: AgentContext) -> None:
    await context.inspect_guardrail("waf", "x", inspection_type="pii_detection")


LATE: dict[str, Callable[[Left], Awaitable[Any]]] = {
    "inspect": lambda app: asked(app.context),
    "send": lambda app: app.send(TEXT),
}


async def behave_at_once(event: Received) -> None:
    if event.event_type is EventType.GUARDRAIL_INSPECT:
        await event.answer(GuardrailResponse(detected=False))
    else:
        await event.answer()


@pytest.mark.parametrize("on_route", [True, False])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("late", LATE)
async def test_a_call_after_the_end_is_pinned_to_no_connection(late: str, nested: bool, on_route: bool) -> None:
    peer = Peer(behaviour=behave_at_once)
    async with managing(peer, connections=2, stream={"connections": 2}) as manager:
        app = Left(ACCEPT)
        routes: Any = None if on_route else []
        guarded: Any = AgentMiddleware(app, manager=manager, routes=routes, expose_correlation_id=True)
        if nested:
            guarded = AgentMiddleware(guarded, manager=manager)
        await Session().run(guarded)
        pool = pool_of(client_in(manager))
        assert not pool.rotation.affinities.connections
        for _ in range(3):
            await LATE[late](app)
            assert not pool.rotation.affinities.connections
        assert is_idle(pool)
        assert not any(len(connection.requests) for connection in pool.connections)
        assert not live_ids


class Held:
    """A peer's behaviour: answers when it is let."""

    def __init__(self) -> None:
        self.go = anyio.Event()
        self.heard = 0

    async def __call__(self, event: Received) -> None:
        self.heard += 1
        await self.go.wait()
        await behave_at_once(event)


@pytest.mark.parametrize("waits_for", ["an answer", "a permit", "a place"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("late", LATE)
async def test_a_call_that_outlasts_its_connection_leaves_it_pinned_to_none(
    late: str, nested: bool, waits_for: str
) -> None:
    held = Held()
    peer = Peer(behaviour=held)
    # Every connection of the peer serves one event at a time: answers come when all are let.
    stream = {"connections": 1, "max_calls_per_connection": 1 if waits_for == "a place" else 10}
    options: dict[str, Any] = {"events": {EventType.WEBSOCKET_FRAME, EventType.GUARDRAIL_INSPECT}}
    options["max_concurrent_calls"] = 1 if waits_for == "a permit" else 10
    async with managing(peer, connections=1, stream=stream, **options) as manager:
        over = anyio.Event()
        async with anyio.create_task_group() as tasks:
            if waits_for != "an answer":
                # Somebody else has the only permit, or the only place.
                tasks.start_soon(inspect_guardrail, registry_of(manager).guard("waf"), question("other"))
                await until(lambda: held.heard)
            left = Left(ACCEPT)

            async def app(scope: Scope, receive: Receive, send: Send) -> None:
                await left(scope, receive, send)
                tasks.start_soon(run, LATE[late])
                await settle()

            async def run(late: Callable[[Left], Awaitable[Any]]) -> None:
                await late(left)
                # The connection of the call was over before.
                assert over.is_set()

            guarded: Any = AgentMiddleware(app, manager=manager)
            await Session().run(AgentMiddleware(guarded, manager=manager) if nested else guarded)
            over.set()
            assert live_ids.keys() == {"given"}
            held.go.set()
        manager.forget_request("waf", "other")
        pool = pool_of(client_in(manager))
        assert not pool.rotation.affinities.connections
        assert is_idle(pool)
        assert not live_ids


async def test_a_call_after_the_end_has_no_id_that_another_connection_has_taken() -> None:
    """And as long as it is under way no other connection gets its id."""
    agent = Frames(None, slow=True)
    first, second = Left(ACCEPT), Left(ACCEPT)
    guarded = AgentMiddleware(first, agents=[AgentConfig("a", agent)])
    await Session().run(guarded)
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["state"]["agents"].correlation_id)
        await first.send(TEXT)
        await second(scope, receive, send)

    await Session().run(AgentMiddleware(app, manager=guarded.manager))
    await first.send(TEXT)
    assert seen == ["given"]
    taken, free = agent.ids
    assert taken != "given"
    assert free == "given"
    agent.go = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(first.send, TEXT)
        await settle()
        assert live_ids.keys() == {"given"}
        await Session().run(AgentMiddleware(second, manager=guarded.manager))
        assert second.context.correlation_id != "given"
        agent.go.set()
    assert not live_ids


class Questions(Agent):
    """Answers each question when it is let."""

    def __init__(self, *texts: str) -> None:
        self.go = {text: anyio.Event() for text in texts}

    async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> None:
        await self.go[event.content].wait()


@pytest.mark.parametrize("order", ["abc", "cba", "bac"])
async def test_no_other_connection_gets_an_id_before_the_last_of_its_calls_has_ended(order: str) -> None:
    agent, app, other = Questions(*order), Left(ACCEPT), Left(ACCEPT)
    guarded = AgentMiddleware(app, agents=[AgentConfig("a", agent, timeout=60.0)], expose_correlation_id=True)
    async with anyio.create_task_group() as tasks:
        await Session().run(guarded)
        assert not live_ids
        for text in order:
            tasks.start_soon(partial(app.context.inspect_guardrail, "a", text, inspection_type="pii_detection"))
        await settle()
        for text in order:
            assert live_ids.keys() == {"given"}
            await Session().run(AgentMiddleware(other, manager=guarded.manager))
            assert other.context.correlation_id != "given"
            agent.go[text].set()
            await settle()
    assert not live_ids
