"""Apps that are guarded in all the ways there are, by agents that nobody serves."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import httpx
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Mount, Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from asgi_agents import AgentConfig, AgentMiddleware, EventType, protect
from asgi_agents.manager import registry_of
from asgi_agents.placement import middlewares_of

#: An address at which nothing listens: the port of the TCP port service multiplexer, which no system has any more.
NOBODY: Final = "http://127.0.0.1:1/"
HEADS: Final = frozenset({EventType.REQUEST_HEADERS})


def remote(agent_id: str = "waf", transport: Any = NOBODY, **options: Any) -> AgentConfig:
    """A remote agent that receives the heads of requests."""
    return AgentConfig(agent_id, transport, **{"events": HEADS, **options})


async def _orders(request: Request) -> PlainTextResponse:
    return PlainTextResponse("lamp")


async def _echo(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


def shop(*inner: Any, **options: Any) -> Starlette:
    """An app without agents: ``/orders``, and ``/echo`` for websockets."""
    routes = [Route("/orders", _orders, methods=["GET", "POST"]), WebSocketRoute("/echo", _echo), *inner]
    return Starlette(routes=routes, **options)


def protected(*configs: AgentConfig, **options: Any) -> Starlette:
    """An app with agents around it: one that is named ``waf``, if none is given."""
    app = shop()
    protect(app, agents=configs or [remote()], **options)
    return app


def added() -> ASGIApp:
    app = shop()
    app.add_middleware(AgentMiddleware, agents=[remote()])
    return app


def wrapped() -> ASGIApp:
    return AgentMiddleware(shop(), agents=[remote()])


def below_others() -> ASGIApp:
    class Outer:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await self.app(scope, receive, send)

    return Outer(Outer(AgentMiddleware(shop(), agents=[remote()])))


def mounted() -> ASGIApp:
    """The shop has the root, where another app is in which it is mounted."""
    return Starlette(routes=[Mount("/", protected())])


def mounted_and_added() -> ASGIApp:
    return Starlette(routes=[Mount("/", added())])


def of_a_host() -> ASGIApp:
    return Starlette(routes=[Host("testserver", protected())])


def of_a_mount() -> ASGIApp:
    middleware = [Middleware(AgentMiddleware, agents=[remote()])]
    return Starlette(routes=[Mount("/", routes=shop().routes, middleware=middleware)])


#: Each has ``/orders``, and an agent ``waf`` at :data:`NOBODY` in front of it.
GUARDED: Final[Mapping[str, Callable[[], ASGIApp]]] = {
    each.__name__: each
    for each in (protected, added, wrapped, below_others, mounted, mounted_and_added, of_a_host, of_a_mount)
}


def get(app: ASGIApp, path: str = "/orders", **options: Any) -> Any:
    """The response of an app that runs for that."""
    with TestClient(app) as client:
        return client.get(path, follow_redirects=False, **options)


async def aget(app: ASGIApp, path: str = "/orders") -> httpx.Response:
    """The response of an app that has not been started."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://testserver") as client:
        return await client.get(path)


def state_of(app: ASGIApp) -> object:
    """What overrides change: the agents, and how they are recorded."""
    return [
        (
            middleware,
            registry_of(middleware.manager).guards(),
            tuple(registry_of(middleware.manager)._aside),
            vars(middleware)["_auditor"],
            vars(middleware)["_plan"],
        )
        for middleware in middlewares_of(app)
    ]


@contextmanager
def left_as_it_was(app: ASGIApp) -> Iterator[None]:
    """Check that the block leaves nothing behind."""
    before = state_of(app)
    yield
    assert state_of(app) == before
