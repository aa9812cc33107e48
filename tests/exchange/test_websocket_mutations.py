"""What agents make of the messages of a websocket: a change, or nothing of it."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest
from anyio.lowlevel import checkpoint
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentManager,
    AgentResponse,
    AuditMetadata,
    AuditRecord,
    BodyMutation,
    EventType,
    FailureMode,
    HttpTransport,
    Opcode,
    WebSocketDrop,
    WebSocketFrameEvent,
)
from asgi_agents.serve import agent_app, serve_stream
from tests.exchange.test_websocket import App, Server, configured, guarded, run

pytestmark = pytest.mark.anyio

Change = Callable[[bytes], bytes | None]


class Writer(Agent):
    """Answers every message with a mutation of the right direction.

    :param suspends: whether it takes its time.
    """

    def __init__(self, change: Change, *, suspends: bool = False) -> None:
        self.change = change
        self.suspends = suspends
        self.saw: list[bytes] = []

    async def on_websocket_frame(self, event: WebSocketFrameEvent) -> AgentResponse:
        self.saw.append(event.data)
        if self.suspends:
            await checkpoint()
        mutation = BodyMutation(self.change(event.data), event.frame_index)
        if event.client_to_server:
            return AgentResponse.allow(request_body_mutation=mutation)
        return AgentResponse.allow(response_body_mutation=mutation)


class Answering(Agent):
    """Answers every message the same."""

    def __init__(self, answer: AgentResponse | None = None) -> None:
        self.answer = answer
        self.saw: list[bytes] = []

    async def on_websocket_frame(self, event: WebSocketFrameEvent) -> AgentResponse | None:
        self.saw.append(event.data)
        return self.answer


def writing(agent: Any, agent_id: str = "writer", **options: Any) -> AgentConfig:
    return configured(agent, agent_id, body_access="write", **options)


@pytest.mark.parametrize("suspends", [False, True])
async def test_messages_of_both_directions_can_be_changed(suspends: bool) -> None:
    app, server = App("out", b"\xff"), Server("in", b"\xfe", then_leaves=True)
    await run(guarded(app, writing(Writer(lambda data: data + b"!", suspends=suspends))), server)

    assert app.got == ["in!", b"\xfe!"]
    assert server.frames == ["out!", b"\xff!"]


async def test_a_mutation_without_data_passes_and_an_empty_one_drops() -> None:
    change = {b"pass": None, b"drop": b"", b"change": b"changed"}
    app, server = App("pass", "drop", "change"), Server("drop", "pass", "change", then_leaves=True)
    await run(guarded(app, writing(Writer(lambda data: change[data]))), server)

    assert app.got == ["pass", "changed"]
    assert server.frames == ["pass", "changed"]


async def test_agents_see_what_those_before_them_have_made_of_a_message() -> None:
    before, first, between, second, behind = (
        Answering(),
        Writer(lambda data: data + b"1"),
        Answering(),
        Writer(lambda data: data + b"2"),
        Answering(AgentResponse.allow(audit=AuditMetadata(tags=("seen",)))),
    )
    app, server = App(), Server("a", then_leaves=True)
    middleware = guarded(
        app,
        configured(before, "before"),
        writing(first, "first"),
        configured(between, "between"),
        writing(second, "second"),
        configured(behind, "behind"),
    )
    await run(middleware, server)

    assert app.got == ["a12"]
    assert (before.saw, first.saw, between.saw, second.saw, behind.saw) == (
        [b"a"],
        [b"a"],
        [b"a1"],
        [b"a1"],
        [b"a12"],
    )


async def test_nobody_behind_sees_a_message_that_a_mutation_drops() -> None:
    behind = Answering()
    app, server = App(), Server("a", then_leaves=True)
    await run(guarded(app, writing(Writer(lambda data: b"")), configured(behind, "behind")), server)
    assert (app.got, behind.saw) == ([], [])


def mutating(data: bytes = b"x", *, request: bool, index: int = 0) -> AgentResponse:
    mutation = BodyMutation(data, index)
    if request:
        return AgentResponse.allow(request_body_mutation=mutation)
    return AgentResponse.allow(response_body_mutation=mutation)


WRONG = {
    "of the other direction": (mutating(request=False), "response_body_mutation does not apply to a message of the"),
    "an empty one of the other direction": (mutating(b"", request=False), "response_body_mutation does not apply"),
    "of another message": (mutating(request=True, index=1), "request_body_mutation.chunk_index: expected 0, the"),
    "no text": (mutating(b"\xff", request=True), "request_body_mutation.data: expected UTF-8 for a text message"),
}


@pytest.mark.parametrize("mode", FailureMode)
@pytest.mark.parametrize("name", WRONG)
async def test_a_mutation_that_does_not_fit_is_a_failure_of_its_agent(
    name: str, mode: FailureMode, caplog: pytest.LogCaptureFixture
) -> None:
    answer, fault = WRONG[name]
    app, server = App(), Server("in", then_leaves=True)
    await run(guarded(app, writing(Answering(answer), failure_mode=mode)), server)

    assert fault in caplog.text
    if mode is FailureMode.OPEN:
        assert (app.got, server.close) == (["in"], None)
    else:
        assert (app.got, server.close) == ([], (1011, "Agent error"))


@pytest.mark.parametrize("request_mutation", [True, False])
async def test_a_mutation_of_the_apps_message_is_one_of_the_response(request_mutation: bool) -> None:
    app, server = App("out"), Server(then_leaves=True)
    await run(guarded(app, writing(Answering(mutating(request=request_mutation)))), server)
    assert (server.frames, server.close) == (([], (1011, "Agent error")) if request_mutation else (["x"], None))


async def test_an_agent_that_only_reads_may_not_change_a_message() -> None:
    app, server = App(), Server("in", then_leaves=True)
    await run(guarded(app, Answering(mutating(request=True))), server)
    assert (app.got, server.close) == ([], (1011, "Agent error"))


async def test_bytes_may_become_any_bytes() -> None:
    app, server = App(), Server(b"in", then_leaves=True)
    await run(guarded(app, writing(Writer(lambda data: b"\xff\x00"))), server)
    assert app.got == [b"\xff\x00"]


async def test_what_a_shadow_agent_would_change_stays_as_it_is() -> None:
    app, server = App("out"), Server("in", then_leaves=True)
    await run(guarded(app, writing(Writer(lambda data: b"x"), enforce=False)), server)
    assert (app.got, server.frames) == (["in"], ["out"])


async def test_the_index_counts_the_messages_of_one_direction() -> None:
    app, server = App("a", "b", "c"), Server("d", "e", then_leaves=True)
    await run(guarded(app, writing(Writer(lambda data: data * 2))), server)
    assert (app.got, server.frames) == (["dd", "ee"], ["aa", "bb", "cc"])


async def test_the_audit_record_says_that_a_message_was_changed() -> None:
    records: list[AuditRecord] = []
    app, server = App(), Server("secret", then_leaves=True)
    await run(guarded(app, writing(Writer(lambda data: b"[changed]")), on_audit=records.append), server)
    (record,) = records
    assert "request_body" in repr(record)
    assert "secret" not in repr(record)
    assert "[changed]" not in repr(record)


@pytest.mark.parametrize("client_to_server", [True, False])
async def test_a_manager_says_what_becomes_of_a_message(client_to_server: bool) -> None:
    event = WebSocketFrameEvent(
        correlation_id="c",
        opcode=Opcode.TEXT,
        data=b"a",
        client_to_server=client_to_server,
        frame_index=0,
        client_ip="",
    )
    second = Writer(lambda data: data + b"2")
    manager = AgentManager([writing(Writer(lambda data: data + b"1"), "first"), writing(second, "second")])
    async with manager:
        decision = await manager.process_websocket_frame(event)
    mutation = decision.request_body_mutation if client_to_server else decision.response_body_mutation
    assert (decision.is_allow, mutation) == (True, BodyMutation(b"a12", 0))

    manager = AgentManager([writing(Writer(lambda data: b""), "dropping"), writing(second, "second")])
    async with manager:
        decision = await manager.process_websocket_frame(event)
    assert (decision.websocket_decision, decision.decided_by) == (WebSocketDrop(), "dropping")


@asynccontextmanager
async def served(agent: Agent, by: str) -> AsyncIterator[AgentConfig]:
    """``agent`` as one of another process."""
    if by.startswith("http"):
        encoding = "msgpack" if by.endswith("msgpack") else "json"
        transport = HttpTransport(
            "http://agent/",
            encoding=encoding,
            transport=httpx.ASGITransport(agent_app(agent)),
        )
        yield writing(transport, events={EventType.WEBSOCKET_FRAME})
        return
    async with anyio.create_task_group() as tasks:
        address = await tasks.start(serve_stream, agent, "tcp://127.0.0.1:0")
        yield writing(address, events={EventType.WEBSOCKET_FRAME})
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("by", ["http, json", "http, msgpack", "stream"])
async def test_an_agent_of_another_process_can_change_messages(by: str) -> None:
    app, server = App("out", b"\xff"), Server("in", b"\xfe", "drop", then_leaves=True)
    async with served(Writer(lambda data: b"" if data == b"drop" else data + b"!"), by) as config:
        middleware = guarded(app, config)
        async with middleware.manager:
            await run(middleware, server)

    assert app.got == ["in!", b"\xfe!"]
    assert server.frames == ["out!", b"\xff!"]


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    async for message in websocket.iter_text():
        await websocket.send_text(message)


def test_a_client_meets_the_changes() -> None:
    app = guarded(Starlette(routes=[WebSocketRoute("/echo", echo)]), writing(Writer(lambda data: data + b".")))
    with TestClient(app).websocket_connect("/echo") as session:
        session.send_text("hello")
        # Once on its way in, and once on its way out.
        assert session.receive_text() == "hello.."
