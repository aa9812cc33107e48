"""What is trusted, and what nobody but the agent or the app itself can see to."""

import json
import time
from typing import Any

import anyio
import pytest
from fastapi import Cookie, FastAPI, Header, Request
from starlette.responses import JSONResponse
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentContext,
    AgentMiddleware,
    AgentResponse,
    AuditMetadata,
    FailureMode,
    RequestHeadersEvent,
    ResponseBodyChunkEvent,
    ResponseHeadersEvent,
    Route,
    WebSocketFrameEvent,
)
from tests.support.asgi import App, Client, Held, SlowProbe, body, guarded, start
from tests.support.servers import serve

from .raw import get


class Heads(Agent):
    def __init__(self) -> None:
        self.heard: list[RequestHeadersEvent] = []

    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        self.heard.append(event)


def test_an_agent_in_the_process_is_bound_by_nothing_where_it_does_not_await() -> None:
    class Blocks(Agent):
        async def on_request_headers(self, event: RequestHeadersEvent) -> None:
            time.sleep(0.03)  # noqa: ASYNC251 - as it should not

    config = AgentConfig("agent", Blocks(), timeout=0.01)

    assert TestClient(AgentMiddleware(App(), agents=[config])).get("/").status_code == 200


def test_of_several_fields_of_a_name_agents_and_apps_take_the_same(server: dict[str, Any]) -> None:
    """The first is `event.header(…)`, `request.headers[…]` and FastAPI's `Header()`; all are in `event.headers`.

    Cookies are one field for everybody, whose last value of a name counts.
    """
    app, agent = FastAPI(), Heads()

    @app.get("/")
    def show(request: Request, x_api_key: str = Header(), session: str = Cookie()) -> list[Any]:
        cookies = [request.headers.getlist("cookie"), request.cookies, session]
        return [x_api_key, request.headers["x-api-key"], *cookies]

    names = (b"X-Api-Key: first", b"cookie: a=1; session=mine", b"x-api-key: second", b"Cookie: session=stolen")
    with serve(AgentMiddleware(app, agents=[AgentConfig("agent", agent)]), **server) as url:
        answered = get(url, b"/", *names, b"x-api-key:")

    joined = "a=1; session=mine; session=stolen"
    cookies = {"a": "1", "session": "stolen"}
    assert json.loads(answered.partition(b"\r\n\r\n")[2]) == ["first", "first", [joined], cookies, "stolen"]
    (event,) = agent.heard
    assert event.header("x-api-key") == "first"
    assert event.headers["x-api-key"] == ("first", "second", "")
    assert event.header("cookie") == joined
    assert event.headers["cookie"] == (joined,)


def test_an_agent_sees_a_path_as_it_came_and_the_app_sees_it_decoded(server: dict[str, Any]) -> None:
    agent = Heads()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await JSONResponse(scope["path"])(scope, receive, send)

    guarded_app = AgentMiddleware(app, agents=[AgentConfig("agent", agent)])
    with serve(guarded_app, **server, lifespan="off") as url:
        answered = get(url, b"/a%2Fb/%2e%2e/%61dmin?x=%27")

    assert answered.endswith(b'"/a/b/../admin"')
    assert agent.heard[0].uri == "/a%2Fb/%2e%2e/%61dmin?x=%27"


async def test_trailers_of_a_response_are_not_shown() -> None:
    shown: list[object] = []

    class Responses(Agent):
        async def on_response_headers(self, event: ResponseHeadersEvent) -> None:
            shown.append(event)

        async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> None:
            shown.append(event)

    trailers = {"type": "http.response.trailers", "headers": [(b"x-secret", b"hunter2")], "more_trailers": False}
    client = Client(extensions={"http.response.trailers": {}})
    await client.call(guarded(App({**start(), "trailers": True}, body(b"x"), trailers), AgentConfig("a", Responses())))

    assert client.messages[-1] == trailers
    assert len(shown) == 2


@pytest.mark.parametrize("length", [1, 50_000])
def test_of_a_long_session_the_newest_answers_are_kept_within_two_mebibytes(length: int) -> None:
    sizes: list[int] = []
    kept: list[int] = []
    forgotten: list[int] = []

    class Tags(Agent):
        async def on_websocket_frame(self, event: WebSocketFrameEvent) -> AgentResponse:
            return AgentResponse.allow(audit=AuditMetadata(tags=["t" * length]))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        for _ in range(1001):
            await send({"type": "websocket.send", "text": "x"})
        agents: AgentContext = scope["state"]["agents"]
        verdicts = agents.decision.verdicts
        sizes.append(sum(len(tag) for verdict in verdicts if verdict.response for tag in verdict.response.audit.tags))
        kept.append(len(verdicts))
        forgotten.append(agents.verdicts_forgotten)
        await send({"type": "websocket.close"})

    client = TestClient(AgentMiddleware(app, agents=[AgentConfig("agent", Tags())]))
    with client.websocket_connect("/") as websocket:
        for _ in range(1001):
            assert websocket.receive_text() == "x"

    assert 0 < kept[0] <= 1000
    assert 0 < sizes[0] <= 2 * 1024 * 1024
    assert forgotten[0] > 0


@pytest.mark.parametrize("path", ["/other", "/admin/more"])
def test_a_path_that_no_route_names_has_no_agents(path: str) -> None:
    agent = Heads()
    middleware = AgentMiddleware(App(), agents=[AgentConfig("agent", agent)], routes=[Route("/admin", ["agent"])])

    assert TestClient(middleware).get(path).status_code == 200
    assert agent.heard == []


async def test_a_fail_open_agent_is_passed_by_whoever_keeps_it_busy() -> None:
    held, app = Held(AgentResponse.block()), App()
    config = AgentConfig(
        "agent", SlowProbe(request_headers=held), failure_mode=FailureMode.OPEN, max_concurrent_calls=1, timeout=0.02
    )
    middleware = guarded(app, config)
    busy, sly = Client(), Client()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(busy.call, middleware)
        await held.reached.wait()
        await sly.call(middleware)
        held.gate.set()

    assert sly.status == 200
    assert app.calls >= 1
