"""The scope that the app has where its headers were changed, and what those around the middleware read in theirs."""

from collections.abc import Callable
from typing import Any

import anyio
import pytest
from fastapi import BackgroundTasks, FastAPI, Request
from starlette.types import Message, Receive, Scope, Send

from asgi_agents import AgentConfig, AgentMiddleware, AgentResponse, BodyMutation, HeaderOp
from tests.support.asgi import Client, Probe, body, guarded, start

CHANGES = AgentResponse.allow(request_headers=[HeaderOp.set("x-user", "alice"), HeaderOp.remove("x-api-key")])
CLIENTS_OWN = [(b"x-user", b"root"), (b"x-api-key", b"key")]


def changing(**more: Any) -> AgentConfig:
    return AgentConfig("a", Probe(request_headers=CHANGES, **more))


# Ways to change what the app sees: by a head's answer, or a body's; where responses, or the end, are heard as well; by
# taking headers from it.
CONFIGS: dict[str, Callable[[], AgentConfig]] = {
    "head": changing,
    "body": lambda: AgentConfig("a", Probe(request_body=CHANGES)),
    "response": lambda: changing(response_headers=None, response_body=None),
    "complete": lambda: changing(complete=None),
    "body and response": lambda: AgentConfig("a", Probe(request_body=CHANGES, response_headers=None)),
    "body and complete": lambda: AgentConfig("a", Probe(request_body=CHANGES, complete=None)),
    "writer": lambda: AgentConfig(
        "a",
        Probe(request_body=AgentResponse.allow(request_body_mutation=BodyMutation(b"new"))),
        body_access="write",
    ),
    "sets": lambda: AgentConfig("a", Probe(request_headers=None), sets={"x-user"}),
}


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> AgentConfig:
    return CONFIGS[request.param]()


class Outer:
    """A middleware around ours that reads the scope when the response starts, and at the end."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.at_start: dict[str, Any] = {}
        self.at_end: dict[str, Any] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def looking(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.accept", "websocket.close"):
                self.at_start = dict(scope)
            await send(message)

        try:
            await self.app(scope, receive, looking)
        finally:
            self.at_end = dict(scope)


async def routed(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that does as routers do."""
    scope["route"] = "/items/{id}"
    scope["root_path"] = "/mounted"
    await send(start())
    scope["endpoint"] = "items"
    await send(body(b"hello"))


async def test_what_the_app_sets_is_seen_around_the_middleware_at_the_start_and_at_the_end(config: AgentConfig) -> None:
    outer, client = Outer(guarded(routed, config)), Client("POST", headers=CLIENTS_OWN, body=b"body")
    given = client.scope["headers"]
    await client.call(outer)
    assert client.body == b"hello"
    assert (outer.at_start["route"], outer.at_start["root_path"]) == ("/items/{id}", "/mounted")
    assert (outer.at_end["route"], outer.at_end["endpoint"]) == ("/items/{id}", "items")
    # And their own headers, all the time.
    assert outer.at_start["headers"] is outer.at_end["headers"] is given
    assert given[:2] == CLIENTS_OWN


async def test_it_is_seen_where_the_app_raises(config: AgentConfig) -> None:
    async def raising(scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = "/broken"
        raise RuntimeError("broken")

    outer = Outer(guarded(raising, config))
    with pytest.raises(RuntimeError, match="broken"):
        await Client("POST", headers=CLIENTS_OWN, body=b"body").call(outer)
    assert outer.at_end["route"] == "/broken"


async def test_it_is_seen_where_an_agent_answers_in_the_apps_place() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = "/blocked"
        await send(start())
        await send(body(b"secret"))

    agent = Probe(request_headers=CHANGES, response_headers=AgentResponse.block(451, "no"))
    client = Client(headers=CLIENTS_OWN)
    outer = Outer(guarded(app, AgentConfig("a", agent)))
    await client.call(outer)
    assert client.status == 451
    assert outer.at_start["route"] == "/blocked"


@pytest.mark.parametrize("kept", ["scope", "request"])
async def test_whoever_looks_late_sees_the_headers_that_the_app_was_given(config: AgentConfig, kept: str) -> None:
    left: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        left.append(scope if kept == "scope" else Request(scope))
        left.append(list(scope["headers"]))
        await send(start())
        await send(body())

    await Client("POST", headers=CLIENTS_OWN, body=b"body").call(guarded(app, config))
    late, at_first = left
    assert (late["headers"] if kept == "scope" else late.headers.raw) == at_first
    assert at_first != [*CLIENTS_OWN, (b"content-length", b"4")]


async def test_a_task_that_is_left_behind_first_reads_the_headers_after_the_response() -> None:
    app, seen = FastAPI(), []
    middleware: AgentMiddleware = guarded(app, changing())
    over = anyio.Event()

    async def late(request: Request) -> None:
        await over.wait()
        seen.append((request.headers.get("x-user"), request.headers.get("x-api-key")))

    async with anyio.create_task_group() as tasks:

        @app.get("/")
        async def leave(request: Request, background: BackgroundTasks) -> None:
            tasks.start_soon(late, request)

        await Client(headers=CLIENTS_OWN).call(middleware)
        over.set()
    assert seen == [("alice", None)]


async def test_nested_middlewares_each_hand_back_what_comes_from_within() -> None:
    scopes: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await routed(scope, receive, send)

    def adding(agent_id: str) -> AgentConfig:
        answer = AgentResponse.allow(request_headers=[HeaderOp.add("x-seen", agent_id)])
        return AgentConfig(agent_id, Probe(request_headers=answer))

    inner = Outer(guarded(app, adding("inner")))
    outer = Outer(guarded(inner, adding("outer")))
    client = Client()
    await client.call(outer)
    assert scopes[0]["headers"] == [(b"x-seen", b"outer"), (b"x-seen", b"inner")]
    assert inner.at_end["headers"] == [(b"x-seen", b"outer")]
    assert outer.at_end["headers"] == []
    for seen in (inner.at_start, outer.at_start):
        assert seen["route"] == "/items/{id}"
    for seen in (inner.at_end, outer.at_end):
        assert seen["endpoint"] == "items"


@pytest.mark.parametrize("way", ["accept", "close", "raise"])
async def test_a_websocket_hands_it_back_when_it_is_accepted_closed_or_breaks(way: str) -> None:
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = "/ws"
        seen.append(scope)
        if way == "raise":
            raise RuntimeError("broken")
        await send({"type": f"websocket.{way}"})
        scope["endpoint"] = "ws"

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        pass

    scope: Scope = {"type": "websocket", "path": "/", "headers": list(CLIENTS_OWN)}
    outer = Outer(guarded(app, changing()))
    if way == "raise":
        with pytest.raises(RuntimeError, match="broken"):
            await outer(scope, receive, send)
    else:
        await outer(scope, receive, send)
        assert outer.at_start["route"] == "/ws"
        assert outer.at_end["endpoint"] == "ws"
    assert outer.at_end["route"] == "/ws"
    assert outer.at_end["headers"] == CLIENTS_OWN
    assert seen[0]["headers"] == [(b"x-user", b"alice")]


@pytest.mark.parametrize("reactions", [{"request_headers": None}, {"request_body": None}, {"complete": None}])
async def test_where_nothing_changes_the_app_gets_the_very_same_scope(reactions: dict[str, Any]) -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        await send(start())
        await send(body())

    client = Client("POST", headers=CLIENTS_OWN, body=b"body")
    await client.call(guarded(app, AgentConfig("a", Probe(**reactions))))
    assert seen[0] is client.scope
