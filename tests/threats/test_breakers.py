"""What a client can do to the breaker and the permits of an agent."""

import json
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as AppRoute
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentManager,
    AgentMiddleware,
    CircuitBreakerConfig,
    EventType,
    GuardrailInspectEvent,
    GuardrailResponse,
    HttpTransport,
    RequestBodyChunkEvent,
    RequestHeadersEvent,
    WebSocketFrameEvent,
)
from asgi_agents.manager import registry_of
from asgi_agents.serve import agent_app
from tests.support.asgi import App, Client, assert_nothing_left, guarded, settle
from tests.support.servers import serve

from .raw import get, status_of

MIB = 1024 * 1024
# The first failure opens it.
TOUCHY = CircuitBreakerConfig(failure_threshold=1)


class Everything(Agent):
    """Hears all that a client sends, and thinks about it for a moment."""

    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        await checkpoint()

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> None:
        await checkpoint()

    async def on_websocket_frame(self, event: WebSocketFrameEvent) -> None:
        await checkpoint()

    async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> GuardrailResponse:
        await checkpoint()
        return GuardrailResponse(detected="\ufffd" in event.content)


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(str(len(text)))


async def take(request: Request) -> Response:
    return JSONResponse(len(await request.body()))


async def inspect(request: Request) -> Response:
    """Asks about everything that is in the body, as it is there."""
    asked = await request.json()
    verdict = await request.state.agents.inspect_guardrail(
        "agent",
        asked["content"],
        inspection_type="prompt_injection",
        model=asked["model"],
        categories=asked["categories"],
        metadata=asked["metadata"],
    )
    return JSONResponse(verdict.detected)


APP = Starlette(
    routes=[
        WebSocketRoute("/ws", echo),
        AppRoute("/inspect", inspect, methods=["POST"]),
        AppRoute("/{any:path}", take, methods=["GET", "POST"]),
    ]
)


@pytest.fixture(params=["json", "msgpack"])
def remote(request: pytest.FixtureRequest) -> Iterator[tuple[AgentMiddleware, AgentManager]]:
    """An app behind an agent that is reached over HTTP, and whose breaker opens at the first failure."""
    with serve(agent_app(Everything())) as url:
        manager = AgentManager(
            [
                AgentConfig(
                    "agent",
                    HttpTransport(url, encoding=request.param),
                    events=Everything().events,
                    circuit_breaker=TOUCHY,
                    timeout=30,
                )
            ]
        )
        yield AgentMiddleware(APP, manager=manager), manager


def state_of(manager: AgentManager) -> object:
    return manager.statistics()["agent"].breaker


STRANGE = [
    (b"/%ff%fe", b"x-a: \xff\xfe\x80"),
    (b"/%ed%a0%80%00%0a%0d", b"x-a: \xed\xa0\x80"),
    (b"/?%ff=%00&\\u0000", b"traceparent: \xff00-zz"),
    (b"/" + b"a" * 20_000, b"x-a: " + b"b" * 20_000),
    (b"/%f0%9f%98%80", b"host: \xff"),
    (b"/a", b"x-request-id: \xff"),
    (b"/a", b"tracestate: " + b",".join(b"v%d=\xff" % number for number in range(40))),
    (b"/a", b"cookie: " + b"; ".join([b"a=b"] * 2000)),
]


@pytest.mark.parametrize(("target", "header"), STRANGE, ids=range(len(STRANGE)))
def test_strange_paths_and_headers_do_not_fail_an_agent(
    server: dict[str, Any], remote: tuple[AgentMiddleware, AgentManager], target: bytes, header: bytes
) -> None:
    app, manager = remote
    with serve(app, **server) as url:
        answered = get(url, target, header)

    # Some of it is nothing to the server (400) or to the app (404), but none of it an agent's failure.
    assert status_of(answered) in (200, 400, 404)
    assert state_of(manager) == "closed"


def test_strange_bodies_and_messages_do_not_fail_an_agent(remote: tuple[AgentMiddleware, AgentManager]) -> None:
    app, manager = remote
    client = TestClient(app)

    assert client.post("/", content=b"\xff\x00\xed\xa0\x80" * 1000).json() == 5000
    with client.websocket_connect("/ws") as websocket:
        # Python's client can send what UTF-8 can't carry; servers would refuse it.
        websocket.send_text("\ud800\x00\udfff")
        assert websocket.receive_text() == "3"
    assert state_of(manager) == "closed"


