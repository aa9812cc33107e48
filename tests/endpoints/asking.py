"""Apps whose handlers and agents note that they were called, and connections to them."""

from collections.abc import Iterable
from typing import Any

import anyio
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from asgi_agents import Agent, AgentConfig, AgentMiddleware, AgentRoute, RequestHeadersEvent, protect
from tests.support.asgi import connection

IDS = ("waf", "pii", "auth", "rest", "route")


class Noting(Agent):
    """Notes that it was asked, and under which route."""

    def __init__(self, name: str, asked: list[str], routes: list[str | None]) -> None:
        self._name = name
        self._asked = asked
        self._routes = routes

    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        self._asked.append(self._name)
        self._routes.append(event.metadata.route_id)


class World:
    """What ran and who was asked."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.asked: list[str] = []
        self.routes: list[str | None] = []

    def agents(self, ids: Iterable[str] = IDS) -> list[AgentConfig]:
        return [AgentConfig(name, Noting(name, self.asked, self.routes)) for name in ids]

    def protect(self, app: Starlette, ids: Iterable[str] = IDS, **options: Any) -> AgentMiddleware:
        """Guard an app whose endpoints have the agent ``rest``, unless they say otherwise."""
        return protect(app, agents=self.agents(ids), **{"routes": [], "default_agents": ["rest"]} | options)

    def guard(self, app: ASGIApp, ids: Iterable[str] = IDS, **options: Any) -> AgentMiddleware:
        given: dict[str, Any] = {"routes": [], "default_agents": ["rest"]} | options
        return AgentMiddleware(app, agents=self.agents(ids), **given)

    def http(self, name: str) -> Any:
        """A new handler of Starlette, or of FastAPI."""

        async def handler(request: Request) -> Response:
            self.ran.append(name)
            return PlainTextResponse(name)

        handler.__name__ = handler.__qualname__ = name
        return handler

    def sync(self, name: str) -> Any:
        def handler(request: Request) -> Response:
            self.ran.append(name)
            return PlainTextResponse(name)

        handler.__name__ = handler.__qualname__ = name
        return handler

    def websocket(self, name: str) -> Any:
        async def handler(websocket: WebSocket) -> None:
            self.ran.append(name)
            await websocket.accept()
            await websocket.close()

        handler.__name__ = handler.__qualname__ = name
        return handler

    def app(self, name: str) -> ASGIApp:
        """An app without routes."""

        async def leaf(scope: Scope, receive: Receive, send: Send) -> None:
            self.ran.append(name)
            if scope["type"] == "websocket":
                await send({"type": "websocket.accept"})
                await send({"type": "websocket.close"})
            else:
                await PlainTextResponse(name)(scope, receive, send)

        return leaf

    async def call(self, app: ASGIApp, line: str, **options: Any) -> tuple[int, list[str], list[str]]:
        """The status of the answer, the handlers that ran, and the agents that were asked.

        ``line`` is a method, or ``WS``, and a path. The status of a websocket is 101 if it was accepted, else the code
        with which it was closed.
        """
        for noted in (self.ran, self.asked, self.routes):
            noted.clear()
        method, path = line.split(" ")
        status = await call(app, method, path, **options)
        return status, [*self.ran], [*self.asked]


async def call(app: ASGIApp, method: str, path: str, **options: Any) -> int:
    scope = connection(path, method, **options)
    unread = [{"type": "http.request"} if scope["type"] == "http" else {"type": "websocket.connect"}]
    sent: list[Message] = []

    async def receive() -> Message:
        if not unread and scope["type"] == "http":
            await anyio.sleep_forever()
        return unread.pop() if unread else {"type": "websocket.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    if not sent:
        return 0
    status: int = sent[0].get("status", 101 if sent[0]["type"] == "websocket.accept" else sent[0].get("code", 0))
    return status


def fastapi(**options: Any) -> FastAPI:
    """An app without pages of its own."""
    return FastAPI(docs_url=None, redoc_url=None, openapi_url=None, **options)


def everything(*agents: str) -> AgentRoute:
    return AgentRoute("/{rest:path}", agents)
