"""Random guarded apps, which write down which of their handlers run and which of their agents are asked."""

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import anyio
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Mount, Route, WebSocketRoute
from starlette.types import Message, Scope
from starlette.websockets import WebSocket

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentMiddleware,
    AgentRoute,
    FailureMode,
    RequestHeadersEvent,
    guard_router,
    guarded_by,
    protect,
    unguarded,
)

PARAMETERS = {"{id}": "42", "{n:int}": "7", "{name}": "anna", "{rest:path}": "deep/down"}


class Call(NamedTuple):
    """A connection that is meant for one handler: what the client sends, and the pattern that it is for."""

    kind: str
    method: str
    host: str | None
    path: str
    pattern: str
    handler: str


class Outcome(NamedTuple):
    """Which agents were asked, in order, and which handler ran, or None."""

    asked: list[str]
    ran: str | None


class RandomApp:
    """A FastAPI app with ``count`` endpoints in routers, mounts and hosts, guarded in one of several ways."""

    def __init__(self, seed: int, count: int) -> None:
        self._random = random.Random(seed)  # noqa: S311
        self._asked: list[str] = []
        self._ran: list[str] = []
        self._number = 0
        self._left = count
        self.calls: list[Call] = []
        self.patterns: list[str] = []
        root = FastAPI()
        while self._left:
            self._fill(root, "", None, 3, guarded=False)
        self.app: Any = self._guard(root, "outer")

    def outcome(self, call: Call) -> Outcome:
        """Make a call for real."""
        self._asked.clear()
        self._ran.clear()
        anyio.run(self._serve, call)
        return Outcome([*self._asked], self._ran[-1] if self._ran else None)

    async def _serve(self, call: Call) -> None:
        websocket = call.kind == "websocket"
        scope: Scope = {
            "type": call.kind,
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "ws" if websocket else "http",
            "method": call.method,
            "path": call.path,
            "raw_path": call.path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", (call.host or "testserver").encode())],
            "client": ("192.0.2.1", 1234),
            "server": ("testserver", 80),
            "subprotocols": [],
            "state": {},
        }
        messages: list[Message] = [{"type": "websocket.connect"}] if websocket else [{"type": "http.request"}]

        async def receive() -> Message:
            return messages.pop() if messages else {"type": f"{call.kind}.disconnect", "code": 1000}

        async def send(message: Message) -> None:
            pass

        await self.app(scope, receive, send)

    # Parts

    def _fill(self, parent: Any, prefix: str, host: str | None, depth: int, *, guarded: bool) -> None:
        """Put endpoints, and other containers, into one."""
        for _ in range(self._random.randint(2, 8)):
            if not self._left:
                return
            containers = ["router", "mount", "starlette", "host"] if hasattr(parent, "include_router") else ["mount"]
            kind = self._random.choice([*["endpoint"] * 5, *containers])
            if kind == "endpoint" or not depth:
                self._left -= 1
                self._endpoint(parent, prefix, host, guarded=guarded)
                continue
            self._number += 1
            segment = f"/{kind}{self._number}"
            if kind == "router":
                router = APIRouter()
                self._fill(router, prefix + segment, host, depth - 1, guarded=guarded)
                if self._random.random() < 0.2 and not guarded:
                    guard_router(router, *self._ids("outer"))
                parent.include_router(router, prefix=segment)
            elif host is None and kind == "host" and isinstance(parent, FastAPI):
                name = f"h{self._number}.example.org"
                inner: Any = FastAPI(openapi_url=None)
                self._fill(inner, prefix, name, 0, guarded=guarded)
                parent.router.routes.append(Host(name, inner))
            elif kind == "starlette":
                inner = Starlette()
                self._fill(inner, prefix + segment, host, depth - 1, guarded=guarded)
                parent.routes.append(Mount(segment, inner))
            else:
                inner = FastAPI(openapi_url=None)
                own = self._random.random() < 0.3
                before = len(self.patterns)
                self._fill(inner, prefix + segment, host, depth - 1, guarded=guarded or own)
                if own:
                    below = [pattern.removeprefix(prefix + segment) for pattern in self.patterns[before:]]
                    inner = self._guard(inner, f"inner{self._number}", below)
                parent.routes.append(Mount(segment, inner))

    def _endpoint(self, parent: Any, prefix: str, host: str | None, *, guarded: bool) -> None:
        self._number += 1
        name = f"handler{self._number}"
        own = "/" + self._random.choice(["{id}", "e", "e/{n:int}", "{name}/e", "{rest:path}", "e/{id}/{name}"])
        if self._random.random() < 0.8:
            own = f"/p{self._number}{own}"
        pattern = path = prefix + own
        for parameter, value in PARAMETERS.items():
            path = path.replace(parameter, value)
        websocket = self._random.random() < 0.15
        methods = self._random.choice([["GET"], ["POST"], ["GET", "DELETE"], ["PUT"]])
        plain = isinstance(parent, Starlette) and not isinstance(parent, FastAPI)
        handler = self._handler(name, websocket=websocket, plain=plain)
        if not guarded and self._random.random() < 0.15:
            policy: Callable[[Any], Any] = unguarded if self._random.random() < 0.3 else guarded_by(*self._ids("outer"))
            handler = policy(handler)
        if plain:
            parent.routes.append(WebSocketRoute(own, handler) if websocket else Route(own, handler, methods=methods))
        elif websocket:
            parent.add_api_websocket_route(own, handler)
        else:
            parent.add_api_route(own, handler, methods=methods)
        self.patterns.append(pattern)
        for method in ["GET"] if websocket else methods:
            self.calls.append(Call("websocket" if websocket else "http", method, host, path, pattern, name))

    def _handler(self, name: str, *, websocket: bool, plain: bool) -> Any:
        ran = self._ran

        async def serve_websocket(websocket: WebSocket) -> None:
            ran.append(name)
            await websocket.accept()
            await websocket.close()

        async def serve_plain(request: object) -> PlainTextResponse:
            ran.append(name)
            return PlainTextResponse(name)

        async def serve() -> str:
            ran.append(name)
            return name

        handler = serve_websocket if websocket else serve_plain if plain else serve
        handler.__name__ = name
        return handler

    # Agents

    def _ids(self, prefix: str) -> list[str | tuple[str, FailureMode]]:
        ids = [f"{prefix}-{letter}" for letter in "abcd"]
        chosen = self._random.sample(ids, self._random.randint(1, 3))
        return [(one, FailureMode.OPEN) if self._random.random() < 0.3 else one for one in chosen]

    def _guard(self, app: Any, prefix: str, patterns: list[str] | None = None) -> Any:
        asked = self._asked

        class Recording(Agent):
            def __init__(self, name: str) -> None:
                self.name = name

            async def on_request_headers(self, event: RequestHeadersEvent) -> None:
                asked.append(self.name)

        agents = [AgentConfig(f"{prefix}-{letter}", Recording(f"{prefix}-{letter}")) for letter in "abcd"]
        routes = [self._route(prefix, pattern) for pattern in self._chosen(patterns or self.patterns)]
        given: dict[str, Any] = {"agents": agents, "routes": routes}
        if self._random.random() < 0.5:
            given["default_agents"] = self._ids(prefix)
        way = self._random.choice(["protect", "add_middleware", "wrap"])
        if way == "protect":
            protect(app, **given)
        elif way == "add_middleware":
            app.add_middleware(AgentMiddleware, **given)
        else:
            return AgentMiddleware(app, **given)
        return app

    def _chosen(self, patterns: list[str]) -> list[str]:
        chosen = self._random.sample(patterns, len(patterns) // 4)
        for pattern in self._random.sample(patterns, len(patterns) // 6):
            # All that is below a prefix, or one path of many.
            parts = pattern.split("/")
            literal = next((number for number, part in enumerate(parts) if "{" in part), len(parts))
            if literal > 1 and self._random.random() < 0.6:
                chosen.append("/".join([*parts[: self._random.randint(1, literal - 1) + 1][:literal], "{rest:path}"]))
            else:
                for parameter, value in PARAMETERS.items():
                    pattern = pattern.replace(parameter, value, self._random.randint(0, 1))
                chosen.append(pattern)
        self._random.shuffle(chosen)
        return chosen

    def _route(self, prefix: str, pattern: str) -> AgentRoute:
        methods = self._random.choice([None, None, None, ["GET"], ["POST", "PUT"]])
        agents = self._ids(prefix) if self._random.random() < 0.85 else []
        return AgentRoute(pattern, agents=agents, methods=methods)