@pytest.mark.parametrize("where", ["content", "model", "categories", "metadata"])
def test_lone_surrogates_do_not_fail_a_guardrail(remote: tuple[AgentMiddleware, AgentManager], where: str) -> None:
    app, manager = remote
    asked: dict[str, Any] = {"content": "x", "model": "m", "categories": ["c"], "metadata": {"k": "v"}}
    strange: dict[str, Any] = {
        "content": "\ud800",
        "model": "\ud800",
        "categories": ["\ud800"],
        "metadata": {"\ud800": "\udfff"},
    }
    asked[where] = strange[where]

    answered = TestClient(app).post("/inspect", content=json.dumps(asked))

    assert answered.json() is (where == "content")
    assert state_of(manager) == "closed"


def test_a_message_or_head_too_large_for_an_agent_does_not_open_its_breaker(
    remote: tuple[AgentMiddleware, AgentManager],
) -> None:
    """Served agents answer 413 to more than 16 MiB; what is base64 in JSON gets there with 12 MiB."""
    app, manager = remote
    client = TestClient(app)

    # uvicorn's httptools has no limit for headers.
    with serve(app, http="httptools") as url:
        answered = get(url, b"/", b"x-a: " + b"a" * (17 * MIB))
    assert status_of(answered) == 503
    with client.websocket_connect("/ws") as websocket:
        websocket.send_text("a" * (17 * MIB))
        with pytest.raises(WebSocketDisconnect) as closed:
            websocket.receive_text()
    assert (closed.value.code, closed.value.reason) == (1011, "Agent error")

    assert state_of(manager) == "closed"
    assert client.get("/").status_code == 200


def test_a_body_over_the_limit_does_not_open_a_breaker() -> None:
    manager = AgentManager([AgentConfig("agent", Everything(), circuit_breaker=TOUCHY)])
    client = TestClient(AgentMiddleware(APP, manager=manager))

    assert client.post("/", content=b"a" * (MIB + 1)).status_code == 413
    assert state_of(manager) == "closed"
    assert client.post("/", content=b"a" * MIB).json() == MIB


@pytest.mark.parametrize("permits", [1, 3])
async def test_clients_that_leave_open_no_breaker_and_take_no_permits_with_them(permits: int) -> None:
    """Also those that are cancelled in the middle of a call, as servers do it that cancel."""

    class Slow(Agent):
        async def on_request_headers(self, event: RequestHeadersEvent) -> None:
            await anyio.sleep_forever()

    middleware = guarded(
        App(), AgentConfig("agent", Slow(), max_concurrent_calls=permits, circuit_breaker=TOUCHY, timeout=60)
    )
    for _ in range(10):
        async with anyio.create_task_group() as storm:
            for _ in range(10):
                storm.start_soon(Client().call, middleware)
            await settle()
            storm.cancel_scope.cancel()

    assert state_of(middleware.manager) == "closed"
    assert_nothing_left(middleware.manager)


async def test_a_client_that_is_slow_to_send_its_body_holds_no_permit() -> None:
    middleware = guarded(App(), AgentConfig("agent", Everything(), max_concurrent_calls=1, circuit_breaker=TOUCHY))
    slow = [Client("POST", body=[b"a"], unfinished=True) for _ in range(50)]

    async with anyio.create_task_group() as tasks:
        for client in slow:
            tasks.start_soon(client.call, middleware)
        await settle()
        quick = Client("POST", body=b"body")
        await quick.call(middleware)
        for client in slow:
            client.leave()

    assert quick.status == 200
    assert {client.status for client in slow} == {None}
    assert state_of(middleware.manager) == "closed"
    assert_nothing_left(middleware.manager)


def test_input_on_which_an_agent_fails_opens_its_breaker() -> None:
    """What is not defended: an agent that a client can make fail, or be too slow, is that client's to switch off."""

    class Fragile(Agent):
        async def on_request_headers(self, event: RequestHeadersEvent) -> None:
            int(event.header("x-number") or "0")

    manager = AgentManager([AgentConfig("agent", Fragile())])
    client = TestClient(AgentMiddleware(APP, manager=manager))

    for _ in range(4):
        assert client.get("/", headers={"x-number": "many"}).status_code == 503
    assert client.get("/").status_code == 200
    for _ in range(5):
        assert client.get("/", headers={"x-number": "many"}).text == "Agent unavailable"
    assert client.get("/").text == "Service unavailable"
    assert EventType.REQUEST_HEADERS in registry_of(manager).guard("agent").hears
