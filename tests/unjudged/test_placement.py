"""Nothing of a protected app answers without its agents."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Router, WebSocketRoute
from starlette.routing import Route as AppRoute
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from asgi_agents import Agent, AgentManager, AgentMiddleware, AgentResponse, ConfigurationError, HeaderOp, Route
from tests.support.asgi import App, Probe

from .asking import config, protect

BLOCK = AgentResponse.block(418)
LEAK = "mallory@example.org"


async def page(request: Request) -> Response:
    if request.url.path == "/fails":
        raise RuntimeError(LEAK)
    if request.url.path == "/refuses":
        raise HTTPException(400, LEAK)
    return PlainTextResponse(request.headers.get("x-user", "nobody"))


async def session(socket: WebSocket) -> None:
    await socket.accept()
    await socket.close()


async def handler(request: Request, exc: Exception) -> Response:
    return PlainTextResponse(f"{LEAK} {request.headers.get('x-user')}", 500)


def starlette_app(**options: Any) -> Starlette:
    return Starlette(
        routes=[AppRoute("/{rest:path}", page, methods=["GET"]), WebSocketRoute("/ws", session)], **options
    )


def fastapi_app(**options: Any) -> FastAPI:
    app = FastAPI(**options)
    app.router.routes += [AppRoute("/{rest:path}", page, methods=["GET"]), WebSocketRoute("/ws", session)]
    return app


each_kind = pytest.mark.parametrize("make", [starlette_app, fastapi_app], ids=["starlette", "fastapi"])
Make = Callable[..., Any]


def visitor(app: ASGIApp) -> TestClient:
    return TestClient(app, raise_server_exceptions=False)


@each_kind
@pytest.mark.parametrize("options", [{"debug": True}, {"exception_handlers": {Exception: handler}}, {}, {500: handler}])
@pytest.mark.parametrize("path", ["/", "/fails", "/refuses", "/docs", "/openapi.json", "/nowhere/at/all"])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "HEAD", "BREW"])
def test_whatever_answers_is_asked_about_before_and_after(
    make: Make, options: dict[Any, Any], path: str, method: str
) -> None:
    options = {"exception_handlers": options} if 500 in options else options
    app = make(**options)
    protect(app, agents=[config(Probe(request_headers=BLOCK))])
    assert visitor(app).request(method, path).status_code == 418
    app, agent = make(**options), Probe(response_headers=None, response_body=BLOCK)
    protect(app, agents=[config(agent)])
    answer = visitor(app).request(method, path)
    assert (answer.status_code == 418 or not answer.content, LEAK in answer.text) == (True, False)
    assert len(agent.of("response_headers")) == 1


@each_kind
def test_an_error_handler_sees_what_the_agents_made_of_the_request(make: Make) -> None:
    app = make(exception_handlers={Exception: handler})
    protect(
        app,
        agents=[config(Probe(request_headers=AgentResponse.allow(request_headers=[HeaderOp.set("x-user", "alice")])))],
    )
    assert visitor(app).get("/fails", headers={"x-user": "root"}).text == f"{LEAK} alice"
    assert visitor(app).get("/", headers={"x-user": "root"}).text == "alice"


class Answering:
    """A middleware that answers itself."""

    def __init__(self, app: ASGIApp, name: str = "inner") -> None:
        self.app, self.name = app, name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and dict(scope["headers"]).get(b"x-answer", b"").decode() == self.name:
            await PlainTextResponse(self.name)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


@each_kind
@pytest.mark.parametrize("when", ["before", "after", "instrumented before", "instrumented after", "uninstrumented"])
def test_the_agents_are_outside_of_every_middleware(make: Make, when: str) -> None:
    app = make()
    if "before" in when:
        app.add_middleware(Answering)
    if isinstance(app, FastAPI) and when == "instrumented before":
        FastAPIInstrumentor.instrument_app(app)
    middleware = protect(app, agents=[config(Probe(request_headers=BLOCK))])
    assert type(middleware) is AgentMiddleware
    if "before" not in when:
        app.add_middleware(Answering)
    if isinstance(app, FastAPI) and when in ("instrumented after", "uninstrumented"):
        FastAPIInstrumentor.instrument_app(app)
    if isinstance(app, FastAPI) and when == "uninstrumented":
        FastAPIInstrumentor.uninstrument_app(app)
    with visitor(app) as client:
        assert client.get("/", headers={"x-answer": "inner"}).status_code == 418
        with pytest.raises(RuntimeError, match="started"):
            app.add_middleware(Answering)
        if isinstance(app, FastAPI) and when == "instrumented after":
            FastAPIInstrumentor.uninstrument_app(app)
        app.middleware_stack = app.build_middleware_stack()
        assert client.get("/").status_code == 418
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("/ws"):
            pass


@each_kind
def test_what_stands_outside_is_asked_first_and_sees_denials(make: Make) -> None:
    cors = Middleware(CORSMiddleware, allow_origins=["https://a.example"])
    outside = [cors, Middleware(Answering, "first"), Middleware(Answering, "second")]
    app = make()
    protect(app, agents=[config(Probe(request_headers=BLOCK))], outside=outside)
    client, origin = visitor(app), {"origin": "https://a.example"}
    preflight = client.options("/", headers={**origin, "access-control-request-method": "GET"})
    assert preflight.status_code == 200
    denied = client.get("/", headers=origin)
    assert (denied.status_code, denied.headers["access-control-allow-origin"]) == (418, "https://a.example")
    for name in ("first", "second"):
        answer = client.get("/", headers={**origin, "x-answer": name})
        assert (answer.text, "access-control-allow-origin" in answer.headers) == (name, True)
    assert client.get("/", headers={"x-answer": "inner"}).status_code == 418


@each_kind
def test_the_app_stays_what_it_was(make: Make) -> None:
    events: list[str] = []

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[dict[str, Any]]:
        events.append("up")
        yield {"given": "state"}
        events.append("down")

    app, other = make(lifespan=lifespan), make()
    app.state.value = 1
    manager = AgentManager([config(Probe(request_headers=None))])
    protect(app, manager=manager, routes=[Route("/{rest:path}", ["agent"])])
    assert isinstance(app, type(other))
    assert app.middleware_stack is None
    with TestClient(app) as client:
        assert (client.get("/").text, events, app.state.value) == ("nobody", ["up"], 1)
        with client.websocket_connect("/ws"):
            pass
    assert events == ["up", "down"]
    assert manager.metrics["agent"].calls == 2
    # And nobody else's app has got agents.
    assert TestClient(other).get("/").text == "nobody"
    outer = Starlette(routes=[Mount("/in", app)])
    assert TestClient(outer).get("/in/x").text == "nobody"
    assert manager.metrics["agent"].calls == 3


def test_docs_and_mounted_apps_are_served_as_before() -> None:
    app = FastAPI()
    app.mount("/sub", starlette_app())
    agent = Probe(request_headers=None)
    protect(app, agents=[config(agent)])
    client = TestClient(app)
    assert [client.get(path).status_code for path in ("/docs", "/openapi.json", "/sub/x", "/none")] == [
        200,
        200,
        200,
        404,
    ]
    assert len(agent.of("request_headers")) == 4


@each_kind
def test_an_app_that_is_started_or_protected_is_refused(make: Make) -> None:
    agents = [config(Probe(request_headers=BLOCK))]
    started = make()
    assert TestClient(started).get("/").status_code == 200
    with pytest.raises(ConfigurationError):
        protect(started, agents=agents)
    assert TestClient(started).get("/").status_code == 200
    app = make()
    with pytest.raises(ConfigurationError):
        protect(app)
    protect(app, agents=agents)
    with pytest.raises(ConfigurationError):
        protect(app, agents=agents)
    assert TestClient(app).get("/").status_code == 418
    with pytest.raises(ConfigurationError):
        protect(app, agents=agents)


@pytest.mark.parametrize("app", [App(), Router(), Answering(App()), None, FastAPI, AgentMiddleware(App(), agents=[])])
def test_any_other_app_is_told_what_to_take(app: Any) -> None:
    with pytest.raises(TypeError, match="AgentMiddleware"):
        protect(app, agents=[])


def test_what_a_block_everything_agent_refuses_reaches_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    app = starlette_app(exception_handlers={Exception: handler})

    class Late(Agent):
        async def on_response_headers(self, event: Any) -> AgentResponse:
            return BLOCK

    protect(app, agents=[config(Late())])
    assert visitor(app).get("/fails").status_code == 418
    assert not any(record.name.startswith("asgi_agents") and LEAK in record.getMessage() for record in caplog.records)
