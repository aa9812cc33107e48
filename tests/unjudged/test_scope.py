"""Whoever still reads a request's scope reads what the agents made of it."""

from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route as AppRoute
from starlette.types import Receive, Scope, Send

from asgi_agents import AgentMiddleware, AgentResponse, HeaderOp
from tests.support.asgi import App, Client, Probe, body, guarded, start

from .asking import Echo, Session, ask, ask_again, config

OPS = [HeaderOp.set("x-user", "alice"), HeaderOp.remove("x-api-key")]
CHANGE = AgentResponse.allow(request_headers=OPS)
GIVEN = [(b"x-user", b"root"), (b"x-api-key", b"key")]
REACTIONS: dict[str, dict[str, Any]] = {"head": {"request_headers": CHANGE}, "body": {"request_body": CHANGE}}
each_answer = pytest.mark.parametrize("reactions", REACTIONS.values(), ids=REACTIONS)


def seen(scope: Scope) -> tuple[str | None, str | None]:
    headers = HTTPConnection(scope).headers
    return headers.get("x-user"), headers.get("x-api-key")


class LeftBehind:
    """An app whose task reads the headers only after the response."""

    def __init__(self, inner: Any = None) -> None:
        self.inner = inner or App()
        self.scopes: list[Scope] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        await self.inner(scope, receive, send)


@each_answer
async def test_a_task_that_is_left_behind_sees_what_the_app_saw(reactions: dict[str, Any]) -> None:
    app, over = LeftBehind(), anyio.Event()
    read: list[Any] = []

    async def late(scope: Scope) -> None:
        await over.wait()
        read.append(seen(scope))

    async with anyio.create_task_group() as tasks:

        async def spawning(scope: Scope, receive: Receive, send: Send) -> None:
            tasks.start_soon(late, scope)
            await app(scope, receive, send)

        middleware = guarded(spawning, config(Probe(**reactions)))
        client = await ask_again(middleware, Client("POST", headers=GIVEN, body=b"hello"))
        over.set()
    assert read == [("alice", None)] == [seen(app.scopes[0])]
    # Whoever stands around the agents has the client's own.
    assert seen(client.scope) == ("root", "key")


async def test_so_does_one_of_a_websocket_session_and_of_an_app_that_failed() -> None:
    echo, session = LeftBehind(Echo()), Session(headers=GIVEN)
    await session.call(guarded(echo, config(Probe(request_headers=CHANGE))))
    assert (seen(echo.scopes[0]), seen(session.scope)) == (("alice", None), ("root", "key"))

    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        scope["endpoint"] = failing
        raise LookupError

    app, client = LeftBehind(failing), Client(headers=GIVEN)
    with pytest.raises(LookupError):
        await ask(app, config(Probe(request_headers=CHANGE)), client=client)
    assert (seen(app.scopes[0]), seen(client.scope)) == (("alice", None), ("root", "key"))
    assert client.scope["endpoint"] is failing


async def test_what_the_app_sets_is_there_when_the_response_starts_and_at_its_end() -> None:
    client, at_start = Client(headers=GIVEN), dict[str, Any]()
    client.scope["path_params"] = {"outer": 1}
    own_headers, own_extensions = client.scope["headers"], client.scope["extensions"]
    send = client.send

    async def watching(message: Any) -> None:
        at_start.update(client.scope) if message["type"] == "http.response.start" else None
        await send(message)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["shared"] = True
        scope.update(endpoint="early", path_params={"inner": 2}, headers=[], extensions={"new": {}}, path="/else")
        await send(start())
        scope["route"] = "late"
        await send(body())

    client.send = watching  # type: ignore[method-assign]
    await ask(app, config(Probe(request_headers=CHANGE)), client=client)
    assert (at_start["endpoint"], at_start["path_params"], at_start.get("route")) == ("early", {"inner": 2}, None)
    assert (client.scope["route"], client.scope["path"]) == ("late", "/else")
    assert client.scope["state"]["shared"]
    assert client.scope["headers"] is own_headers == GIVEN
    assert client.scope["extensions"] is own_extensions
    assert "new" not in own_extensions


@pytest.mark.parametrize("kind", ["starlette", "fastapi"])
async def test_a_middleware_around_the_agents_reads_route_and_endpoint(kind: str) -> None:
    found: list[Any] = []

    async def handler(request: Request) -> PlainTextResponse:
        return PlainTextResponse("hello")

    async def dispatch(request: Request, call_next: Any) -> Any:
        response = await call_next(request)
        found.append((request.scope["endpoint"], request.headers["x-user"], request.path_params))
        if kind == "fastapi":
            assert request.scope["route"].path == "/items/{id}"
        return response

    inside = Middleware(AgentMiddleware, agents=[config(Probe(request_headers=CHANGE))])
    middleware = [Middleware(BaseHTTPMiddleware, dispatch=dispatch), inside]
    app: Any = Starlette(routes=[AppRoute("/items/{id}", handler)], middleware=middleware)
    if kind == "fastapi":
        app = FastAPI(middleware=middleware)
        app.add_api_route("/items/{id}", handler)
    client = await ask_again(app, Client(path="/items/7", headers=GIVEN))
    assert (client.status, found) == (200, [(handler, "root", {"id": "7"})])


@pytest.mark.parametrize("answer", [None, AgentResponse.allow(), AgentResponse.allow(response_headers=OPS)])
async def test_where_no_header_changes_the_app_has_the_scope_itself(answer: Any) -> None:
    app, client = LeftBehind(), Client(headers=GIVEN)
    await ask(app, config(Probe(request_headers=answer)), client=client)
    assert app.scopes[0] is client.scope
